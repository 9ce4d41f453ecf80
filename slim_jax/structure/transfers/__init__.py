"""What each operation does to axes: `TRANSFERS` by primitive, and `by_rule` for all others.

Notes on terms, from operations on data:

    summed      a sum runs over it, as in the mean and variance of a norm
    centred     a value that is the same along it is subtracted, as the mean of a LayerNorm is
    changed     the scale of a norm over it is computed from a variable, as 1 + w
    mixed       an operation reads it whole: a maximum (as in softmax), a window ...
    ordered     an operation compares its indices with each other: a sort, top_k, argmax
    added       a sum of values made by different layers runs over it, as in a residual stream
    batched     a product of two values runs over it: heads
    contracted  a product of two values sums over it: query-key dimensions
    free        a product of two values keeps it: value dimensions, heads of one key
    conv        channels of a convolution
    carried     carried from step to step of a scan over the data
    positions   constants differ along it, as rotary tables do
"""

from typing import Any

from slim_jax.structure.trace import Transfer
from slim_jax.structure.transfers.arithmetic import ARITHMETIC, by_rule
from slim_jax.structure.transfers.control import CONTROL
from slim_jax.structure.transfers.movement import MOVES

TRANSFERS: dict[Any, Transfer] = {**ARITHMETIC, **MOVES, **CONTROL}

__all__ = ['TRANSFERS', 'by_rule']
