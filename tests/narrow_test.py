"""A narrow module takes the thin variables and computes what `thin` computes."""

import json

from flax import linen as nn
from helpers import laws, zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models
from slim_jax.models import narrow

CHAINS = {
  'vgg': (models.VGG(num_classes=5, widths=(8, 'M', 12, 10)), (4, 8, 8, 3)),
  # 3x2 pixels are flattened; dense layers with BatchNorm, convolutions with biases.
  'vgg_a': (
    models.VGG(num_classes=5, widths=(8, 'M', 12, 'M'), dense_widths=(16, 12), conv_bias=True),
    (4, 12, 8, 3),
  ),
  'vgg_bn': (
    models.VGG(
      num_classes=5,
      widths=(8, 'M', 12, 'M'),
      dense_widths=(16, 12),
      conv_bias=True,
      dense_norm=False,
    ),
    (4, 12, 8, 3),
  ),
  'mlp': (models.MLP(num_classes=5, widths=(16, 12)), (4, 5, 4, 2)),
}
chains = pytest.mark.parametrize('name', CHAINS)
# Networks that widths do not describe: the model, the images, and whether biases stay.
STREAMS = {
  'preresnet': (models.PreResNet(num_classes=5, depth=11, width=4), (2, 8, 8, 3), 'keep'),
  'resnet': (
    models.ResNet(num_classes=5, blocks=(1, 1), width=4, bottleneck=False),
    (2, 32, 32, 3),
    'zero',
  ),
  'densenet': (
    models.DenseNet(num_classes=5, depth=10, growth=3, stem=4, bottleneck=True, compression=0.5),
    (2, 8, 8, 3),
    'keep',
  ),
  'vgg': (*CHAINS['vgg_a'], 'keep'),
}


# Networks without BatchNorm, which lose heads and neurons.
WITHOUT_NORM = {
  'vit': (
    models.ViT(
      num_classes=5, patch=4, width=12, heads=(3, 2), head_dim=4, neurons=(10, 8), drop_rate=0.1
    ),
    (2, 8, 8, 3),
  ),
  'convnext': (
    models.ConvNeXt(
      num_classes=5, patch=2, widths=(6, 8), neurons=((12, 8), (10,)), kernel=3, layer_scale=0.5
    ),
    (2, 8, 8, 3),
  ),
}


def infer(model):
  return lambda variables, x: model.apply(variables, x, train=False)


def train(model):
  return lambda variables, x: model.apply(variables, x, train=True, mutable=['batch_stats'])


def build(model, shape, dtype=jnp.float64):
  """Model, random variables, images."""
  model = model.clone(dtype=dtype)
  x = jax.random.normal(jax.random.key(1), shape, dtype)
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
  variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, dtype), variables)
  return model, zoo.randomise(variables, dtype, 0), x


def cut(model, variables, x, fraction=0.5, **options):
  dead = laws.random_dead(variables, fraction, seed=3)
  return slim_jax.plan(infer(model), variables, x, dead=dead, **options)


@chains
def test_outputs_statistics_and_gradients_are_those_of_thin(name, x64):
  model, variables, x = build(*CHAINS[name])
  plan = cut(model, variables, x)
  small = narrow.module(model, plan)
  assert type(small) is type(model) and small.widths != model.widths
  check_inference(model, small, plan, variables, x)
  check_training(model, small, plan, variables, x)


def check_inference(model, small, plan, variables, x):
  thin_variables = plan.slice(variables)
  want = jax.jit(slim_jax.thin(infer(model), plan))(thin_variables, x)
  assert float(jnp.std(want)) > 1e-3
  assert laws.distance(jax.jit(infer(small))(thin_variables, x), want) < 1e-12


def check_training(model, small, plan, variables, x):
  thin_variables = plan.slice(variables)

  def gradients(f):
    def loss(params, batch_stats):
      logits, state = f({'params': params, 'batch_stats': batch_stats}, x)
      return jnp.sum(logits**2), (logits, state)

    return jax.jit(jax.grad(loss, has_aux=True))(
      thin_variables['params'], thin_variables['batch_stats']
    )

  thin = slim_jax.thin(train(model), plan, outs=(None, {'batch_stats': 'batch_stats'}))
  assert laws.distance(gradients(train(small)), gradients(thin)) < 2e-12


