"""Meshes with automatic, explicit and manual axes: what is cut stays where it is, and is exact."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import slim_jax
from slim_jax import shardings, tree

pytestmark = pytest.mark.usefixtures('x64_module')


RNG = np.random.default_rng(0)
DEAD = {'norm': {'scale': np.arange(16) % 4 < 2, 'bias': None}, 'w1': None, 'w2': None}
X = RNG.normal(size=(8, 6))
VARIABLES = jax.tree.map(
  lambda shape: RNG.normal(size=shape) + 0.5,
  {'norm': {'scale': (16,), 'bias': (16,)}, 'w1': (6, 16), 'w2': (16, 4)},
  is_leaf=lambda x: isinstance(x, tuple),
)
# Of each leaf, the axis with channels.
SPECS = {'norm': {'scale': P('m'), 'bias': P('m')}, 'w1': P(None, 'm'), 'w2': P('m')}


@jax.custom_vjp
def reversing(x):
  return x * 1


reversing.defvjp(lambda x: (x * 1, None), lambda _, ct: (-ct,))


def network(variables, x, *, centre=lambda mean: mean, join=lambda y: y, spec=None):
  """Layers with custom derivatives, a loop and a branch."""
  norm = variables['norm']
  h = x @ variables['w1']
  h = (h - centre(h.mean(0, keepdims=True))) * norm['scale'][None] + norm['bias'][None]
  h = reversing(jax.checkpoint(jax.nn.silu)(jax.nn.relu(h)))
  h = lax.scan(lambda carry, _: (jnp.sin(carry), None), h, None, length=2)[0]
  h = lax.cond(norm['scale'].sum() > 0, lambda h: h * 2, lambda h: jnp.minimum(h, 6.0), h)
  return join(jnp.einsum('bi,io->bo', h, variables['w2'], out_sharding=spec))


def loss(f, variables, x):
  y = f(variables, x)
  return jnp.sum(jnp.sin(y)), y


def graded(f, variables, x):
  """Results and gradients."""
  (_, y), grads = jax.jit(jax.value_and_grad(lambda v, x: loss(f, v, x), has_aux=True))(
    variables, x
  )
  return jax.tree.map(np.asarray, (y, grads))


@pytest.fixture(scope='module')
def expected(x64_module):
  """The plan, and the results and gradients of the masked network at the live indices."""
  plan = slim_jax.plan(network, VARIABLES, X, dead=DEAD)
  assert [cut.thin_shape for cut in plan.cuts.values()] == [(8,), (8,), (6, 8), (8, 4)]
  y, grads = graded(network, slim_jax.mask(VARIABLES, DEAD), X)
  return plan, y, plan.slice(grads)


def close(actual, desired):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10, 1e-10), actual, desired)


def same(actual, desired):
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), actual, desired)


def mesh_of(d, m):
  return jax.make_mesh((4, 2), ('d', 'm'), axis_types=(d, m))


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
MESHES = {'automatic': (AUTO, AUTO), 'explicit': (EXPLICIT, EXPLICIT), 'mixed': (EXPLICIT, AUTO)}


def laid_out(mesh, arrays, specs):
  return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), arrays, specs)


def layouts(arrays):
  return jax.tree.map(lambda x: x.sharding, arrays)


@pytest.mark.parametrize('kind', MESHES)
def test_what_is_cut_stays_where_it_is(kind, expected):
  plan, y, grads = expected
  mesh = mesh_of(*MESHES[kind])
  variables = laid_out(mesh, VARIABLES, SPECS)
  thin = plan.slice(variables)
  same(thin, plan.slice(VARIABLES))
  assert layouts(thin) == layouts(variables)
  full = plan.expand(thin)
  same(full, plan.expand(plan.slice(VARIABLES)))
  assert layouts(full) == layouts(variables)

  # The state of an optimiser.
  tx = optax.adam(0.1)
  with jax.set_mesh(mesh):
    state = jax.jit(tx.init)(variables)
  thin_state = plan.slice_opt_state(tx, state, variables)
  assert layouts(thin_state) == layouts(state)
  same(thin_state, jax.tree.map(np.asarray, tx.init(plan.slice(VARIABLES))))

  # Other layouts: of one leaf, or of all.
  whole = NamedSharding(mesh, P())
  other = plan.slice(variables, shardings={'norm': None, 'w1': whole, 'w2': None})
  assert layouts(other) == {**layouts(variables), 'w1': whole}
  assert layouts(plan.slice(VARIABLES, shardings=whole))['norm'] == {'scale': whole, 'bias': whole}
  same(other, plan.slice(VARIABLES))

  # Inside `jit`, where types are known.
  with jax.set_mesh(mesh):
    traced = jax.jit(lambda v: plan.expand(plan.slice(v)))(variables)
    same(traced, jax.tree.map(np.asarray, full))
    if kind == 'explicit':
      assert jax.tree.map(jax.typeof, traced) == jax.tree.map(jax.typeof, variables)


@pytest.mark.parametrize('kind', MESHES)
def test_thin_networks_on_meshes(kind, expected):
  plan, y, grads = expected
  mesh = mesh_of(*MESHES[kind])
  variables = laid_out(mesh, VARIABLES, SPECS)
  x = jax.device_put(X, NamedSharding(mesh, P('d')))

  def f(variables, x):
    return network(variables, x, spec=P('d', None) if kind != 'automatic' else None)

  with jax.set_mesh(mesh):
    thin = slim_jax.thin(f, plan)
    thin_variables = plan.slice(variables)
    close(graded(thin, thin_variables, x), (y, grads))
    assert jax.typeof(jax.eval_shape(thin, thin_variables, x)) == jax.typeof(
      jax.eval_shape(f, variables, x)
    )
    again = slim_jax.plan(f, variables, x, dead=DEAD)
    full, cut = slim_jax.count(f, variables, x), slim_jax.count(thin, thin_variables, x)
  assert not again.unknown
  same([c.indices for c in again.cuts.values()], [c.indices for c in plan.cuts.values()])
  assert (full.macs, cut.macs) == (8 * (6 + 4) * 16, 8 * (6 + 4) * 8)


# `shard_map` over the batch: the mean is over all devices.
MANUAL = {'typed': {}, 'untyped': {'check_vma': False}, 'one axis': {'axis_names': {'d'}}}


def over_batch(f, options):
  specs = {'in_specs': (P(), P('d')), 'out_specs': P('d'), **options}
  return jax.shard_map(f, mesh=mesh_of(AUTO, AUTO), **specs)


def centred(variables, x):
  return network(variables, x, centre=lambda mean: lax.pmean(mean, 'd'))


@pytest.fixture(scope='module')
def centred_expected(expected):
  plan, _, _ = expected
  y, grads = graded(over_batch(centred, {}), slim_jax.mask(VARIABLES, DEAD), X)
  return plan, y, plan.slice(grads)


@pytest.mark.parametrize('where', ['inside', 'outside'])
@pytest.mark.parametrize('kind', MANUAL)
def test_thin_networks_and_shard_map(kind, where, centred_expected):
  plan, y, grads = centred_expected
  full = over_batch(centred, MANUAL[kind])
  if where == 'inside':
    thin = over_batch(slim_jax.thin(centred, plan), MANUAL[kind])
  else:
    plan = slim_jax.plan(full, VARIABLES, X, dead=DEAD)
    assert not plan.unknown
    thin = slim_jax.thin(full, plan)
  variables = plan.slice(VARIABLES)
  close(graded(thin, variables, X), (y, grads))
  copies = 1 if kind == 'one axis' else 2  # all devices along 'm' do the same
  assert slim_jax.count(full, VARIABLES, X).macs == copies * 8 * (6 + 4) * 16
  assert slim_jax.count(thin, variables, X).macs == copies * 8 * (6 + 4) * 8


def test_cuts_inside_shard_map(expected):
  plan, _, _ = expected
  cut = jax.shard_map(
    lambda v: (plan.slice(v), plan.expand(plan.slice(v))),
    mesh=mesh_of(AUTO, AUTO),
    in_specs=P(),
    out_specs=P(),
  )
  same(jax.jit(cut)(VARIABLES), (plan.slice(VARIABLES), plan.expand(plan.slice(VARIABLES))))


def test_channels_that_are_divided_among_devices(expected):
  """Every device has half of the channels, and loses those at the same places."""

  def half(variables, x):
    return network(variables, x, join=lambda y: lax.psum(y, 'm'))

  f = jax.shard_map(half, mesh=mesh_of(AUTO, AUTO), in_specs=(SPECS, P('d')), out_specs=P('d'))
  plan = slim_jax.plan(f, VARIABLES, X, dead=DEAD)
  assert plan.cuts['w1',].thin_shape == (6, 8) and not plan.unknown
  y, grads = graded(f, slim_jax.mask(VARIABLES, DEAD), X)
  thin = slim_jax.thin(f, plan)
  close(graded(thin, plan.slice(VARIABLES), X), (y, plan.slice(grads)))
  assert slim_jax.count(thin, plan.slice(VARIABLES), X).macs == 8 * (6 + 4) * 8

  # A channel that is dead on one device alone stays.
  dead = {**DEAD, 'norm': {'scale': np.arange(16) < 5, 'bias': None}}
  plan = slim_jax.plan(f, VARIABLES, X, dead=dead)
  assert plan.cuts['w1',].thin_shape == (6, 16)


def test_widths_that_do_not_divide_are_named(expected):
  mesh = jax.make_mesh((8,), ('m',), axis_types=(AUTO,))
  variables = laid_out(mesh, VARIABLES, SPECS)
  dead = {**DEAD, 'norm': {'scale': np.arange(16) < 5, 'bias': None}}
  plan = slim_jax.plan(network, VARIABLES, X, dead=dead)
  with pytest.raises(
    shardings.ShardingError,
    match=r"norm/bias: axis 0 is to have 11 of 16 .* the 8 devices of mesh axis 'm' .*multiple_of=8",
  ):
    plan.slice(variables)
  whole = NamedSharding(mesh, P())
  same(plan.slice(variables, shardings=whole), plan.slice(VARIABLES))


def test_a_constraint_on_channels_is_dropped_where_it_does_not_divide(expected):
  mesh = jax.make_mesh((8,), ('m',), axis_types=(AUTO,))

  def f(variables, x):
    return network(
      variables, lax.with_sharding_constraint(x, NamedSharding(mesh, P('m'))), spec=None
    )

  plan, y, _ = expected
  thin = slim_jax.thin(f, slim_jax.plan(f, VARIABLES, X, dead=DEAD))
  close(jax.jit(thin)(plan.slice(VARIABLES), X), y)


def test_one_device_keeps_its_arrays(expected):
  plan, _, _ = expected
  device = jax.devices()[3]
  thin = plan.slice(jax.device_put(VARIABLES, device))
  assert {x.device for x in jax.tree.leaves(thin)} == {device}
  assert {x.device for x in jax.tree.leaves(plan.expand(thin))} == {device}
  assert not plan.slice(jax.tree.map(jnp.asarray, VARIABLES))['w1'].committed
  assert isinstance(plan.slice(VARIABLES)['w1'], np.ndarray)


def test_shapes_keep_their_sharding(expected):
  plan, _, _ = expected
  mesh = mesh_of(AUTO, AUTO)
  variables = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, s)),
    VARIABLES,
    SPECS,
  )
  assert layouts(plan.slice(variables)) == layouts(variables)
  assert tree.flatten(plan.slice(variables))['w1',].shape == (6, 8)


@pytest.mark.slow
def test_two_processes_of_four_devices():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = str(free.getsockname()[1])
  script = pathlib.Path(__file__).parent / 'helpers' / 'spread.py'
  environ = {**os.environ, 'PYTHONPATH': str(script.parents[2])}
  both = [
    subprocess.Popen(
      [sys.executable, str(script), port, str(rank)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=environ,
    )
    for rank in range(2)
  ]
  for process in both:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert 'Auto holds' in output and 'Explicit holds' in output
