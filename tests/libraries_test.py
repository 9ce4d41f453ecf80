"""One path through five libraries: find scales, plan, slice, thin, take one step of training."""

from helpers import laws, zoo
import jax
import jax.numpy as jnp
import optax
import pytest

import slim_jax
from slim_jax import tree

library = pytest.mark.parametrize('name', zoo.LIBRARIES)


def split(model, variables):
  """The trained part of the variables, and the function that puts such a part back."""
  keys = list(variables) if isinstance(variables, dict) else list(range(len(variables)))
  key = next(key for key in keys if str(key) == model.params)

  def whole(params):
    values = {**{k: variables[k] for k in keys}, key: params}
    return values if isinstance(variables, dict) else type(variables)(values.values())

  return variables[key], whole


def train_step(model, f, tx, variables, opt_state, key):
  """One step: (variables with new parameters, new statistics by path, optimizer state)."""
  params, whole = split(model, variables)

  def loss(params):
    results = f(whole(params), model.x, key)
    logits = results[0]
    labels = jnp.arange(len(logits)) % logits.shape[-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), results

  (_, results), grads = jax.value_and_grad(loss, has_aux=True)(params)
  updates, opt_state = tx.update(grads, opt_state, params)
  return (
    whole(optax.apply_updates(params, updates)),
    laws.declared(model.outs, results),
    opt_state,
  )


@pytest.mark.slow  # adapters_*_test.py takes such steps with small networks
@library
def test_one_step_of_the_thin_network_is_the_thin_part_of_one_step(name, x64):
  """Slicing commutes with a training step, momentum included, in every library."""
  model = zoo.build(zoo.LIBRARIES[name], jnp.float64)
  variables = model.variables
  norms = [
    path
    for path, is_scale in tree.flatten(slim_jax.batch_norm_scales(variables)).items()
    if is_scale
  ]
  assert len(norms) >= 5
  dead = slim_jax.select_global(variables, fraction=0.4)
  plan = slim_jax.plan(model.infer, variables, model.x, dead=dead)
  assert not plan.unknown

  masked = slim_jax.mask(variables, dead)
  params, _ = split(model, masked)
  in_params = plan[model.params]
  tx = optax.chain(slim_jax.add_l1(1e-3), optax.sgd(0.1, momentum=0.9, nesterov=True))
  opt_state = optax.tree_map_params(  # as if some steps had been taken
    tx, lambda m: jnp.cos(jnp.arange(m.size, dtype=m.dtype)).reshape(m.shape), tx.init(params)
  )
  thin_opt_state = in_params.slice_opt_state(tx, opt_state, params)

  def full_step(v, opt_state):
    return train_step(model, model.train, tx, v, opt_state, jax.random.key(0))

  def thin_step(v, opt_state):
    f = slim_jax.thin(model.train, plan, outs=model.outs)
    return train_step(model, f, tx, v, opt_state, jax.random.key(0))

  want, want_stats, want_opt_state = jax.jit(full_step)(masked, opt_state)
  thin_variables = plan.slice(variables)
  # The old variables and state are given away: their memory becomes the new ones'.
  floats, whole = laws.differentiable(thin_variables)
  donating = jax.jit(
    lambda floats, opt_state: thin_step(whole(floats), opt_state), donate_argnums=1
  )
  got, got_stats, got_opt_state = donating(floats, thin_opt_state)

  of = lambda variables: laws.differentiable(variables)[0]
  assert laws.distance(of(got), laws.sliced(plan, of(want))) < 1e-10
  assert laws.distance(got_stats, laws.sliced(plan, want_stats)) < 1e-10
  assert any(not plan.cuts[path].live.is_whole for path in got_stats)
  params, _ = split(model, want)
  assert (
    laws.distance(
      jax.tree.leaves(got_opt_state),
      jax.tree.leaves(in_params.slice_opt_state(tx, want_opt_state, params)),
    )
    < 1e-10
  )
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(thin_opt_state) if leaf.ndim)
