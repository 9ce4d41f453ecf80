"""The law on layered networks drawn at random."""

from helpers import laws, random_networks, zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def check(seed: int) -> None:
  rng = np.random.default_rng(seed)
  case = zoo.Case('random', lambda dtype: random_networks.Random(dtype, seed), (6, 6, 6, 2))
  model = zoo.build(case, jnp.float64, seed)
  if not any(jax.tree.leaves(laws.slim_jax.batch_norm_scales(model.variables))):
    return
  dead = laws.random_dead(model.variables, rng.uniform(0.1, 0.9), seed, emptied=True)
  try:
    laws.check(model, dead, 1e-10)
  except ValueError as error:
    if 'disconnected' not in str(error):  # a lawful answer to a network without a path
      raise


@pytest.mark.parametrize('seed', range(4))
def test_random_network(seed, x64):
  check(seed)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4, 220))
def test_another_random_network(seed, x64):
  check(seed)
