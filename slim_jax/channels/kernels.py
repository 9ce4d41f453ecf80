"""Kernels of a program: variables that a contraction reads, as matrices [inputs, outputs].

A kernel may be a cast, a transpose or a reshape of its variable.
"""

from collections import Counter
import dataclasses
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels.rules import contraction
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A contraction with a kernel.

  Attributes:
    eqn: the contraction: a dot product, or a convolution without groups.
    side: which operand the kernel is.
    leaf: the number of the variable that the kernel is made of.
    changes: the operations between, from the contraction back to the variable.
    is_alone: whether nothing else reads the variable.
  """

  eqn: Equation
  side: int
  leaf: int
  changes: tuple[Equation, ...]
  is_alone: bool

  @property
  def is_dot(self) -> bool:
    """Whether it is a dot product rather than a convolution."""
    return self.eqn.primitive is p.dot_general_p

  @property
  def window(self) -> int:
    """Elements of the window of a convolution; 1 for a dot product."""
    if self.is_dot:
      return 1
    spatial = self.eqn.params['dimension_numbers'].rhs_spec[2:]
    return math.prod(self.eqn.in_avals[1].shape[i] for i in spatial)

  @property
  def leaf_shape(self) -> tuple[int, ...]:
    """Shape of the variable."""
    return (
      (self.changes[-1] if self.changes else self.eqn)
      .in_avals[0 if self.changes else self.side]
      .shape
    )

  def of_leaf(self, array: np.ndarray) -> np.ndarray:
    """Moves the elements of an array of the variable's shape to their places in the kernel."""
    for eqn in reversed(self.changes):
      if eqn.primitive in (p.transpose_p, p.reshape_p):
        (array,) = map(np.asarray, jaxprs.bind(eqn, array))
    return array

  def leaf_of(self, kernel: Any) -> Any:
    """Returns the variable of a kernel."""
    for eqn in self.changes:
      (aval,) = eqn.in_avals
      if eqn.primitive is p.transpose_p:
        kernel = kernel.transpose(np.argsort(eqn.params['permutation']))
      kernel = kernel.reshape(aval.shape).astype(aval.dtype)
    return kernel

  def matrix(self, kernel: Any) -> Any:
    """Returns the kernel as [inputs, outputs]."""
    if self.is_dot:
      dims = contraction.dot_axes(self.eqn)
      inner = [pair[self.side] for pair in dims.contract]
      order = [*inner, *dims.free[self.side]]
      count = len(inner)
    else:
      out, into, *spatial = self.eqn.params['dimension_numbers'].rhs_spec
      order, count = [into, *spatial, out], 1 + len(spatial)
    kernel = kernel.transpose(order)
    return kernel.reshape(int(np.prod(kernel.shape[:count])), -1)

  def unmatrix(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undoes `matrix`."""
    order = self.matrix(np.arange(int(np.prod(shape))).reshape(shape)).ravel()
    flat = np.empty(len(order), matrix.dtype)
    flat[order] = matrix.ravel()
    return flat.reshape(shape)

  def inputs(self, x: jax.Array) -> jax.Array:
    """Returns what the contraction reads, whole or a part of the batch: [examples, inputs].

    Each place of an image, or of a sequence, is an example.
    """
    if self.is_dot:
      dims, side = contraction.dot_axes(self.eqn), 1 - self.side
      x = x.transpose([*dims.free[side], *(pair[side] for pair in dims.contract)])
      return x.reshape(-1, int(np.prod(x.shape[len(dims.free[side]) :])))
    params, dims = self.eqn.params, self.eqn.params['dimension_numbers']
    kernel = self.eqn.in_avals[1].shape
    patches = lax.conv_general_dilated_patches(
      x,
      [kernel[i] for i in dims.rhs_spec[2:]],
      params['window_strides'],
      params['padding'],
      lhs_dilation=params['lhs_dilation'],
      rhs_dilation=params['rhs_dilation'],
      dimension_numbers=dims,
    )
    return jnp.moveaxis(patches, dims.out_spec[1], -1).reshape(
      -1, int(np.prod(kernel)) // kernel[dims.rhs_spec[0]]
    )

  def outputs(self, z: jax.Array) -> jax.Array:
    """Returns results of the contraction as [examples, outputs]."""
    if self.is_dot:
      count = [len(free) for free in contraction.dot_axes(self.eqn).free]
      axes = list(range(z.ndim))
      z = z.transpose(axes[count[0] :] + axes[: count[0]]) if self.side == 0 else z
      return z.reshape(int(np.prod(z.shape[: count[1 - self.side]])), -1)
    channels = self.eqn.params['dimension_numbers'].out_spec[1]
    return jnp.moveaxis(z, channels, -1).reshape(-1, z.shape[channels])


_CHANGES = (p.convert_element_type_p, p.copy_p, p.transpose_p, p.reshape_p)


def find(program: Program, count: int) -> list[Kernel]:
  """Finds the kernels of a program, except in the bodies of loops.

  Args:
    program: the program.
    count: how many of its inputs are variables; they come first.

  Returns:
    Its kernels, in the order of their contractions. Where both operands may be kernels, the first
    entry of the contraction is the right one.
  """
  made = {number: eqn for eqn in program.equations for number in eqn.outputs}
  reads = Counter((*program.outputs, *(i for eqn in program.equations for i in eqn.inputs)))
  place = {number: n for n, number in enumerate(program.inputs[:count])}
  found = []
  for eqn in program.equations:
    for side in _sides(eqn):
      number, changes, alone = eqn.inputs[side], [], True
      while number in made and made[number].primitive in _CHANGES:
        alone &= reads[number] == 1
        changes.append(made[number])
        number = made[number].inputs[0]
      if number in place:
        alone &= reads[number] == 1
        found.append(Kernel(eqn, side, place[number], tuple(changes), alone))
  return found


def _sides(eqn: Equation) -> tuple[int, ...]:
  """Which operands of an equation may be kernels."""
  if eqn.primitive is p.conv_general_dilated_p:
    groups = eqn.params['feature_group_count'], eqn.params['batch_group_count']
    return (1,) if groups == (1, 1) else ()
  if eqn.primitive is p.dot_general_p and not contraction.dot_axes(eqn).batch:
    return (1, 0)
  return ()
