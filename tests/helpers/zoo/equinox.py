"""Equinox: networks of one image, `vmap`ped over the batch."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from helpers.zoo.model import Model


def functions(made: tuple[eqx.Module, eqx.nn.State], x: Any) -> Model:
  """What `eqx.nn.make_with_state` made, as pure functions of (params, state)."""
  model, state = made
  params, static = eqx.partition(model, eqx.is_inexact_array)

  def infer(variables, x):
    model = eqx.nn.inference_mode(eqx.combine(variables[0], static))
    return jax.vmap(model, (0, None), (0, None), 'batch')(x, variables[1])[0]

  def train(variables, x, key):
    model = eqx.combine(variables[0], static)
    keys = jax.random.split(key, len(x))
    return jax.vmap(model, (0, None, 0), (0, None), 'batch')(x, variables[1], keys)

  return Model(infer, train, (params, state), x, (None, '1'), '0')


class Block(eqx.Module):
  """Post-activation residual block with a projection where the shape changes."""

  conv1: eqx.nn.Conv2d
  norm1: eqx.nn.BatchNorm
  conv2: eqx.nn.Conv2d
  norm2: eqx.nn.BatchNorm
  project: eqx.nn.Conv2d | None

  def __init__(self, inputs, outputs, stride, dtype, key):
    keys = jax.random.split(key, 3)
    self.conv1 = eqx.nn.Conv2d(
      inputs, outputs, 3, stride, padding=1, use_bias=False, dtype=dtype, key=keys[0]
    )
    self.norm1 = eqx.nn.BatchNorm(outputs, 'batch', mode='batch', dtype=dtype)
    self.conv2 = eqx.nn.Conv2d(
      outputs, outputs, 3, padding=1, use_bias=False, dtype=dtype, key=keys[1]
    )
    self.norm2 = eqx.nn.BatchNorm(outputs, 'batch', mode='batch', dtype=dtype)
    self.project = (
      None
      if (inputs, stride) == (outputs, 1)
      else eqx.nn.Conv2d(inputs, outputs, 1, stride, dtype=dtype, key=keys[2])
    )

  def __call__(self, x, state):
    y, state = self.norm1(self.conv1(x), state)
    y, state = self.norm2(self.conv2(jax.nn.relu(y)), state)
    x = x if self.project is None else self.project(x)
    return jax.nn.relu(x + y), state


class ResNet(eqx.Module):
  """Convolutional stem, two stages, dropout and a linear head."""

  stem: eqx.nn.Conv2d
  norm: eqx.nn.BatchNorm
  blocks: list[Block]
  dropout: eqx.nn.Dropout
  head: eqx.nn.Linear

  def __init__(self, dtype, key):
    keys = jax.random.split(key, 5)
    self.stem = eqx.nn.Conv2d(3, 8, 3, padding=1, dtype=dtype, key=keys[0])
    self.norm = eqx.nn.BatchNorm(8, 'batch', mode='batch', dtype=dtype)
    self.blocks = [
      Block(8, 8, 1, dtype, keys[1]),
      Block(8, 12, 2, dtype, keys[2]),
      Block(12, 12, 1, dtype, keys[3]),
    ]
    self.dropout = eqx.nn.Dropout(0.2)
    self.head = eqx.nn.Linear(12, 5, dtype=dtype, key=keys[4])

  def __call__(self, x, state, key=None):
    x, state = self.norm(self.stem(x), state)
    x = eqx.nn.MaxPool2d(2, 2)(jax.nn.relu(x))
    for block in self.blocks:
      x, state = block(x, state)
    return self.head(self.dropout(jnp.mean(x, (1, 2)), key=key)), state


def resnet(dtype):
  return eqx.nn.make_with_state(ResNet)(dtype, jax.random.key(0))
