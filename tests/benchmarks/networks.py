"""The networks that benchmarks have in common."""

import jax
import jax.numpy as jnp
import numpy as np

import slim_jax
from slim_jax import models

# Side of their images.
NETWORKS = {'vgg19': 32, 'preresnet164': 32, 'densenet40': 32, 'resnet50': 224}


def network(name: str, batch: int = 1):
  """(apply, variables, image): shapes, but for random scales, uniform in [0, 1)."""
  size = NETWORKS[name]
  module = models.create(name, num_classes=10 if size == 32 else 1000)
  image = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
  variables = jax.eval_shape(
      lambda: module.init(jax.random.key(0), jnp.zeros(image.shape), train=False))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
      lambda leaf, is_scale: rng.uniform(size=leaf.shape).astype('float32') if is_scale else leaf,
      variables, slim_jax.batch_norm_scales(variables))
  return lambda v, x: module.apply(v, x, train=False), variables, image
