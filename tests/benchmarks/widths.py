"""Prints what widths in multiples of 8 are worth: time of thin networks with and without.

    python tests/benchmarks/widths.py [--network vgg19 ...] [--fraction 0.5] [--multiple 8]

Scales are random, uniform in [0, 1). Inference, jitted; the networks take turns, and medians are
compared, so that a noisy machine is noisy to all alike. Ratios are to the full network.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[2])]

import jax  # noqa: E402
from networks import NETWORKS, filled, network  # noqa: E402

import slim_jax  # noqa: E402


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--network', nargs='+', default=list(NETWORKS), choices=list(NETWORKS))
  parser.add_argument('--fraction', type=float, default=0.5)
  parser.add_argument('--multiple', type=int, default=8)
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--rounds', type=int, default=9)
  options = parser.parse_args()
  print('| network | widths | MACs | time | time, ms |')
  print('| --- | --- | --- | --- | --- |')
  for name in options.network:
    apply, shapes, image = network(name, options.batch)
    variables = filled(shapes)
    x = jax.random.normal(jax.random.key(0), image.shape)
    full = slim_jax.count(apply, variables, image).macs
    compiled = functools.partial(jax.jit, compiler_options=slim_jax.cpu_options())
    runs = {'full': (compiled(slim_jax.for_cpu(apply)), jax.device_put(variables), 1.0)}
    for label, multiple in (
      ('as selected', 1),
      (f'multiples of {options.multiple}', options.multiple),
    ):
      dead = slim_jax.select_global(
        variables, fraction=options.fraction, min_channels=1, multiple_of=multiple
      )
      plan = slim_jax.plan(apply, variables, image, dead=dead)
      thin, cut = slim_jax.thin(apply, plan), plan.slice(variables)
      macs = slim_jax.count(thin, cut, image).macs / full
      wide = slim_jax.thin(apply, plan, widen=True)
      runs[label] = compiled(slim_jax.for_cpu(wide)), jax.device_put(cut), macs
    times = {label: [] for label in runs}
    for _ in range(options.rounds + 1):  # the first compiles
      for label, (run, arrays, _) in runs.items():
        start = time.perf_counter()
        jax.block_until_ready(run(arrays, x))
        times[label].append(time.perf_counter() - start)
    medians = {label: statistics.median(found[1:]) for label, found in times.items()}
    for label, (_, _, macs) in runs.items():
      print(
        f'| {name} | {label} | {macs:.2f} | {medians[label] / medians["full"]:.2f} | '
        f'{1e3 * medians[label]:.0f} |',
        flush=True,
      )


if __name__ == '__main__':
  main()
