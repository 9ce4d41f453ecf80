"""Which channels are tied, and that thin networks of tied channels need no gathers."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import jaxprs, models, tree


def built(name, size=8, **arguments):
  """A model as (apply, variables) with random scales."""
  module = models.create(name, num_classes=4, **arguments)
  x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(
    lambda key: module.init(key, jnp.zeros(x.shape), train=False), jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda a: rng.uniform(0.5, 1.5, a.shape).astype(a.dtype), shapes)
  return (lambda v, x: module.apply(v, x, train=False)), variables, x


def labels_of(apply, variables, *args):
  labels = tree.flatten(slim_jax.streams(apply, variables, *args))
  return {tree.show(path[1:-1]): label for path, label in labels.items()}


def test_a_chain_has_no_stream():
  labels = labels_of(*built('vgg', widths=(4, 'M', 6, 5)))
  everything = np.concatenate(list(labels.values()))
  assert len(set(everything)) == len(everything) == 15


def test_residual_branches_are_one_stream():
  labels = labels_of(*built('resnet18', size=32))
  stem, branch, inner = (
    labels[name] for name in ('BatchNorm_0', 'Block_1/BatchNorm_1', 'Block_1/BatchNorm_0')
  )
  assert stem.tolist() == branch.tolist()
  assert not set(stem) & set(inner)
  assert labels['Block_2/projection_norm'].tolist() == labels['Block_3/BatchNorm_1'].tolist()
  assert len(set(stem)) == len(stem)


@pytest.mark.parametrize('growth', [1, 3])
def test_a_concatenation_is_read_by_all_that_follow(growth):
  labels = labels_of(*built('densenet', depth=13, growth=growth, stem=4))
  first, second, third = (labels[f'BatchNorm_{i}'].tolist() for i in range(3))
  assert [len(first), len(second), len(third)] == [4, 4 + growth, 4 + 2 * growth]
  assert third[: len(second)] == second and second[:4] == first
  assert len(set(third)) == len(third)


def zigzag(variables, x):
  """A branch that adds its channels backwards, a loop, a branch, and an end without a rule."""

  def norm(i, y):
    return y * variables[f'BatchNorm_{i}']['scale'][None]

  x = norm(0, x @ variables['kernel'])
  x = x + jax.checkpoint(lambda y: jax.nn.relu(norm(1, y @ variables['inner'])))(x)[:, ::-1]
  x, _ = lax.scan(lambda y, scale: (y * scale[None], None), x, variables['BatchNorm_2']['scale'])
  x = lax.cond(jnp.sum(x) > 0, lambda y: norm(3, y), lambda y: y, x)
  x = lax.while_loop(lambda y: jnp.sum(y) > 5, lambda y: norm(4, y), x)
  return norm(5, jax.pure_callback(np.sin, x, x))


def test_reversals_calls_loops_and_branches_tie():
  n = 5
  variables = {f'BatchNorm_{i}': {'scale': jnp.ones((2, n) if i == 2 else n)} for i in range(6)}
  variables |= {'kernel': jnp.ones((3, n)), 'inner': jnp.ones((n, n))}
  labels = slim_jax.streams(zigzag, variables, jnp.ones((2, 3)))
  first = labels['BatchNorm_0']['scale']
  assert labels['kernel'] is None
  assert len(set(first)) == n
  assert labels['BatchNorm_1']['scale'].tolist() == first[::-1].tolist()
  for i in (2, 3, 4):
    assert labels[f'BatchNorm_{i}']['scale'].tolist() == first.tolist()
  assert not set(labels['BatchNorm_5']['scale']) & set(first)


def _block(scales, x):
  """Two norms whose outputs meet in a stream that ends inside."""
  stream = x * scales[0][None]
  return ((stream + jnp.sin(stream) * scales[1][None]) @ jnp.ones((stream.shape[1], 2))).sum(1)


@pytest.mark.parametrize('kind', ['composite', 'custom_vmap', 'whole', 'in parts'])
def test_what_meets_inside_a_call_is_tied(kind):
  spec, mesh = jax.sharding.PartitionSpec, jax.sharding.Mesh(np.array(jax.devices()[:2]), ('d',))
  named = jax.custom_batching.custom_vmap(_block)
  named.def_vmap(lambda size, batched, scales, x: (_block(scales, x), True))
  inside = {
    'composite': jax.lax.composite(_block, name='test.block'),
    'custom_vmap': named,
    'whole': jax.shard_map(
      _block, mesh=mesh, in_specs=(spec(), spec('d', None)), out_specs=spec('d')
    ),
    'in parts': jax.shard_map(
      lambda scales, x: lax.psum(_block(scales, x), 'd'),
      mesh=mesh,
      in_specs=(spec('d'), spec(None, 'd')),
      out_specs=spec(),
    ),
  }[kind]

  def f(v, x):
    return inside([v['BatchNorm_0']['scale'], v['BatchNorm_1']['scale']], x)

  v = {f'BatchNorm_{i}': {'scale': jnp.ones(6)} for i in range(2)}
  labels = slim_jax.streams(f, v, jnp.ones((2, 6)))
  first, second = (labels[f'BatchNorm_{i}']['scale'].tolist() for i in range(2))
  assert first == second
  # Of axes that devices share, each device has an index at the same place.
  assert len(set(first)) == (3 if kind == 'in parts' else 6)
  assert kind != 'in parts' or first[:3] == first[3:]


def test_a_channel_shuffle_ties_what_it_puts_together():
  def shuffled(v, x):
    y = x * v['BatchNorm_0']['scale'][None]
    index = np.array([2, 0, 3, 1])
    return y[:, index] * v['BatchNorm_1']['scale'][None]

  v = {f'BatchNorm_{i}': {'scale': jnp.ones(4)} for i in range(2)}
  labels = slim_jax.streams(shuffled, v, jnp.ones((2, 4)))
  assert (
    labels['BatchNorm_1']['scale'].tolist() == labels['BatchNorm_0']['scale'][[2, 0, 3, 1]].tolist()
  )


def gathers(apply, variables, x, dead):
  """How many gathers and scatters the thin network has, and how many channels it lost."""
  plan = slim_jax.plan(apply, variables, x, dead=dead)
  program, _ = jaxprs.trace(slim_jax.thin(apply, plan), plan.slice(variables), x)
  lost = sum(int(np.sum(d)) for d in jax.tree.leaves(dead))
  return sum(str(e.primitive) in ('gather', 'scatter', 'pad') for e in program.equations), lost


@pytest.mark.parametrize(
  'name, arguments', [('resnet18', {}), ('densenet', dict(depth=13, growth=4, stem=8))]
)
@pytest.mark.parametrize('by', ['sum', 'max'])
def test_tied_channels_need_no_gather(name, arguments, by):
  apply, variables, x = built(name, size=32, **arguments)
  free = slim_jax.select_global(variables, fraction=0.5)
  tied = slim_jax.select_global(
    variables, fraction=0.5, tied_by=by, tied=slim_jax.streams(apply, variables, x)
  )
  some, _ = gathers(apply, variables, x, free)
  none, lost = gathers(apply, variables, x, tied)
  scales = jax.tree.leaves(slim_jax.batch_norm_scales(variables))
  total = sum(leaf.size for leaf, s in zip(jax.tree.leaves(variables), scales, strict=True) if s)
  assert some > 5 and none == 0
  assert 0.3 < lost / total < 0.7
