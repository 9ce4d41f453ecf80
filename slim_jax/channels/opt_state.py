"""Which part of an optimiser's state belongs to the channels that are left.

A state is compared leaf by leaf in three forms: as it is, as `tx.init` makes it of the full
parameters, and as it makes it of the thin ones. A leaf whose shape is the same in both is kept: a
count, a rate, a norm of a layer. Any other leaf belongs to the parameter whose path ends its own
path, and each of its axes that became shorter is an axis of that parameter:

    momentum            [rows, columns]            all axes
    history (L-BFGS)    [memory, rows, columns]    all but the first
    factored (Adafactor)  [rows] and [columns]     all but one

Where shapes allow two readings, as with the factors of a square kernel, gradients that differ in
one slice tell which axis it is.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slim_jax import tree
from slim_jax.errors import SlimError
from slim_jax.tree import Path

Indices = tuple[np.ndarray, ...]


class OptStateError(SlimError, ValueError):
  """The state of an optimiser cannot be cut; the message names the leaf."""


class Cut(Protocol):
  """What is left of one parameter; `cuts.Cut` is one."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def thin_shape(self) -> tuple[int, ...]: ...

  @property
  def indices(self) -> Indices: ...


class _Leaf(NamedTuple):
  """A leaf of the state: its path, and its shape for the full and for the thin parameters."""

  number: int
  path: Path
  full: tuple[int, ...]
  thin: tuple[int, ...]


def live_indices(
  tx: optax.GradientTransformation, opt_state: Any, params: Any, cuts: Mapping[Path, Cut]
) -> list[Indices | None]:
  """Returns what is left of each leaf of an optimiser's state.

  Args:
    tx: the transformation that the state belongs to.
    opt_state: its state over `params`.
    params: the full parameters, arrays or shapes.
    cuts: what is left of each parameter, by path.

  Returns:
    For each leaf of `opt_state`, in the order of `jax.tree.leaves`: the live indices of every axis,
    increasing, or None for a leaf that stays as it is.

  Raises:
    OptStateError: the state is not that of `tx` over these parameters, or no part of a leaf belongs
      to the channels that are left.
  """
  thin_params = tree.map_with_path(
    lambda path, leaf: jax.ShapeDtypeStruct(cuts[path].thin_shape, leaf.dtype), params
  )
  full, thin = (_leaves_of(tx, each) for each in (params, thin_params))
  paths = list(tree.flatten(opt_state))
  shapes = [np.shape(leaf) for leaf in jax.tree.leaves(opt_state)]
  if shapes != full:
    raise OptStateError(
      'opt_state is not the state of tx over these parameters: '
      + (
        _first_difference(paths, shapes, full)
        or f'it has {len(shapes)} arrays, tx.init makes {len(full)}'
      )
    )
  if len(thin) != len(full):
    raise OptStateError(
      f'tx keeps {len(full)} arrays for the full parameters and {len(thin)} for the thin ones, so '
      'its state cannot be cut; begin with tx.init(thin_params)'
    )
  probe = _Probe(tx, params)
  leaves = map(_Leaf, range(len(full)), paths, full, thin)
  return [None if leaf.full == leaf.thin else _indices(leaf, cuts, probe) for leaf in leaves]


def optimised(opt_state: Any, params: Any) -> Any:
  """Returns the part of NNX parameters that a state is of.

  `nnx.split` gives all variables, an `nnx.Optimizer` has the state of its `nnx.Param`s.
  """
  if not type(params).__module__.startswith('flax.nnx'):
    return params
  from flax import nnx  # here, so that planning does not load it

  ends = {path[i:] for path in tree.flatten(opt_state) for i in range(len(path))}
  return nnx.filter_state(params, lambda path, _: (*map(str, path), 'value') in ends)


def _leaves_of(tx: optax.GradientTransformation, params: Any) -> list[tuple[int, ...]]:
  """Shapes of a new state; run on zeros where `init` looks at values."""
  structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
  try:
    state = jax.eval_shape(tx.init, structs)
  except jax.errors.ConcretizationTypeError:
    state = tx.init(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), structs))
  return [np.shape(leaf) for leaf in jax.tree.leaves(state)]


def _first_difference(
  paths: Sequence[Path], shapes: Sequence[tuple[int, ...]], full: Sequence[tuple[int, ...]]
) -> str:
  for path, shape, expected in zip(paths, shapes, full):
    if shape != expected:
      return f'{tree.show(path)} has shape {shape}, tx.init makes {expected}'
  return ''


