"""Prints what exported networks are worth, full and thin: exactness, size of the files, latency.

    python tests/benchmarks/exports.py [--network vgg19 ...] [--fraction 0.5] [--multiple 1]

Scales are random, uniform in [0, 1); images uint8 of 32x32 pixels. Differences are those of the
logits to the ones of JAX, relative to the largest. Latencies are medians, full and thin taking
turns. Needs the extra `onnx`.
"""

import argparse
import functools
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2])]

from helpers.zoo import linen  # noqa: E402
from helpers.zoo.model import randomise  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import slim_jax  # noqa: E402
from slim_jax import latency, models  # noqa: E402
from slim_jax.export import onnx_file, stablehlo  # noqa: E402

SHAPE = (32, 32, 3)
NETWORKS = {
  'vgg19': lambda: models.create('vgg19', num_classes=10),
  'preresnet56': lambda: models.create('preresnet', depth=56, num_classes=10),
  'densenet40': lambda: models.create('densenet40', num_classes=10),
  'inverted_residual': lambda: linen.InvertedResidual(jnp.float32),
}


def full_and_thin(name, fraction, multiple):
  """The network and what a cut leaves of it, as `(variables, images)` -> logits, and variables."""
  module = NETWORKS[name]()

  def apply(variables, image):
    return module.apply(variables, image.astype(jnp.float32) / 64 - 2, train=False)

  image = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), jnp.zeros(image.shape), train=False)
  )
  variables = randomise(shapes, jnp.float32, seed=0)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf, is_scale: (
      jnp.asarray(rng.uniform(size=leaf.shape), jnp.float32) if is_scale else leaf
    ),
    variables,
    slim_jax.batch_norm_scales(variables),
  )
  dead = slim_jax.select_global(variables, fraction=fraction, min_channels=1, multiple_of=multiple)
  plan = slim_jax.plan(apply, variables, image, dead=dead)
  return {'full': (apply, variables), 'thin': (slim_jax.thin(apply, plan), plan.slice(variables))}


def difference(found, want):
  """The largest, relative to the largest value."""
  return np.abs(found - want).max() / np.abs(want).max()


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--network', nargs='+', default=list(NETWORKS), choices=list(NETWORKS))
  parser.add_argument('--fraction', type=float, default=0.5)
  parser.add_argument('--multiple', type=int, default=1)
  options = parser.parse_args()
  print(
    '| network | | StableHLO differs by | ONNX differs by | StableHLO, MB | ONNX, MB | '
    'JAX, batch 1, ms | 64 | onnxruntime, batch 1, ms | 64 |'
  )
  print('| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |')
  images = np.random.default_rng(1).integers(0, 256, (16, *SHAPE), np.uint8)
  for name in options.network:
    networks = full_and_thin(name, options.fraction, options.multiple)
    in_jax = latency.in_jax(networks)
    functions = {
      key: functools.partial(apply, variables) for key, (apply, variables) in networks.items()
    }
    hlo = {key: stablehlo.convert(f, SHAPE) for key, f in functions.items()}
    onnx = {key: onnx_file.convert(f, SHAPE) for key, f in functions.items()}
    in_onnxruntime = latency.in_onnxruntime(onnx)
    times = [
      *latency.measure(in_jax, SHAPE, (1, 64), runtime='jax'),
      *latency.measure(in_onnxruntime, SHAPE, (1, 64), runtime='onnxruntime'),
    ]
    for key in networks:
      want = np.asarray(in_jax[key](images))
      columns = [
        f'{difference(jax.export.deserialize(hlo[key]).call(images), want):.0e}',
        f'{difference(in_onnxruntime[key](images)[0], want):.0e}',
        f'{len(hlo[key]) / 1e6:.2f}',
        f'{len(onnx[key]) / 1e6:.2f}',
        *(f'{1e3 * row[key]:.2f}' for row in times),
      ]
      print(f'| {name} | {key} | {" | ".join(columns)} |', flush=True)


if __name__ == '__main__':
  main()
