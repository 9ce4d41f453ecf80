"""Slimming as a transformation of functions: plan, slice, thin.

`blocks` (which indices), `rule` (what a primitive does to them, the table), `rules/` (the
table's entries, a family a file), `analysis` (zeros forward, need backward, thin evaluation),
`plan`, `planning` and `thin` (the transformation on functions of pytrees), `explain` (why something
stayed whole), `streams` (which channels travel together).
"""

import slim_jax.channels.rules  # noqa: F401  fills the table
from slim_jax.channels.plan import Plan
from slim_jax.channels.planning import plan
from slim_jax.channels.streams import streams
from slim_jax.channels.thin import mask, thin

__all__ = ['Plan', 'mask', 'plan', 'streams', 'thin']
