"""Names of our models' modules in PyTorch code.

The implementation of network slimming by its authors
(https://github.com/Eric-mingjie/network-slimming, with the same networks as
https://github.com/Eric-mingjie/rethinking-network-pruning):

  vgg       feature.N, where N counts convolutions, BatchNorms, ReLUs and max-pools; classifier
  resnet    conv1; layerN.M.{bn1, select, conv1, bn2, conv2, bn3, conv3, downsample.0};
            bn; select; fc
  densenet  conv1; denseN.M.{bn1, select, conv1}; transN.{bn1, select, conv1}; bn;
            select; fc

torchvision (https://github.com/pytorch/vision), and libraries that keep its names, such as timm:

  resnet18 ...    conv1; bn1; layerN.M.{conv1, bn1, conv2, bn2, conv3, bn3, downsample.0,
                  downsample.1}; fc
  vgg11_bn ...    features.N, counted likewise; classifier.0, .3 and .6, between which there are
                  ReLUs and dropouts
"""

from flax import linen as nn

from slim_jax import models, tree


def modules(model: nn.Module) -> dict[tree.Path, str]:
  """Returns PyTorch's name of every module with variables, by our path.

  Raises:
    TypeError: the model has no counterpart in PyTorch.
  """
  if isinstance(model, models.VGG) and not model.dense_widths:
    return _vgg(model, 'feature') | {('Dense_0',): 'classifier'}
  if isinstance(model, models.VGG) and not model.dense_norm:
    return _vgg(model, 'features') | {
      (f'Dense_{i}',): f'classifier.{3 * i}' for i in range(len(model.dense_widths) + 1)
    }
  if isinstance(model, models.PreResNet):
    return _preresnet(model)
  if isinstance(model, models.ResNet):
    return _resnet(model)
  if isinstance(model, models.DenseNet) and not model.bottleneck:
    return _densenet(model)
  raise TypeError(
    f'no network of the PyTorch implementations is the counterpart of {model}. VGG without '
    'dense_widths or without dense_norm, PreResNet, ResNet, and DenseNet without bottleneck '
    'have one'
  )


def _vgg(model: models.VGG, features: str) -> dict[tree.Path, str]:
  names, position, layer = {}, 0, 0
  for width in model.widths:
    if width == 'M':
      position += 1
      continue
    names[f'Conv_{layer}',] = f'{features}.{position}'
    names[f'BatchNorm_{layer}',] = f'{features}.{position + 1}'
    layer += 1
    position += 3  # convolution, BatchNorm, ReLU
  return names


def _preresnet(model: models.PreResNet) -> dict[tree.Path, str]:
  names = {('Conv_0',): 'conv1', ('BatchNorm_0',): 'bn', ('Dense_0',): 'fc'}
  blocks = (model.depth - 2) // 9
  for i in range(3 * blocks):
    ours, theirs = f'Bottleneck_{i}', f'layer{i // blocks + 1}.{i % blocks}'
    names |= _numbered(ours, theirs, 3)
    if i % blocks == 0:
      names[ours, 'projection'] = f'{theirs}.downsample.0'
  return names


def _resnet(model: models.ResNet) -> dict[tree.Path, str]:
  names = {('Conv_0',): 'conv1', ('BatchNorm_0',): 'bn1', ('Dense_0',): 'fc'}
  theirs = [
    f'layer{stage + 1}.{i}' for stage, blocks in enumerate(model.blocks) for i in range(blocks)
  ]
  for i, name in enumerate(theirs):
    names |= _numbered(f'Block_{i}', name, 3 if model.bottleneck else 2)
    if name.endswith('.0') and (i or model.bottleneck):  # blocks that change the shape
      names[f'Block_{i}', 'projection'] = f'{name}.downsample.0'
      names[f'Block_{i}', 'projection_norm'] = f'{name}.downsample.1'
  return names


def _numbered(ours: str, theirs: str, count: int) -> dict[tree.Path, str]:
  """Returns the names of the convolutions and BatchNorms of a block."""
  return {
    (ours, f'{layer}_{k}'): f'{theirs}.{name}{k + 1}'
    for k in range(count)
    for layer, name in (('Conv', 'conv'), ('BatchNorm', 'bn'))
  }


def _densenet(model: models.DenseNet) -> dict[tree.Path, str]:
  names = {('Conv_0',): 'conv1', ('Dense_0',): 'fc'}
  each = (model.depth - 4) // 3
  theirs = [
    name
    for block in (1, 2, 3)
    for name in [f'dense{block}.{k}' for k in range(each)] + [f'trans{block}']
  ]
  for i, name in enumerate(theirs[:-1]):  # the last block has no transition
    names[f'BatchNorm_{i}',] = f'{name}.bn1'
    names[f'Conv_{i + 1}',] = f'{name}.conv1'
  names[f'BatchNorm_{len(theirs) - 1}',] = 'bn'
  return names
