"""Kernels as scales: an output counts once, whatever the layout, in every score; heads; stacks."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import scores
from slim_jax.selection import ranking

WIDTHS = (3, 6, 5, 1)


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def chain(layout):
  """A chain of dense layers whose kernels are [inputs, outputs] or [outputs, inputs]."""
  name = {'io': 'kernel', 'oi': 'weight'}[layout]
  params = {}
  for i, (inputs, outputs) in enumerate(zip(WIDTHS, WIDTHS[1:])):
    kernel = draw(i, inputs, outputs) * (1 + i)
    bias = draw(9 + i, outputs)
    params[f'layer{i}'] = {name: kernel if layout == 'io' else kernel.T, 'bias': bias}

  def f(params, x):
    for layer in params.values():
      x = jnp.tanh(x @ (layer[name] if layout == 'io' else layer[name].T) + layer['bias'][None])
    return x

  marks = {layer: {name: True, 'bias': False} for layer in params}
  return f, params, marks, name


def score_of(name, f, params, marks, x):
  if name == 'taylor':
    grads = jax.jit(jax.grad(lambda params: f(params, x).sum()))(params)
    return scores.taylor(params, grads, bias=True, scales=marks)
  return {
    'default': lambda: None,
    'magnitude': lambda: scores.scale_magnitude(params, scales=marks),
    'kernel_norm': lambda: scores.kernel_norm(f, params, x, scales=marks),
    'random': lambda: scores.random(params, jax.random.key(0), scales=marks),
  }[name]()


@pytest.mark.parametrize('score', ['default', 'magnitude', 'kernel_norm', 'taylor', 'random'])
def test_outputs_count_once_in_every_layout(score, x64):
  chosen = {}
  for layout in ('io', 'oi'):
    f, params, marks, name = chain(layout)
    x = draw(5, 4, 3)
    options = dict(scales=marks, scores=score_of(score, f, params, marks, x), keep='layer2/*')
    dead = slim_jax.select_global(params, fraction=0.5, **options)
    chosen[layout] = [np.ravel(dead[layer][name]).tolist() for layer in params]
    assert [len(mark) for mark in chosen[layout]] == list(WIDTHS[1:])
    assert sum(map(sum, chosen[layout])) == 11 // 2 + 1
    if score == 'default':  # the bias goes with the output, and the next layer's input
      plan, masked = slim_jax.plan(f, params, x, dead=dead), slim_jax.mask(params, dead)
      assert plan.cuts['layer0', 'bias'].thin_shape == (6 - sum(chosen[layout][0]),)
      thin = slim_jax.thin(f, plan)(plan.slice(params), x)
      np.testing.assert_allclose(thin, f(masked, x), atol=1e-12)
      zero = np.array(chosen[layout][1])
      np.testing.assert_array_equal(masked['layer1']['bias'] == 0, zero)
      kernel = masked['layer1'][name]
      np.testing.assert_array_equal((kernel == 0).all(layout == 'oi'), zero)
  assert chosen['io'] == chosen['oi']


def test_scores_of_kernels_follow_their_formulas():
  f, params, marks, name = chain('oi')
  x = draw(5, 4, 3)
  weight, bias = params['layer1'][name], params['layer1']['bias']
  norm = score_of('kernel_norm', f, params, marks, x)['layer1'][name]
  np.testing.assert_allclose(norm, np.abs(weight).sum(1, keepdims=True), rtol=1e-6)
  grads = jax.jit(jax.grad(lambda params: f(params, x).sum()))(params)['layer1']
  want = np.abs((weight * grads[name]).sum(1) + bias * grads['bias'])
  taylor = score_of('taylor', f, params, marks, x)['layer1'][name]
  np.testing.assert_allclose(np.ravel(taylor), want, rtol=1e-5)
  assert score_of('random', f, params, marks, x)['layer2'][name].shape == (1, 1)
  labels = slim_jax.streams(f, params, x, scales=marks)
  assert labels['layer1'][name].shape == (5, 1)


def test_a_square_layer_loses_its_own_bias():
  """[outputs, inputs]: an input that is dead is no reason to zero a bias, though sizes are equal."""
  params = {'layer': {'weight': draw(0, 4, 4), 'bias': jnp.arange(1.0, 5.0)}}

  def biases(mark):
    dead = {'layer': {'weight': mark, 'bias': None}}
    return slim_jax.mask(params, dead)['layer']['bias'].tolist()

  first = np.array([True, False, False, False])
  assert biases(first) == [1, 2, 3, 4]  # a vector is along the last axis: inputs
  assert biases(first[:, None]) == [0, 2, 3, 4]
  assert biases(np.repeat(first[:, None], 4, axis=1)) == [0, 2, 3, 4]


def attention():
  """Kernels [inputs, heads, features], and what reads them [heads, features, outputs]."""
  small = np.array([[1.0], [0.1]])
  params = {
    n: {'kernel': draw(i, 4, 2, 3) * small[None], 'bias': draw(7 + i, 2, 3) * small}
    for i, n in enumerate('qkv')
  }
  params['o'] = {'kernel': draw(3, 2, 3, 4)}

  def heads_of(x, layer):
    return jnp.einsum('btd,dhe->bthe', x, layer['kernel']) + layer['bias'][None, None]

  def f(params, x):
    q, k, v = (heads_of(x, params[n]) for n in 'qkv')
    weights = jax.nn.softmax(jnp.einsum('bqhe,bkhe->bhqk', q, k))
    return jnp.einsum('bhqk,bkhe,hed->bqd', weights, v, params['o']['kernel'])

  return f, params


@pytest.mark.parametrize('named_by', ['scales', 'scores', 'kernel_norm', 'budget'])
def test_heads_can_be_named(named_by, x64):
  f, params = attention()
  x = draw(8, 2, 5, 4)
  heads = np.ones((1, 2, 1), bool)
  marks = {n: {'kernel': True if named_by == 'scores' else heads, 'bias': False} for n in 'qkv'}
  options = {'scales': {**marks, 'o': False}}
  if named_by == 'scores':
    ranked = np.array([2.0, 1.0]).reshape(1, 2, 1)
    options['scores'] = {n: {'kernel': ranked, 'bias': None} for n in 'qkv'} | {
      'o': {'kernel': None}
    }
  if named_by == 'kernel_norm':
    options['scores'] = scores.kernel_norm(f, params, x, **options)
    assert options['scores']['v']['kernel'].shape == (1, 2, 1)
  if named_by == 'budget':
    dead = slim_jax.select_budget(f, params, x, target='macs:0.6', **options)
  else:
    dead = slim_jax.select_global(params, fraction=0.4, **options)
  assert np.array_equal(dead['q']['kernel'], [[[False], [True]]])
  plan = slim_jax.plan(f, params, x, dead=dead)
  assert plan.cuts['q', 'kernel'].thin_shape == (4, 1, 3)
  assert plan.cuts['o', 'kernel'].thin_shape == (1, 3, 4)
  thin = slim_jax.thin(f, plan)(plan.slice(params), x)
  np.testing.assert_allclose(thin, f(slim_jax.mask(params, dead), x), atol=1e-12)
  # Without a name, an output counts once in all heads.
  plain = {n: {'kernel': n != 'o', 'bias': False} for n in 'qkvo'}
  every = slim_jax.select_global({**params, 'o': {**params['o'], 'bias': jnp.ones(4)}}, fraction=0.4,
                                 scales=plain)  # fmt: skip
  assert every['q']['kernel'].shape == (3,)


class Block(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x, _):
    norm = nn.BatchNorm(use_running_average=True, scale_init=nn.initializers.normal(1.0))
    return x + nn.Dense(4)(nn.relu(norm(nn.Dense(self.width)(x)))), None


@pytest.mark.parametrize('width', [1, 3])
def test_stacked_layers_of_any_width(width, x64):
  """[layers, 1] are layers of one channel, as [layers, channels] are of several."""
  axes = {'params': 0, 'batch_stats': 0}
  net = nn.scan(Block, variable_axes=axes, split_rngs={'params': True}, length=5)(width)
  x = draw(0, 2, 4)
  variables = net.init(jax.random.key(0), x, None)
  f = lambda variables, x: net.apply(variables, x, None)[0]
  dead = slim_jax.select_global(variables, fraction=0.3)
  assert dead['params']['BatchNorm_0']['scale'].shape == (width,)
  ranked = ranking.rank(variables, slim_jax.selection.options.SelectionOptions())
  assert list(ranked.stacks.values()) == [5]
  layers = np.arange(5)[:, None] == 2  # one of the layers, all of its channels
  for mark in (np.arange(width) == 0, layers):
    dead['params']['BatchNorm_0']['scale'] = mark
    plan = slim_jax.plan(f, variables, x, dead=dead)
    left = width - 1 if mark is not layers else width
    assert plan.cuts['params', 'Dense_1', 'kernel'].thin_shape[2] == left
    thin = slim_jax.thin(f, plan)(plan.slice(variables), x)
    np.testing.assert_allclose(thin, f(slim_jax.mask(variables, dead), x), atol=1e-12)


def test_a_scale_that_is_pulled_and_not_ranked_is_named():
  vector = jnp.arange(1.0, 4.0)
  norm = {'scale': vector, 'bias': vector}
  params = {'BatchNorm_0': norm, 'norm': norm, 'LayerNorm_0': norm}
  variables = {'params': params, 'batch_stats': {'BatchNorm_0': {'mean': vector, 'var': vector}}}
  assert slim_jax.batch_norm_scales(params)['norm']['scale']  # what a penalty sees
  with pytest.warns(UserWarning, match='pulls them to zero: params/norm/scale[.]'):
    dead = slim_jax.select_global(variables, fraction=0.3)
  assert dead['params']['norm']['scale'] is None
  slim_jax.select_global(variables, fraction=0.3, scales=slim_jax.batch_norm_scales)