@pytest.mark.parametrize('name', STREAMS)
def test_networks_with_lists_of_channels(name, x64):
  model, shape, bias = STREAMS[name]
  model, variables, x = build(model, shape)
  plan = cut(model, variables, x, bias=bias)
  assert bias == 'zero' or plan.only_bias
  small = narrow.module(model, plan)
  assert type(small).__name__ == f'Narrow{type(model).__name__}'
  check_inference(model, small, plan, variables, x)
  new = jax.eval_shape(lambda: small.init(jax.random.key(0), x, train=False))
  assert jax.tree.map(np.shape, new) == jax.tree.map(np.shape, plan.slice(variables))


@pytest.mark.slow
@pytest.mark.parametrize('bias', ['zero', 'keep'])
@pytest.mark.parametrize('name', STREAMS)
def test_statistics_and_gradients_with_lists_of_channels(name, bias, x64):
  """Channels that have only a bias left have none for their scale."""
  model, shape, _ = STREAMS[name]
  model, variables, x = build(model, shape)
  plan = cut(model, variables, x, bias=bias)
  check_training(model, narrow.with_indices(model, plan), plan, variables, x)


def cut_units(model, variables, x, where):
  units = slim_jax.units(infer(model), variables, x, where=where)
  rng = np.random.default_rng(0)
  dead = {name: rng.permutation(unit.size) < unit.size // 2 for name, unit in units.items()}
  gated, gates = slim_jax.gate(infer(model), variables, units)
  plan = slim_jax.plan(gated, (variables, gates), x, dead=(None, dead))
  return slim_jax.without_gates(plan, dead, units)


@pytest.mark.parametrize('name', WITHOUT_NORM)
def test_heads_and_neurons(name, x64):
  model, variables, x = build(*WITHOUT_NORM[name])
  plan = cut_units(model, variables, x, 'heads,neurons' if name == 'vit' else 'neurons')
  thin_variables = plan.slice(variables)
  want = jax.jit(slim_jax.thin(infer(model), plan))(thin_variables, x)
  small, listed = narrow.module(model, plan), narrow.with_indices(model, plan)
  assert type(small) is type(model) and small.neurons != model.neurons
  for module in (small, listed):
    shapes = jax.eval_shape(lambda m=module: m.init(jax.random.key(0), x, train=False))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, thin_variables)
    assert laws.distance(jax.jit(infer(module))(thin_variables, x), want) < 1e-12
  assert narrow.describe(small)['neurons'] == small.neurons
  slope = lambda f: jax.jit(jax.grad(lambda v: jnp.sum(f(v, x) ** 2)))(thin_variables)
  assert laws.distance(slope(infer(listed)), slope(slim_jax.thin(infer(model), plan))) < 1e-10


@pytest.mark.parametrize('name', WITHOUT_NORM)
def test_what_heads_and_neurons_do_not_describe_is_refused(name, x64):
  model, variables, x = build(*WITHOUT_NORM[name])
  plan = cut_units(model, variables, x, 'stream')
  for make in (narrow.module, narrow.with_indices):
    with pytest.raises(narrow.NarrowError, match='has lost more than heads and neurons'):
      make(model, plan)


@pytest.mark.slow
@pytest.mark.parametrize('bottleneck', [True, False])
def test_branches_that_are_gone(bottleneck, x64):
  """Block 1 has no channel left between its convolutions."""
  model = models.ResNet(num_classes=5, blocks=(1, 2), width=4, bottleneck=bottleneck)
  model, variables, x = build(model, (2, 32, 32, 3))
  dead = laws.random_dead(variables, 0.5, seed=3)
  dead['params']['Block_2']['BatchNorm_0']['scale'][:] = True
  plan = slim_jax.plan(infer(model), variables, x, dead=dead)
  assert 0 in plan.cuts['params', 'Block_2', 'Conv_1', 'kernel'].thin_shape
  small = narrow.module(model, plan)
  check_inference(model, small, plan, variables, x)
  check_training(model, small, plan, variables, x)


