"""Network slimming in a loop of your own, with Flax Linen: python launch/examples/linen_loop.py [EPOCHS]"""

import sys

from flax import linen as nn
from flax.training import train_state
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import slim_jax


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    for width in (32, 64):
      x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(nn.Conv(width, (3, 3))(x)))
    return nn.Dense(10)(x.mean((1, 2)))


class State(train_state.TrainState):
  batch_stats: dict


@jax.jit
def step(state, x, y):
  def loss(params):
    variables = {'params': params, 'batch_stats': state.batch_stats}
    logits, new = state.apply_fn(variables, x, train=True, mutable=['batch_stats'])
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

  grads, new = jax.grad(loss, has_aux=True)(state.params)
  return state.apply_gradients(grads=grads, **new)


def run(apply, variables, tx, epochs, name):
  state = State.create(apply_fn=apply, tx=tx, **variables)
  for epoch in range(epochs):
    order = np.random.default_rng(epoch).permutation(len(x))
    for batch in np.array_split(order, len(x) // 50):
      state = step(state, x[batch], y[batch])
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  best = jax.jit(apply, static_argnums=2)(variables, x_test, False).argmax(-1)
  print(f'{name}: {(best == y_test).mean():.1%} of the test images are right')
  return variables


epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) / 16).astype('float32')
(x, x_test), (y, y_test) = np.split(images, [1500]), np.split(labels, [1500])
sgd = optax.sgd(optax.cosine_decay_schedule(0.1, 30 * max(epochs, 1)), momentum=0.9)
variables = Net().init(jax.random.key(0), x[:1], False)
variables = run(Net().apply, variables, optax.chain(slim_jax.add_l1(1e-3), sgd), epochs, 'sparse')
thin, info = slim_jax.linen.slim(Net(), variables, x[:1], fraction=0.5, per_layer=True)
print(info)
run(thin.apply, info.variables, sgd, 0, 'pruned')
run(thin.apply, info.variables, sgd, epochs, 'fine-tuned')
