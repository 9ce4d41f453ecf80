"""Prints how budgets are met in Markdown: target, reached, probes, seconds.

    python tests/benchmarks/budget.py [--target macs:0.5 ...] [--network vgg19 ...]

Scales are random, uniform in [0, 1). Batch 1, 32x32 images (ResNet-50: 224x224). Seconds are of
this machine.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[2])]

from networks import NETWORKS, network  # noqa: E402

import slim_jax  # noqa: E402
from slim_jax.selection import budget  # noqa: E402


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--target', nargs='+', default=['macs:0.5'])
  parser.add_argument('--network', nargs='+', default=list(NETWORKS), choices=list(NETWORKS))
  options = parser.parse_args()
  print('| network | target | reached | probes | seconds per probe | seconds |')
  print('| --- | --- | --- | --- | --- | --- |')
  for name in options.network:
    for target in options.target:
      apply, variables, image = network(name)
      start = time.perf_counter()
      try:
        found = budget.search(apply, variables, image, target=target)
      except slim_jax.BudgetError as error:
        seconds = time.perf_counter() - start
        print(f'| {name} | {target} | {error} | | | {seconds:.1f} |', flush=True)
        continue
      print(
        f'| {name} | {target} | {found.reached:.5f} | {found.probes} | '
        f'{found.seconds / max(found.probes, 1):.2f} | {found.seconds:.1f} |',
        flush=True,
      )


if __name__ == '__main__':
  main()
