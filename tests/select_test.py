"""Channels are ranked and selected by the paper's rule, thresholds, constraints and scores."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax.selection import options


def variables(*scales):
  return {
    'params': {
      f'BatchNorm_{i}': {'scale': jnp.asarray(s, jnp.float32), 'bias': jnp.ones(len(s))}
      for i, s in enumerate(scales)
    },
    'batch_stats': {
      f'BatchNorm_{i}': {'mean': jnp.zeros(len(s)), 'var': jnp.ones(len(s))}
      for i, s in enumerate(scales)
    },
  }


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
  assert dead(slim_jax.select_global(v, fraction=fraction, strict=True)) == want


def test_tree_has_none_elsewhere():
  tree = slim_jax.select_global(variables([1.0, 2.0]), fraction=0.5)
  assert tree['batch_stats']['BatchNorm_0'] == {'mean': None, 'var': None}
  assert tree['params']['BatchNorm_0']['bias'] is None
  assert tree['params']['BatchNorm_0']['scale'].dtype == bool


def test_zero_fraction_removes_nothing():
  assert not np.any(dead(slim_jax.select_global(variables([0.0, 0.0, 1.0]), fraction=0)))


def test_sign_does_not_matter():
  assert dead(slim_jax.select_global(variables([-3.0, 1.0, 2.0, -0.5]), fraction=0.25)) == [
    [False, True, False, True]
  ]


def test_per_layer():
  v = variables([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0])
  assert (
    dead(slim_jax.select_global(v, fraction=0.5, per_layer=True)) == [[True, True, True, False]] * 2
  )
  paper = random_variables(0, (500, 300))
  paper = variables(
    *[np.random.default_rng(n).permutation(np.arange(1.0, n + 1)) for n in (500, 300)]
  )
  tree = slim_jax.select_global(paper, fraction=0.799, per_layer=True)
  assert [len(d) - sum(d) for d in dead(tree)] == [100, 60]


def test_constraints():
  v = variables([0.1, 0.2, 0.3, 0.4], [5.0, 6.0, 7.0, 8.0])
  assert dead(slim_jax.select_global(v, fraction=0.5))[0] == [True] * 4
  assert dead(slim_jax.select_global(v, fraction=0.5, min_channels=1))[0] == [
    True,
    True,
    True,
    False,
  ]
  assert dead(slim_jax.select_global(v, fraction=0.5, max_fraction=0.5))[0] == [
    True,
    True,
    False,
    False,
  ]
  assert not np.any(dead(slim_jax.select_global(v, fraction=0.9, min_channels=9)))
  assert not np.any(dead(slim_jax.select_global(v, fraction=0.9, max_fraction=0)))


def test_scales_override():
  tree = {'neurons': {'bias': jnp.array([3.0, 1.0, 2.0])}, 'kernel': jnp.ones((2, 3))}
  chosen = slim_jax.select_global(
    tree, fraction=0.4, scales=lambda t: {'neurons': {'bias': True}, 'kernel': False}
  )
  assert chosen['neurons']['bias'].tolist() == [False, True, True]
  assert chosen['kernel'] is None


@pytest.mark.parametrize(
  'arguments',
  [
    dict(fraction=-0.1),
    dict(fraction=1.0),
    dict(fraction=float('nan')),
    dict(fraction=0.5, max_fraction=1.5),
    dict(fraction=0.5, min_channels=-1),
  ],
)
def test_values_out_of_range(arguments):
  with pytest.raises(ValueError, match='must be'):
    slim_jax.select_global(variables([1.0, 2.0]), **arguments)


def test_no_batch_norm():
  with pytest.raises(ValueError, match='no BatchNorm scale among the variables'):
    slim_jax.select_global({'params': {'Dense_0': {'kernel': jnp.ones((2, 2))}}}, fraction=0.5)


def test_scales_that_are_not_finite():
  with pytest.raises(ValueError, match='params/BatchNorm_0/scale'):
    slim_jax.select_global(variables([1.0, np.nan]), fraction=0.5)


def test_the_keywords_are_the_fields_of_the_options():
  fields = {field.name: field.type for field in dataclasses.fields(options.SelectionOptions)}
  assert options.SelectionKeywords.__annotations__ == fields


# Scores that are equal.


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('fraction', [0.01, 0.3, 0.5, 0.7, 0.99])
def test_as_many_are_removed_as_if_no_scores_were_equal(seed, fraction):
  equal = random_variables(seed)
  distinct = variables(*np.split(np.random.default_rng(seed).permutation(49) - 24.25, [7, 37]))
  for choices in ({}, dict(min_channels=2), dict(per_layer=True)):
    got = slim_jax.select_global(distinct, fraction=fraction, **choices)
    strict = slim_jax.select_global(distinct, fraction=fraction, strict=True, **choices)
    assert dead(got) == dead(strict)
  got = dead(slim_jax.select_global(equal, fraction=fraction))
  assert sum(map(sum, got)) == int(49 * fraction) + 1
  by_layer = dead(slim_jax.select_global(equal, fraction=fraction, per_layer=True))
  assert [sum(d) for d in by_layer] == [int(n * fraction) + 1 for n in (7, 30, 12)]
  strict = dead(slim_jax.select_global(equal, fraction=fraction, strict=True))
  scales = [np.abs(np.asarray(norm['scale'])) for norm in equal['params'].values()]
  largest = max(scale[mark].max() for scale, mark in zip(scales, map(np.array, got)) if mark.any())
  for scale, some, every in zip(scales, got, strict):
    assert (np.array(every) == (scale <= largest)).all()
    assert not np.any(np.array(some) & (scale > largest))
    assert np.all(np.array(some) | (scale >= largest))


def test_of_equal_scores_the_first_in_every_layer_go():
  v = variables(np.ones(4), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], np.ones(2))

  def widths(fraction, **choices):
    got = dead(slim_jax.select_global(v, fraction=fraction, **choices))
    assert all(mark == sorted(mark, reverse=True) for mark in got)
    return [sum(mark) for mark in got]

  # Places: 0 (three of them), 1/8, 1/4 twice, 3/8, 1/2 three times, ...
  assert [widths(n / 14 + 1e-6) for n in range(9)] == [
    [0, 1, 0],
    [1, 1, 0],
    [1, 1, 1],
    [1, 2, 1],
    [2, 2, 1],
    [2, 3, 1],
    [2, 4, 1],
    [3, 4, 1],
    [3, 5, 1],
  ]
  assert widths(0.5, strict=True) == [4, 8, 2]
  assert widths(0, strict=True) == [0, 0, 0]
  assert widths(0.4, per_layer=True) == [2, 4, 1]
  assert widths(0.5, keep='*BatchNorm_1*') == [3, 0, 1]
  assert widths(0.6, multiple_of=2) == [2, 4, 0]


def test_equal_scores_of_tied_channels():
  """They are numbered as they appear in the network, whatever their labels are."""
  v = variables([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
  labels = tied([9, 8, 7], [3, 8, 9])
  assert [
    dead(slim_jax.select_global(v, fraction=n / 6 + 1e-6, tied=labels, tied_by='mean'))
    for n in (0, 2, 3, 5)
  ] == [
    [[True, False, False], [False, False, True]],  # both of label 9
    [[True, False, False], [True, False, True]],
    [[True, True, False], [True, True, True]],
    [[True, True, True], [True, True, True]],
  ]


# Tied channels, stacked layers.


def tied(*labels):
  tree = variables(*[np.ones(len(l)) for l in labels])
  return {
    'params': {
      f'BatchNorm_{i}': {'scale': np.asarray(l), 'bias': None} for i, l in enumerate(labels)
    },
    'batch_stats': {name: {'mean': None, 'var': None} for name in tree['params']},
  }


def test_labels_of_their_own_change_nothing():
  v = random_variables(3)
  free = tied(np.arange(7), 7 + np.arange(30), 37 + np.arange(12))
  for choices in ({}, {'per_layer': True}, {'min_channels': 3}, {'max_fraction': 0.5}):
    for by in ('sum', 'mean', 'max'):
      assert dead(
        slim_jax.select_global(v, fraction=0.6, tied=free, tied_by=by, **choices)
      ) == dead(slim_jax.select_global(v, fraction=0.6, **choices))


def test_tied_channels_share_a_decision():
  v = variables([1.0, 5.0, 3.0], [4.0, 1.0, 9.0], [2.0, 2.0])
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


def test_constraints_keep_tied_channels_together():
  v = variables([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 9.0, 9.0, 9.0, 9.0, 9.0])
  labels = tied([0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7])
  got = dead(slim_jax.select_global(v, fraction=0.5, tied=labels, min_channels=2))
  assert got[0] == [True, False, False]
  assert got[1][:3] == got[0]
  got = dead(slim_jax.select_global(v, fraction=0.5, tied=labels, max_fraction=0.7))
  assert sum(got[0]) == 2 and got[1][:3] == got[0]


def test_stacked_layers_lose_what_is_small_in_all():
  scale = jnp.asarray([[1.0, 5.0, 2.0, 7.0], [1.0, 1.0, 3.0, 8.0]])
  v = {
    'params': {
      'BatchNorm_0': {'scale': scale, 'bias': scale},
      'BatchNorm_1': {'scale': jnp.asarray([4.0, 6.0])},
    },
    'batch_stats': {
      'BatchNorm_0': {'mean': scale, 'var': scale},
      'BatchNorm_1': {'mean': scale[0, :2], 'var': scale[0, :2]},
    },
  }
  got = slim_jax.select_global(v, fraction=0.4)  # 10 scales: 1 1 3 3 4 5 5 6 8 8
  assert got['params']['BatchNorm_0']['scale'].tolist() == [True, False, True, False]
  assert got['params']['BatchNorm_1']['scale'].tolist() == [True, False]
  masked = slim_jax.mask(v, got)
  assert (masked['params']['BatchNorm_0']['scale'] == 0).tolist() == [
    [True, False, True, False]
  ] * 2


def test_bad_ties_are_named():
  v = variables([1.0, 2.0])
  with pytest.raises(ValueError, match="tied_by must be 'sum', 'mean' or 'max', got 'min'"):
    slim_jax.select_global(v, fraction=0.5, tied=tied([0, 0]), tied_by='min')
  with pytest.raises(ValueError, match=r'tied must have int\[2\] at params/BatchNorm_0/scale'):
    slim_jax.select_global(v, fraction=0.5, tied=tied([0, 0, 1]))
  with pytest.raises(ValueError, match='it has nothing'):
    slim_jax.select_global(v, fraction=0.5, tied={'other': np.zeros(2)})


# Thresholds.


def test_an_absolute_threshold():
  v = variables([1.0, -2.0, 3.0], [2.0, 0.5])
  assert dead(slim_jax.select_global(v, threshold=2)) == [[True, True, False], [True, True]]
  assert dead(slim_jax.select_global(v, threshold=0.4)) == [[False] * 3, [False] * 2]
  assert dead(slim_jax.select_global(v, threshold=2, per_layer=True)) == dead(
    slim_jax.select_global(v, threshold=2)
  )


def test_the_gap():
  """The gap is where neighbours have the largest ratio."""
  rng = np.random.default_rng(0)
  small, large = 10 ** rng.uniform(-4, -3, 40), rng.uniform(0.3, 1.5, 60)
  both = rng.permutation(np.concatenate([small, large]))
  v = variables(both[:30], both[30:], [0.0, 1e-12])  # negligible ones have no gap below them
  got = dead(slim_jax.select_global(v, threshold='gap'))
  assert got == [(both[:30] < 0.01).tolist(), (both[30:] < 0.01).tolist(), [True, True]]
  # 6 and 12 have the largest difference, 1 and 3 the largest ratio.
  assert dead(slim_jax.select_global(variables([1.0, 3.0, 6.0, 12.0]), threshold='gap')) == [
    [True, False, False, False]
  ]
  layers = variables([1.0, 9.0], [100.0, 300.0, 9000.0])
  assert dead(slim_jax.select_global(layers, threshold='gap', per_layer=True)) == [
    [True, False],
    [True, True, False],
  ]
  assert dead(slim_jax.select_global(variables([2.0, 2.0], [2.0]), threshold='gap')) == [
    [False] * 2,
    [False],
  ]


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({}, 'give either fraction or threshold'),
    (dict(fraction=0.5, threshold=0.1), 'give either fraction or'),
    (dict(threshold='valley'), "'gap', got 'valley'"),
    (dict(threshold=np.nan), 'finite'),
  ],
)
def test_bad_thresholds(arguments, message):
  with pytest.raises(ValueError, match=message):
    slim_jax.select_global(variables([1.0, 2.0]), **arguments)


# Constraints by layer.


def left(tree):
  return [len(d) - sum(d) for d in dead(tree)]


def test_constraints_by_pattern():
  v = variables(
    np.arange(1.0, 11), np.arange(1.0, 11), np.arange(101.0, 111), np.arange(101.0, 111)
  )

  def widths(**choices):
    return left(slim_jax.select_global(v, fraction=0.49, **choices))

  assert widths() == [0, 0, 10, 10]
  assert widths(min_channels={'*BatchNorm_1*': 3}) == [0, 3, 10, 10]
  assert widths(max_fraction={'params/BatchNorm_[02]/scale': 0.8}) == [2, 0, 10, 10]
  # The longest pattern applies, in any order.
  for order in (1, -1):
    patterns = dict([('*', 2), ('*BatchNorm_1*', 5), ('params/BatchNorm_1/scale', 4)][::order])
    assert widths(min_channels=patterns) == [2, 4, 10, 10]
  # Of two equally long ones, the later.
  assert widths(min_channels={'*_0/*': 5, '*_?/*': 7}) == [7, 7, 10, 10]
  # Those that stay have the largest scores.
  got = dead(slim_jax.select_global(v, fraction=0.49, min_channels={'*_0/*': 3}))
  assert got[0] == [True] * 7 + [False] * 3


def test_kept_layers_are_not_ranked():
  v = variables([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0])
  got = dead(slim_jax.select_global(v, fraction=0.5, keep=['*BatchNorm_0/scale']))
  assert got == [[False] * 4, [True, True, True, False]]
  assert got == dead(slim_jax.select_global(v, fraction=0.5, keep='*BatchNorm_0*', per_layer=True))
  assert not np.any(dead(slim_jax.select_global(v, fraction=0.5, keep='*')))
  labels = tied([0, 1, 2, 3], [0, 1, 4, 5])
  got = dead(slim_jax.select_global(v, threshold=1000, keep='*BatchNorm_0*', tied=labels))
  assert got == [[False] * 4, [False, False, True, True]]


@pytest.mark.parametrize(
  'constraint',
  [
    dict(keep=['*BatchNorm_9*']),
    dict(min_channels={'BatchNorm_1': 2}),
    dict(max_fraction={'param/BatchNorm_1/scale': 0.5}),
  ],
)
def test_a_pattern_that_matches_nothing_is_an_error(constraint):
  v = variables([1.0, 2.0], [3.0, 4.0])
  with pytest.raises(
    ValueError, match=f'{next(iter(constraint))}: no layer .*params/BatchNorm_1/scale'
  ):
    slim_jax.select_global(v, fraction=0.5, **constraint)


@pytest.mark.parametrize(
  'constraint',
  [
    dict(min_channels={'*': -1}),
    dict(max_fraction={'*': 1.1}),
    dict(multiple_of=0),
    dict(multiple_of=2.5),
  ],
)
def test_constraints_out_of_range(constraint):
  with pytest.raises(ValueError, match='must be'):
    slim_jax.select_global(variables([1.0, 2.0]), fraction=0.5, **constraint)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('multiple', [4, 8])
def test_widths_are_rounded_up(seed, multiple):
  sizes = (7, 30, 12, 64)
  v = random_variables(seed, sizes)
  plain = slim_jax.select_global(v, fraction=0.6)
  got = slim_jax.select_global(v, fraction=0.6, multiple_of=multiple)
  want = [min(size, -(-n // multiple) * multiple) for n, size in zip(left(plain), sizes)]
  assert left(got) == want
  for i, (before, after) in enumerate(zip(dead(plain), dead(got))):
    scale = np.abs(np.asarray(v['params'][f'BatchNorm_{i}']['scale']))
    before, after = np.array(before), np.array(after)
    assert not (after & ~before).any()
    back = before & ~after  # the dead with the largest scores
    assert not back.any() or not after.any() or scale[back].min() >= scale[after].max()


def test_a_layer_without_channels_stays_so_when_rounded():
  v = variables(np.arange(1.0, 9), np.arange(101.0, 109))
  assert left(slim_jax.select_global(v, fraction=0.5, multiple_of=4)) == [0, 8]
  assert left(slim_jax.select_global(v, fraction=0.5, multiple_of=4, min_channels=1)) == [4, 8]


def test_rounding_keeps_tied_channels_together():
  rng = np.random.default_rng(1)
  v = variables(rng.uniform(size=16), rng.uniform(size=24), rng.uniform(size=8))
  labels = tied(np.arange(16), np.arange(8, 32), np.arange(24, 32))
  got = slim_jax.select_global(v, fraction=0.5, tied=labels, multiple_of=4)
  assert not np.any(np.array(left(got)) % 4) and sum(left(got)) < 16 + 24 + 8
  first, second, third = map(np.array, dead(got))
  assert (first[8:] == second[:8]).all() and (second[16:] == third).all()


# Scores.


scores_at = tied  # a tree with these arrays at the scales


def test_scores_take_the_place_of_scales():
  v = variables([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
  given = scores_at([6.0, -1.0, 2.0], [3.0, 4.0, 5.0])

  def widths(**choices):
    return dead(slim_jax.select_global(v, scores=given, **choices))

  assert widths(fraction=0.5) == [[False, True, True], [True, True, False]]
  assert widths(threshold=2) == [[False, True, True], [False] * 3]
  assert widths(fraction=0.4, per_layer=True) == [[False, True, True], [True, True, False]]
  labels = tied([0, 1, 2], [1, 3, 4])  # sums: 6, -1 + 3, 2, 4, 5
  assert widths(threshold=2, tied=labels) == [[False, True, True], [True, False, False]]
  assert widths(threshold=2, tied=labels, tied_by='max') == [[False, False, True], [False] * 3]
  assert widths(fraction=0.5, multiple_of=2) == [[False, True, False], [True, False, False]]


def test_scores_of_the_scales_change_nothing():
  v = random_variables(2)
  given = slim_jax.scores.scale_magnitude(v)
  for choices in ({}, dict(per_layer=True), dict(min_channels=3), dict(multiple_of=4)):
    assert dead(slim_jax.select_global(v, fraction=0.6, scores=given, **choices)) == dead(
      slim_jax.select_global(v, fraction=0.6, **choices)
    )


def test_scores_of_stacked_layers():
  scale = jnp.ones((2, 3))
  v = {
    'BatchNorm_0': {'scale': scale, 'mean': scale},
    'BatchNorm_1': {'scale': scale[0], 'mean': scale[0]},
  }
  for first in (np.array([[1.0, 4.0, 0.0], [2.0, 0.0, 3.0]]), np.array([2.0, 4.0, 3.0])):
    given = {
      'BatchNorm_0': {'scale': first, 'mean': None},
      'BatchNorm_1': {'scale': np.array([2.5, 1.0, 5.0]), 'mean': None},
    }
    got = slim_jax.select_global(v, scores=given, threshold=2.5)
    assert got['BatchNorm_0']['scale'].tolist() == [True, False, False]
    assert got['BatchNorm_1']['scale'].tolist() == [True, True, False]


@pytest.mark.parametrize(
  'first, message',
  [
    ([1.0], r'scores must have float\[2\] at params/BatchNorm_0/scale'),
    ([1.0, np.inf], 'BatchNorm_0/scale has scores that are not finite'),
    (None, 'it has nothing'),
  ],
)
def test_scores_that_do_not_fit(first, message):
  given = scores_at([1.0, 2.0])
  given['params']['BatchNorm_0']['scale'] = None if first is None else np.asarray(first)
  with pytest.raises(ValueError, match=message):
    slim_jax.select_global(variables([1.0, 2.0]), fraction=0.5, scores=given)


def test_scores_where_no_scale_is():
  given = scores_at([1.0, 2.0])
  given['params']['BatchNorm_0']['bias'] = np.ones(2)
  with pytest.raises(
    ValueError, match='must be None where there is no scale: params/BatchNorm_0/bias'
  ):
    slim_jax.select_global(variables([1.0, 2.0]), fraction=0.5, scores=given)
