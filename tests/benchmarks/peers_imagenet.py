"""Networks for 224x224 photographs in PyTorch, written again from their papers.

ResNet-50 (He et al., CVPR 2016, stride on the 3x3 convolution), DenseNet-121 (Huang et al., CVPR
2017), MobileNetV2 (Sandler et al., CVPR 2018), EfficientNet-B0 (Tan and Le, ICML 2019). `create`
looks whether they have as many parameters as are published.
"""

import torch
from torch import nn

# Parameters with 1,000 classes.
PARAMS = {
  'ResNet50': 25_557_032,
  'DenseNet121': 7_978_856,
  'MobileNetV2': 3_504_872,
  'EfficientNetB0': 5_288_548,
}


def create(name: str) -> nn.Module:
  """A network of `PARAMS` with random weights, in inference mode."""
  torch.manual_seed(0)
  model = {
    'ResNet50': resnet50,
    'DenseNet121': densenet121,
    'MobileNetV2': mobilenet_v2,
    'EfficientNetB0': efficientnet_b0,
  }[name]().eval()
  params = sum(p.numel() for p in model.parameters())
  if params != PARAMS[name]:
    raise AssertionError(f'{name} has {params} parameters, not {PARAMS[name]}')
  return model


def _conv(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
  return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolution, added to the input."""

  def __init__(self, inputs: int, width: int, stride: int):
    super().__init__()
    outputs = 4 * width
    self.conv1, self.bn1 = _conv(inputs, width), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
    self.conv3, self.bn3 = _conv(width, outputs), nn.BatchNorm2d(outputs)
    self.downsample = None
    if stride > 1 or inputs != outputs:
      self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = torch.relu_(self.bn1(self.conv1(x)))
    y = torch.relu_(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    return torch.relu_(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
  """ResNet-50; names of modules are those that everybody's weights have."""

  def __init__(self):
    super().__init__()
    self.conv1, self.bn1, inputs = _conv(3, 64, 7, 2), nn.BatchNorm2d(64), 64
    self.pool = nn.MaxPool2d(3, 2, 1)
    for stage, blocks in enumerate((3, 4, 6, 3)):
      found = []
      for block in range(blocks):
        found.append(Bottleneck(inputs, 64 * 2**stage, 2 if stage and not block else 1))
        inputs = 256 * 2**stage
      setattr(self, f'layer{stage + 1}', nn.Sequential(*found))
    self.fc = nn.Linear(inputs, 1000)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    x = self.pool(torch.relu_(self.bn1(self.conv1(x))))
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    return self.fc(x.mean((2, 3)))


resnet50 = ResNet


class DenseLayer(nn.Module):
  """BatchNorm, ReLU, 1x1, BatchNorm, ReLU, 3x3, appended to the input."""

  def __init__(self, inputs: int, growth: int):
    super().__init__()
    self.layers = nn.Sequential(
      nn.BatchNorm2d(inputs),
      nn.ReLU(),
      _conv(inputs, 4 * growth),
      nn.BatchNorm2d(4 * growth),
      nn.ReLU(),
      _conv(4 * growth, growth, 3),
    )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, self.layers(x)], 1)


def densenet121() -> nn.Module:
  """Dense blocks of 6, 12, 24 and 16 layers, growth 32."""
  width = 64
  found = [_conv(3, width, 7, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
  for i, layers in enumerate((6, 12, 24, 16)):
    if i:
      found += [nn.BatchNorm2d(width), nn.ReLU(), _conv(width, width // 2), nn.AvgPool2d(2)]
      width //= 2
    found += [DenseLayer(width + 32 * j, 32) for j in range(layers)]
    width += 32 * layers
  return nn.Sequential(
    *found,
    nn.BatchNorm2d(width),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(width, 1000),
  )


class Excite(nn.Module):
  """Squeeze-and-excite."""

  def __init__(self, width: int, squeezed: int):
    super().__init__()
    self.layers = nn.Sequential(
      nn.AdaptiveAvgPool2d(1),
      nn.Conv2d(width, squeezed, 1),
      nn.SiLU(),
      nn.Conv2d(squeezed, width, 1),
      nn.Sigmoid(),
    )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return x * self.layers(x)


class Inverted(nn.Module):
  """Expansion, depthwise convolution, perhaps squeeze-and-excite, projection, perhaps added."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    expand: int,
    size: int,
    stride: int,
    activation: type[nn.Module],
    squeeze: bool,
  ):
    super().__init__()
    width, found = inputs * expand, []
    if expand > 1:
      found += [_conv(inputs, width), nn.BatchNorm2d(width), activation()]
    found += [_conv(width, width, size, stride, width), nn.BatchNorm2d(width), activation()]
    if squeeze:
      found.append(Excite(width, inputs // 4))
    self.layers = nn.Sequential(*found, _conv(width, outputs), nn.BatchNorm2d(outputs))
    self.add = stride == 1 and inputs == outputs

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return x + self.layers(x) if self.add else self.layers(x)


def _inverted(stages, stem: int, activation: type[nn.Module], squeeze: bool) -> nn.Module:
  """Stages are (expand, channels, blocks, stride, size)."""
  found = [_conv(3, stem, 3, 2), nn.BatchNorm2d(stem), activation()]
  width = stem
  for expand, outputs, blocks, stride, size in stages:
    for block in range(blocks):
      found.append(
        Inverted(width, outputs, expand, size, 1 if block else stride, activation, squeeze)
      )
      width = outputs
  return nn.Sequential(
    *found,
    _conv(width, 1280),
    nn.BatchNorm2d(1280),
    activation(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Dropout(0.2),
    nn.Linear(1280, 1000),
  )


def mobilenet_v2() -> nn.Module:
  """Width 1."""
  return _inverted(
    (
      (1, 16, 1, 1, 3),
      (6, 24, 2, 2, 3),
      (6, 32, 3, 2, 3),
      (6, 64, 4, 2, 3),
      (6, 96, 3, 1, 3),
      (6, 160, 3, 2, 3),
      (6, 320, 1, 1, 3),
    ),
    32,
    nn.ReLU6,
    False,
  )


def efficientnet_b0() -> nn.Module:
  """Without stochastic depth."""
  return _inverted(
    (
      (1, 16, 1, 1, 3),
      (6, 24, 2, 2, 3),
      (6, 40, 2, 2, 5),
      (6, 80, 3, 2, 3),
      (6, 112, 3, 1, 5),
      (6, 192, 4, 2, 5),
      (6, 320, 1, 1, 3),
    ),
    32,
    nn.SiLU,
    True,
  )
