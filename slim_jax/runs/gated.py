"""Gates in the parameters of a run's network: scales of 1 on its units, see `slim_jax.gate`.

While a network without BatchNorm trains with sparsity, its parameters have one more entry:

    {'params': {..., 'gates': {'Block_0': {'Dense_0': {'neurons': {'scale': [size]}}}}}}

Its leaves are scales like those of BatchNorm, with the name of the unit as their path.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import slim_jax
from slim_jax import batch_norms, tree
from slim_jax.runs.errors import ConfigError
from slim_jax.structure.unit import Units

PyTree = Any

GATES = 'gates'


def find(predict: Any, shapes: PyTree, image: jax.ShapeDtypeStruct, where: str) -> Units:
  """Finds the units of a network that get gates.

  Args:
    predict: `(variables, image)` -> outputs.
    shapes: of its variables.
    image: shape of an image.
    where: `config.prune.units`.

  Raises:
    ConfigError: the network has no such units, or parameters with the name of the gates.
  """
  if GATES in shapes['params']:
    raise ConfigError(
      f'config.prune.units={where!r} puts gates into the parameters as {GATES!r}, and the network '
      'has parameters of that name: rename its module'
    )
  try:
    return slim_jax.units(predict, shapes, image, where=None if where == '*' else where)
  except ValueError as error:
    raise ConfigError(f'config.prune.units={where!r}: {error}') from error


def path(name: str) -> tree.Path:
  """Returns the path of a unit's gates in the variables."""
  return ('params', GATES, *name.split('/'), 'scale')


def names(paths: Iterable[str]) -> list[str]:
  """Returns the names of the units of gates, given their paths as text."""
  return ['/'.join(tree.parse(text)[2:-1]) for text in paths]


def opened(variables: PyTree, units: Units) -> PyTree:
  """Returns variables with a gate of 1 on each unit; of shapes, shapes."""
  _, gates = slim_jax.gate(lambda variables: variables, variables, units)
  return joined(variables, jax.tree.map(_like(variables), gates))


def _like(variables: PyTree) -> Any:
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables)):
    return lambda gate: jax.ShapeDtypeStruct(gate.shape, gate.dtype)
  return jnp.asarray


def joined(variables: PyTree, entries: Mapping[str, Any]) -> PyTree:
  """Returns variables with an entry for each unit at the place of its gates.

  Args:
    variables: without gates.
    entries: by the unit's name.
  """
  gates = tree.nested({path(name)[2:]: entry for name, entry in entries.items()})
  return {**variables, 'params': {**variables['params'], GATES: gates}}


def parted(variables: PyTree, units: Units) -> tuple[PyTree, dict[str, Any]]:
  """Returns variables without gates, and the entries at their places by the unit's name."""
  params = dict(variables['params'])
  gates = tree.flatten(params.pop(GATES))
  return {**variables, 'params': params}, {name: gates.get(path(name)[2:]) for name in units}


def folded(variables: PyTree, units: Units) -> PyTree:
  """Returns variables without gates, into which the gates are multiplied."""
  plain, gates = parted(variables, units)
  return slim_jax.fold(plain, gates, units)


def scales(variables: PyTree) -> PyTree:
  """Returns which leaves of the variables, or of the parameters, are gates: a tree of bools."""
  return tree.map_with_path(
    lambda path, _: path[:1] == (GATES,) or path[:2] == ('params', GATES), variables
  )


def scales_of(variables: PyTree) -> PyTree:
  """Returns which leaves are scales: the gates, if there are some, else those of BatchNorm."""
  marks = scales(variables)
  return marks if any(jax.tree.leaves(marks)) else batch_norms.scales(variables)


def grafted(new: PyTree, old: PyTree) -> PyTree:
  """Returns a tree with the leaves that another has at the same paths.

  Gates thus enter an optimiser's state with a new one, and leave it with the rest in place.

  Args:
    new: the tree; its other leaves stay.
    old: the other tree.
  """
  leaves = tree.flatten(old)

  def chosen(path: tree.Path, leaf: Any) -> Any:
    other = leaves.get(path)
    same = other is not None and jnp.shape(other) == jnp.shape(leaf)
    return other if same else leaf

  return tree.map_with_path(chosen, new)
