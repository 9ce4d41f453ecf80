"""The structure of a network: which channels go together, and gates for them.

Bottom up: `terms` (how axes are made of others), `trace` and `transfers` (axes through a program),
`kinds` and `question` (what channels are, and what dies with them), `unit` and `find` (`units`),
`gates` (`gate` and `fold`), `alignment` (`align`), `native` (thin networks as narrower models).
"""
