"""One of two processes that cut and run a network together: python spread.py PORT RANK

Arrays are spread over four devices of each process. It prints each kind of mesh that holds.
"""

import os
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

import slim_jax
from slim_jax import shardings

RNG = np.random.default_rng(0)
VARIABLES = {
  'norm': {'scale': RNG.normal(size=16), 'bias': RNG.normal(size=16)},
  'w1': RNG.normal(size=(6, 16)),
  'w2': RNG.normal(size=(16, 4)),
}
X = RNG.normal(size=(8, 6))
SPECS = {'norm': {'scale': P('m'), 'bias': P('m')}, 'w1': P(None, 'm'), 'w2': P('m')}


def network(variables, x, spec=None):
  norm = variables['norm']
  h = jax.nn.relu((x @ variables['w1']) * norm['scale'][None] + norm['bias'][None])
  return jnp.einsum('bi,io->bo', h, variables['w2'], out_sharding=spec)


def gradients(f, variables, x):
  return jax.jit(jax.grad(lambda v, x: jnp.sum(jnp.sin(f(v, x)))))(variables, x)


def close(actual, desired):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(shardings.on_host(a), b, 1e-10, 1e-10), actual, desired
  )


def put(mesh, array, spec):
  place = NamedSharding(mesh, spec)
  return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def check(kind):
  """The law on a mesh of eight devices, beside the same on the host."""
  mesh = jax.make_mesh((4, 2), ('d', 'm'), axis_types=(kind, kind))
  variables = jax.tree.map(lambda array, spec: put(mesh, array, spec), VARIABLES, SPECS)
  x = put(mesh, X, P('d'))
  assert not variables['w1'].is_fully_addressable
  dead = slim_jax.select_global(variables, fraction=0.5, multiple_of=2)
  at_home = slim_jax.select_global(VARIABLES, fraction=0.5, multiple_of=2)
  jax.tree.map(np.testing.assert_array_equal, dead, at_home)
  masked = slim_jax.mask(VARIABLES, dead)
  expected = slim_jax.plan(network, VARIABLES, X, dead=dead)
  results = np.asarray(network(masked, X))
  grads = expected.slice(jax.tree.map(np.asarray, gradients(network, masked, X)))

  def f(variables, x):
    return network(variables, x, P('d', None) if kind is AxisType.Explicit else None)

  with jax.set_mesh(mesh):
    plan = slim_jax.plan(f, variables, x, dead=dead)
    thin_variables = plan.slice(variables)
    close(thin_variables, expected.slice(VARIABLES))
    for thin, full in zip(*map(jax.tree.leaves, (thin_variables, variables)), strict=True):
      assert thin.sharding == full.sharding
    close(plan.expand(thin_variables), expected.expand(expected.slice(VARIABLES)))
    tx = optax.sgd(0.1, momentum=0.9)
    state = plan.slice_opt_state(tx, jax.jit(tx.init)(variables), variables)
    close(state, jax.tree.map(np.asarray, tx.init(expected.slice(VARIABLES))))

    thin = slim_jax.thin(f, plan)
    close(jax.jit(thin)(thin_variables, x), results)
    close(gradients(thin, thin_variables, x), grads)
    close(jax.jit(f)(slim_jax.mask(variables, dead), x), results)
    full, cut = slim_jax.count(f, variables, x), slim_jax.count(thin, thin_variables, x)
    assert full.macs == 2 * cut.macs

    kept = slim_jax.plan(f, variables, x, dead=dead, bias='keep')
    close(
      kept.slice(variables, shardings=NamedSharding(mesh, P())),
      slim_jax.plan(network, VARIABLES, X, dead=dead, bias='keep').slice(VARIABLES),
    )
  if kind is AxisType.Auto:
    mapped = jax.shard_map(network, mesh=mesh, in_specs=(P(), P('d')), out_specs=P('d'))
    plan = slim_jax.plan(mapped, variables, x, dead=dead)
    close(jax.jit(slim_jax.thin(mapped, plan))(plan.slice(variables), x), results)


if __name__ == '__main__':
  # Of a flag given twice, the last one counts.
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count=4'
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_x64', True)
  jax.distributed.initialize(f'localhost:{sys.argv[1]}', 2, int(sys.argv[2]))
  for kind in (AxisType.Auto, AxisType.Explicit):
    check(kind)
    print(f'{kind.name} holds', flush=True)
