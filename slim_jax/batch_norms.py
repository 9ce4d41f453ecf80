"""Where the BatchNorms of a model are, told from its variables alone.

Recognised by names and neighbours, for Flax Linen and NNX, Haiku, Equinox, Keras and
PyTorch-style names. Where running statistics are among the variables they decide:
a scale beside a mean is BatchNorm's, one without is LayerNorm's. In a tree of parameters
alone the module's name decides.
"""

from collections.abc import Iterable, Mapping
import re
from typing import Any, NamedTuple

import numpy as np

from slim_jax import tree
from slim_jax.tree import Path

SCALES = ('scale', 'gamma', 'weight')
BIASES = ('bias', 'beta', 'offset')
STATISTICS = ('mean', 'var', 'moving_mean', 'moving_variance', 'running_mean', 'running_var')
HAIKU_AVERAGES = ('mean_ema', 'var_ema')

_OTHER_NORM = re.compile(
  r'(layer|group|instance|rms|spectral|weight)_?norm|(^|_)(ln|gn)(_|\d|$)', re.I
)
_BATCH_NORM = re.compile(r'batch_?norm|(^|_)bn', re.I)


class BatchNorm(NamedTuple):
  """Paths of one BatchNorm's leaves.

  Attributes:
    scale: gamma, [channels] (or with axes of size 1, or [layers, channels] of stacked layers).
    bias: beta, or None.
    statistics: running mean, running variance, and what else is kept with them.
  """

  scale: Path
  bias: Path | None
  statistics: tuple[Path, ...]


def find(variables: Any) -> list[BatchNorm]:
  """The BatchNorms (with a scale) of a tree of variables, in tree order."""
  leaves = tree.flatten(variables)
  parts = {path: _parts(path, leaf) for path, leaf in leaves.items()}
  by_parts = {part: path for path, part in parts.items()}
  statistics: dict[Path, list[Path]] = {}
  for path, part in parts.items():
    module = _statistics_module(part)
    if module is not None:
      statistics.setdefault(module, []).append(path)
  with_scales = _prefixes(part for part in parts.values() if part and part[-1] in SCALES)
  with_statistics = _prefixes(statistics)
  # In another collection ('batch_stats' beside 'params', or a member of a tuple) the module's path
  # differs in one name, under which there are statistics alone.
  elsewhere = {
    (i, module[:i] + module[i + 1 :]): paths
    for module, paths in statistics.items()
    for i in range(len(module))
    if module[: i + 1] not in with_scales
  }
  inside = _equinox(variables)

  def beside(module: Path) -> list[Path] | None:
    for i in range(len(module)):
      if module[: i + 1] not in with_statistics and (i, module[:i] + module[i + 1 :]) in elsewhere:
        return elsewhere[i, module[:i] + module[i + 1 :]]
    return None

  found = []
  for path, part in parts.items():
    if not part or part[-1] not in SCALES or not getattr(leaves[path], 'shape', ()):
      continue
    module = part[:-1]
    stats = inside.get(path[:-1]) or statistics.get(module) or beside(module) or []
    alone = not statistics and not inside
    if _is_vector(leaves[path]):
      is_norm = path[:-1] in inside or stats or (alone and _is_named(part))
    else:  # layers of one shape in one array, as `scan` and `vmap` over layers keep them
      is_norm = (
        path[:-1] in inside
        or any(leaves[other].shape == leaves[path].shape for other in stats)
        or (alone and _BATCH_NORM.search(module[-1] if module else ''))
      )
    if is_norm:
      bias = next(
        (by_parts[module + (name,)] for name in BIASES if module + (name,) in by_parts), None
      )
      found.append(BatchNorm(path, bias, tuple(stats)))
  return found


def _prefixes(paths: Iterable[Path]) -> set[Path]:
  """Every beginning of every path."""
  return {path[:n] for path in paths for n in range(1, len(path) + 1)}


def scales(variables: Any) -> Any:
  """Which leaves are BatchNorm scales.

  Args:
    variables: variables or parameters of a Flax (Linen or NNX), Haiku, Equinox or Keras model.
      Give all variables where you can: running statistics tell BatchNorm from LayerNorm. With
      parameters alone a scale counts unless its module is named like another norm.
      Keras: a tree of `keras.Variable`s, or of arrays keyed by `variable.path`.

  Returns:
    A tree of bools, same structure. All False when there is no BatchNorm with a scale.
  """
  paths = {norm.scale for norm in find(variables)}
  return tree.map_with_path(lambda path, _: path in paths, variables)


def chosen(variables: Any, mask: Any = None) -> list[Path]:
  """Paths of the scales that `mask` names (tree of bools, prefix, or callable); default `scales`.

  Raises:
    ValueError: when there are none, or `mask` does not fit.
  """
  mask = scales if mask is None else mask
  named = tree.spread(mask(variables) if callable(mask) else mask, variables, name='scales')
  paths = [path for path, (chosen, _) in zip(tree.flatten(variables), named, strict=True) if chosen]
  if not paths:
    raise ValueError(
      'no BatchNorm scale among the variables: network slimming ranks channels by the scales '
      'of BatchNorm layers. Leaves: '
      + ', '.join(map(tree.show, tree.flatten(variables)))[:500]
      + '. If the model has scales under other names, pass scales=.'
    )
  return paths


