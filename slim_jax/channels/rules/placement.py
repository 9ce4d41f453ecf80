"""Operations that say where arrays live, not what is in them."""

from typing import Any

import jax

from slim_jax import jaxprs, shardings
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
    divides = array is not None and shardings.fitting(device, array.shape) is device
    results.append(jax.device_put(array, device) if divides else array)
  return results


register([p.device_put_p], Rule(_same_support, _same_reads, _device_put_evaluate))


# sharding_constraint: an axis that its devices no longer divide loses its constraint.


def _constraint_evaluate(ctx: Context, array: Any) -> list[Any]:
  sharding = shardings.fitting(ctx.params['sharding'], array.shape)
  if shardings.is_explicit(ctx.eqn.out_avals[0]):  # as all thin evaluation is automatic
    return [jax.lax.with_sharding_constraint(array, sharding.spec)]
  return jaxprs.bind(ctx.eqn, array, sharding=sharding)


register([p.sharding_constraint_p], Rule(_same_support, _same_reads, _constraint_evaluate))


# reshard: another layout on explicit axes of a mesh.


def _reshard_evaluate(ctx: Context, array: Any) -> list[Any]:
  sharding = shardings.fitting(ctx.params['dst_sharding'], array.shape)
  if shardings.is_explicit(ctx.eqn.out_avals[0]) and shardings.is_automatic():
    return [jax.lax.with_sharding_constraint(array, sharding.spec)]
  return jaxprs.bind(ctx.eqn, array, dst_sharding=sharding)


register([jaxprs.reshard_p], Rule(_same_support, _same_reads, _reshard_evaluate))
