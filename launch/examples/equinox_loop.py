"""Network slimming in a loop of your own, with Equinox: python launch/examples/equinox_loop.py [EPOCHS]"""

import sys

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import slim_jax


def net(key):
  keys, relu = jax.random.split(key, 3), eqx.nn.Lambda(jax.nn.relu)
  norm = lambda width: eqx.nn.BatchNorm(width, 'batch', mode='batch', momentum=0.9)
  conv = lambda *sizes, key: eqx.nn.Conv2d(*sizes, 3, padding=1, key=key)
  first, second = conv(1, 32, key=keys[0]), conv(32, 64, key=keys[1])
  mean, head = eqx.nn.Lambda(lambda x: x.mean((1, 2))), eqx.nn.Linear(64, 10, key=keys[2])
  return eqx.nn.Sequential([first, norm(32), relu, second, norm(64), relu, mean, head])


@eqx.filter_jit
def batch(model, x, state):
  return jax.vmap(model, (0, None), (0, None), axis_name='batch')(x, state)


@eqx.filter_jit
def step(model, state, opt_state, tx, x, y):
  def loss(model):
    logits, new = batch(model, x, state)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

  grads, state = eqx.filter_grad(loss, has_aux=True)(model)
  updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
  return eqx.apply_updates(model, updates), state, opt_state


def run(model, state, tx, epochs, name):
  opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
  for epoch in range(epochs):
    order = np.random.default_rng(epoch).permutation(len(x))
    for at in np.array_split(order, len(x) // 50):
      model, state, opt_state = step(model, state, opt_state, tx, x[at], y[at])
  logits, _ = batch(eqx.nn.inference_mode(model), x_test, state)
  print(f'{name}: {(logits.argmax(-1) == y_test).mean():.1%} of the test images are right')
  return model, state


epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 1, 8, 8) / 16).astype('float32')
(x, x_test), (y, y_test) = np.split(images, [1500]), np.split(labels, [1500])
model = eqx.nn.make_with_state(net)(jax.random.key(0))
sgd = optax.sgd(optax.cosine_decay_schedule(0.1, 30 * max(epochs, 1)), momentum=0.9)
model = run(*model, optax.chain(slim_jax.add_l1(1e-3), sgd), epochs, 'sparse')
thin, info = slim_jax.equinox.slim(*model, x[:1], fraction=0.5, per_layer=True)
print(info)
run(thin, info.variables[1], sgd, 0, 'pruned')
run(thin, info.variables[1], sgd, epochs, 'fine-tuned')