def zeroed(variables: Any, dead: Any, bias: str = 'zero') -> dict[Path, np.ndarray]:
  """Which channels of which leaves a `dead` tree sets to zero: scales and their biases.

  Args:
    variables: the tree of variables (arrays or shapes).
    dead: a tree like it with a bool vector at each scale leaf, None elsewhere. For stacked
      layers [layers, channels] it may have that shape too: a channel goes where it is dead in all.
    bias: 'zero', or 'keep' for scales alone.

  Returns:
    Bool vectors [channels] by path. Apply one along `channel_axis` of its leaf.

  Raises:
    ValueError: naming the leaf, when `dead` does not fit; for another `bias`.
  """
  if bias not in ('zero', 'keep'):
    raise ValueError(f"bias must be 'zero' or 'keep', got {bias!r}")
  leaves = tree.flatten(variables)
  vectors = {path: np.asarray(v) for path, v in tree.flatten(dead).items()}
  if extra := [tree.show(path) for path in vectors if path not in leaves]:
    raise ValueError(f'dead names leaves that the variables do not have: {", ".join(extra)}')
  biases = _biases(leaves) if bias == 'zero' else {}
  zero = {}
  for path, v in vectors.items():
    shape = tuple(leaves[path].shape)
    axis = channel_axis(leaves[path])
    size = shape[axis] if shape else 0
    if v.ndim > 1 and v.shape == shape:
      v = v.all(axis=tuple(i for i in range(v.ndim) if i != axis))
    if v.dtype != bool or v.shape != (size,):
      raise ValueError(
        f'dead at {tree.show(path)} must be bool[{size}], it is {v.dtype}{list(v.shape)}'
      )
    for target in (path, biases.get(path)):
      if target is not None:
        zero[target] = zero.get(target, False) | v
  return zero


def without(leaf: Any, dead: np.ndarray | None) -> Any:
  """A scale or bias whose dead channels, bool [channels], are zero; None: as it is."""
  if dead is None:
    return leaf
  shape = [1] * leaf.ndim
  shape[channel_axis(leaf)] = -1
  return leaf * (~dead.reshape(shape)).astype(leaf.dtype)


def channel_axis(leaf: Any) -> int:
  """The axis along which a leaf's channels lie: its only long one (Haiku: [1, 1, 1, C]), or the last."""
  long = [i for i, n in enumerate(leaf.shape) if n != 1]
  return long[0] if len(long) == 1 else len(leaf.shape) - 1


def _biases(leaves: Mapping[Path, Any]) -> dict[Path, Path]:
  """The bias beside each leaf that is not one itself: same module, same number of channels."""
  parts = {_parts(path, leaf): path for path, leaf in leaves.items()}
  beside = {}
  for part, path in parts.items():
    for name in BIASES:
      other = parts.get(part[:-1] + (name,))
      if (
        part
        and part[-1] not in BIASES
        and other is not None
        and leaves[path].shape
        and leaves[other].shape[-1:]
        and leaves[path].shape[channel_axis(leaves[path])]
        == leaves[other].shape[channel_axis(leaves[other])]
      ):
        beside[path] = other
  return beside


def _parts(path: Path, leaf: Any) -> Path:
  """The path as module names: Haiku and Keras join them by '/', NNX adds 'value'."""
  if isinstance(getattr(leaf, 'path', None), str):  # a keras.Variable
    path = tuple(leaf.path.split('/'))
  parts = tuple(name for part in path for name in part.split('/'))
  return parts[:-1] if parts and parts[-1] in ('value', 'raw_value') else parts


def _statistics_module(part: Path) -> Path | None:
  """The module whose running statistics this leaf keeps, if any."""
  if len(part) >= 3 and part[-2] in HAIKU_AVERAGES:
    return part[:-3] if part[-3] == '~' else part[:-2]
  return part[:-1] if part and part[-1] in STATISTICS else None


def _equinox(variables: Any) -> dict[Path, list[Path]]:
  """Equinox BatchNorm modules, where the leaf names ('weight') tell nothing: path -> statistics.

  Those are in a `State` elsewhere in the tree, found by the markers that the module holds.
  """

  def nodes(name: str) -> dict[Path, Any]:
    def is_it(node: Any) -> bool:
      return any(
        c.__name__ == name and c.__module__.startswith('equinox') for c in type(node).__mro__
      )

    return {
      path: node for path, node in tree.flatten(variables, is_leaf=is_it).items() if is_it(node)
    }

  modules, leaves = nodes('BatchNorm'), tree.flatten(variables)
  places: dict[Any, Path] = {}
  for path, state in nodes('State').items() if modules else ():
    places.update((marker, path + (str(i),)) for i, marker in enumerate(state.tree_flatten()[1]))
  found = {}
  for path, module in modules.items():
    indices = [index for index in vars(module).values() if hasattr(index, 'marker')]
    roots = [places[index.marker] for index in indices if index.marker in places]
    found[path] = [leaf for leaf in leaves if leaf[:-1] in roots or leaf in roots]
  return found


def _is_vector(leaf: Any) -> bool:
  return sum(n != 1 for n in getattr(leaf, 'shape', ())) <= 1 <= len(getattr(leaf, 'shape', ()))


def _is_named(part: Path) -> bool:
  """Whether a scale among parameters alone is a BatchNorm's, by its module's name."""
  module = part[-2] if len(part) > 1 else ''
  if part[-1] == 'weight':  # PyTorch-style names: every layer has one
    return bool(_BATCH_NORM.search(module))
  return not _OTHER_NORM.search(module)
