"""Weights of the authors' PyTorch implementation of network slimming, in our models.

That code (https://github.com/Eric-mingjie/network-slimming, and the same networks in
https://github.com/Eric-mingjie/rethinking-network-pruning) names what it saves by module:

  vgg       feature.N.weight ... with N counting convolutions, BatchNorms, ReLUs and
            max-pools; classifier
  resnet    conv1; layerN.M.{bn1, select, conv1, bn2, conv2, bn3, conv3, downsample.0};
            bn; select; fc
  densenet  conv1; denseN.M.{bn1, select, conv1}; transN.{bn1, select, conv1}; bn;
            select; fc

`select` lists the channels that a BatchNorm hands on: all of them until it is pruned.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import models
from slim_jax import tree

# What PyTorch calls a leaf of ours.
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias',
           'mean': 'running_mean', 'var': 'running_var'}

# Axes of our kernel among those of PyTorch's weight, by their number: a convolution's
# are [output, input, height, width], a linear layer's [output, input].
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def from_state_dict(model: nn.Module, state_dict: Mapping[str, np.ndarray]) -> Any:
  """Variables of a model with the weights of its counterpart in PyTorch.

      checkpoint = torch.load('model_best.pth.tar', map_location='cpu')
      state_dict = {k: v.numpy() for k, v in checkpoint['state_dict'].items()}
      model = models.create('preresnet164', num_classes=10)
      variables = import_torch.from_state_dict(model, state_dict)

  Args:
    model: a `VGG` without dense layers before the last one, a `PreResNet`, or a
      `DenseNet` without bottlenecks (its stem is 24 there), for three-channel images.
    state_dict: arrays by their names in PyTorch, of a network that is not yet pruned. A
      leading 'module.', left by DataParallel, is taken off; `num_batches_tracked` and
      `select.indexes` may be there or not.

  Returns:
    {'params': ..., 'batch_stats': ...} in float32, as `model.init` makes them.

  Raises:
    TypeError: no counterpart of the model is known.
    ValueError: listing the names that are missing, unexpected or of another shape, and
      the selections that leave out channels.
  """
  modules = _modules(model)
  shapes = jax.eval_shape(
      lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
  arrays = {name.removeprefix('module.'): np.asarray(value)
            for name, value in state_dict.items()}
  # Paths are of a collection, the modules, the leaf: ('params', 'Conv_0', 'kernel').
  names = {path: f'{modules[path[1:-1]]}.{_LEAVES[path[-1]]}'
           for path in tree.flatten(shapes)}
  _check(arrays, {names[path]: _torch_shape(leaf.shape)
                  for path, leaf in tree.flatten(shapes).items()})

  def convert(path: tree.Path, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    value = arrays[names[path]]
    return jnp.asarray(value.transpose(_AXES[value.ndim]), leaf.dtype)

  return tree.map_with_path(convert, shapes)


def _modules(model: nn.Module) -> dict[tree.Path, str]:
  """PyTorch's name of every module with variables, by the path of ours."""
  if isinstance(model, models.VGG) and not model.dense_widths:
    return _vgg(model)
  if isinstance(model, models.PreResNet):
    return _preresnet(model)
  if isinstance(model, models.DenseNet) and not model.bottleneck:
    return _densenet(model)
  raise TypeError(f'no network of the PyTorch implementation is the counterpart of {model}; '
                  'there are VGG without dense_widths, PreResNet, and DenseNet without '
                  'bottleneck')


def _vgg(model: models.VGG) -> dict[tree.Path, str]:
  names = {('Dense_0',): 'classifier'}
  position = layer = 0
  for width in model.widths:
    if width == 'M':
      position += 1
      continue
    names[f'Conv_{layer}',] = f'feature.{position}'
    names[f'BatchNorm_{layer}',] = f'feature.{position + 1}'
    layer += 1
    position += 3  # The third is ReLU.
  return names


def _preresnet(model: models.PreResNet) -> dict[tree.Path, str]:
  names = {('Conv_0',): 'conv1', ('BatchNorm_0',): 'bn', ('Dense_0',): 'fc'}
  blocks = (model.depth - 2) // 9
  for i in range(3 * blocks):
    ours, theirs = f'Bottleneck_{i}', f'layer{i // blocks + 1}.{i % blocks}'
    for k in range(3):
      names[ours, f'BatchNorm_{k}'] = f'{theirs}.bn{k + 1}'
      names[ours, f'Conv_{k}'] = f'{theirs}.conv{k + 1}'
    if i % blocks == 0:
      names[ours, 'projection'] = f'{theirs}.downsample.0'
  return names


def _densenet(model: models.DenseNet) -> dict[tree.Path, str]:
  names = {('Conv_0',): 'conv1', ('Dense_0',): 'fc'}
  each = (model.depth - 4) // 3
  theirs = [name for block in (1, 2, 3)
            for name in [f'dense{block}.{k}' for k in range(each)] + [f'trans{block}']]
  for i, name in enumerate(theirs[:-1]):  # No transition follows the last block.
    names[f'BatchNorm_{i}',] = f'{name}.bn1'
    names[f'Conv_{i + 1}',] = f'{name}.conv1'
  names[f'BatchNorm_{len(theirs) - 1}',] = 'bn'
  return names


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape in PyTorch of what has `shape` here."""
  axes = _AXES[len(shape)]
  return tuple(shape[axes.index(i)] for i in range(len(shape)))


def _check(arrays: Mapping[str, np.ndarray],
           expected: Mapping[str, tuple[int, ...]]) -> None:
  found = {name: array for name, array in arrays.items() if not _is_ignored(name)}
  problems = {
      'missing': expected.keys() - found.keys(),
      'unexpected': found.keys() - expected.keys(),
      'of another shape': [
          f'{name} is {list(found[name].shape)}, not {list(expected[name])}'
          for name in expected.keys() & found.keys() if found[name].shape != expected[name]],
      'leaves out channels, so it is of a pruned network': [
          name for name, array in arrays.items()
          if name.endswith('select.indexes') and not np.all(array)],
  }
  if any(problems.values()):
    raise ValueError('the weights do not fit the model:' + ''.join(
        f'\n  {what}: {", ".join(sorted(names))}' for what, names in problems.items() if names))


def _is_ignored(name: str) -> bool:
  """Whether a name stands for nothing that our models have."""
  return name.endswith(('num_batches_tracked', 'select.indexes'))
