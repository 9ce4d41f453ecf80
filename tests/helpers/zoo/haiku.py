"""Haiku, with the networks that come with it."""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax

from helpers.zoo.model import Model


def functions(net: Callable[..., Any], x: Any) -> Model:
  """`net(x, is_training)` as pure functions of (params, state)."""
  transformed = hk.transform_with_state(net)
  shapes = jax.eval_shape(lambda: transformed.init(jax.random.key(0), x, True))

  def infer(variables, x):
    return transformed.apply(*variables, None, x, False)[0]

  def train(variables, x, key):
    return transformed.apply(*variables, key, x, True)

  return Model(infer, train, shapes, x, (None, '1'), '0')


def resnet(dtype):
  """`hk.nets.ResNet`, of bottlenecks."""
  del dtype  # Haiku takes that of the input

  def net(x, is_training):
    return hk.nets.ResNet(
      blocks_per_group=(1, 1, 1, 1),
      channels_per_group=(8, 8, 16, 16),
      num_classes=5,
      strides=(1, 2, 1, 1),
      initial_conv_config=dict(output_channels=8),
    )(x, is_training)

  return net


def preactivation_resnet(dtype):
  """`hk.nets.ResNet`, of pre-activation blocks, with dropout and one more layer."""
  del dtype

  def net(x, is_training):
    x = hk.nets.ResNet(
      blocks_per_group=(2, 1, 1, 1),
      channels_per_group=(8, 8, 16, 16),
      num_classes=12,
      resnet_v2=True,
      bottleneck=False,
      strides=(1, 2, 1, 1),
      initial_conv_config=dict(output_channels=8),
    )(x, is_training)
    x = hk.dropout(hk.next_rng_key(), 0.2, x) if is_training else x
    return hk.Linear(5)(jax.nn.relu(x))

  return net


def mobilenet(dtype):
  """`hk.nets.MobileNetV1`."""
  del dtype

  def net(x, is_training):
    return hk.nets.MobileNetV1(strides=(1, 2, 1, 2), channels=(12, 16, 16, 24), num_classes=5)(
      x, is_training
    )

  return net
