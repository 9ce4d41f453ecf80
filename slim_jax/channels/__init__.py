"""Slimming as a transformation of functions: plan, slice, thin.

`regions` (which indices), `rule` (what a primitive does to them), `rules/` (the table, a family a
file), `analysis` (zeros forward, need backward, thin evaluation), `plan`, `planning` and `thin`
(the transformation on functions of pytrees), `absorb` (biases of removed channels), `widen` (zeros
that are cheaper to compute), `explain` (why something stayed whole), `ties` (which channels travel
together).
"""

import slim_jax.channels.rules  # noqa: F401  fills the table
