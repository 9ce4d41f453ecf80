"""Keras, with its Applications as they come."""

from collections.abc import Callable
import functools
import os
from typing import Any

os.environ.setdefault('KERAS_BACKEND', 'jax')

import jax
import keras
from keras.src.applications import densenet as keras_densenet
from keras.src.applications import resnet as keras_resnet
from keras.src.backend.common import dtypes

from helpers.zoo.model import Model

# Keras on JAX does BatchNorm in float32 whatever it is given; let double precision be double.
dtypes.BIT64_TO_BIT32_DTYPE['float64'] = 'float64'


SMALL = dict(weights=None, input_shape=(32, 32, 3), classes=5, classifier_activation=None)


def functions(net: keras.Model, x: Any) -> Model:
  """A Keras model as pure functions of its variables by path."""
  names = {
    'trainable': [v.path for v in net.trainable_variables],
    'non_trainable': [v.path for v in net.non_trainable_variables],
  }

  def call(variables, x, training):
    # Keras adds biases by broadcasting over rank.
    with jax.numpy_rank_promotion('allow'):
      values = [[variables[part][name] for name in names[part]] for part in names]
      return net.stateless_call(*values, x, training=training)

  def infer(variables, x):
    return call(variables, x, False)[0]

  def train(variables, x, key):
    del key  # it keeps its own
    out, state = call(variables, x, True)
    return out, {'non_trainable': dict(zip(names['non_trainable'], state, strict=True))}

  variables = {
    'trainable': {v.path: v.value for v in net.trainable_variables},
    'non_trainable': {v.path: v.value for v in net.non_trainable_variables},
  }
  return Model(infer, train, variables, x, (None, {'non_trainable': 'non_trainable'}), 'trainable')


def in_dtype(make: Callable[[], keras.Model], dtype: Any) -> keras.Model:
  """What `make` makes, of variables and arithmetic in one dtype."""
  before, policy = keras.config.floatx(), keras.config.dtype_policy()
  name = jax.numpy.dtype(dtype).name
  keras.config.set_floatx(name)
  keras.config.set_dtype_policy(name)
  try:
    return make()
  finally:
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)


def application(name: str, size: int = 32, **options: Any) -> Callable[[Any], keras.Model]:
  """The builder of an architecture of Keras Applications: of a dtype, random weights."""
  options = {**SMALL, 'input_shape': (size, size, 3), **options}
  return functools.partial(in_dtype, lambda: vars(keras.applications)[name](**options))


def resnet_v1(dtype: Any) -> keras.Model:
  """Keras' ResNet with two short stages."""

  def stages(x):
    x = keras_resnet.stack_residual_blocks_v1(x, 4, 2, stride1=1, name='stage1')
    return keras_resnet.stack_residual_blocks_v1(x, 8, 1, name='stage2')

  return in_dtype(lambda: keras_resnet.ResNet(stages, False, True, **SMALL), dtype)


def resnet_v2(dtype: Any) -> keras.Model:
  """Keras' pre-activation ResNet with one stage, whose last block has the stride."""

  def stages(x):
    return keras_resnet.stack_residual_blocks_v2(x, 4, 2, name='stage1')

  return in_dtype(lambda: keras_resnet.ResNet(stages, True, True, **SMALL), dtype)


def densenet(dtype: Any) -> keras.Model:
  """Keras' DenseNet with short blocks."""
  return in_dtype(lambda: keras_densenet.DenseNet((2, 1, 1, 1), **SMALL), dtype)
