import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax


def variables(*scales):
  return {'params': {f'BatchNorm_{i}': {'scale': jnp.asarray(s, jnp.float32),
                                        'bias': jnp.ones(len(s))} for i, s in enumerate(scales)},
          'batch_stats': {f'BatchNorm_{i}': {'mean': jnp.zeros(len(s)), 'var': jnp.ones(len(s))}
                          for i, s in enumerate(scales)}}


def dead(tree):
  return [tree['params'][name]['scale'].tolist() for name in sorted(tree['params'])]


def random_variables(seed, sizes=(7, 30, 12)):
  rng = np.random.default_rng(seed)
  return variables(*[rng.normal(size=n).round(1) for n in sizes])  # rounded: ties


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('fraction', [0.01, 0.3, 0.5, 0.7, 0.99])
def test_the_papers_rule(seed, fraction):
  v = random_variables(seed)
  scales = [np.abs(np.asarray(v['params'][f'BatchNorm_{i}']['scale'])) for i in range(3)]
  ranked = np.sort(np.concatenate(scales))
  threshold = ranked[int(len(ranked) * fraction)]
  want = [(~(s > threshold)).tolist() for s in scales]
  assert dead(slim_jax.select_global(v, fraction=fraction)) == want


def test_tree_has_none_elsewhere():
  tree = slim_jax.select_global(variables([1., 2.]), fraction=0.5)
  assert tree['batch_stats']['BatchNorm_0'] == {'mean': None, 'var': None}
  assert tree['params']['BatchNorm_0']['bias'] is None
  assert tree['params']['BatchNorm_0']['scale'].dtype == bool


def test_zero_fraction_removes_nothing():
  assert not np.any(dead(slim_jax.select_global(variables([0., 0., 1.]), fraction=0)))


def test_sign_does_not_matter():
  assert dead(slim_jax.select_global(variables([-3., 1., 2., -0.5]), fraction=0.25)) == [
      [False, True, False, True]]


def test_per_layer():
  v = variables([1., 2., 3., 4.], [10., 20., 30., 40.])
  assert dead(slim_jax.select_global(v, fraction=0.5, per_layer=True)) == [
      [True, True, True, False]] * 2
  paper = random_variables(0, (500, 300))
  paper = variables(*[np.random.default_rng(n).permutation(np.arange(1., n + 1))
                      for n in (500, 300)])
  tree = slim_jax.select_global(paper, fraction=0.799, per_layer=True)
  assert [len(d) - sum(d) for d in dead(tree)] == [100, 60]


def test_guards():
  v = variables([0.1, 0.2, 0.3, 0.4], [5., 6., 7., 8.])
  assert dead(slim_jax.select_global(v, fraction=0.5))[0] == [True] * 4
  assert dead(slim_jax.select_global(v, fraction=0.5, min_channels=1))[0] == [
      True, True, True, False]
  assert dead(slim_jax.select_global(v, fraction=0.5, max_fraction=0.5))[0] == [
      True, True, False, False]
  assert not np.any(dead(slim_jax.select_global(v, fraction=0.9, min_channels=9)))
  assert not np.any(dead(slim_jax.select_global(v, fraction=0.9, max_fraction=0)))


def test_scales_override():
  tree = {'neurons': {'bias': jnp.array([3., 1., 2.])}, 'kernel': jnp.ones((2, 3))}
  chosen = slim_jax.select_global(tree, fraction=0.4,
                                  scales=lambda t: {'neurons': {'bias': True}, 'kernel': False})
  assert chosen['neurons']['bias'].tolist() == [False, True, True]
  assert chosen['kernel'] is None


@pytest.mark.parametrize('arguments', [dict(fraction=-0.1), dict(fraction=1.0),
                                       dict(fraction=float('nan')),
                                       dict(fraction=0.5, max_fraction=1.5),
                                       dict(fraction=0.5, min_channels=-1)])
def test_values_out_of_range(arguments):
  with pytest.raises(ValueError, match='must be'):
    slim_jax.select_global(variables([1., 2.]), **arguments)


def test_no_batch_norm():
  with pytest.raises(ValueError, match='no BatchNorm scale among the variables'):
    slim_jax.select_global({'params': {'Dense_0': {'kernel': jnp.ones((2, 2))}}}, fraction=0.5)


def test_scales_that_are_not_finite():
  with pytest.raises(ValueError, match='params/BatchNorm_0/scale'):
    slim_jax.select_global(variables([1., np.nan]), fraction=0.5)
