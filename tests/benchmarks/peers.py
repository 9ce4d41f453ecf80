"""The networks of the authors' PyTorch code, written again from their definitions.

Modules have the names that code gives them (see `slim_jax.models.from_torch`), so that weights can be
carried over and outputs compared. VGG, pre-activation ResNet and DenseNet for 32x32 images are of
Liu et al. (ICCV 2017) with their channel selection; ResNet-50 (He et al., CVPR 2016, with the
stride on the 3x3 convolution) and the other networks for photographs are in peers_imagenet.py.
"""

from collections.abc import Callable
from typing import Any

import networks
import numpy as np
import peers_imagenet
import side_by_side
import torch
from torch import nn
from torch.nn import functional as F

from slim_jax import tree
from slim_jax.models import from_torch

# What PyTorch calls a leaf of ours, and the axes of our kernel among those of its weight.
_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}

torch.set_num_threads(side_by_side.cores())


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
  return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Select(nn.Module):
  """Hands on the channels whose entry in `indexes` is not zero: before the cut, all of them."""

  def __init__(self, width: int):
    super().__init__()
    self.indexes = nn.Parameter(torch.ones(width))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    chosen = np.squeeze(np.argwhere(self.indexes.data.numpy()), -1)
    return x[:, chosen]


class VGG(nn.Module):
  """VGG-19: `feature`, a 2x2 average pool, `classifier`."""

  WIDTHS = (
    64,
    64,
    'M',
    128,
    128,
    'M',
    256,
    256,
    256,
    256,
    'M',
    512,
    512,
    512,
    512,
    'M',
    512,
    512,
    512,
    512,
  )

  def __init__(self):
    super().__init__()
    found, inputs = [], 3
    for width in self.WIDTHS:
      if width == 'M':
        found.append(nn.MaxPool2d(2, 2))
      else:
        found += [_conv(inputs, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        inputs = width
    self.feature, self.classifier = nn.Sequential(*found), nn.Linear(inputs, 10)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.classifier(F.avg_pool2d(self.feature(x), 2).flatten(1))


class Bottleneck(nn.Module):
  """BatchNorm, ReLU, convolution three times; the first reads a selection of the stream."""

  def __init__(self, inputs: int, width: int, stride: int, project: bool, select: bool):
    super().__init__()
    self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, width, 1)
    self.select = Select(inputs) if select else nn.Identity()
    self.bn2, self.conv2 = nn.BatchNorm2d(width), _conv(width, width, 3, stride)
    self.bn3, self.conv3 = nn.BatchNorm2d(width), _conv(width, 4 * width, 1)
    self.downsample = nn.Sequential(_conv(inputs, 4 * width, 1, stride)) if project else None

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.conv1(F.relu(self.select(self.bn1(x)), inplace=True))
    y = self.conv2(F.relu(self.bn2(y), inplace=True))
    y = self.conv3(F.relu(self.bn3(y), inplace=True))
    return y + (x if self.downsample is None else self.downsample(x))


class PreResNet(nn.Module):
  """Pre-activation ResNet of `depth` = 9n + 2 layers."""

  def __init__(self, depth: int = 164, select: bool = True):
    super().__init__()
    self.conv1, inputs = _conv(3, 16, 3), 16
    for stage, width in enumerate((16, 32, 64)):
      blocks = []
      for block in range((depth - 2) // 9):
        stride = 2 if stage and not block else 1
        blocks.append(Bottleneck(inputs, width, stride, not block, select))
        inputs = 4 * width
      setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
    self.bn, self.select = nn.BatchNorm2d(inputs), Select(inputs) if select else nn.Identity()
    self.fc = nn.Linear(inputs, 10)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
    x = F.relu(self.select(self.bn(x)), inplace=True)
    return self.fc(F.avg_pool2d(x, 8).flatten(1))


class Layer(nn.Module):
  """BatchNorm, selection, ReLU, convolution; what it puts out is appended."""

  def __init__(self, inputs: int, growth: int, select: bool):
    super().__init__()
    self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, growth, 3)
    self.select = Select(inputs) if select else nn.Identity()

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.conv1(F.relu(self.select(self.bn1(x)), inplace=True))
    return torch.cat((x, y), 1)


class Transition(nn.Module):
  """The same with a 1x1 convolution, then a 2x2 average pool."""

  def __init__(self, width: int, select: bool):
    super().__init__()
    self.bn1, self.conv1 = nn.BatchNorm2d(width), _conv(width, width, 1)
    self.select = Select(width) if select else nn.Identity()

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(self.conv1(F.relu(self.select(self.bn1(x)), inplace=True)), 2)


class DenseNet(nn.Module):
  """DenseNet-40 with a growth of 12."""

  def __init__(self, depth: int = 40, growth: int = 12, select: bool = True):
    super().__init__()
    width = 2 * growth
    self.conv1 = _conv(3, width, 3)
    for block in (1, 2, 3):
      found = []
      for _ in range((depth - 4) // 3):
        found.append(Layer(width, growth, select))
        width += growth
      setattr(self, f'dense{block}', nn.Sequential(*found))
      if block < 3:
        setattr(self, f'trans{block}', Transition(width, select))
    self.bn, self.select = nn.BatchNorm2d(width), Select(width) if select else nn.Identity()
    self.fc = nn.Linear(width, 10)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    x = self.trans1(self.dense1(self.conv1(x)))
    x = self.dense3(self.trans2(self.dense2(x)))
    x = F.relu(self.select(self.bn(x)), inplace=True)
    return self.fc(F.avg_pool2d(x, 8).flatten(1))


def create(name: str, select: bool = True) -> nn.Module:
  """The peer of a network, with random weights; scales are 0.5 as in the paper's code.

  Args:
    name: of `networks.NETWORKS`.
    select: whether channels are selected by index, as that code does before the cut too.
  """
  torch.manual_seed(0)
  model = {
    'vgg19': VGG,
    'resnet50': peers_imagenet.resnet50,
    'preresnet164': lambda: PreResNet(select=select),
    'densenet40': lambda: DenseNet(select=select),
  }[name]()
  for module in model.modules():
    if isinstance(module, nn.Conv2d):
      nn.init.kaiming_normal_(module.weight, mode='fan_out')
    if isinstance(module, nn.BatchNorm2d):
      nn.init.constant_(module.weight, 0.5)
  return model


def variables(name: str, model: nn.Module) -> Any:
  """Our variables with the weights of the peer."""
  arrays = {key: value.detach().numpy().copy() for key, value in model.state_dict().items()}
  ours = networks.create(name)
  if name != 'resnet50':
    return from_torch.from_state_dict(ours, arrays)
  _, shapes, _ = networks.network(name)
  return tree.map_with_path(lambda path, leaf: _resnet50_leaf(arrays, path[1:], leaf.shape), shapes)


def _resnet50_leaf(arrays: dict[str, np.ndarray], path: tree.Path, shape: Any) -> np.ndarray:
  """The array of PyTorch for a leaf such as Block_3/Conv_0/kernel."""
  *block, module, leaf = path
  theirs = {'projection': 'downsample.0', 'projection_norm': 'downsample.1', 'Dense_0': 'fc'}
  kind, _, number = module.partition('_')
  name = theirs.get(module) or f'{"bn" if kind == "BatchNorm" else "conv"}{int(number) + 1}'
  for one in block:
    index = int(one.removeprefix('Block_'))
    stage = next(s for s, first in ((4, 13), (3, 7), (2, 3), (1, 0)) if index >= first)
    name = f'layer{stage}.{index - (0, 3, 7, 13)[stage - 1]}.{name}'
  value = arrays[f'{name}.{_LEAVES[leaf]}']
  value = value.transpose(_AXES[value.ndim])
  assert value.shape == tuple(shape), (path, value.shape, shape)
  return value


def tensors(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
  """(image, label) of a batch of ours, in PyTorch's layout."""
  image = np.asarray(batch['image']).transpose(0, 3, 1, 2)
  return torch.from_numpy(image.copy()), torch.from_numpy(np.array(batch['label'], np.int64))


def stepper(model: nn.Module, batch: Any) -> Callable[[], float]:
  """Training steps on one batch, as the authors' code takes them; returns the loss before."""
  image, label = tensors(batch)
  step = step_function(model)
  return lambda: step(image, label)


def step_function(model: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], float]:
  """One step of training on `(image, label)`: SGD with momentum, and the L1 term."""
  sgd = torch.optim.SGD(
    model.parameters(),
    networks.LEARNING_RATE,
    networks.MOMENTUM,
    weight_decay=networks.WEIGHT_DECAY,
  )

  def call(image: torch.Tensor, label: torch.Tensor) -> float:
    model.train()
    sgd.zero_grad()
    loss = F.cross_entropy(model(image), label)
    loss.backward()
    add_l1(model)
    sgd.step()
    return loss.item()

  return call


def add_l1(model: nn.Module) -> None:
  """Adds the subgradient of the L1 term to the gradients of the scales."""
  for module in model.modules():
    if isinstance(module, nn.BatchNorm2d):
      module.weight.grad.data.add_(networks.STRENGTH * torch.sign(module.weight.data))


def predictor(model: nn.Module, image: Any) -> Callable[[], torch.Tensor]:
  """Inference on one batch of our images."""
  x = torch.from_numpy(np.asarray(image).transpose(0, 3, 1, 2).copy())

  def call() -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
      return model(x)

  return call
