"""Kernels that are normalised at every call: without their norm, parameters go as well."""

import equinox as eqx
from flax import linen as nn
from helpers import laws
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax.structure.weight_norm import WeightNormError

_OUTS = (None, {'batch_stats': 'batch_stats'})


class Standardised(nn.Module):
  """A convolution whose kernel has mean 0 and variance 1, computed in bfloat16 if asked for."""

  features: int
  dtype: str | None = None

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', nn.initializers.normal(), (3, 3, x.shape[-1], self.features))
    kernel = kernel.astype(self.dtype or kernel.dtype)
    mean, std = (f(kernel, (0, 1, 2), keepdims=True) for f in (jnp.mean, jnp.std))
    kernel = (kernel - mean) / (std + 1e-3)
    return lax.conv_general_dilated(
      x.astype(kernel.dtype), kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


class Net(nn.Module):
  """Two normalised convolutions with BatchNorm."""

  norm: str

  @nn.compact
  def __call__(self, x, train):
    for width in (12, 16):
      conv = nn.Conv(width, (3, 3), use_bias=False)
      if self.norm == 'spectral':
        x = nn.SpectralNorm(conv)(x, update_stats=train)
      elif self.norm == 'weight':
        x = nn.WeightNorm(conv)(x)
      else:
        x = Standardised(width, self.norm.partition(' ')[2] or None)(x)
      x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    return nn.Dense(10)(x.mean((1, 2)))


def network(norm):
  net, x = Net(norm), jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(1), x, train=False))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.1, 1, leaf.shape)), shapes)
  infer = lambda variables, x: net.apply(variables, x, train=False)
  train = lambda variables, x: net.apply(variables, x, train=True, mutable=['batch_stats'])
  return infer, train, variables, x


# The gains of Linen's WeightNorm are called scale, which a warning says.
@pytest.mark.filterwarnings('ignore:these scales have no running statistics')
@pytest.mark.parametrize(
  'norm',
  [
    'spectral',
    pytest.param('weight', marks=pytest.mark.slow),
    pytest.param('standardised', marks=pytest.mark.slow),
    'standardised bfloat16',
  ],
)
def test_kernels_without_their_norm_are_cut(norm, x64):
  infer, train, variables, x = network(norm)
  exact = 1e-12 if norm != 'standardised bfloat16' else 0.05
  new_infer, new = slim_jax.remove_weight_norm(infer, variables, x)
  assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, variables)
  assert jax.tree.map(lambda a: a.dtype, new) == jax.tree.map(lambda a: a.dtype, variables)
  assert laws.distance(jax.jit(new_infer)(new, x), jax.jit(infer)(variables, x)) <= exact

  dead = slim_jax.select_global(variables, fraction=0.5)
  before = slim_jax.plan(infer, variables, x, dead=dead)
  plan = slim_jax.plan(new_infer, new, x, dead=dead)
  kernel = next(path for path in plan.cuts if path[-2:] == (_module(norm), 'kernel'))
  kept = int((~dead['params']['BatchNorm_0']['scale']).sum())
  assert (before.cuts[kernel].thin_shape[2], plan.cuts[kernel].thin_shape[2]) == (12, kept)
  thin, masked = plan.slice(new), slim_jax.mask(new, dead)
  got = jax.jit(slim_jax.thin(new_infer, plan))(thin, x)
  assert laws.distance(got, jax.jit(new_infer)(masked, x)) <= exact

  # In training, with new statistics and gradients. Singular vectors stay as they are.
  new_train, _ = slim_jax.remove_weight_norm(train, variables, x, outs=_OUTS)
  thin_train = slim_jax.thin(new_train, plan, outs=_OUTS)

  def value_and_grad(f):
    def loss(variables):
      logits, state = f(variables, x)
      return (logits.astype(x.dtype) ** 2).sum(), state['batch_stats']

    return jax.jit(jax.value_and_grad(loss, has_aux=True))

  (got, state), grads = value_and_grad(thin_train)(thin)
  (want, full_state), full = value_and_grad(new_train)(masked)
  assert laws.distance(got, want) <= exact
  assert laws.distance(grads['params'], plan['params'].slice(full['params'])) <= exact
  assert laws.distance(state, plan['batch_stats'].slice(full_state)) <= exact
  for name, vectors in thin['batch_stats'].items():
    if name.startswith('SpectralNorm'):
      assert laws.distance(state[name], vectors) == 0


def _module(norm):
  return 'Standardised_1' if norm.startswith('standardised') else 'Conv_1'


def test_equinox(x64):
  net = eqx.nn.WeightNorm(eqx.nn.Linear(6, 5, key=jax.random.key(0)))
  x = jax.random.normal(jax.random.key(1), (3, 6))
  variables, static = eqx.partition(net, eqx.is_inexact_array)
  f = lambda variables, x: jax.vmap(eqx.combine(variables, static))(x)
  variables = jax.tree.map(lambda a: 2 * a, variables)
  new_f, new = slim_jax.remove_weight_norm(f, variables, x)
  assert laws.distance(new_f(new, x[:1]), f(variables, x[:1])) < 1e-12
  want = laws.distance(x @ new.layer.weight.T + new.layer.bias[None], f(variables, x))
  assert want < 1e-12


def test_what_is_not_a_norm_stays():
  x = jnp.ones((2, 4))
  variables = {'kernel': jnp.ones((4, 3)), 'a': jnp.ones((4, 2)), 'b': jnp.ones((2, 3))}
  low_rank = lambda v, x: x @ (2 * v['kernel'] + v['a'] @ v['b'])
  both = lambda v, x: (x @ (v['kernel'] / jnp.linalg.norm(v['kernel'])), (v['kernel'] ** 2).sum())
  for f in (low_rank, both):
    with pytest.raises(WeightNormError, match='no kernel is normalised'):
      slim_jax.remove_weight_norm(f, variables, x)


def test_a_norm_for_some_arguments_only_is_refused():
  def f(variables, x):
    kernel = variables['kernel']
    return x @ (kernel / jnp.linalg.norm(kernel) if len(x) > 2 else kernel)

  variables = {'kernel': jnp.ones((4, 3))}
  new_f, new = slim_jax.remove_weight_norm(f, variables, jnp.ones((3, 4)))
  with pytest.raises(WeightNormError, match='kernel: normalised only for some arguments'):
    new_f(new, jnp.ones((2, 4)))
