"""Where arrays live: what their types say of devices, and arrays that change shape on their devices.

JAX has three kinds of mesh axes. Automatic ones leave the layout to the compiler. The types of
values name explicit ones, and the manual ones (of `shard_map`) over which a value varies.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import itertools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from slim_jax import tree
from slim_jax.errors import SlimError
from slim_jax.tree import Path


class ShardingError(SlimError, ValueError):
  """The devices of a mesh axis do not divide an axis of an array."""


# Types.


def varying(aval: Any) -> frozenset[str]:
  """The manual axes over which a value differs between devices."""
  return getattr(getattr(aval, 'manual_axis_type', None), 'varying', frozenset())


def as_varying(array: Any, aval: Any) -> Any:
  """The array with the type that it varies over the manual axes of `aval`."""
  if array is None or not (wanted := varying(aval)):
    return array
  missing = wanted - varying(jax.typeof(array))
  return lax.pcast(array, tuple(sorted(missing)), to='varying') if missing else array


def is_explicit(aval: Any) -> bool:
  """Whether the type of a value says how it is sharded."""
  mesh = getattr(getattr(aval, 'sharding', None), 'mesh', None)
  return mesh is not None and AxisType.Explicit in mesh.axis_types


def as_typed(avals: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
  """Where functions of values of these types can be traced, also within `automatic`."""
  for aval in avals:
    if is_explicit(aval):
      return jax.sharding.use_abstract_mesh(aval.sharding.mesh)
  return contextlib.nullcontext()


def fitting(sharding: Any, shape: Sequence[int]) -> Any:
  """The sharding without the axes of `shape` that it does not divide; itself if it divides all."""
  if not isinstance(sharding, NamedSharding):
    return sharding
  spec = padded(sharding.spec, len(shape))
  kept = [
    names if size % devices(sharding.mesh, names) == 0 else None
    for size, names in zip(shape, spec, strict=True)
  ]
  return sharding if kept == spec else sharding.update(spec=PartitionSpec(*kept))


def devices(mesh: Any, names: Any) -> int:
  """The number of devices that an axis with these mesh axes is divided among."""
  return math.prod(mesh.shape.get(n, 1) for n in (names if isinstance(names, tuple) else (names,)))


def padded(spec: PartitionSpec, rank: int) -> list[Any]:
  """The mesh axes of each axis of an array: a spec need not have the last ones."""
  return [*spec, *[None] * (rank - len(spec))]


def automatic(
  f: Callable[..., Any],
  args: Sequence[Any],
  results: Sequence[jax.ShapeDtypeStruct],
  avals: Iterable[Any] = (),
) -> list[Any]:
  """Runs `f(*args)`, which returns a list, with explicit mesh axes left to the compiler.

  Args:
    f: a function of arrays.
    args: its arguments.
    results: what the types of its results are to be (see `jaxprs.struct`).
    avals: types of the values inside.
  """
  typed = filter(is_explicit, itertools.chain(map(jax.typeof, args), results, avals))
  mesh = next((aval.sharding.mesh for aval in typed), None)
  if mesh is None:
    return f(*args)
  explicit = [n for n, t in zip(mesh.axis_names, mesh.axis_types) if t is AxisType.Explicit]
  wanted = [
    result.sharding
    if is_explicit(result)
    else NamedSharding(mesh, PartitionSpec(*[None] * len(result.shape)))
    for result in results
  ]
  inside: Any = jax.sharding.auto_axes(
    lambda *args: f(*args), axes=tuple(explicit), out_sharding=wanted
  )
  return inside(*args)


def is_automatic() -> bool:
  """Whether the compiler lays out values here, along some axis of the mesh."""
  return AxisType.Auto in jax.sharding.get_abstract_mesh().axis_types


# Arrays that change shape.


class Change(NamedTuple):
  """What happens to one array: `f(array)` has this shape. `f` takes NumPy and JAX arrays."""

  f: Callable[[Any], Any]
  shape: tuple[int, ...]


def apply(
  changes: Mapping[Path, Change | None], leaves: Mapping[Path, Any], given: Mapping[Path, Any]
) -> list[Any]:
  """Changes arrays where they are; returns them in the order of `leaves`.

  NumPy arrays stay on the host, arrays of one device on that device. Arrays of several devices are
  changed there, also if the devices belong to several processes, and keep their `NamedSharding`.

  Args:
    changes: by path; None for an array that stays as it is.
    leaves: arrays or shapes, by path.
    given: by path, the sharding that the result is to have; None for that of the array.

  Raises:
    ShardingError: the devices of a mesh axis do not divide the axis of a result.
  """
  results: dict[Path, Any] = {}
  spread: dict[Any, list[Path]] = {}
  targets = {path: _target(path, leaf, changes[path], given[path]) for path, leaf in leaves.items()}
  for path, leaf in leaves.items():
    change, target = changes[path], targets[path]
    if change is None:
      results[path] = leaf if given[path] is None else _placed(leaf, target)
    elif isinstance(leaf, jax.ShapeDtypeStruct):
      results[path] = jax.ShapeDtypeStruct(change.shape, leaf.dtype, sharding=target)
    elif isinstance(leaf, Tracer):
      results[path] = _traced(change, leaf, given[path])
    elif isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
      spread.setdefault(_order(leaf.sharding), []).append(path)
    else:
      results[path] = _changed_on_host(change, leaf, target)
  for paths in spread.values():
    results |= _on_devices(
      {path: changes[path] for path in paths},
      {path: leaves[path] for path in paths},
      {path: targets[path] for path in paths},
    )
  return [results[path] for path in leaves]


def _target(path: Path, leaf: Any, change: Change | None, given: Any) -> Any:
  """The sharding of the result; None if there is none to keep."""
  own = None if isinstance(leaf, Tracer) else getattr(leaf, 'sharding', None)
  target = own if given is None else given
  shape = np.shape(leaf) if change is None else change.shape
  if isinstance(target, NamedSharding):
    for axis, (size, names) in enumerate(zip(shape, padded(target.spec, len(shape)), strict=True)):
      if size % (count := devices(target.mesh, names)):
        raise ShardingError(
          f'{tree.show(path)}: axis {axis} is to have {size} of {np.shape(leaf)[axis]} indices, which '
          f'the {count} devices of mesh axis {names!r} do not divide. Cut layers to widths that '
          f'divide (multiple_of={count} of select_global and select_budget), or say with shardings= '
          'how the results are to be sharded.'
        )
  elif given is None and isinstance(leaf, jax.Array) and own is not None:
    return own if len(own.device_set) == 1 and leaf.committed else None
  return target


def _placed(leaf: Any, target: Any) -> Any:
  """The leaf with another sharding."""
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf.update(sharding=target)
  if isinstance(leaf, Tracer):
    return lax.with_sharding_constraint(leaf, target)
  if isinstance(leaf, jax.Array):
    return jax.device_put(leaf, target)
  return jax.make_array_from_callback(leaf.shape, target, lambda index: leaf[index])


def _traced(change: Change, leaf: Any, given: Any) -> Any:
  aval = jax.typeof(leaf)
  if is_explicit(aval):
    sharding = fitting(aval.sharding, change.shape) if given is None else given
    result = jax.ShapeDtypeStruct(change.shape, leaf.dtype, sharding=sharding)
    return automatic(lambda array: [change.f(array)], [leaf], [result])[0]
  result = change.f(leaf)
  return result if given is None else lax.with_sharding_constraint(result, given)


def _changed_on_host(change: Change, leaf: Any, target: Any) -> Any:
  # NumPy raises on a bad index, JAX would clamp it.
  result = change.f(np.asarray(leaf))
  if target is not None:
    return _placed(result, target)
  return jax.device_put(result) if isinstance(leaf, jax.Array) else result


def _order(sharding: Any) -> Any:
  """Equal for arrays that one program can take."""
  if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
    return tuple(device.id for device in sharding.mesh.devices.flat)
  return frozenset(device.id for device in sharding.device_set)


def _on_devices(
  changes: Mapping[Path, Any], arrays: Mapping[Path, Any], targets: Mapping[Path, Any]
) -> dict[Path, Any]:
  """Changes arrays of several devices in one program."""
  wanted = [_automatic_sharding(target) for target in targets.values()]
  functions = [change.f for change in changes.values()]

  def run(arrays: list[Any]) -> list[Any]:
    return [f(array) for f, array in zip(functions, arrays, strict=True)]

  with untyped(arrays.values()) as given:
    results = jax.jit(run, out_shardings=wanted)(given)
  return {
    path: result if target is None else jax.device_put(result, target)
    for (path, target), result in zip(targets.items(), results, strict=True)
  }


@contextlib.contextmanager
def untyped(arrays: Iterable[Any]) -> Iterator[list[Any]]:
  """Gives the arrays on meshes of automatic axes, where operations on them can run."""
  arrays = list(arrays)
  places = [getattr(array, 'sharding', None) for array in arrays]
  targets = list(map(_automatic_sharding, places))
  given = [
    array if target is place else jax.device_put(array, target)
    for array, place, target in zip(arrays, places, targets, strict=True)
  ]
  meshes = [
    target.mesh.abstract_mesh
    for target in targets
    if isinstance(target, NamedSharding) and isinstance(target.mesh, Mesh)
  ]
  with jax.sharding.use_abstract_mesh(meshes[0]) if meshes else contextlib.nullcontext():
    yield given


def _automatic_sharding(sharding: Any) -> Any:
  """The same layout on a mesh of automatic axes."""
  if not isinstance(sharding, NamedSharding) or set(sharding.mesh.axis_types) == {AxisType.Auto}:
    return sharding
  devices: Any = sharding.mesh.devices
  names = sharding.mesh.axis_names
  mesh = Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))
  return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)


def on_host(array: Any, dtype: Any = None) -> np.ndarray:
  """Returns the array on the host; gathered if it is spread over several processes."""
  if isinstance(array, jax.Array) and not isinstance(array, Tracer):
    if not (array.is_fully_addressable or array.is_fully_replicated):
      place = array.sharding
      whole = (
        NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else None
      )
      array = jax.jit(lambda x: x, out_shardings=whole)(array)
  return np.asarray(array, dtype)
