"""What the other tests measure with: what it must not hide."""

from helpers import laws
import numpy as np
import pytest

NAN, INF = np.nan, np.inf


def trees(*values):
  """Two trees whose first leaves are equal, and whose second ones have the values."""
  return [{'a': np.ones(2), 'b': np.array(value, np.float32)} for value in values]


@pytest.mark.parametrize(
  'got, want, distance',
  [
    ([1, 2], [1, 2], 0),
    ([1, 3], [1, 4], 0.25),
    ([NAN, 1], [1, 1], INF),
    ([1, 1], [NAN, 1], INF),
    ([NAN, 1], [NAN, 1], INF),
    ([INF, 1], [1, 1], INF),
    ([1, 1], [INF, 1], INF),
    ([INF, 1], [-INF, 1], INF),
    ([INF, 3], [INF, 4], 0.25),
    ([], [], 0),
  ],
)
def test_distance(got, want, distance):
  assert laws.distance(*trees(got, want)) == distance


def test_distance_where_nan_is_expected():
  assert laws.distance(*trees([NAN, 3], [NAN, 4]), equal_nan=True) == 0.25
  assert laws.distance(*trees([NAN, 3], [4, NAN]), equal_nan=True) == INF
  assert laws.distance(*trees([NAN, 3], [4, 3]), equal_nan=True) == INF


def test_distance_is_relative_to_the_leaf_or_a_share_of_the_tree():
  got, want = (
    {'a': np.array([100.0]), 'b': np.array([2.0])},
    {'a': np.array([100.0]), 'b': np.ones(1)},
  )
  assert laws.distance(got, want) == 1
  assert laws.distance(got, want, floor=0.1) == 0.1


def test_distance_needs_the_same_shapes_and_dtypes():
  with pytest.raises(AssertionError):
    laws.distance(np.ones(2), np.ones(3))
  with pytest.raises(AssertionError, match='float32.* is not float64'):
    laws.distance(np.ones(2, np.float32), np.ones(2))
