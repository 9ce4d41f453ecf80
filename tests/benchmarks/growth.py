"""How planning grows with depth: pre-activation ResNets of 20 to 1199 layers.

python tests/benchmarks/growth.py
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import slim_jax
from slim_jax import jaxprs, models


def seconds(f, *args, **kwargs):
  """Result and duration of a call."""
  start = time.perf_counter()
  result = f(*args, **kwargs)
  return result, time.perf_counter() - start


def main():
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  ).parse_args()
  x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  print(
    '| layers | equations | trace s | plan s (with tracing) | slice s | thin trace s '
    '| plan + slice - trace, ms per equation |'
  )
  print('|---|---|---|---|---|---|---|')
  rng = np.random.default_rng(0)
  for depth in (20, 56, 110, 164, 326, 650, 1199):
    module = models.create('preresnet', num_classes=10, depth=depth)
    shapes = jax.eval_shape(
      lambda key: module.init(key, jnp.zeros(x.shape), train=False), jax.random.key(0)
    )
    variables = jax.tree.map(lambda a: rng.uniform(size=a.shape).astype(a.dtype), shapes)
    apply = lambda variables, x: module.apply(variables, x, train=False)
    dead = slim_jax.select_global(variables, fraction=0.5)
    program, _ = jaxprs.trace(apply, shapes, x)  # the first time fills caches
    _, tracing = seconds(jaxprs.trace, apply, shapes, x)
    plan, planning = seconds(slim_jax.plan, apply, shapes, x, dead=dead)
    thin_variables, slicing = seconds(plan.slice, variables)
    _, again = seconds(jax.eval_shape, slim_jax.thin(apply, plan), thin_variables, x)
    each = 1000 * (planning + slicing - tracing) / len(program.equations)
    print(
      f'| {depth} | {len(program.equations)} | {tracing:.2f} | {planning:.2f} | {slicing:.2f} '
      f'| {again:.2f} | {each:.2f} |',
      flush=True,
    )


if __name__ == '__main__':
  main()
