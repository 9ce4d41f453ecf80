"""Flax NNX."""

from typing import Any

from flax import nnx

from helpers.zoo.model import Model


def functions(module: nnx.Module, x: Any) -> Model:
  """An NNX module as pure functions of (parameters, everything else)."""
  module.eval()
  infer_def, params, rest = nnx.split(module, nnx.Param, ...)
  module.train()
  train_def, _ = nnx.split(module)

  def infer(variables, x):
    return nnx.merge(infer_def, *variables, copy=True)(x)  # calling it must not change the state

  def train(variables, x, key):
    del key  # it keeps its own
    module = nnx.merge(train_def, *variables, copy=True)
    return module(x), nnx.state(module, nnx.Not(nnx.Param))

  return Model(infer, train, (params, rest), x, (None, '1'), '0')


class Block(nnx.Module):
  """Pre-activation, depthwise in the middle."""

  def __init__(self, width, **kinds):
    self.norm1 = nnx.BatchNorm(width, **kinds)
    self.expand = nnx.Conv(width, 2 * width, (1, 1), **kinds)
    self.norm2 = nnx.BatchNorm(2 * width, **kinds)
    self.depthwise = nnx.Conv(2 * width, 2 * width, (3, 3), feature_group_count=2 * width, **kinds)
    self.project = nnx.Conv(2 * width, width, (1, 1), **kinds)

  def __call__(self, x):
    y = nnx.relu(self.norm2(self.expand(nnx.relu(self.norm1(x)))))
    return x + self.project(nnx.silu(self.depthwise(y)))


class ResNet(nnx.Module):
  """Residual blocks between strided convolutions, dropout before the head."""

  def __init__(self, dtype):
    rngs = nnx.Rngs(0)
    kinds = dict(dtype=dtype, param_dtype=dtype, rngs=rngs)
    self.stem = nnx.Conv(3, 8, (3, 3), **kinds)
    self.blocks = nnx.List([Block(8, **kinds), Block(8, **kinds)])
    self.down = nnx.Conv(8, 12, (3, 3), 2, **kinds)
    self.last = Block(12, **kinds)
    self.norm = nnx.BatchNorm(12, **kinds)
    self.dropout = nnx.Dropout(0.3, rngs=rngs)
    self.head = nnx.Linear(12, 4, **kinds)

  def __call__(self, x):
    x = self.stem(x)
    for block in self.blocks:
      x = block(x)
    x = nnx.relu(self.norm(self.last(self.down(x))))
    return self.head(self.dropout(x.mean((1, 2))))
