"""The law of the transformation, as functions that any model can be held to."""

import collections

import jax
import jax.numpy as jnp
import numpy as np

import slim_jax
from slim_jax import batch_norms, tree


def distance(got, want, *, floor=1e-2, equal_nan=False):
  """Returns the largest difference, relative to the largest value of its leaf.

  Leaves whose values are all below `floor` times the largest value of the tree are compared with
  that product instead. A value that is infinite or NaN in either tree counts as an infinite
  difference, unless both have the same infinity there or, with `equal_nan`, both have NaN.
  """
  assert jax.tree.structure(got) == jax.tree.structure(want)
  pairs = [
    (np.asarray(g), np.asarray(w))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
  ]
  for g, w in pairs:
    assert (g.shape, g.dtype) == (w.shape, w.dtype), f'{g.dtype}{g.shape} is not {w.dtype}{w.shape}'
  pairs = [(g.astype(np.float64), w.astype(np.float64)) for g, w in pairs]
  least = floor * max((_largest(w) for _, w in pairs), default=0.0)
  return max(
    (_difference(g, w, equal_nan) / max(_largest(w), least, 1e-300) for g, w in pairs), default=0.0
  )


def _largest(array):
  """The largest absolute value among the finite ones."""
  return np.max(np.abs(array), where=np.isfinite(array), initial=0.0)


def _difference(a, b, equal_nan):
  """The largest absolute difference; infinite where only one value is finite, or none."""
  equal = (a == b) | (equal_nan & np.isnan(a) & np.isnan(b))
  finite = np.isfinite(a) & np.isfinite(b)
  if not np.all(finite | equal):
    return np.inf
  return np.max(np.abs(np.subtract(a, b, where=finite, out=np.zeros_like(a))), initial=0.0)


def random_dead(variables, fraction, seed=0, *, emptied=False, scales=None):
  """Random channels of every scale: harder than the smallest ones.

  Layers keep one channel at least, unless they may be `emptied`.
  """
  rng = np.random.default_rng(seed)

  def one(leaf, is_scale):
    if not is_scale:
      return None
    dead = rng.random(leaf.shape[batch_norms.channel_axis(leaf)]) < fraction
    if dead.all() and not emptied:
      dead[rng.integers(dead.size)] = False
    return dead

  scales = slim_jax.batch_norm_scales(variables) if scales is None else scales
  return jax.tree.map(one, variables, scales)


def differentiable(variables):
  """The floating leaves by path, and the function that puts such leaves among the others."""
  leaves, structure = tree.flatten(variables), jax.tree.structure(variables)

  def whole(floats):
    return jax.tree.unflatten(structure, [floats.get(path, v) for path, v in leaves.items()])

  return {path: leaf for path, leaf in leaves.items() if _is_float(leaf)}, whole


def declared(outs, results):
  """The floating leaves of the results that are state, by the path of the variable they follow."""
  roots = tree.spread(outs, results, name='outs')
  return {
    tree.parse(root) + path: leaf
    for (root, path), leaf in zip(roots, jax.tree.leaves(results), strict=True)
    if root is not None and _is_float(leaf)
  }


def sliced(plan, leaves):
  """Leaves of the full network by path, cut like the variables at these paths."""
  return {path: slim_jax.Plan({(): plan.cuts[path]}).slice(leaf) for path, leaf in leaves.items()}


def _is_float(leaf):
  return jnp.issubdtype(leaf.dtype, jnp.floating)


def check(model, dead, tolerance, *, last=lambda f: f, widen=False):
  """Thin equals masked: in inference, in training with statistics, and for gradients.

  Both sides go through `last` before they are compiled; `widen` as of `thin`.
  """
  infer, train, variables, x, outs = model[:5]
  plan = slim_jax.plan(infer, variables, x, dead=dead)
  thin_variables, masked = plan.slice(variables), slim_jax.mask(variables, dead)
  key = jax.random.key(1)

  got = jax.jit(last(slim_jax.thin(infer, plan, widen=widen)))(thin_variables, x)
  want = jax.jit(last(infer))(masked, x)
  assert np.all(np.isfinite(want))
  assert distance(got, want) < tolerance, 'inference'

  def value_and_state(f, variables):
    floats, whole = differentiable(variables)

    def loss(floats):
      results = last(f)(whole(floats), x, key)
      out = results[0]
      weight = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
      return jnp.sum(out * weight), results

    grads, results = jax.jit(jax.grad(loss, has_aux=True))(floats)
    return grads, results[0], declared(outs, results)

  grads, out, state = value_and_state(
    slim_jax.thin(train, plan, outs=outs, widen=widen), thin_variables
  )
  full_grads, full_out, full_state = value_and_state(train, masked)
  assert distance(out, full_out) < tolerance, 'training'
  assert distance(state, sliced(plan, full_state)) < tolerance, 'statistics'
  # A bias before a BatchNorm has no gradient, only the rounding of larger things: hence the floor.
  assert distance(grads, sliced(plan, full_grads), floor=0.1) < 10 * tolerance, 'gradients'
  return plan


def check_identity(model):
  """With nothing dead the plan is the identity and the thin function is the function."""
  infer, train, variables, x, outs = model[:5]
  for scales in (None, model.scales):
    dead = random_dead(variables, 0.0, scales=scales)
    plan = slim_jax.plan(infer, variables, x, dead=dead)
    assert all(cut.live.is_whole for cut in plan.cuts.values())
  for f, args, declares in ((infer, (), None), (train, (jax.random.key(1),), outs)):
    full, _ = slim_jax.jaxprs.trace(f, variables, x, *args)
    thin, _ = slim_jax.jaxprs.trace(slim_jax.thin(f, plan, outs=declares), variables, x, *args)
    before, after = (
      collections.Counter(str(e.primitive) for e in program.equations) for program in (full, thin)
    )
    # Nothing is added, not a gather nor a pad, but where the network itself picks some of its
    # values: whatever feeds these may then pick too, instead of computing all.
    added = after - before
    del added['broadcast_in_dim']  # zeros that were constants
    picks = sum(before[name] for name in ('gather', 'slice', 'unstack', 'pad'))
    assert added.total() <= 3 * picks, added


def widths(plan, scales):
  """Live channels of every scale, and how many it had."""
  found = []
  for path, is_scale in tree.flatten(scales).items():
    if is_scale:
      cut = plan.cuts[path]
      axis = batch_norms.channel_axis(jax.ShapeDtypeStruct(cut.shape, bool))
      found.append((cut.thin_shape[axis], cut.shape[axis]))
  return found
