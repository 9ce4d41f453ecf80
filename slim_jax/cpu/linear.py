"""Functions that are linear in an array, with a gradient that is computed in another way."""

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
  """Returns `fast(x, *index)` with another gradient.

  Args:
    eqn: the equation that `fast` replaces, linear in x; its gradient is used if there is no `back`.
    fast: `fast(x, *index)` computes the result.
    x: the array.
    *index: further operands, without gradients.
    back: `back(slope, *index)` computes the gradient with respect to x.
  """
  full = jax.ShapeDtypeStruct(x.shape, x.dtype)

  def transposed(slope: jax.Array, *index: jax.Array) -> jax.Array:
    (gradient,) = jax.linear_transpose(lambda x: jaxprs.bind(eqn, x, *index)[0], full)(slope)
    return gradient

  def backward(index: Sequence[jax.Array], slope: jax.Array) -> tuple[jax.Array | None, ...]:
    return (back or transposed)(slope, *index), *(None for _ in index)

  run = jax.custom_vjp(fast)
  run.defvjp(lambda x, *index: (fast(x, *index), index), backward)
  return run(x, *index)
