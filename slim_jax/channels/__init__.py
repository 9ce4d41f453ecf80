"""Slimming as a transformation of functions: plan, slice, thin.

Bottom up: `regions` (sets of indices), `shuffle` and `programs` (the programs that are analysed),
`rule` (what a primitive does to regions) and `rules/` (the table, a family per file), `analysis`
(zeros forward, need backward, thin evaluation), `plan`, `planning` and `thin` (the transformation
of functions of pytrees), `absorb` (biases of removed channels), `widen` (zeros that are cheaper to
compute), `explain` (why an axis stayed whole), `ties` (which channels are the same channel).
"""

import slim_jax.channels.rules  # noqa: F401  fills the table
