"""Operations that say where arrays live, not what is in them."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from slim_jax import jaxprs
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Context, Rule, register
from slim_jax.jaxprs import primitives as p


def _same_support(ctx: Context) -> list[Region]:
  return ctx.supports


def _same_reads(ctx: Context) -> list[Region]:
  return ctx.live


# device_put: any number of arrays, each to a device.


def _device_put_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  if ctx.is_untouched:
    return jaxprs.bind(ctx.eqn, *arrays)
  results = []
  for array, device in zip(arrays, ctx.params['devices'], strict=True):
    divides = array is not None and _fitting(device, array.shape) is device
    results.append(jax.device_put(array, device) if divides else array)
  return results


register([p.device_put_p], Rule(_same_support, _same_reads, _device_put_evaluate))


# sharding_constraint: an axis that its devices no longer divide loses its constraint.


def _fitting(sharding: Any, shape: tuple[int, ...]) -> Any:
  """The sharding without the axes of `shape` that it does not divide; itself if it divides all."""
  if not isinstance(sharding, NamedSharding):
    return sharding
  spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
  kept = [
    names if size % _devices(sharding, names) == 0 else None
    for size, names in zip(shape, spec, strict=True)
  ]
  return sharding if kept == spec else NamedSharding(sharding.mesh, PartitionSpec(*kept))


def _devices(sharding: NamedSharding, names: Any) -> int:
  """The number of devices that an axis is divided among."""
  count = 1
  for name in names if isinstance(names, tuple) else (names,):
    count *= sharding.mesh.shape.get(name, 1)
  return count


def _constraint_evaluate(ctx: Context, array: Any) -> list[Any]:
  sharding = _fitting(ctx.params['sharding'], array.shape)
  return jaxprs.bind(ctx.eqn, array, sharding=sharding)


register([p.sharding_constraint_p], Rule(_same_support, _same_reads, _constraint_evaluate))
