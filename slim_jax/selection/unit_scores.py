"""Scores of units: what ranks the gates of `slim_jax.gate` if they were not trained."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import jaxprs, shardings, tree
from slim_jax.channels import kernels, programs
from slim_jax.channels.kernels import Kernel
from slim_jax.jaxprs import Equation
from slim_jax.structure.unit import Place, Unit, Units

_ROLES = {
  'readers': ('reader',),
  'makers': ('maker', 'batch'),
  'all': ('reader', 'maker', 'batch', 'norm', 'scale', 'bias'),
}


def unit_norm(
  variables: Any,
  units: Units,
  *,
  ord: float = 2,  # pylint: disable=redefined-builtin
  of: Literal['readers', 'makers', 'all'] = 'all',
) -> dict[str, np.ndarray]:
  """Returns the mean size of the weights that go with a unit: (mean |w|^ord)^(1/ord).

  Means make units of different sizes comparable: a head has more weights than a neuron.

  Args:
    variables: tree of arrays.
    units: of `slim_jax.units`.
    ord: order of the norm, positive: 1, 2, ...
    of: which weights: of kernels that read the channels, of kernels that make them, or all of them,
      biases and scales too. Units that have none of these are scored by all.

  Returns:
    By the unit's name, float64 [size], or [layers, size] of stacked layers: `scores=` of
    `select_global(gates, scales=True, ...)`.

  Raises:
    ValueError: `ord` is not positive, or `of` is something else.

  References:
    Li et al., ICLR 2017 (ord=1); over everything that goes together: Fang et al., CVPR 2023.
  """
  if not ord > 0:
    raise ValueError(f'ord must be positive, got {ord}')
  if of not in _ROLES:
    raise ValueError(f'of must be one of {", ".join(_ROLES)}, got {of!r}')
  leaves = tree.flatten(variables)
  scores = {}
  for name, unit in units.items():
    places = [place for place in unit.places if place.role in _ROLES[of]] or unit.places
    sums = [
      _summed(shardings.on_host(leaves[place.path], np.float64), unit, place, ord)
      for place in places
    ]
    powers, counts = (np.sum(part, axis=0) for part in zip(*sums, strict=True))
    scores[name] = (powers / counts) ** (1 / ord)
  return scores


def _summed(
  leaf: np.ndarray,
  unit: Unit,
  place: Place,
  ord: float,  # pylint: disable=redefined-builtin
) -> tuple[np.ndarray, np.ndarray]:
  """Sums of powers of a variable's elements by unit, and numbers of elements."""
  kept = [place.axis] if place.layers is None or not unit.layers else [place.layers, place.axis]
  powers = np.abs(leaf) ** ord
  others = tuple(i for i in range(leaf.ndim) if i not in kept)
  by_index = np.moveaxis(powers.sum(axis=others, keepdims=True), kept, range(len(kept)))
  rows = by_index.reshape(-1, len(place.member))
  mine = place.member >= 0
  member = place.member[mine]
  total = [np.bincount(member, row[mine], unit.size) for row in rows]
  count = np.bincount(member, minlength=unit.size) * (leaf.size / rows.size)
  return np.reshape(total, unit.shape), np.broadcast_to(count, unit.shape)


