"""The options that `select_global` and `select_budget` share."""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any, Literal, TypedDict


class SelectionKeywords(TypedDict, total=False):
  """The fields of `SelectionOptions` as keyword arguments: `**options: Unpack[SelectionKeywords]`."""

  min_channels: int | Mapping[str, int]
  max_fraction: float | Mapping[str, float]
  keep: str | Iterable[str]
  multiple_of: int
  per_layer: bool
  strict: bool
  tied: Any
  tied_by: Literal['sum', 'mean', 'max']
  scores: Any
  scales: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionOptions:
  """How channels are ranked, and what each layer keeps whatever its scores.

  Layers are named by patterns of `fnmatch` (`*`, `?`, `[seq]`; a `*` also matches '/'), which must
  match the whole path of the scale, 'params/BatchNorm_0/scale'. A constraint is one value for all
  layers or a mapping from patterns to values, `{'*BatchNorm_0/*': 16}`. If several patterns match a
  layer, the longest applies, and of equally long ones the last. Layers that no pattern matches are
  not constrained.

  Attributes:
    min_channels: number of channels that stay in each layer at least (or all that it has). Those
      taken back have the largest scores.
    max_fraction: largest share of each layer that is removed, in [0, 1].
    keep: patterns of layers from which nothing is removed; a string is one pattern. Their channels,
      and channels tied to them, are not ranked: a fraction refers to the others.
    multiple_of: widths are rounded up to a multiple of this (or to all channels that the layer
      has). Those taken back have the largest scores. A layer that loses every channel stays empty.
    per_layer: whether the cutoff is applied to each layer separately instead of to all at once. A
      fraction then removes `int(n * fraction) + 1` of each: at 0.5, 3 of 4 heads; `multiple_of=2`
      leaves 2 of them.
    strict: whether channels stay only if their score is strictly greater than the largest that is
      removed, as in the paper: all that equal it are removed, which can be many more than were
      asked for, such as all scales that are exactly 0. By default as many are removed as if no
      scores were equal. Of equal ones, those that come first in their layers are removed, by index
      / channels; of those in the same place, the ones of earlier layers, in tree order. Tied
      channels have the place of the first of them. Distinct scores give the same selection either
      way, and so does a threshold.
    tied: tree of int [channels] at each scale leaf, as `streams` returns: channels with the same
      label are removed or kept together. Each is ranked as often as it has scales.
    tied_by: score of tied channels: the 'sum', 'mean' or 'max' of their scores. A sum over many
      layers outranks single channels. With `per_layer`, tied channels are removed if the cutoff of
      each of their layers removes them.
    scores: what ranks channels instead of |scale|: a tree of float [channels], or of the scale's
      shape, at each scale leaf, as the functions of `slim_jax.scores` return. Larger ones stay.
    scales: which leaves are scales, if not those that `batch_norm_scales` finds: a tree of bools,
      a prefix of it, or a function that returns one for the variables. Of a kernel that is marked,
      each output is ranked once, by its largest element: an index of the last axis, of the first
      axis of a `weight` (PyTorch, Equinox). A bool array of the kernel's rank names another axis:
      `np.ones((1, heads, 1), bool)` the heads of [inputs, heads, features]; so do `scores` of that
      shape. What is dead then has that shape, too.

  Raises:
    ValueError: a value is out of range.
  """

  min_channels: int | Mapping[str, int] = 0
  max_fraction: float | Mapping[str, float] = 1.0
  keep: str | Iterable[str] = ()
  multiple_of: int = 1
  per_layer: bool = False
  strict: bool = False
  tied: Any = None
  tied_by: Literal['sum', 'mean', 'max'] = 'sum'
  scores: Any = None
  scales: Any = None

  def __post_init__(self):
    if self.tied_by not in ('sum', 'mean', 'max'):
      raise ValueError(f"tied_by must be 'sum', 'mean' or 'max', got {self.tied_by!r}")
    if int(self.multiple_of) != self.multiple_of or self.multiple_of < 1:
      raise ValueError(f'multiple_of must be a whole number, 1 or more, got {self.multiple_of}')
    for value in _values(self.min_channels):
      if not value >= 0:
        raise ValueError(f'min_channels must be 0 or more, got {value}')
    for value in _values(self.max_fraction):
      if not 0 <= value <= 1:
        raise ValueError(f'max_fraction must be in [0, 1], got {value}')


def _values(constraint: Any) -> list[Any]:
  """Returns the values of a constraint for all layers or by pattern."""
  return list(constraint.values()) if hasattr(constraint, 'items') else [constraint]
