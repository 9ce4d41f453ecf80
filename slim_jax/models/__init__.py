"""Flax Linen models to slim. Nothing in them knows of pruning."""

import functools
import inspect
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from slim_jax.models.mlp import MLP
from slim_jax.models.vgg import VGG
from slim_jax.models.vgg import WIDTHS

# Constructors by the name that a config gives.
MODELS = {
    'vgg': VGG,
    'vgg11': functools.partial(VGG, widths=WIDTHS['vgg11']),
    'vgg13': functools.partial(VGG, widths=WIDTHS['vgg13']),
    'vgg16': functools.partial(VGG, widths=WIDTHS['vgg16']),
    'vgg19': functools.partial(VGG, widths=WIDTHS['vgg19']),
    'mlp': MLP,
}


def create(name: str, *, num_classes: int, dtype: Any = jnp.float32,
           **arguments: Any) -> nn.Module:
  """Makes a model of `MODELS`.

  Args:
    name: a key of `MODELS`.
    num_classes: length of the logits.
    dtype: of the computation; parameters stay float32.
    **arguments: further attributes of the model, such as `widths`.

  Returns:
    A Linen module, called as `module.apply(variables, x, train=False)`.

  Raises:
    ValueError: the name is not in `MODELS`.
    TypeError: the model takes no such argument.
  """
  if name not in MODELS:
    raise ValueError(f'no model named {name!r}; there are {", ".join(MODELS)}')
  constructor = MODELS[name]
  accepted = sorted(set(inspect.signature(constructor).parameters)
                    - {'parent', 'name', 'num_classes', 'dtype'})
  unknown = sorted(set(arguments) - set(accepted))
  if unknown:
    raise TypeError(f'model {name!r} takes no argument {", ".join(unknown)}; '
                    f'it takes {", ".join(accepted)}')
  return constructor(num_classes=num_classes, dtype=dtype, **arguments)
