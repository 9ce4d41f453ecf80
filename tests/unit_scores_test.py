"""Scores of units that look at data: what the loss changes by, and what units carry."""

from helpers import unit_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import scores


def network(v, x):
  """A convolution, a dense layer of neurons, attention with two heads."""
  x = jax.lax.conv_general_dilated(
    x, v['conv'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  x = jax.nn.relu(x + v['bias'][None, None, None]).mean(2)
  q, k, y = (jnp.einsum('btc,chd->bthd', x, v[name]) for name in ('q', 'k', 'v'))
  weights = jax.nn.softmax(jnp.einsum('bthd,bshd->bhts', q, k))
  y = jnp.einsum('bhts,bshd->bthd', weights, y)
  x = jnp.tanh(jnp.einsum('bthd,hdc->btc', y, v['out']) @ v['up'])
  return x.mean(1) @ v['down'], y, x


@pytest.fixture(name='net')
def _net(x64):
  rng = np.random.default_rng(0)
  shapes = {
    'conv': (3, 3, 2, 5), 'bias': (5,), 'q': (5, 2, 3), 'k': (5, 2, 3), 'v': (5, 2, 4),
    'out': (2, 4, 6), 'up': (6, 7), 'down': (7, 3),
  }  # fmt: skip
  variables = {name: jnp.asarray(rng.normal(size=s) / 2) for name, s in shapes.items()}
  batches = [jnp.asarray(rng.normal(size=(4, 5, 5, 2))) for _ in range(2)]
  apply = lambda v, x: network(v, x)[0]
  return apply, variables, batches, slim_jax.units(apply, variables, batches[0])


def test_activation_is_the_size_of_what_readers_lose(net):
  apply, v, batches, units = net
  result = scores.unit_activation(apply, v, units, batches)
  kinds = {units[name].kind: name for name in units}
  neurons = next(name for name in units if units[name].size == 7)
  heads = np.concatenate([np.square(network(v, x)[1]).reshape(-1, 2, 4) for x in batches])
  # The layer reads the mean over time.
  carried = np.concatenate([np.square(network(v, x)[2].mean(1)) for x in batches])
  of_neurons = np.sqrt(carried.mean(0) * (v['down'] ** 2).sum(1))
  np.testing.assert_allclose(result[neurons], of_neurons, rtol=1e-6)
  of_heads = np.sqrt((heads.mean(0) * (v['out'] ** 2).sum(2)).sum(1) / 4)
  np.testing.assert_allclose(result[kinds['heads']], of_heads, rtol=1e-6)
  plain = scores.unit_activation(apply, v, units, batches, weighted=False)
  np.testing.assert_allclose(plain[kinds['heads']], np.sqrt(heads.mean((0, 2))), rtol=1e-6)
  assert result.keys() == units.keys()  # query-key dimensions, too, which no kernel reads
  assert all((score > 0).all() and score.shape == units[n].shape for n, score in result.items())


def test_activation_of_channels_that_a_convolution_reads(x64):
  rng = np.random.default_rng(0)
  v = {n: jnp.asarray(rng.normal(size=s)) for n, s in (('a', (1, 1, 2, 4)), ('b', (3, 1, 4, 3)))}
  conv = lambda x, kernel: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  f = lambda v, x: conv(jnp.tanh(conv(x, v['a'])), v['b'])
  x = jnp.asarray(rng.normal(size=(3, 3, 4, 2)))  # the window of b fills the height
  units = slim_jax.units(f, v, x)
  (score,) = scores.unit_activation(f, v, units, [x]).values()
  squares = np.square(jnp.tanh(conv(x, v['a']))).mean((0, 2))  # [height, channels]
  np.testing.assert_allclose(score, np.sqrt((squares * (v['b'][:, 0] ** 2).sum(2)).sum(0)))


def test_activation_inside_loops_is_refused():
  case = next(case for case in unit_networks.CASES if case.name == 'scanned_llama')
  model = unit_networks.build(case, jnp.float32)
  units = slim_jax.units(model.infer, model.variables, model.x, where='neurons')
  with pytest.raises(ValueError, match='no kernel outside loops reads or makes .*neurons'):
    scores.unit_activation(model.infer, model.variables, units, [model.x])
  with pytest.raises(ValueError, match='at least one batch'):
    scores.unit_activation(model.infer, model.variables, units, [])


def test_taylor_is_the_first_order_of_the_loss_by_batch(net):
  apply, v, batches, units = net
  gated, gates = slim_jax.gate(apply, v, units)
  loss = lambda both, x: jnp.square(gated(both, x)).mean()
  left, result = scores.mean_taylor(loss, (v, gates), batches, scales=(False, True))
  assert not jax.tree.leaves(left)
  step = 1e-7
  for name, gate in gates.items():
    for i in range(gate.size):
      moved = {**gates, name: gate.at[i].add(-step)}
      slopes = [(loss((v, gates), x) - loss((v, moved), x)) / step for x in batches]
      assert result[name][i] == pytest.approx(np.mean(np.square(slopes)), rel=1e-3, abs=1e-12)
  with pytest.raises(ValueError, match='at least one batch'):
    scores.mean_taylor(loss, (v, gates), [], scales=(False, True))


def test_zero_weights_have_no_score(net):
  """Whatever a unit of weights zero holds: it goes first."""
  apply, v, batches, units = net
  name = next(name for name in units if units[name].size == 7)
  v = {**v, 'down': v['down'].at[3].set(0)}
  gated, gates = slim_jax.gate(apply, v, units)
  loss = lambda both, x: jnp.square(gated(both, x) - 1).mean()
  for result in (
    scores.unit_activation(apply, v, units, batches),
    scores.mean_taylor(loss, (v, gates), batches, scales=(False, True))[1],
  ):
    assert result[name][3] == 0 and (np.delete(result[name], 3) > 0).all()
