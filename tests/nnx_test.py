"""The law on a Flax NNX network, through `nnx.split` and `nnx.merge`."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

import laws
import slim_jax
from slim_jax import tree


class Block(nnx.Module):

  def __init__(self, width, rngs):
    kinds = dict(dtype=jnp.float64, param_dtype=jnp.float64, rngs=rngs)
    self.norm1 = nnx.BatchNorm(width, **kinds)
    self.expand = nnx.Conv(width, 2 * width, (1, 1), **kinds)
    self.norm2 = nnx.BatchNorm(2 * width, **kinds)
    self.depthwise = nnx.Conv(2 * width, 2 * width, (3, 3), feature_group_count=2 * width, **kinds)
    self.project = nnx.Conv(2 * width, width, (1, 1), **kinds)

  def __call__(self, x):
    y = nnx.relu(self.norm2(self.expand(nnx.relu(self.norm1(x)))))
    return x + self.project(nnx.silu(self.depthwise(y)))


class Net(nnx.Module):

  def __init__(self, rngs):
    kinds = dict(dtype=jnp.float64, param_dtype=jnp.float64, rngs=rngs)
    self.stem = nnx.Conv(3, 8, (3, 3), **kinds)
    self.blocks = nnx.List([Block(8, rngs) for _ in range(2)])
    self.norm = nnx.BatchNorm(8, **kinds)
    self.dropout = nnx.Dropout(0.3, rngs=rngs)
    self.head = nnx.Linear(8, 4, **kinds)

  def __call__(self, x):
    x = self.stem(x)
    for block in self.blocks:
      x = block(x)
    x = nnx.max_pool(nnx.relu(self.norm(x)), (2, 2), (2, 2))
    return self.head(self.dropout(x.mean((1, 2))))


def test_law(x64):
  model = Net(nnx.Rngs(0))
  model.eval()
  infer_def, state = nnx.split(model)
  model.train()
  train_def, _ = nnx.split(model)
  rng = np.random.default_rng(0)
  state = jax.tree.map(
      lambda a: a + rng.uniform(0.1, 0.5, a.shape) if jnp.issubdtype(a.dtype, jnp.floating) else a,
      state)
  x = jax.random.normal(jax.random.key(0), (4, 6, 6, 3), jnp.float64)

  def infer(state, x):
    return nnx.merge(infer_def, state, copy=True)(x)  # calling it must not change the state

  def train(state, x):
    model = nnx.merge(train_def, state, copy=True)
    out = model(x)
    return out, nnx.state(model)

  dead = laws.random_dead(state, 0.5)
  plan = slim_jax.plan(infer, state, x, dead=dead)
  thin, masked = plan.slice(state), slim_jax.mask(state, dead)
  assert not plan.unknown
  assert laws.distance(slim_jax.thin(infer, plan)(thin, x), infer(masked, x)) < 1e-10
  out, new = slim_jax.thin(train, plan, outs=(None, ''))(thin, x)
  want, full = train(masked, x)
  assert laws.distance(out, want) < 1e-10
  pairs = zip(tree.flatten(new).items(), tree.flatten(plan.slice(full)).values(), strict=True)
  for (path, got), value in pairs:
    if 'mean' in path or 'var' in path:
      assert laws.distance(got, value) < 1e-10, path

  def gradient(f, state):
    def loss(state):
      return jnp.sum(f(state, x)[0] ** 2)
    found = tree.flatten(jax.grad(loss, allow_int=True)(state))
    return {path: g for path, g in found.items() if g.dtype == jnp.float64}

  got = gradient(slim_jax.thin(train, plan, outs=(None, '')), thin)
  want = gradient(train, masked)
  assert got.keys() == want.keys()
  want = {path: slim_jax.Plan({(): plan.cuts[path]}).slice(g) for path, g in want.items()}
  assert laws.distance(got, want) < 1e-9
