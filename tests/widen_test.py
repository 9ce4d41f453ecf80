"""Widened thin networks are exact too, and select and place nothing where that is cheaper."""

import collections

from helpers import laws, zoo
from helpers.zoo import linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import jaxprs, tree
from slim_jax.channels.widen import Costs

# Everything that can be widened is; nothing is.
ALWAYS = Costs(select=1e9, place=1e9, slack=9)
NEVER = Costs(select=0, place=0, slack=0)


# The larger ones take ten seconds each; other libraries give the same equations.
LARGER = ('bottleneck_resnet', 'inception', 'preactivation_resnet', 'resnext', 'se_resnext', 'vgg')
FAST = [
  case
  for case in zoo.CASES
  if case.size == 'small' and case.library is linen.functions and case.name not in LARGER
]


@pytest.mark.parametrize(
  'case',
  [
    pytest.param(case, id=case.name, marks=[] if case in FAST else [pytest.mark.slow])
    for case in zoo.CASES
    if case.size != 'inference'
  ],
)
def test_widened_equals_masked_in_double_precision(case, x64):
  model = zoo.build(case, jnp.float64)
  dead = laws.random_dead(model.variables, 0.5, seed=3, scales=model.scales)
  laws.check(model, dead, 1e-10, widen=ALWAYS)


WIDTH, INNER = 32, 8


def norm(x, scale, bias, train):
  """BatchNorm."""
  mean, var = 0.5, 2.0
  if train:
    mean, var = (g(x, (0, 1, 2), keepdims=True) for g in (jnp.mean, jnp.var))
  factor = jax.lax.rsqrt(var + 1e-5) * scale[None, None, None]
  return jax.nn.relu((x - mean) * factor + bias[None, None, None])


def conv(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def residual(v, x, train=False):
  """Blocks that read the stream through a BatchNorm, as pre-activation ResNets."""
  x = conv(x, v['stem'])
  for block in v['blocks']:
    y = norm(x, block['scale'], block['bias'], train)
    x = x + conv(conv(y, block['in']), block['out'])
  return x.mean((1, 2)) @ v['head']


def plain(v, x, train=False):
  """Blocks that write to the stream through a BatchNorm, as ResNets."""
  x = conv(x, v['stem'])
  for block in v['blocks']:
    y = conv(conv(x, block['in']), block['out'])
    x = jax.nn.relu(x + norm(y, block['scale'], block['bias'], train))
  return x.mean((1, 2)) @ v['head']


def dense(v, x, train=False):
  """Blocks that put their channels beside the stream, as DenseNets."""
  x = conv(x, v['stem'])
  for block in v['blocks']:
    y = norm(x, block['scale'], block['bias'], train)
    x = jnp.concatenate([x, conv(y, block['in'])], -1)
  return x.mean((1, 2)) @ v['head']


def variables_of(f, seed=0):
  rng = np.random.default_rng(seed)

  def array(*shape):
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])))

  widths = [WIDTH + INNER * k if f is dense else WIDTH for k in range(4)]
  return {
    'stem': array(3, 3, 3, WIDTH),
    'head': array(widths[-1], 5),
    'blocks': [
      {
        'scale': array(n),
        'bias': array(n),
        'in': array(3, 3, n, INNER),
        'out': array(3, 3, INNER, WIDTH),
      }
      for n in widths[:-1]
    ],
  }


def planned(f, share=0.5):
  """Variables, images and a plan without this share of the channels of each scale."""
  v, rng = variables_of(f), np.random.default_rng(1)
  scales = tree.map_with_path(lambda path, leaf: path[-1] == 'scale', v)
  dead = jax.tree.map(
    lambda leaf, is_scale: rng.permutation(leaf.size) < share * leaf.size if is_scale else None,
    v,
    scales,
  )
  return v, dead, slim_jax.plan(f, v, jnp.ones((2, 8, 8, 3)), dead=dead)


def moved(f, *args):
  """How many selections and placings of channels of images there are."""
  program, _ = jaxprs.trace(f, *args)
  names = collections.Counter(
    str(e.primitive)
    for e in program.equations
    if e.in_avals and e.in_avals[0].shape[:3] == (2, 8, 8)
  )
  return names['gather'] + names['slice'] + names['pad']


@pytest.mark.parametrize('f', [residual, plain, dense], ids=lambda f: f.__name__)
@pytest.mark.parametrize('train', [False, True], ids=['inference', 'training'])
def test_streams_are_left_whole(f, train, x64):
  v, dead, plan = planned(f)
  x, g = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), lambda v, x: f(v, x, train)
  masked, thin_variables = slim_jax.mask(v, dead), plan.slice(v)
  narrow, wide = (slim_jax.thin(g, plan, widen=widen) for widen in (False, ALWAYS))
  assert moved(narrow, thin_variables, x) > 0
  assert moved(wide, thin_variables, x) == 0
  assert laws.distance(wide(thin_variables, x), g(masked, x)) < 1e-10
  got = jax.grad(lambda v: jnp.sum(wide(v, x) ** 2))(thin_variables)
  want = jax.grad(lambda v: jnp.sum(g(v, x) ** 2))(masked)
  assert laws.distance(got, plan.slice(want)) < 1e-10


@pytest.mark.parametrize('f', [residual, plain, dense], ids=lambda f: f.__name__)
def test_what_costs_more_is_not_done(f):
  v, _, plan = planned(f)
  x, thin_variables = jnp.ones((2, 8, 8, 3)), plan.slice(v)
  narrow, wide = (slim_jax.thin(f, plan, widen=widen) for widen in (False, NEVER))
  assert slim_jax.count(wide, thin_variables, x) == slim_jax.count(narrow, thin_variables, x)


def test_a_few_more_channels_cost_less_than_to_select(x64):
  """With the costs as they are: one dead channel of many is computed, half of them are not."""
  for share, is_same in ((1 / WIDTH, False), (0.5, True)):
    v, _, plan = planned(residual, share)
    x, thin_variables = jnp.ones((2, 8, 8, 3)), plan.slice(v)
    narrow, wide = (
      moved(slim_jax.thin(residual, plan, widen=widen), thin_variables, x)
      for widen in (False, True)
    )
    assert narrow > 0
    assert wide == (narrow if is_same else 0)


def test_nothing_dead_stays_the_function():
  v, _, plan = planned(plain, 0.0)
  x = jnp.ones((2, 8, 8, 3))
  before, after = (
    collections.Counter(str(e.primitive) for e in jaxprs.trace(f, v, x)[0].equations)
    for f in (plain, slim_jax.thin(plain, plan, widen=ALWAYS))
  )
  assert before == after
