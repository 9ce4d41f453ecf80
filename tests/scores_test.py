"""Scores follow their formulas, with kernels found from the jaxpr."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models, tree
from slim_jax.selection import scores

X = jnp.ones((2, 8, 8, 3))


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(4, (3, 3))(x)
    x = nn.relu(nn.BatchNorm(not train)(x))
    x = nn.Conv(6, (3, 3))(x)
    x = nn.relu(nn.BatchNorm(not train)(x))
    return nn.Dense(5)(x.mean((1, 2)))


def randomised(module, x=X):
  """Returns (apply, variables) with random parameters."""
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape).astype(s.dtype), shapes)
  return lambda v, x: module.apply(v, x, train=False), variables


def at_scales(variables, score):
  """Returns {module: score}, and checks that there are scores at the scales only."""
  paths = tree.flatten(score)
  are_scales = tree.flatten(slim_jax.batch_norm_scales(variables))
  assert set(paths) == {path for path, is_scale in are_scales.items() if is_scale}
  return {'/'.join(path[1:-1]): score for path, score in paths.items()}


def test_scale_magnitude():
  _, variables = randomised(Net())
  variables['params']['BatchNorm_0']['scale'] = jnp.array([-3.0, 1.0, 0.0, 2.0])
  by_module = at_scales(variables, scores.scale_magnitude(variables))
  assert by_module['BatchNorm_0'].tolist() == [3, 1, 0, 2]


def test_random():
  _, variables = randomised(Net())
  first, again, other = (
    at_scales(variables, scores.random(variables, jax.random.key(seed))) for seed in (0, 0, 1)
  )
  assert [score.shape for score in first.values()] == [(4,), (6,)]
  for name, score in first.items():
    assert (score == again[name]).all() and (score != other[name]).all()
  assert (first['BatchNorm_0'] != first['BatchNorm_1'][:4]).all()


@pytest.mark.parametrize('bias', [False, True])
def test_taylor_is_the_first_order_of_what_removal_does_to_the_loss(bias, x64):
  apply, variables = randomised(Net())
  variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), variables)
  x = jax.random.normal(jax.random.key(1), X.shape)

  def loss(variables):
    return jnp.square(apply(variables, x)).sum()

  by_module = at_scales(variables, scores.taylor(variables, jax.grad(loss)(variables), bias=bias))
  small = 1e-6
  for name, score in by_module.items():
    for channel in range(len(score)):

      def nudged(leaf, part):
        moves = part == 'scale' or bias
        return leaf.at[channel].multiply(1 - small) if moves else leaf

      moved = {
        **variables,
        'params': {
          **variables['params'],
          name: {part: nudged(leaf, part) for part, leaf in variables['params'][name].items()},
        },
      }
      change = abs(loss(moved) - loss(variables)) / small
      np.testing.assert_allclose(score[channel], change, rtol=1e-3, atol=1e-5)


def test_taylor_takes_a_part_and_names_what_is_missing():
  _, variables = randomised(Net())
  grads = jax.tree.map(jnp.ones_like, variables)
  part = scores.taylor(variables, {'params': grads['params']})
  for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(scores.taylor(variables, grads))):
    assert (a == b).all()
  with pytest.raises(ValueError, match=r'grads must have \[4\] at params/BatchNorm_0/scale'):
    scores.taylor(variables, grads['params'])


@pytest.mark.parametrize('order', [1, 2, 3.5])
def test_kernel_norm_of_a_chain(order):
  apply, variables = randomised(Net())
  by_module = at_scales(variables, scores.kernel_norm(apply, variables, X, ord=order))
  for i in range(2):
    kernel = np.asarray(variables['params'][f'Conv_{i}']['kernel'], np.float64)
    want = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), ord=order, axis=0)
    np.testing.assert_allclose(by_module[f'BatchNorm_{i}'], want)


def test_kernel_norm_of_a_stream_sums_over_what_writes_to_it():
  x = jnp.ones((1, 32, 32, 3))
  apply, variables = randomised(models.create('preresnet20', num_classes=10), x)
  by_module = at_scales(variables, scores.kernel_norm(apply, variables, x))
  params = variables['params']

  def written(block, name):
    kernel = np.asarray(params[f'Bottleneck_{block}'][name]['kernel'], np.float64)
    return np.abs(kernel).sum((0, 1, 2))

  want = sum(
    written(block, name) for block, name in [(2, 'projection'), (2, 'Conv_2'), (3, 'Conv_2')]
  )
  np.testing.assert_allclose(by_module['Bottleneck_3/BatchNorm_0'], want)
  np.testing.assert_allclose(
    by_module['Bottleneck_0/BatchNorm_0'],
    np.abs(params['Conv_0']['kernel']).sum((0, 1, 2)),
    rtol=1e-6,
  )


def test_kernel_norm_wherever_a_library_keeps_its_channels():
  """Kernels [out, in, ...], and scales that are read through a reshape."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  variables = {
    'weight': normal(6, 3),
    'depthwise': normal(3, 3, 1, 6),
    'BatchNorm_0': {'scale': normal(1, 1, 1, 6), 'mean': normal(1, 1, 1, 6)},
  }

  def f(variables, x):
    x = x @ variables['weight'].T
    x = jax.lax.conv_general_dilated(
      x,
      variables['depthwise'],
      (1, 1),
      'SAME',
      feature_group_count=6,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return x * variables['BatchNorm_0']['scale']

  score = scores.kernel_norm(f, variables, X)
  want = np.abs(variables['weight']).sum(1) + np.abs(variables['depthwise']).sum((0, 1, 2))
  np.testing.assert_allclose(score['BatchNorm_0']['scale'], want, rtol=1e-6)


def test_kernel_norm_without_a_kernel():
  variables = {
    'BatchNorm_0': {'scale': jnp.ones(3), 'mean': jnp.ones(3)},
    'kernel': jnp.ones((3, 5)),
  }
  with pytest.raises(ValueError, match='BatchNorm_0/scale: no kernel produces channels'):
    scores.kernel_norm(
      lambda v, x: (x * v['BatchNorm_0']['scale'][None]) @ v['kernel'], variables, jnp.ones((2, 3))
    )
  with pytest.raises(ValueError, match='ord must be positive'):
    scores.kernel_norm(lambda v, x: x, variables, X, ord=0)


def test_the_example_of_the_docstring():
  example = scores.__doc__.partition('    def spread')[2]
  code = 'def spread' + '\n'.join(
    line[4:] if line.startswith('    ') else line for line in example.splitlines()
  )
  _, variables = randomised(Net())
  space = {'slim_jax': slim_jax, 'jax': jax, 'variables': variables}
  exec(code, space)  # pylint: disable=exec-used
  count = sum(int(mark.sum()) for mark in jax.tree.leaves(space['dead']))
  assert count == 6  # of 10: the five smallest and the threshold
