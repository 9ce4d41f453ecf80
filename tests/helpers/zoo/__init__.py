"""Architectures for the laws: of every kind, written as their authors would.

One file for each library holds its networks and `functions`, which makes pure functions of one.
Nothing in them knows of pruning. Here is the list of all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from helpers.zoo import equinox, haiku, keras, linen, nnx
from helpers.zoo.linen import Net
from helpers.zoo.model import Model, randomise
import slim_jax
from slim_jax import models, tree

__all__ = ['CASES', 'LIBRARIES', 'Case', 'Model', 'Net', 'build', 'case']


def neurons(variables: Any) -> Any:
  """Kernels whose outputs are the neurons of an MLP, where there is no BatchNorm."""
  return tree.map_with_path(
    lambda path, _: path[-1] == 'kernel' and path[-2].startswith('neurons'), variables
  )


class Case(NamedTuple):
  """An architecture.

  Attributes:
    name: of the test.
    module: of a dtype: what the library calls a network.
    shape: of the input.
    library: makes a `Model` of the network and an input.
    scales: of variables: a tree of bools, the leaves whose channels may die.
    size: 'small': held to every law. 'large': to the law alone. 'inference': to the law in
      inference, and on request in training. 'slow': all on request.
  """

  name: str
  module: Callable[[Any], Any]
  shape: tuple[int, ...]
  library: Callable[[Any, Any], Model] = linen.functions
  scales: Callable[[Any], Any] = slim_jax.batch_norm_scales
  size: str = 'small'


def build(case: Case, dtype: Any, seed: int = 0) -> Model:
  """The case as pure functions, in one dtype, with random variables."""
  x = jax.random.normal(jax.random.key(seed), case.shape, dtype)
  model = case.library(case.module(dtype), x)
  variables = randomise(model.variables, dtype, seed)
  return model._replace(variables=variables, scales=case.scales(variables))


def case(name: str) -> Case:
  """The case of that name."""
  return next(case for case in CASES if case.name == name)


def _keras(name, size=32, **options):
  # Their last stages are one pixel: BatchNorm over two values of it would magnify rounding.
  return keras.application(name, size, **options), (8, size, size, 3), keras.functions


CASES = [
  Case(
    'vgg',
    lambda dtype: models.VGG(widths=(8, 8, 'M', 12, 12, 'M', 16, 16), num_classes=5, dtype=dtype),
    (2, 8, 8, 3),
  ),
  Case('mlp', lambda dtype: models.MLP(widths=(24, 16), num_classes=5, dtype=dtype), (8, 5, 5, 1)),
  Case('preactivation_resnet', linen.PreActivationResNet, (2, 8, 8, 3)),
  Case('resnet', linen.ResNet, (2, 16, 16, 3)),
  Case('bottleneck_resnet', linen.BottleneckResNet, (2, 16, 16, 3)),
  Case('resnext', lambda dtype: linen.ResNeXt(dtype, excite=False), (2, 8, 8, 3)),
  Case('se_resnext', lambda dtype: linen.ResNeXt(dtype, excite=True), (2, 8, 8, 3)),
  Case('densenet', linen.DenseNet, (2, 8, 8, 3)),
  Case('inverted_residual', linen.InvertedResidual, (2, 8, 8, 3)),
  Case('grouped', linen.Grouped, (2, 8, 8, 3)),
  Case('shufflenet', linen.ShuffleNet, (2, 8, 8, 3)),
  Case('shufflenet_v2', linen.ShuffleNetV2, (2, 8, 8, 3)),
  Case('inception', linen.Inception, (2, 8, 8, 3)),
  Case('unet', linen.UNet, (2, 8, 8, 3)),
  Case('pieces', linen.Pieces, (8, 8, 8, 3)),
  Case('scanned', linen.Scanned, (2, 8, 8, 3)),
  Case('flat_norm', linen.FlatNorm, (4, 4, 4, 3)),
  Case('mixer', linen.Mixer, (2, 8, 8, 3), scales=neurons),
  Case('vit', linen.ViT, (2, 8, 8, 3), scales=neurons),
  Case('nnx_resnet', nnx.ResNet, (4, 6, 6, 3), nnx.functions),
  Case('haiku_resnet', haiku.resnet, (4, 16, 16, 3), haiku.functions),
  Case(
    'haiku_preactivation_resnet',
    haiku.preactivation_resnet,
    (4, 16, 16, 3),
    haiku.functions,
    size='inference',
  ),
  Case('haiku_mobilenet', haiku.mobilenet, (2, 17, 17, 3), haiku.functions),
  Case('equinox_resnet', equinox.resnet, (4, 3, 8, 8), equinox.functions),
  Case('keras_resnet', keras.resnet_v1, (4, 32, 32, 3), keras.functions),
  Case('keras_resnet_v2', keras.resnet_v2, (2, 32, 32, 3), keras.functions, size='large'),
  Case('keras_densenet', keras.densenet, (2, 32, 32, 3), keras.functions, size='inference'),
  Case('keras_mobilenet', *_keras('MobileNet', alpha=0.25), size='slow'),
  Case('keras_mobilenet_v2', *_keras('MobileNetV2', alpha=0.35), size='inference'),
  Case('keras_mobilenet_v3', *_keras('MobileNetV3Small'), size='slow'),
  Case('keras_efficientnet', *_keras('EfficientNetB0'), size='slow'),
  Case('keras_efficientnet_v2', *_keras('EfficientNetV2B0'), size='slow'),
  Case('keras_xception', *_keras('Xception', 71), size='slow'),
  Case('keras_resnet50', *_keras('ResNet50'), size='slow'),
  Case('keras_densenet121', *_keras('DenseNet121'), size='slow'),
  Case('keras_nasnet', *_keras('NASNetMobile'), size='slow'),
]

# One small case for each library.
LIBRARIES = {
  'linen': case('preactivation_resnet'),
  'nnx': case('nnx_resnet'),
  'haiku': case('haiku_resnet'),
  'equinox': case('equinox_resnet'),
  'keras': case('keras_resnet'),
}