def unit_activation(
  f: Callable[..., Any],
  variables: Any,
  units: Units,
  batches: Iterable[Any],
  *,
  weighted: bool = True,
) -> dict[str, np.ndarray]:
  """Returns how much units carry on batches for calibration: (mean x^2 |w|^2)^(1/2).

  x is what an index of a unit holds, over all examples and places, and w are the weights by which
  the kernels of the unit multiply it: the size of what these layers lose without it. Units that no
  kernel reads, such as query-key dimensions, are scored by what the kernels that make them compute.
  The network runs once for each batch, operation by operation, without labels.

  Args:
    f: `f(variables, batch)`, the function in which the units were found.
    variables: tree of arrays.
    units: of `slim_jax.units`.
    batches: batches for calibration.
    weighted: whether x^2 is multiplied by |w|^2.

  Returns:
    By the unit's name, float64 [size].

  Raises:
    ValueError: no kernel outside loops reads or makes a unit, with its name; or there is no batch.

  References:
    Sun et al., A simple and effective pruning approach for large language models, ICLR 2024: the
    products of weights and the norms of their inputs, there of single weights.
  """
  total: dict[str, np.ndarray] = {}
  count = 0
  for batch in batches:
    count += 1
    for name, square in _carried(f, variables, units, batch, weighted).items():
      total[name] = total.get(name, 0.0) + square
  if not count:
    raise ValueError('unit_activation needs at least one batch')
  return {name: np.sqrt(total[name] / count) for name in units}


def _carried(
  f: Callable[..., Any], variables: Any, units: Units, batch: Any, weighted: bool
) -> dict[str, np.ndarray]:
  """Returns the mean squares of what units carry on a batch, float64 [size] by name."""
  program, _ = programs.trace(f, variables, batch)
  paths = list(tree.flatten(variables))
  by_eqn: dict[int, list[Kernel]] = {}
  for kernel in kernels.find(program, len(paths)):
    by_eqn.setdefault(id(kernel.eqn), []).append(kernel)
  sums: dict[tuple[str, str], np.ndarray] = {}

  def evaluate(eqn: Equation, *operands: Any) -> list[Any]:
    results = jaxprs.bind(eqn, *operands)
    for kernel in by_eqn.get(id(eqn), ()):
      for unit, place in _of_leaf(units, paths[kernel.leaf]):
        found = _of_kernel(kernel, unit, place, operands, results[0], weighted)
        if found is not None:
          role, sizes = found
          sums[unit.name, role] = sums.get((unit.name, role), 0.0) + sizes
    return results

  jaxprs.run(program, jax.tree.leaves((variables, batch)), evaluate)
  if missing := [n for n in units if not {(n, 'reader'), (n, 'maker')} & sums.keys()]:
    raise ValueError(
      f'unit_activation: no kernel outside loops reads or makes {", ".join(missing[:5])}; '
      'mean_taylor scores every unit'
    )
  return {name: sums[name, 'reader' if (name, 'reader') in sums else 'maker'] for name in units}


def _of_leaf(units: Units, path: tree.Path) -> list[tuple[Unit, Place]]:
  return [(unit, place) for unit in units.values() for place in unit.places if place.path == path]


def _of_kernel(
  kernel: Kernel, unit: Unit, place: Place, operands: tuple[Any, ...], result: Any, weighted: bool
) -> tuple[str, np.ndarray] | None:
  """Returns what units carry into or out of a kernel, and which of both; None if it is neither."""
  weights = np.asarray(operands[kernel.side], np.float64)
  shape = [1] * len(kernel.leaf_shape)
  shape[place.axis] = -1
  member = kernel.of_leaf(np.broadcast_to(place.member.reshape(shape), kernel.leaf_shape))
  member, weights = kernel.matrix(member), kernel.matrix(weights)
  if (member == member[:, :1]).all():
    role, of_each = 'reader', member[:, 0]
    squares = np.asarray(jnp.mean(jnp.square(kernel.inputs(operands[1 - kernel.side])), 0))
    squares = squares.astype(np.float64) * ((weights**2).sum(1) if weighted else 1.0)
    squares = squares.reshape(-1, kernel.window).sum(1)
    of_each = of_each[:: kernel.window]
  elif (member == member[:1]).all():
    role, of_each = 'maker', member[0]
    squares = np.asarray(jnp.mean(jnp.square(kernel.outputs(result)), 0), np.float64)
  else:
    return None
  mine = of_each >= 0
  counts = np.bincount(of_each[mine], minlength=unit.size)
  return role, np.bincount(of_each[mine], squares[mine], unit.size) / np.maximum(counts, 1)
