"""Network slimming in a loop of your own, with Flax NNX: python launch/examples/nnx_loop.py [EPOCHS]"""

import sys

from flax import nnx
import numpy as np
import optax
from sklearn.datasets import load_digits

import slim_jax


class Net(nnx.Module):
  def __init__(self, rngs):
    sizes = ((1, 32), (32, 64))
    self.convs = nnx.List([nnx.Conv(*s, (3, 3), use_bias=False, rngs=rngs) for s in sizes])
    self.norms = nnx.List([nnx.BatchNorm(s[1], momentum=0.9, rngs=rngs) for s in sizes])
    self.head = nnx.Linear(64, 10, rngs=rngs)

  def __call__(self, x):
    for conv, norm in zip(self.convs, self.norms):
      x = nnx.relu(norm(conv(x)))
    return self.head(x.mean((1, 2)))


@nnx.jit
def step(model, optimizer, x, y):
  def loss(model):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

  optimizer.update(model, nnx.grad(loss)(model))


def run(model, tx, epochs, name):
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  model.train()
  for epoch in range(epochs):
    order = np.random.default_rng(epoch).permutation(len(x))
    for batch in np.array_split(order, len(x) // 50):
      step(model, optimizer, x[batch], y[batch])
  model.eval()
  logits = nnx.jit(lambda model: model(x_test))(model)
  print(f'{name}: {(logits.argmax(-1) == y_test).mean():.1%} of the test images are right')


epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
images, labels = load_digits(return_X_y=True)
x, x_test = np.split((images.reshape(-1, 8, 8, 1) / 16).astype('float32'), [1500])
y, y_test = np.split(labels, [1500])
model = Net(nnx.Rngs(0))
sgd = optax.sgd(optax.cosine_decay_schedule(0.1, 30 * max(epochs, 1)), momentum=0.9)
run(model, optax.chain(slim_jax.add_l1(1e-3), sgd), epochs, 'sparse')
thin, info = slim_jax.nnx.slim(model, x[:1], fraction=0.5, per_layer=True)
print(info)
run(thin, sgd, 0, 'pruned')
run(thin, sgd, epochs, 'fine-tuned')
