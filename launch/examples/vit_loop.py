"""Heads and neurons of a transformer go, in your loop: python launch/examples/vit_loop.py [EPOCHS]"""

import sys

from flax import linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import slim_jax


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = x.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 16, 4)  # patches of 2 x 2
    x = nn.Dense(32)(x) + self.param('positions', nn.initializers.normal(0.02), (16, 32))
    for _ in range(2):
      x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
      x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
    return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


def run(apply, variables, tx, epochs, name):
  @jax.jit
  def step(variables, opt_state, x, y):
    entropy = optax.softmax_cross_entropy_with_integer_labels
    grads = jax.grad(lambda v: entropy(apply(v, x), y).mean())(variables)
    updates, opt_state = tx.update(grads, opt_state, variables)
    return optax.apply_updates(variables, updates), opt_state

  opt_state = tx.init(variables)
  for epoch in range(epochs):
    order = np.random.default_rng(epoch).permutation(len(x))
    for batch in np.array_split(order, len(x) // 50):
      variables, opt_state = step(variables, opt_state, x[batch], y[batch])
  right = (jax.jit(apply)(variables, x_test).argmax(-1) == y_test).mean()
  print(f'{name}: {right:.1%} are right, {slim_jax.count(apply, variables, x[:1]).macs:,} MACs')
  return variables


epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 30
images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8) / 16).astype('float32')
(x, x_test), (y, y_test) = np.split(images, [1500]), np.split(labels, [1500])
rate = optax.cosine_decay_schedule(5e-3, 30 * max(epochs, 1))
adam = optax.adam(rate)
apply, variables = Net().apply, Net().init(jax.random.key(0), x[:1])
units = slim_jax.units(apply, variables, x[:1], where='heads,neurons')
gated, gates = slim_jax.gate(apply, variables, units)
shrink = slim_jax.soft_threshold(0.3, rate, mask=(False, True))  # of gates, after Adam
variables, gates = run(gated, (variables, gates), optax.chain(adam, shrink), epochs, 'sparse')
dead = slim_jax.select_global(gates, fraction=0.5, scales=True, per_layer=True, multiple_of=2)
plan = slim_jax.plan(gated, (variables, gates), x[:1], dead=(None, dead))
plan = slim_jax.without_gates(plan, dead, units)
thin = slim_jax.thin(apply, plan)
variables = plan.slice(slim_jax.fold(variables, slim_jax.mask(gates, dead), units))
run(thin, variables, adam, 0, 'pruned')
run(thin, variables, adam, epochs, 'fine-tuned')
