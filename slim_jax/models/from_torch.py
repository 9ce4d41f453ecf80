"""Weights of PyTorch networks, in our models: the authors' own and torchvision's.

What their modules are called is in `torch_names`. Of torchvision the counterparts are `resnet18`
to `resnet152` and `vgg11_bn` to `vgg19_bn`: the same function of the same images, normalised by
the mean and standard deviation of ImageNet, which photographs are here. (In training PyTorch keeps
the unbiased variance of a batch, ours the biased one.)
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import models, tree
from slim_jax.models import torch_names

# What PyTorch calls a leaf of ours.
_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}

# Axes of our kernel among those of PyTorch's weight, by their number: a convolution's
# are [output, input, height, width], a linear layer's [output, input].
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def from_state_dict(
  model: nn.Module,
  state_dict: Mapping[str, np.ndarray],
  *,
  image: tuple[int, int, int] = (224, 224, 3),
) -> Any:
  """Variables of a model with the weights of its counterpart in PyTorch.

      checkpoint = torch.load('model_best.pth.tar', map_location='cpu')
      state_dict = {k: v.numpy() for k, v in checkpoint['state_dict'].items()}
      model = models.create('preresnet164', num_classes=10)
      variables = import_torch.from_state_dict(model, state_dict)

  Args:
    model: of the authors' code a `VGG` without dense layers before the last one, a `PreResNet`,
      or a `DenseNet` without bottlenecks (its stem is 24 there); of torchvision a `ResNet`, or a
      `VGG` with dense layers, `conv_bias` and no `dense_norm`.
    state_dict: arrays by their names in PyTorch, of a network that is not yet pruned. A
      leading 'module.', left by DataParallel, is taken off; `num_batches_tracked` and
      `select.indexes` may be there or not.
    image: height, width and channels of the images. A `VGG` with dense layers has weights for
      one size; the others take any height and width.

  Returns:
    {'params': ..., 'batch_stats': ...} in float32, as `model.init` makes them.

  Raises:
    TypeError: no counterpart of the model is known.
    ValueError: listing the names that are missing, unexpected or of another shape, and
      the selections that leave out channels.
  """
  modules = torch_names.modules(model)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *image)), train=False)
  )
  arrays = _arrays(state_dict)
  # Paths are of a collection, the modules, the leaf: ('params', 'Conv_0', 'kernel').
  names = {path: f'{modules[path[1:-1]]}.{_LEAVES[path[-1]]}' for path in tree.flatten(shapes)}
  _check(
    arrays, {names[path]: _torch_shape(leaf.shape) for path, leaf in tree.flatten(shapes).items()}
  )
  flattened = ('params', 'Dense_0', 'kernel') if _flattens(model) else None

  def convert(path: tree.Path, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    value = arrays[names[path]]
    if path == flattened:
      value = _channels_last(value, _places(model, image))
    return jnp.asarray(value.transpose(_AXES[value.ndim]), leaf.dtype)

  return tree.map_with_path(convert, shapes)


def num_classes(model: nn.Module, state_dict: Mapping[str, np.ndarray]) -> int:
  """Classes that the weights are for; those of the model where the weights have no such layer.

  Raises:
    TypeError: no counterpart of the model is known.
  """
  *_, head = (
    name for path, name in torch_names.modules(model).items() if path[-1].startswith('Dense_')
  )
  bias = _arrays(state_dict).get(f'{head}.bias')
  return model.num_classes if bias is None or bias.ndim != 1 else len(bias)


def _arrays(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name.removeprefix('module.'): np.asarray(value) for name, value in state_dict.items()}


def _flattens(model: nn.Module) -> bool:
  return isinstance(model, models.VGG) and bool(model.dense_widths)


def _places(model: models.VGG, image: tuple[int, int, int]) -> tuple[int, int]:
  """Height and width of what the max-pools leave of an image."""
  pools = sum(width == 'M' for width in model.widths)
  return image[0] // 2**pools, image[1] // 2**pools


def _channels_last(weight: np.ndarray, places: tuple[int, int]) -> np.ndarray:
  """The weight [outputs, inputs] of a layer that reads a flattened image, inputs in our order.

  PyTorch flattens [channels, height, width], we [height, width, channels].
  """
  image = weight.reshape(len(weight), -1, *places)
  return image.transpose(0, 2, 3, 1).reshape(weight.shape)


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape in PyTorch of what has `shape` here."""
  axes = _AXES[len(shape)]
  return tuple(shape[axes.index(i)] for i in range(len(shape)))


def _check(arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
  found = {name: array for name, array in arrays.items() if not _is_ignored(name)}
  problems = {
    'missing': expected.keys() - found.keys(),
    'unexpected': found.keys() - expected.keys(),
    'of another shape': [
      f'{name} is {list(found[name].shape)}, not {list(expected[name])}'
      for name in expected.keys() & found.keys()
      if found[name].shape != expected[name]
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
  """Whether a name stands for nothing that our models have."""
  return name.endswith(('num_batches_tracked', 'select.indexes'))
