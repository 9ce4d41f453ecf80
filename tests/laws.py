"""The law of the transformation, as functions that any model can be held to."""

import collections

import jax
import jax.numpy as jnp
import numpy as np

import slim_jax
from slim_jax import tree

FOLLOW = (None, {'batch_stats': 'batch_stats'})


def distance(got, want):
  """Largest difference, relative to the largest value of the leaf (or 1 % of the tree's)."""
  scale = max((float(jnp.max(jnp.abs(w))) for w in jax.tree.leaves(want) if w.size), default=0.0)

  def one(g, w):
    assert g.shape == w.shape, f'{g.shape} is not {w.shape}'
    assert g.dtype == w.dtype
    if not w.size:
      return 0.0
    return float(jnp.max(jnp.abs(g - w)) / jnp.maximum(jnp.max(jnp.abs(w)), 1e-2 * scale))
  return max(jax.tree.leaves(jax.tree.map(one, got, want)), default=0.0)


def random_dead(variables, fraction, seed=0, *, emptied=False):
  """Random channels of every scale: harder than the smallest ones.

  Layers keep one channel at least, unless they may be `emptied`.
  """
  rng = np.random.default_rng(seed)

  def one(leaf, is_scale):
    if not is_scale:
      return None
    dead = rng.random(leaf.shape) < fraction
    if dead.all() and not emptied:
      dead[rng.integers(dead.size)] = False
    return dead

  return jax.tree.map(one, variables, slim_jax.batch_norm_scales(variables))


def check(model, dead, tolerance):
  """Thin equals masked: in inference, in training with statistics, and for gradients."""
  infer, train, variables, x = model
  plan = slim_jax.plan(infer, variables, x, dead=dead)
  thin_variables, masked = plan.slice(variables), slim_jax.mask(variables, dead)
  key = jax.random.key(1)

  got = jax.jit(slim_jax.thin(infer, plan))(thin_variables, x)
  assert distance(got, jax.jit(infer)(masked, x)) < tolerance, 'inference'

  def value_and_state(f):
    def loss(variables):
      out, state = f(variables, x, key)
      weight = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
      return jnp.sum(out * weight), (out, state)
    return jax.jit(jax.grad(loss, has_aux=True))

  grads, (out, state) = value_and_state(slim_jax.thin(train, plan, outs=FOLLOW))(thin_variables)
  full_grads, (full_out, full_state) = value_and_state(train)(masked)
  assert distance(out, full_out) < tolerance, 'training'
  wanted = plan['batch_stats'].slice(full_state['batch_stats'])
  assert distance(state, {'batch_stats': wanted}) < tolerance, 'statistics'
  assert distance(grads, plan.slice(full_grads)) < 10 * tolerance, 'gradients'
  return plan


def check_identity(model):
  """With nothing dead the plan is the identity and the thin function is the function."""
  infer, train, variables, x = model
  dead = random_dead(variables, 0.0)
  plan = slim_jax.plan(infer, variables, x, dead=dead)
  assert all(cut.live.is_whole for cut in plan.cuts.values())
  for f, args, outs in ((infer, (), None), (train, (jax.random.key(1),), FOLLOW)):
    full = slim_jax.jaxprs.flatten(jax.make_jaxpr(f)(variables, x, *args))
    thin = slim_jax.jaxprs.flatten(
        jax.make_jaxpr(slim_jax.thin(f, plan, outs=outs))(variables, x, *args))
    before, after = (collections.Counter(str(e.primitive) for e in program.equations)
                     for program in (full, thin))
    # Nothing is added, not a gather nor a pad, but where the network itself picks channels.
    added = after - before
    del added['broadcast_in_dim']  # zeros that were constants
    assert added.total() <= before['gather'] + before['slice'] + before['pad'], added


def widths(plan, variables):
  """Live channels of every scale."""
  scales = tree.flatten(slim_jax.batch_norm_scales(variables))
  return [plan.cuts[path].thin_shape[-1] for path, is_scale in scales.items() if is_scale]
