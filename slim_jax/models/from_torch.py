"""Weights of PyTorch networks for our models: of the paper's authors and of torchvision.

`torch_names` has the names of their modules. The counterparts of torchvision's networks are
`resnet18` to `resnet152` and `vgg11_bn` to `vgg19_bn`. They compute the same logits for the same
images, normalised by the mean and standard deviation of ImageNet, as photographs are here. (In
training, PyTorch's running variance is unbiased and ours is biased.)
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import models, tree
from slim_jax.models import torch_names

# PyTorch's names of leaves, by ours.
_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}

# Axes of PyTorch's weight in the order of our kernel, by their number. PyTorch's convolutions have
# [output, input, height, width], its linear layers [output, input].
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def from_state_dict(
  model: nn.Module,
  state_dict: Mapping[str, np.ndarray],
  *,
  image: tuple[int, int, int] = (224, 224, 3),
) -> Any:
  """Returns the variables of a model with the weights of its counterpart in PyTorch.

      checkpoint = torch.load('model_best.pth.tar', map_location='cpu')
      state_dict = {k: v.numpy() for k, v in checkpoint['state_dict'].items()}
      model = models.create('preresnet164', num_classes=10)
      variables = from_torch.from_state_dict(model, state_dict)

  Args:
    model: for the authors' code a `VGG` without `dense_widths`, a `PreResNet`, or a `DenseNet`
      without `bottleneck` (their stem is 24); for torchvision a `ResNet`, or a `VGG` with
      `dense_widths` and `conv_bias` and without `dense_norm`.
    state_dict: arrays by their names in PyTorch, of a network that is not pruned. A leading
      'module.', which DataParallel adds, is removed; `num_batches_tracked` and `select.indexes`
      are optional.
    image: height, width and channels of the images. The weights of a `VGG` with `dense_widths` fit
      one size; the others take any height and width.

  Returns:
    {'params': ..., 'batch_stats': ...} in float32, with the structure that `model.init` returns.

  Raises:
    TypeError: the model has no counterpart in PyTorch.
    ValueError: names are missing, unexpected or have the wrong shape, or a selection leaves out
      channels; the message lists them.
  """
  modules = torch_names.modules(model)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *image)), train=False)
  )
  arrays = _arrays(state_dict)
  # A path is the collection, the modules and the leaf: ('params', 'Conv_0', 'kernel').
  names = {path: f'{modules[path[1:-1]]}.{_LEAVES[path[-1]]}' for path in tree.flatten(shapes)}
  _check(
    arrays, {names[path]: _torch_shape(leaf.shape) for path, leaf in tree.flatten(shapes).items()}
  )
  after_pools = _size_after_pools(model, image)

  def convert(path: tree.Path, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    value = arrays[names[path]]
    if after_pools and path == ('params', 'Dense_0', 'kernel'):
      value = _channels_last(value, after_pools)
    return jnp.asarray(value.transpose(_AXES[value.ndim]), leaf.dtype)

  return tree.map_with_path(convert, shapes)


def num_classes(model: nn.Module, state_dict: Mapping[str, np.ndarray]) -> int:
  """Returns the number of classes of the weights, or the model's if they lack the last layer.

  Raises:
    TypeError: the model has no counterpart in PyTorch.
  """
  *_, head = (
    name for path, name in torch_names.modules(model).items() if path[-1].startswith('Dense_')
  )
  bias = _arrays(state_dict).get(f'{head}.bias')
  return model.num_classes if bias is None or bias.ndim != 1 else len(bias)


def _arrays(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name.removeprefix('module.'): np.asarray(value) for name, value in state_dict.items()}


def _size_after_pools(model: nn.Module, image: tuple[int, int, int]) -> tuple[int, int] | None:
  """Returns height and width of the image that a model flattens; None if it does not."""
  if not isinstance(model, models.VGG) or not model.dense_widths:
    return None
  pools = sum(width == 'M' for width in model.widths)
  return image[0] // 2**pools, image[1] // 2**pools


def _channels_last(weight: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Reorders the weight [outputs, inputs] of a layer that reads a flattened image.

  PyTorch flattens [channels, height, width], we flatten [height, width, channels].
  """
  image = weight.reshape(len(weight), -1, *size)
  return image.transpose(0, 2, 3, 1).reshape(weight.shape)


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns PyTorch's shape of a leaf with `shape` here."""
  axes = _AXES[len(shape)]
  return tuple(shape[axes.index(i)] for i in range(len(shape)))


def _check(arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
  """Raises if names or shapes are not the expected ones."""
  weights = {name: array for name, array in arrays.items() if not _is_ignored(name)}
  problems = {
    'missing': expected.keys() - weights.keys(),
    'unexpected': weights.keys() - expected.keys(),
    'of another shape': [
      f'{name} is {list(weights[name].shape)}, not {list(expected[name])}'
      for name in expected.keys() & weights.keys()
      if weights[name].shape != expected[name]
    ],
    'leaves out channels, so it is of a pruned network': [
      name
      for name, array in arrays.items()
      if name.endswith('select.indexes') and not np.all(array)
    ],
  }
  if any(problems.values()):
    raise ValueError(
      'the weights do not fit the model:'
      + ''.join(
        f'\n  {what}: {", ".join(sorted(names))}' for what, names in problems.items() if names
      )
    )


def _is_ignored(name: str) -> bool:
  """Returns whether our models have no counterpart of an array, nor need one."""
  return name.endswith(('num_batches_tracked', 'select.indexes'))
