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


# Tied channels, stacked layers.


def tied(*labels):
  tree = variables(*[np.ones(len(l)) for l in labels])
  return {'params': {f'BatchNorm_{i}': {'scale': np.asarray(l), 'bias': None}
                     for i, l in enumerate(labels)},
          'batch_stats': {name: {'mean': None, 'var': None} for name in tree['params']}}


def test_labels_of_their_own_change_nothing():
  v = random_variables(3)
  free = tied(np.arange(7), 7 + np.arange(30), 37 + np.arange(12))
  for options in ({}, {'per_layer': True}, {'min_channels': 3}, {'max_fraction': 0.5}):
    for by in ('sum', 'mean', 'max'):
      assert dead(slim_jax.select_global(v, fraction=0.6, tied=free, tied_by=by, **options)) == dead(
          slim_jax.select_global(v, fraction=0.6, **options))


def test_tied_channels_share_a_decision():
  v = variables([1., 5., 3.], [4., 1., 9.], [2., 2.])
  labels = tied([0, 1, 2], [2, 1, 0], [3, 4])
  # Sums: 0: 10, 1: 6, 2: 7, 3: 2, 4: 2; each counts as often as it has scales.
  got = slim_jax.select_global(v, fraction=0.25, tied=labels)
  assert dead(got) == [[False, True, False], [False, True, False], [True, True]]
  # Maxima: 0: 9, 1: 5, 2: 4.
  got = slim_jax.select_global(v, fraction=0.25, tied=labels, tied_by='max')
  assert dead(got) == [[False, False, True], [True, False, False], [True, True]]
  # Means: 0: 5, 1: 3, 2: 3.5.
  got = slim_jax.select_global(v, fraction=0.25, tied=labels, tied_by='mean')
  assert dead(got) == [[False, True, False], [False, True, False], [True, True]]


def test_guards_keep_tied_channels_together():
  v = variables([1., 2., 3.], [1., 2., 3., 9., 9., 9., 9., 9.])
  labels = tied([0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7])
  got = dead(slim_jax.select_global(v, fraction=0.5, tied=labels, min_channels=2))
  assert got[0] == [True, False, False]
  assert got[1][:3] == got[0]
  got = dead(slim_jax.select_global(v, fraction=0.5, tied=labels, max_fraction=0.7))
  assert sum(got[0]) == 2 and got[1][:3] == got[0]


def test_stacked_layers_lose_what_is_small_in_all():
  scale = jnp.asarray([[1., 5., 2., 7.], [1., 1., 3., 8.]])
  v = {'params': {'BatchNorm_0': {'scale': scale, 'bias': scale},
                  'BatchNorm_1': {'scale': jnp.asarray([4., 6.])}},
       'batch_stats': {'BatchNorm_0': {'mean': scale, 'var': scale},
                       'BatchNorm_1': {'mean': scale[0, :2], 'var': scale[0, :2]}}}
  got = slim_jax.select_global(v, fraction=0.4)  # 10 scales: 1 1 3 3 4 5 5 6 8 8
  assert got['params']['BatchNorm_0']['scale'].tolist() == [True, False, True, False]
  assert got['params']['BatchNorm_1']['scale'].tolist() == [True, False]
  masked = slim_jax.mask(v, got)
  assert (masked['params']['BatchNorm_0']['scale'] == 0).tolist() == [[True, False, True, False]] * 2


def test_bad_ties_are_named():
  v = variables([1., 2.])
  with pytest.raises(ValueError, match="tied_by must be 'sum', 'mean' or 'max', got 'min'"):
    slim_jax.select_global(v, fraction=0.5, tied=tied([0, 0]), tied_by='min')
  with pytest.raises(ValueError, match=r'tied must have int\[2\] at params/BatchNorm_0/scale'):
    slim_jax.select_global(v, fraction=0.5, tied=tied([0, 0, 1]))
  with pytest.raises(ValueError, match='it has nothing'):
    slim_jax.select_global(v, fraction=0.5, tied={'other': np.zeros(2)})