@chains
def test_new_variables_have_the_shapes_of_the_thin_ones(name, x64):
  model, variables, x = build(*CHAINS[name])
  plan = cut(model, variables, x)
  new = jax.eval_shape(lambda: narrow.module(model, plan).init(jax.random.key(0), x, train=False))
  assert jax.tree.map(np.shape, new) == jax.tree.map(np.shape, plan.slice(variables))


def test_dense_layers_without_norm_stay(x64):
  model, variables, x = build(*CHAINS['vgg_bn'])
  small = narrow.module(model, cut(model, variables, x))
  assert small.dense_widths == (16, 12) and small.widths[0] < 8


def test_nothing_removed_is_the_same_module(x64):
  model, variables, x = build(*CHAINS['vgg'])
  assert narrow.module(model, cut(model, variables, x, fraction=0.0)) == model


def test_a_module_is_described_in_json():
  about = json.loads(json.dumps(narrow.describe(CHAINS['vgg_a'][0])))
  assert about == {
    'class': 'VGG',
    'num_classes': 5,
    'widths': [8, 'M', 12, 'M'],
    'dense_widths': [16, 12],
    'conv_bias': True,
    'dense_norm': True,
    'drop_rate': 0.0,
  }
  again = models.VGG(**{name: value for name, value in about.items() if name != 'class'})
  shapes = (
    jax.eval_shape(
      lambda model=model: model.init(jax.random.key(0), jnp.ones((1, 12, 8, 3)), train=False)
    )
    for model in (again, CHAINS['vgg_a'][0])
  )
  assert next(shapes) == next(shapes)


def test_a_layer_without_channels_has_no_width(x64):
  """A second path to the output lets a plan remove every channel of a layer."""
  model, variables, x = build(*CHAINS['vgg'])
  dead = jax.tree.map(lambda _: None, variables)
  dead['params']['BatchNorm_1']['scale'] = np.ones(12, bool)
  plan = slim_jax.plan(
    lambda v, x: infer(model)(v, x) + x.mean((1, 2, 3))[:, None], variables, x, dead=dead
  )
  assert plan.cuts['params', 'Conv_1', 'kernel'].thin_shape[-1] == 0
  with pytest.raises(narrow.NarrowError, match=r'Conv_0 has no channels left.*slim_jax\.thin'):
    narrow.module(model, plan)


def test_biases_that_the_activation_stops_need_no_carrier(x64):
  model, variables, x = build(*CHAINS['vgg'])
  for layer in ('BatchNorm_0', 'BatchNorm_1', 'BatchNorm_2'):
    variables['params'][layer]['bias'] = -np.abs(variables['params'][layer]['bias'])
  plan = cut(model, variables, x, bias='keep')
  assert plan.folds
  got = jax.jit(infer(narrow.module(model, plan)))(plan.slice(variables), x)
  assert laws.distance(got, slim_jax.thin(infer(model), plan)(plan.slice(variables), x)) < 1e-12


def test_other_models_are_refused():
  with pytest.raises(narrow.NarrowError, match='Dense has no narrow definition, only MLP, .*thin'):
    narrow.module(nn.Dense(3), slim_jax.Plan({}))


def test_a_plan_of_another_model_is_refused(x64):
  model, variables, x = build(*CHAINS['vgg'])
  plan = cut(model, variables, x)
  with pytest.raises(ValueError, match='no params/Conv_3/kernel, so it belongs to another model'):
    narrow.module(models.VGG(num_classes=5, widths=(8, 'M', 12, 10, 4)), plan)


def test_a_layer_that_the_variables_lack_is_named(x64):
  model, variables, x = build(*STREAMS['preresnet'][:2])
  plan = cut(model, variables, x)
  small = narrow.module(model.clone(depth=20), plan)
  with pytest.raises(ValueError, match='no layer Bottleneck_3: the variables belong to another'):
    jax.eval_shape(infer(small), plan.slice(variables), x)
