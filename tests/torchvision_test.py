"""Weights by the names of torchvision: the outputs are those of networks in PyTorch's layout.

The reference is written from the names and shapes of the arrays alone: images [batch, channels,
height, width], kernels [output, input, height, width], flattened as PyTorch does.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from slim_jax import models, tree
from slim_jax.models import from_torch


def conv(arrays, name, x, stride=1):
  kernel = arrays[f'{name}.weight']
  x = lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(kernel.shape[-1] // 2,) * 2] * 2,
    dimension_numbers=('NCHW', 'OIHW', 'NCHW'),
  )
  return x + arrays.get(f'{name}.bias', np.zeros(len(kernel))).reshape(1, -1, 1, 1)


def norm(arrays, name, x):
  weight, bias, mean, var = (
    arrays[f'{name}.{leaf}'].reshape(1, -1, 1, 1)
    for leaf in ('weight', 'bias', 'running_mean', 'running_var')
  )
  return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def linear(arrays, name, x):
  return x @ arrays[f'{name}.weight'].T + arrays[f'{name}.bias'][None]


def max_pool(x, size, stride, padding):
  return lax.reduce_window(
    x,
    -np.inf,
    lax.max,
    (1, 1, size, size),
    (1, 1, stride, stride),
    [(0, 0), (0, 0), (padding, padding), (padding, padding)],
  )


def relu(x):
  return jnp.maximum(x, 0)


def resnet(arrays, x):
  """conv1 ... fc; the names determine the numbers of stages, blocks and convolutions."""
  x = relu(norm(arrays, 'bn1', conv(arrays, 'conv1', x, 2)))
  x = max_pool(x, 3, 2, 1)
  blocks = sorted(
    {name.rpartition('.conv')[0] for name in arrays if name.startswith('layer') and '.conv' in name}
  )
  for name in blocks:
    stride = 2 if name.endswith('.0') and not name.startswith('layer1.') else 1
    convs = sum(f'{name}.conv{k}.weight' in arrays for k in (1, 2, 3))
    y = x
    for k in range(1, convs + 1):
      # The stride is on the first 3x3 convolution.
      y = norm(
        arrays, f'{name}.bn{k}', conv(arrays, f'{name}.conv{k}', y, stride if k == convs - 1 else 1)
      )
      y = relu(y) if k < convs else y
    if f'{name}.downsample.0.weight' in arrays:
      x = norm(arrays, f'{name}.downsample.1', conv(arrays, f'{name}.downsample.0', x, stride))
    x = relu(x + y)
  return linear(arrays, 'fc', x.mean((2, 3)))


def vgg(arrays, x):
  """features.N; convolutions and BatchNorms have arrays, ReLUs and max-pools do not."""
  position, last = 0, max(int(name.split('.')[1]) for name in arrays if name.startswith('features'))
  while position < last or position == last + 2:
    if f'features.{position}.weight' in arrays:
      x = conv(arrays, f'features.{position}', x)
      x = relu(norm(arrays, f'features.{position + 1}', x))
      position += 3
    else:
      x = max_pool(x, 2, 2, 0)
      position += 1
  x = x.reshape(len(x), -1)
  for i in (0, 3):
    x = relu(linear(arrays, f'classifier.{i}', x))
  return linear(arrays, 'classifier.6', x)


def leaves(name, *shape, biased=False):
  """Shapes of a convolution or linear layer."""
  return {f'{name}.weight': shape, **({f'{name}.bias': shape[:1]} if biased else {})}


def norm_leaves(name, width):
  return {
    **{f'{name}.{leaf}': (width,) for leaf in ('weight', 'bias', 'running_mean', 'running_var')},
    f'{name}.num_batches_tracked': (),
  }


def resnet_shapes(blocks, width, classes, bottleneck):
  shapes = leaves('conv1', width, 3, 7, 7) | norm_leaves('bn1', width)
  inputs = width
  for stage, count in enumerate(blocks):
    inner = width * 2**stage
    outputs = 4 * inner if bottleneck else inner
    for i in range(count):
      name = f'layer{stage + 1}.{i}'
      for k, (o, c, size) in enumerate(
        [(inner, inputs, 1), (inner, inner, 3), (outputs, inner, 1)]
        if bottleneck
        else [(inner, inputs, 3), (inner, inner, 3)],
        start=1,
      ):
        shapes |= leaves(f'{name}.conv{k}', o, c, size, size) | norm_leaves(f'{name}.bn{k}', o)
      if inputs != outputs or (stage and not i):
        shapes |= leaves(f'{name}.downsample.0', outputs, inputs, 1, 1)
        shapes |= norm_leaves(f'{name}.downsample.1', outputs)
      inputs = outputs
  return shapes | leaves('fc', classes, inputs, biased=True)


def vgg_shapes(widths, places, dense, classes):
  shapes, inputs, position = {}, 3, 0
  for width in widths:
    if width == 'M':
      position += 1
      continue
    shapes |= leaves(f'features.{position}', width, inputs, 3, 3, biased=True)
    shapes |= norm_leaves(f'features.{position + 1}', width)
    inputs, position = width, position + 3
  for i, (units, before) in enumerate(zip((*dense, classes), (inputs * places, *dense))):
    shapes |= leaves(f'classifier.{3 * i}', units, before, biased=True)
  return shapes


def weights(shapes, seed=0):
  rng, arrays = np.random.default_rng(seed), {}
  for name, shape in shapes.items():
    value = rng.normal(size=shape)
    if name.endswith('running_var'):
      value = rng.uniform(0.5, 2, shape)
    elif len(shape) > 1:
      value /= np.sqrt(np.prod(shape[1:]))
    arrays[name] = np.asarray(value, np.int64 if shape == () else np.float32)
  return arrays


# Images are not square, and have odd heights where the network allows it, so that another padding or
# another order of flattened values would show.
WIDTHS = (4, 'M', 6, 5, 'M')
NETWORKS = {
  'resnet': (
    resnet,
    resnet_shapes((2, 1), 4, 5, False),
    models.ResNet(num_classes=5, blocks=(2, 1), width=4, bottleneck=False),
    (23, 18, 3),
  ),
  'bottleneck': (
    resnet,
    resnet_shapes((1, 2), 4, 5, True),
    models.ResNet(num_classes=5, blocks=(1, 2), width=4),
    (23, 18, 3),
  ),
  'vgg': (
    vgg,
    vgg_shapes(WIDTHS, 3 * 2, (8, 7), 5),
    models.VGG(
      num_classes=5,
      widths=WIDTHS,
      dense_widths=(8, 7),
      conv_bias=True,
      dense_norm=False,
      drop_rate=0.5,
    ),
    (13, 8, 3),
  ),
}
networks = pytest.mark.parametrize('name', NETWORKS)


@networks
def test_outputs_are_those_of_pytorch(name):
  network, shapes, model, image = NETWORKS[name]
  arrays = weights(shapes)
  variables = from_torch.from_state_dict(model, arrays, image=image)
  x = jax.random.normal(jax.random.key(3), (2, *image))
  want = jax.jit(lambda x: network(arrays, x.transpose(0, 3, 1, 2)))(x)
  got = jax.jit(lambda variables, x: model.apply(variables, x, train=False))(variables, x)
  assert float(jnp.std(want)) > 0.1
  np.testing.assert_allclose(got, want, atol=1e-5 * float(np.abs(want).max()))


@pytest.mark.parametrize(
  'model, shapes',
  [
    ('resnet18', resnet_shapes((2, 2, 2, 2), 64, 1000, False)),
    ('resnet152', resnet_shapes((3, 8, 36, 3), 64, 1000, True)),
    (
      'vgg11_bn',
      vgg_shapes(
        (64, 'M', 128, 'M', 256, 256, 'M', 512, 512, 'M', 512, 512, 'M'), 49, (4096, 4096), 1000
      ),
    ),
    (
      'vgg19_bn',
      vgg_shapes(
        (64, 64, 'M', 128, 128, 'M', *4 * (256,), 'M', *4 * (512,), 'M', *4 * (512,), 'M'),
        49,
        (4096, 4096),
        1000,
      ),
    ),
  ],
)
def test_names_are_those_of_torchvision(model, shapes):
  """All names are used and none is missing; the arrays are zeros that take no memory."""
  arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
  variables = jax.eval_shape(
    lambda: from_torch.from_state_dict(models.create(model, num_classes=1000), arrays)
  )
  expected = sum(np.prod(shape) for name, shape in shapes.items() if shape)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == expected


@networks
def test_number_of_classes_is_that_of_the_weights(name):
  _, shapes, model, image = NETWORKS[name]
  arrays = weights(shapes)
  other = model.clone(num_classes=9)
  assert from_torch.num_classes(other, arrays) == 5
  with pytest.raises(ValueError, match=r'shape: (classifier.6|fc).bias is \[5\], not \[9\]'):
    from_torch.from_state_dict(other, arrays, image=image)


def test_a_network_that_drops_does_so_in_training():
  _, shapes, model, image = NETWORKS['vgg']
  variables = from_torch.from_state_dict(model, weights(shapes), image=image)
  x = jax.random.normal(jax.random.key(3), (4, *image))

  @jax.jit
  def train(key):
    return model.apply(
      variables, x, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(key)}
    )[0]

  assert not np.allclose(train(0), train(1))


def test_images_of_another_size_are_told():
  _, shapes, model, _ = NETWORKS['vgg']
  with pytest.raises(ValueError, match=r'classifier.0.weight is \[8, 30\], not \[8, 20\]'):
    from_torch.from_state_dict(model, weights(shapes), image=(8, 8, 3))


def test_every_path_has_its_own_array():
  """Each array is used once: random values identify it."""
  _, shapes, model, image = NETWORKS['bottleneck']
  variables = from_torch.from_state_dict(model, weights(shapes), image=image)
  values = [np.sort(np.ravel(leaf)).tobytes() for leaf in tree.flatten(variables).values()]
  assert len(set(values)) == len(values)