def _indices(leaf: _Leaf, cuts: Mapping[Path, Cut], probe: '_Probe') -> Indices:
  """Live indices of a leaf whose shape changes."""
  path = _parameter(leaf.path, cuts)
  if path is None:
    if (leaf.full, leaf.thin) == _flat_shapes(cuts):
      return (_flat_indices(cuts),)
    raise _cannot(leaf, 'it belongs to no parameter')
  cut = cuts[path]
  readings = list(_readings(leaf.full, leaf.thin, cut))
  if not readings:
    raise _cannot(
      leaf, f'the parameter {tree.show(path)} goes from {cut.shape} to {cut.thin_shape}'
    )
  whole = [
    axes for axes in readings if [a for a in axes if a is not None] == [*range(len(cut.shape))]
  ]
  chosen = whole[-1:] or readings  # the last: axes in front are a history's
  if len({_key(axes, cut) for axes in chosen}) > 1:
    chosen = [axes for axes in chosen if probe.holds(leaf, path, axes)]
    if len({_key(axes, cut) for axes in chosen}) != 1:
      raise _cannot(
        leaf,
        f'which axes of the parameter {tree.show(path)}, {cut.shape}, its own '
        'axes are is not to be told',
      )
  return tuple(
    np.arange(size) if axis is None else cut.indices[axis]
    for size, axis in zip(leaf.full, chosen[0], strict=True)
  )


def _parameter(path: Path, cuts: Mapping[Path, Cut]) -> Path | None:
  """The parameter that a leaf belongs to: its path is the last, and longest, part of the leaf's."""
  for end in reversed(range(len(path) + 1)):
    for start in range(end + 1):
      if path[start:end] in cuts:
        return path[start:end]
  return None


def _readings(
  full: tuple[int, ...], thin: tuple[int, ...], cut: Cut, first: int = 0
) -> Iterator[tuple[int | None, ...]]:
  """Yields which axis of the parameter each axis of a leaf may be, in order; None for none."""
  if not full:
    yield ()
    return
  for axis in range(first, len(cut.shape)):
    if (full[0], thin[0]) == (cut.shape[axis], cut.thin_shape[axis]):
      for rest in _readings(full[1:], thin[1:], cut, axis + 1):
        yield (axis, *rest)
  if full[0] == thin[0]:
    for rest in _readings(full[1:], thin[1:], cut, first):
      yield (None, *rest)


def _key(axes: tuple[int | None, ...], cut: Cut) -> tuple[bytes | None, ...]:
  """Equal for readings that leave the same indices."""
  return tuple(
    None
    if axis is None or len(cut.indices[axis]) == cut.shape[axis]
    else cut.indices[axis].tobytes()
    for axis in axes
  )


def _flat_shapes(cuts: Mapping[Path, Cut]) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Of all parameters as one vector, as `optax.flatten` has them."""
  full, thin = (
    sum(math.prod(shape) for shape in shapes)
    for shapes in ([cut.shape for cut in cuts.values()], [cut.thin_shape for cut in cuts.values()])
  )
  return (full,), (thin,)


def _flat_indices(cuts: Mapping[Path, Cut]) -> np.ndarray:
  parts, start = [], 0
  for cut in cuts.values():
    numbers = np.arange(math.prod(cut.shape)).reshape(cut.shape)
    parts.append(
      start + numbers[np.ix_(*cut.indices)].ravel() if cut.shape else start + numbers.ravel()
    )
    start += numbers.size
  return np.concatenate(parts)


def _cannot(leaf: _Leaf, why: str) -> OptStateError:
  return OptStateError(
    f'{tree.show(leaf.path)} of the optimiser state cannot be cut from {leaf.full} to '
    f'{leaf.thin}: {why}. Begin with tx.init(thin_params)'
  )


class _Probe:
  """Tells by updates which axis of a parameter an axis of the state follows."""

  def __init__(self, tx: optax.GradientTransformation, params: Any):
    self._tx = tx
    self._structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)

  @functools.cached_property
  def _params(self) -> Any:
    """Ones of full size: made only for a state that needs a trial."""
    return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), self._structs)

  def holds(self, leaf: _Leaf, path: Path, axes: tuple[int | None, ...]) -> bool:
    """Whether a gradient that differs in one slice changes that slice of the leaf alone."""
    plain = self._state(leaf.number, path, None)
    for i, axis in enumerate(axes):
      if axis is not None:
        changed = self._state(leaf.number, path, axis) != plain
        beyond = np.delete(changed, 0, axis=i)
        if not changed.any() or beyond.any():
          return False
    return True

  def _state(self, number: int, path: Path, axis: int | None) -> np.ndarray:
    """The leaf after a step by gradients of 1, of which the first slice along `axis` is 3."""

    def gradient(at: Path, leaf: jax.Array) -> jax.Array:
      if at != path or axis is None:
        return jnp.ones_like(leaf)
      return jnp.ones_like(leaf).at[(slice(None),) * axis + (0,)].set(3)

    grads = tree.map_with_path(gradient, self._params)
    _, state = self._tx.update(grads, self._tx.init(self._params), self._params)
    return np.asarray(jax.tree.leaves(state)[number])
