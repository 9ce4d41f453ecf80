"""Sums and maxima over windows as XLA compiles them well on a CPU.

sums        over windows side by side, as in average pooling: sums of slices.
maxima      for their gradients, XLA finds the place of each maximum by a reduction of five
            arrays, and scatters: 20 times the time. Here: which tap it is, in a byte.
"""

import itertools

import jax
from jax import lax
import jax.numpy as jnp

from slim_jax import jaxprs
from slim_jax.cpu.linear import with_gradient_of
from slim_jax.jaxprs import Equation


def is_tiled(eqn: Equation) -> bool:
  """Whether windows lie side by side, no element in two of them, and none is padded."""
  (x,), params = eqn.in_avals, eqn.params
  window = params['window_dimensions']
  return (
    window == params['window_strides']
    and not any(map(any, params['padding']))
    and all(step == 1 for name in ('base_dilation', 'window_dilation') for step in params[name])
    and jnp.issubdtype(x.dtype, jnp.floating)
    and 0 not in eqn.out_avals[0].shape
    and all(n == 1 or isinstance(size, int) for n, size in zip(window, x.shape))
  )


def sums(eqn: Equation, x: jax.Array) -> jax.Array:
  """The sum of strided slices, one for each place in a window."""
  window, out = eqn.params['window_dimensions'], eqn.out_avals[0].shape
  return with_gradient_of(
    eqn,
    lambda x: sum(
      x[
        tuple(
          slice(at, at + n * (count - 1) + 1, n) if n > 1 else slice(None)
          for at, n, count in zip(tap, window, out)
        )
      ]
      for tap in itertools.product(*map(range, window))
    ),
    x,
  )


def is_plain(eqn: Equation) -> bool:
  """Whether it takes maxima over windows of an array of floats."""
  (x,), params = eqn.in_avals, eqn.params
  return (
    all(step == 1 for name in ('base_dilation', 'window_dilation') for step in params[name])
    and jnp.issubdtype(x.dtype, jnp.floating)
    and 0 not in eqn.out_avals[0].shape
    and all(isinstance(size, int) for size in x.shape)
  )


def maxima(eqn: Equation, x: jax.Array) -> jax.Array:
  """The maxima as they were; a slope goes back to the first element that is one."""
  params, shape = eqn.params, eqn.out_avals[0].shape
  low = jnp.array(-jnp.inf, x.dtype)
  taps = list(itertools.product(*map(range, params['window_dimensions'])))
  sizes = [n + sum(pads) for n, pads in zip(x.shape, params['padding'])]
  ends = [
    [at + (n - 1) * step + 1 for at, n, step in zip(tap, shape, params['window_strides'])]
    for tap in taps
  ]

  def plain(x: jax.Array) -> jax.Array:
    return jaxprs.bind(eqn, x)[0]

  def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = plain(x)
    padded = lax.pad(x, low, [(*pads, 0) for pads in params['padding']])
    first = jnp.full(shape, len(taps), jnp.uint8)
    for n, (tap, end) in reversed(list(enumerate(zip(taps, ends)))):
      here = lax.slice(padded, tap, end, params['window_strides'])
      first = jnp.where(here == y, jnp.uint8(n), first)
    return y, lax.optimization_barrier(first)

  def back(first: jax.Array, slope: jax.Array) -> tuple[jax.Array]:
    zero = jnp.zeros([], slope.dtype)
    total = sum(
      lax.pad(
        jnp.where(first == n, slope, 0),
        zero,
        [
          (at, size - stop, step - 1)
          for at, size, stop, step in zip(tap, sizes, end, params['window_strides'])
        ],
      )
      for n, (tap, end) in enumerate(zip(taps, ends))
    )
    return (lax.pad(total, zero, [(-before, -after, 0) for before, after in params['padding']]),)

  fast = jax.custom_vjp(plain)
  fast.defvjp(forward, back)
  return fast(x)
