"""Sums and maxima over windows in a form that XLA compiles well on a CPU.

sums        over adjacent windows, as in average pooling, become sums of slices.
maxima      For their gradients XLA locates each maximum by a reduction of five arrays, and scatters,
            which takes 20 times as long. Here a byte per window holds the tap of the maximum.
"""

from collections.abc import Sequence
import functools
import itertools
import operator

import jax
from jax import lax
import jax.numpy as jnp

from slim_jax import jaxprs
from slim_jax.cpu.linear import with_gradient_of
from slim_jax.jaxprs import Equation


def is_tiled(eqn: Equation) -> bool:
  """Returns whether windows are adjacent, without overlap or padding."""
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
  """Returns sums over windows, as the sum of one strided slice per tap."""
  window, out = eqn.params['window_dimensions'], eqn.out_avals[0].shape

  def of_tap(x: jax.Array, tap: Sequence[int]) -> jax.Array:
    slices = (
      slice(at, at + n * (count - 1) + 1, n) if n > 1 else slice(None)
      for at, n, count in zip(tap, window, out)
    )
    return x[tuple(slices)]

  def summed(x: jax.Array) -> jax.Array:
    taps = itertools.product(*map(range, window))
    return functools.reduce(operator.add, (of_tap(x, tap) for tap in taps))

  return with_gradient_of(eqn, summed, x)


def is_plain(eqn: Equation) -> bool:
  """Returns whether maxima are over plain windows of an array of floats."""
  (x,), params = eqn.in_avals, eqn.params
  return (
    all(step == 1 for name in ('base_dilation', 'window_dilation') for step in params[name])
    and jnp.issubdtype(x.dtype, jnp.floating)
    and 0 not in eqn.out_avals[0].shape
    and all(isinstance(size, int) for size in x.shape)
  )


def maxima(eqn: Equation, x: jax.Array) -> jax.Array:
  """Returns maxima over windows; the gradient goes to the first element that is the maximum."""
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

    def of_tap(n: int) -> jax.Array:
      pads = [
        (at, size - stop, step - 1)
        for at, size, stop, step in zip(taps[n], sizes, ends[n], params['window_strides'])
      ]
      return lax.pad(jnp.where(first == n, slope, 0), zero, pads)

    total = functools.reduce(operator.add, map(of_tap, range(len(taps))))
    return (lax.pad(total, zero, [(-before, -after, 0) for before, after in params['padding']]),)

  fast = jax.custom_vjp(plain)
  fast.defvjp(forward, back)
  return fast(x)
