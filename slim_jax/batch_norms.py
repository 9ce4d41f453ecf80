"""BatchNorms of a model, recognised from its variables alone.

Flax Linen and NNX, Haiku, Equinox, Keras and PyTorch-style names are known. If there are running
statistics among the variables, they decide: a scale that has a mean is BatchNorm's, one without is
another norm's. In a tree of parameters alone, the module's name decides.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from slim_jax import tree
from slim_jax.tree import Path

# What libraries call the leaves of a BatchNorm.
SCALES = ('scale', 'gamma', 'weight')
BIASES = ('bias', 'beta', 'offset')
STATISTICS = ('mean', 'var', 'moving_mean', 'moving_variance', 'running_mean', 'running_var')
HAIKU_AVERAGES = ('mean_ema', 'var_ema')

_OTHER_NORM = re.compile(
  r'(layer|group|instance|rms|spectral|weight)_?norm|(^|_)(ln|gn)(_|\d|$)', re.I
)
_BATCH_NORM = re.compile(r'batch_?norm|(^|_)bn', re.I)


class BatchNorm(NamedTuple):
  """Paths of the leaves of one BatchNorm.

  Attributes:
    scale: gamma, [channels] (or with axes of size 1, or [layers, channels] of stacked layers).
    bias: beta, or None.
    statistics: running mean, running variance, and what else the library keeps with them.
  """

  scale: Path
  bias: Path | None
  statistics: tuple[Path, ...]


def find(variables: Any) -> list[BatchNorm]:
  """Returns the BatchNorms with a scale in a tree of variables, in tree order."""
  named = _Named.of(variables)
  lookups = [place(named) for place in _PLACES]
  norms = []
  for path, (*module, name) in named.names.items():
    if name in SCALES and getattr(named.leaves[path], 'shape', ()):
      statistics = next(filter(None, (lookup(path) for lookup in lookups)), ())
      if _is_batch_norm(named, path, statistics):
        siblings = [(*module, bias) for bias in BIASES]
        biases = [named.paths[sibling] for sibling in siblings if sibling in named.paths]
        norms.append(BatchNorm(path, biases[0] if biases else None, tuple(statistics)))
  return norms


def scales(variables: Any) -> Any:
  """Returns which leaves are BatchNorm scales.

  Args:
    variables: variables or parameters of a Flax (Linen or NNX), Haiku, Equinox or Keras model.
      Give all variables if you can: running statistics distinguish BatchNorm from LayerNorm. Among
      parameters alone, a scale counts unless its module is named like another norm, or has modules
      inside.
      Keras: a tree of `keras.Variable`s, or of arrays keyed by `variable.path`.

  Returns:
    A tree of bools with the structure of `variables`; all False if no BatchNorm has a scale.
  """
  paths = {norm.scale for norm in find(variables)}
  return tree.map_with_path(lambda path, _: path in paths, variables)


def chosen(variables: Any, mask: Any = None) -> list[Path]:
  """Returns the paths of the scales that a mask selects; see `marked`."""
  return list(marked(variables, mask))


def marked(variables: Any, mask: Any = None) -> dict[Path, Any]:
  """Returns the marks of the scales that a mask selects, by path.

  Args:
    variables: the tree of variables.
    mask: a tree of bools, a prefix of it, or a function that returns one; default `scales`. A
      module that is a pytree is a tree, also if it can be called. A bool array selects a leaf if
      any of it is True.

  Raises:
    ValueError: the mask selects nothing, or does not fit.
  """
  mask = scales if mask is None else mask
  marks = tree.spread(mask(variables) if _is_function(mask) else mask, variables, name='scales')
  pairs = zip(tree.flatten(variables), marks, strict=True)
  found = {path: mark for path, (mark, _) in pairs if mark is not None and np.any(mark)}
  if not found:
    raise ValueError(
      'no BatchNorm scale among the variables: network slimming ranks channels by the scales '
      'of BatchNorm layers. Leaves: '
      + ', '.join(map(tree.show, tree.flatten(variables)))[:500]
      + '. If the model has scales under other names, pass scales=.'
    )
  return found


def _is_function(mask: Any) -> bool:
  """Returns whether a mask is a function. Equinox modules can be called, but are trees."""
  if not callable(mask):
    return False
  return isinstance(mask, jax.tree_util.Partial) or jax.tree_util.all_leaves([mask])


def pulled_only(variables: Any) -> str:
  """Returns a warning that names scales that a penalty pulls and that are not ranked, else ''.

  Parameters alone tell BatchNorm from other norms by name. A penalty sees nothing else, so with its
  default mask it pulls on the scale of a LayerNorm that is called 'norm'. All variables tell it by its
  running statistics, so the scale is not ranked.

  Args:
    variables: all variables.
  """
  named = _Named.of(variables)
  if not named.statistics and not named.equinox:
    return ''
  found = {norm.scale for norm in find(variables)}
  pulled = [
    tree.show(path)
    for path, names in named.names.items()
    if names[-1] in SCALES and path not in found and _is_named_batch_norm(named, path)
  ]
  if not pulled:
    return ''
  return (
    'these scales have no running statistics, so they are not ranked, but a penalty on the '
    f'parameters alone takes them for BatchNorm scales and pulls them to zero: {", ".join(pulled)}. '
    'Give the penalty mask=, or name their modules after their kind, such as LayerNorm'
  )


def channel_axis(leaf: Any) -> int:
  """Returns the axis of a scale's channels: its only axis longer than 1, else the last.

  Haiku keeps scales as [1, 1, 1, channels], or [1, channels, 1, 1] if channels come first. Scales
  [layers, 1] are those of stacked layers with one channel.
  """
  axis = only_axis(leaf)
  return len(leaf.shape) - 1 if tuple(leaf.shape[1:]) == (1,) else axis


def only_axis(leaf: Any) -> int:
  """Returns the axis of a vector, which may have further axes of size 1; else the last axis."""
  long = [i for i, n in enumerate(leaf.shape) if n != 1]
  return long[0] if len(long) == 1 else len(leaf.shape) - 1


def names_of(path: Path, leaf: Any) -> Path:
  """Returns the path as module names: Haiku and Keras join them by '/', NNX adds 'value'."""
  if isinstance(getattr(leaf, 'path', None), str):  # a keras.Variable
    path = tuple(leaf.path.split('/'))
  parts = tuple(name for part in path for name in part.split('/'))
  return parts[:-1] if parts and parts[-1] in ('value', 'raw_value') else parts


@dataclasses.dataclass(frozen=True)
class _Named:
  """A tree of variables by path and by module names.

  Attributes:
    leaves: leaves by path.
    names: module names and the name of the leaf, by path; leaves without a name are left out.
    paths: the inverse of `names`.
    statistics: paths of the running statistics of each module, by its names.
    equinox: paths of the running statistics of each Equinox BatchNorm, by its path.
  """

  leaves: Mapping[Path, Any]
  names: Mapping[Path, Path]
  paths: Mapping[Path, Path]
  statistics: Mapping[Path, Sequence[Path]]
  equinox: Mapping[Path, Sequence[Path]]

  @functools.cached_property
  def blocks(self) -> set[Path]:
    """Names of the modules that have modules inside."""
    return {names[:n] for names in self.names.values() for n in range(len(names) - 1)}

  @classmethod
  def of(cls, variables: Any) -> '_Named':
    leaves = tree.flatten(variables)
    named = ((path, names_of(path, leaf)) for path, leaf in leaves.items())
    names = {path: parts for path, parts in named if parts}
    statistics: dict[Path, list[Path]] = {}
    for path, parts in names.items():
      module = _statistics_module(parts)
      if module is not None:
        statistics.setdefault(module, []).append(path)
    paths = {parts: path for path, parts in names.items()}
    return cls(leaves, names, paths, statistics, _equinox(variables))


def _statistics_module(names: Path) -> Path | None:
  """Returns the module whose running statistics a leaf keeps, if it does."""
  if len(names) >= 3 and names[-2] in HAIKU_AVERAGES:
    return names[:-3] if names[-3] == '~' else names[:-2]
  return names[:-1] if names and names[-1] in STATISTICS else None


def _equinox(variables: Any) -> dict[Path, list[Path]]:
  """Returns the paths of the running statistics of each Equinox BatchNorm, by its path.

  Its leaves have no telling names ('weight'), so the classes of the nodes decide. The statistics
  are in a `State` elsewhere in the tree, at the markers that the module holds.
  """

  def nodes(name: str) -> dict[Path, Any]:
    def is_node(node: Any) -> bool:
      return any(
        c.__name__ == name and c.__module__.startswith('equinox') for c in type(node).__mro__
      )

    everything = tree.flatten(variables, is_leaf=is_node)
    return {path: node for path, node in everything.items() if is_node(node)}

  modules, leaves = nodes('BatchNorm'), tree.flatten(variables)
  by_marker: dict[Any, Path] = {}
  for path, state in nodes('State').items() if modules else ():
    by_marker.update((marker, (*path, str(i))) for i, marker in enumerate(state.tree_flatten()[1]))
  statistics = {}
  for path, module in modules.items():
    indices = [index for index in vars(module).values() if hasattr(index, 'marker')]
    roots = [by_marker[index.marker] for index in indices if index.marker in by_marker]
    statistics[path] = [leaf for leaf in leaves if leaf[:-1] in roots or leaf in roots]
  return statistics


# From the path of a scale to the paths of its running statistics, () if there are none.
_Lookup = Callable[[Path], Sequence[Path]]


def _in_state(named: _Named) -> _Lookup:
  """Equinox: in a `State`."""
  return lambda path: named.equinox.get(path[:-1], ())


def _in_module(named: _Named) -> _Lookup:
  """NNX, Keras, PyTorch-style names: in the module of the scale."""
  return lambda path: named.statistics.get(named.names[path][:-1], ())


def _in_collection(named: _Named) -> _Lookup:
  """Linen and Haiku: under the same module names in another collection.

  Collections are 'batch_stats' beside 'params', or members of a tuple. So the two paths differ in
  one name. What is below it holds no scales in one path, and no statistics in the other.
  """
  with_scales = _prefixes(names for names in named.names.values() if names[-1] in SCALES)
  with_statistics = _prefixes(named.statistics)
  # By the position of the differing name, and the other names.
  by_rest = {
    (i, module[:i] + module[i + 1 :]): paths
    for module, paths in named.statistics.items()
    for i in range(len(module))
    if module[: i + 1] not in with_scales
  }

  def lookup(path: Path) -> Sequence[Path]:
    module = named.names[path][:-1]
    for i in range(len(module)):
      rest = i, module[:i] + module[i + 1 :]
      if module[: i + 1] not in with_statistics and rest in by_rest:
        return by_rest[rest]
    return ()

  return lookup


# Where libraries keep running statistics, in the order in which they are looked up.
_PLACES: tuple[Callable[[_Named], _Lookup], ...] = (_in_state, _in_module, _in_collection)


def _prefixes(paths: Iterable[Path]) -> set[Path]:
  """Returns every prefix of every path."""
  return {path[:n] for path in paths for n in range(1, len(path) + 1)}


def _is_batch_norm(named: _Named, path: Path, statistics: Sequence[Path]) -> bool:
  """Returns whether a scale is BatchNorm's: by its class, by statistics, or else by names."""
  leaf = named.leaves[path]
  if path[:-1] in named.equinox:
    return True
  if not named.statistics and not named.equinox:
    return _is_named_batch_norm(named, path)
  if _is_vector(leaf):
    return bool(statistics)
  # `scan` and `vmap` over layers stack their scales, and their statistics alike.
  return any(named.leaves[other].shape == leaf.shape for other in statistics)


def _is_named_batch_norm(named: _Named, path: Path) -> bool:
  """Returns whether a scale among parameters alone is BatchNorm's, by its module's name.

  A module that has modules inside is no norm, so the scale of a block, as of ConvNeXt, is not one.
  """
  names, leaf = named.names[path], named.leaves[path]
  *_, module, name = ('', *names)
  if names[:-1] in named.blocks:
    return False
  if name == 'weight' or not _is_vector(leaf):  # other layers have such leaves, too
    return bool(_BATCH_NORM.search(module))
  return not _OTHER_NORM.search(module)


def _is_vector(leaf: Any) -> bool:
  """Returns whether a leaf has at most one axis longer than 1."""
  return sum(n != 1 for n in getattr(leaf, 'shape', ())) <= 1 <= len(getattr(leaf, 'shape', ()))
