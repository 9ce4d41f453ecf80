"""Functions linear in an array, computed one way forward and another way back."""

from collections.abc import Callable, Sequence

import jax

from slim_jax import jaxprs
from slim_jax.jaxprs import Equation


def with_gradient_of(
  eqn: Equation,
  fast: Callable[..., jax.Array],
  x: jax.Array,
  *index: jax.Array,
  back: Callable[..., jax.Array] | None = None,
) -> jax.Array:
  """`fast(x, *index)`, linear in x, with the gradient of the equation as it was, or `back`."""
  full = jax.ShapeDtypeStruct(x.shape, x.dtype)

  def transposed(slope: jax.Array, *index: jax.Array) -> jax.Array:
    (found,) = jax.linear_transpose(lambda x: jaxprs.bind(eqn, x, *index)[0], full)(slope)
    return found

  def pull(index: Sequence[jax.Array], slope: jax.Array) -> tuple[jax.Array | None, ...]:
    return (back or transposed)(slope, *index), *(None for _ in index)

  run = jax.custom_vjp(fast)
  run.defvjp(lambda x, *index: (fast(x, *index), index), pull)
  return run(x, *index)
