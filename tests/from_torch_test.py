"""Weights of the PyTorch implementation: the same outputs, and the same channels selected."""

from helpers import torch_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models, tree
from slim_jax.models import from_torch

networks = pytest.mark.parametrize('name', torch_networks.NETWORKS)


def module_with(variables, mean):
  """Returns the path of our BatchNorm that has these running means, whatever its name."""
  (module,) = (
    path[1:-1]
    for path, leaf in tree.flatten(variables).items()
    if path[-1] == 'mean' and leaf.shape == mean.shape and np.all(leaf == mean)
  )
  return module


def images(dtype=jnp.float32):
  return jax.random.normal(jax.random.key(3), (2, 8, 8, 3), dtype)


def close(got, want):
  np.testing.assert_allclose(got, want, atol=1e-5 * float(np.abs(want).max()))


@networks
def test_outputs_are_those_of_pytorch(name):
  network, model = torch_networks.NETWORKS[name]
  arrays = torch_networks.random_weights(network)
  variables = from_torch.from_state_dict(model, arrays)
  x = images()
  want = jax.jit(lambda x: network(torch_networks.Arrays(arrays), x.transpose(0, 3, 1, 2)))(x)
  got = jax.jit(lambda variables, x: model.apply(variables, x, train=False))(variables, x)
  assert float(jnp.std(want)) > 0.1
  close(got, want)


@networks
def test_the_tree_is_that_of_init(name):
  network, model = torch_networks.NETWORKS[name]
  variables = from_torch.from_state_dict(model, torch_networks.random_weights(network))
  like = jax.eval_shape(lambda: model.init(jax.random.key(0), images(), train=False))
  assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == jax.tree.map(
    lambda a: (a.shape, a.dtype), like
  )


@networks
@pytest.mark.parametrize('fraction', [0.1, 0.4, 0.7])
def test_the_channels_kept_are_those_of_the_rule(name, fraction):
  network, model = torch_networks.NETWORKS[name]
  arrays = torch_networks.random_weights(network)
  variables = from_torch.from_state_dict(model, arrays)
  dead = slim_jax.select_global(variables, fraction=fraction, strict=True)['params']
  kept = torch_networks.masks(arrays, fraction)
  assert len(kept) == len(jax.tree.leaves(dead))
  for norm, keeps in kept.items():
    path = module_with(variables, arrays[f'{norm}.running_mean'])
    np.testing.assert_array_equal(tree.flatten(dead)[*path, 'scale'], ~keeps, err_msg=norm)


@networks
def test_the_thin_network_is_the_masked_one_of_pytorch(name):
  network, model = torch_networks.NETWORKS[name]
  arrays = torch_networks.random_weights(network)
  variables, x = from_torch.from_state_dict(model, arrays), images()
  dead = slim_jax.select_global(variables, fraction=0.4, strict=True)
  plan = slim_jax.plan(
    lambda variables, x: model.apply(variables, x, train=False), variables, x, dead=dead
  )
  for norm, keeps in torch_networks.masks(arrays, 0.4).items():
    for leaf in ('weight', 'bias'):
      arrays[f'{norm}.{leaf}'] = arrays[f'{norm}.{leaf}'] * keeps
  want = jax.jit(lambda x: network(torch_networks.Arrays(arrays), x.transpose(0, 3, 1, 2)))(x)
  thin = slim_jax.thin(lambda variables, x: model.apply(variables, x, train=False), plan)
  close(jax.jit(thin)(plan.slice(variables), x), want)


@pytest.mark.parametrize(
  'network, model, scales',
  [
    (lambda layer, x: torch_networks.vgg(layer, x, models.WIDTHS['vgg19'], 10), 'vgg19', 5504),
    (lambda layer, x: torch_networks.resnet(layer, x, 164, 16, 10), 'preresnet164', 12_112),
    (lambda layer, x: torch_networks.densenet(layer, x, 40, 12, 10), 'densenet40', 9360),
  ],
)
def test_networks_of_the_paper_import_by_default(network, model, scales):
  shapes = torch_networks.Shapes()
  network(shapes, (3,))
  arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.arrays.items()}
  variables = from_torch.from_state_dict(models.create(model, num_classes=10), arrays)
  assert (
    sum(leaf.size for path, leaf in tree.flatten(variables).items() if path[-1] == 'scale')
    == scales
  )


def test_names_may_have_a_prefix_and_no_selection():
  network, model = torch_networks.NETWORKS['resnet']
  arrays = torch_networks.random_weights(network)
  variables = from_torch.from_state_dict(model, arrays)
  other = {
    f'module.{name}': value
    for name, value in arrays.items()
    if 'select' not in name and 'num_batches_tracked' not in name
  }
  jax.tree.map(np.testing.assert_array_equal, variables, from_torch.from_state_dict(model, other))


def test_all_that_does_not_fit_is_listed_at_once():
  network, model = torch_networks.NETWORKS['resnet']
  arrays = torch_networks.random_weights(network)
  del arrays['layer2.1.bn3.running_var'], arrays['fc.bias']
  arrays['layer4.0.conv1.weight'] = np.zeros((1, 1, 1, 1), np.float32)
  arrays['conv1.weight'] = np.zeros((4, 3, 5, 5), np.float32)
  arrays['bn.weight'] = arrays['bn.weight'][:-1]
  arrays['layer1.0.select.indexes'] = np.array([1, 0, 1, 1], np.float32)
  with pytest.raises(ValueError) as error:
    from_torch.from_state_dict(model, arrays)
  assert str(error.value).splitlines() == [
    'the weights do not fit the model:',
    '  missing: fc.bias, layer2.1.bn3.running_var',
    '  unexpected: layer4.0.conv1.weight',
    '  of another shape: bn.weight is [63], not [64], '
    'conv1.weight is [4, 3, 5, 5], not [4, 3, 3, 3]',
    '  leaves out channels, so it is of a pruned network: layer1.0.select.indexes',
  ]


@pytest.mark.parametrize(
  'model',
  [
    models.MLP(num_classes=10),
    models.VGG(num_classes=10, dense_widths=(8,)),
    models.DenseNet(num_classes=10, bottleneck=True),
  ],
)
def test_models_without_a_counterpart_are_refused(model):
  with pytest.raises(TypeError, match='no network of the PyTorch implementation'):
    from_torch.from_state_dict(model, {})
