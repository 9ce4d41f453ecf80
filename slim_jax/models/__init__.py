"""Flax Linen models to slim. None of their code is about pruning.

vgg, preresnet, densenet, resnet, mlp   models with BatchNorm, made of `layers`
vit, convnext                           models with LayerNorm
initialise                              new variables, full or thin
narrow                                  thin networks as ordinary modules
from_torch, torch_names                 weights of PyTorch networks
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from slim_jax.models.convnext import ConvNeXt
from slim_jax.models.densenet import DenseNet
from slim_jax.models.mlp import MLP
from slim_jax.models.preresnet import PreResNet
from slim_jax.models.resnet import STAGES, ResNet
from slim_jax.models.vgg import VGG, WIDTHS
from slim_jax.models.vit import ViT


def _resnet(name: str) -> Callable[..., nn.Module]:
  blocks, bottleneck = STAGES[name]
  return functools.partial(ResNet, blocks=blocks, bottleneck=bottleneck)


def _vgg_bn(name: str) -> Callable[..., nn.Module]:
  return functools.partial(
    VGG,
    widths=(*WIDTHS[name], 'M'),
    dense_widths=(4096, 4096),
    conv_bias=True,
    dense_norm=False,
    drop_rate=0.5,
  )


# Constructors by the names that configs use. 'preresnet' and 'densenet' are for small images,
# 'resnet' and 'vgg_a' for ImageNet. 'resnet18' to 'resnet152' and 'vgg11_bn' to 'vgg19_bn' are
# torchvision's networks.
MODELS = {
  'vgg': VGG,
  'vgg11': functools.partial(VGG, widths=WIDTHS['vgg11']),
  'vgg13': functools.partial(VGG, widths=WIDTHS['vgg13']),
  'vgg16': functools.partial(VGG, widths=WIDTHS['vgg16']),
  'vgg19': functools.partial(VGG, widths=WIDTHS['vgg19']),
  'vgg_a': functools.partial(
    VGG, widths=WIDTHS['vgg_a'], dense_widths=(4096, 4096), conv_bias=True
  ),
  'vgg11_bn': _vgg_bn('vgg11'),
  'vgg13_bn': _vgg_bn('vgg13'),
  'vgg16_bn': _vgg_bn('vgg16'),
  'vgg19_bn': _vgg_bn('vgg19'),
  'preresnet': PreResNet,
  'preresnet20': functools.partial(PreResNet, depth=20),
  'preresnet56': functools.partial(PreResNet, depth=56),
  'preresnet110': functools.partial(PreResNet, depth=110),
  'preresnet164': functools.partial(PreResNet, depth=164),
  'densenet': DenseNet,
  'densenet40': functools.partial(DenseNet, depth=40),
  'densenet100': functools.partial(DenseNet, depth=100),
  'densenet_bc100': functools.partial(DenseNet, depth=100, bottleneck=True, compression=0.5),
  'resnet': ResNet,
  'resnet18': _resnet('resnet18'),
  'resnet34': _resnet('resnet34'),
  'resnet50': _resnet('resnet50'),
  'resnet101': _resnet('resnet101'),
  'resnet152': _resnet('resnet152'),
  'mlp': MLP,
  'vit': ViT,
  'convnext': ConvNeXt,
}


def create(name: str, *, num_classes: int, dtype: Any = jnp.float32, **arguments: Any) -> nn.Module:
  """Creates a model of `MODELS`.

  Args:
    name: a key of `MODELS`.
    num_classes: length of the logits.
    dtype: of the computation; parameters are float32.
    **arguments: further attributes of the model, such as `widths`.

  Returns:
    A Linen module; call `module.apply(variables, x, train=False)`.

  Raises:
    ValueError: the name is not in `MODELS`, or it is a variant, such as 'vgg19', that an argument
      contradicts.
    TypeError: the model has no such argument.
  """
  if name not in MODELS:
    raise ValueError(f'no model named {name!r}; the models are {", ".join(MODELS)}')
  constructor = MODELS[name]
  accepted = sorted(
    set(inspect.signature(constructor).parameters) - {'parent', 'name', 'num_classes', 'dtype'}
  )
  unknown = sorted(set(arguments) - set(accepted))
  if unknown:
    raise TypeError(
      f'model {name!r} takes no argument {", ".join(unknown)}; it takes {", ".join(accepted)}'
    )
  _check_fixed(name, arguments)
  return constructor(num_classes=num_classes, dtype=dtype, **arguments)


def _check_fixed(name: str, arguments: dict[str, Any]) -> None:
  """Checks that arguments do not change what the name of a variant says."""
  constructor = MODELS[name]
  if not isinstance(constructor, functools.partial):
    return
  base = next(other for other, model in MODELS.items() if model is constructor.func)
  for argument, fixed in constructor.keywords.items():
    given = arguments.get(argument, fixed)
    if (tuple(given) if isinstance(given, list) else given) != fixed:
      raise ValueError(
        f'model {name!r} has {argument}={fixed!r}, which {argument}={given!r} contradicts; leave '
        f'the argument out, or use model {base!r}'
      )
