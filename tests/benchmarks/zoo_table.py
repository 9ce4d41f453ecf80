"""Prints the table of architectures in Markdown: what was traced, planned, cut, and how exactly.

    python tests/benchmarks/zoo_table.py [--only NAME ...] [--keras-all] [--laws]

Scales are random; `fraction` of them goes by the paper's rule. Errors are the largest difference
to the masked network in inference, relative to its largest output. With --keras-all every
architecture of Keras Applications whose BatchNorms have scales is run at the smallest image it
takes, in float32 and float64; a failure is a row too. With --laws the law is also held, to 1e-10
in float64, in training, for the statistics and for the gradients, which take minutes to compile; a
breach is a failure. Times are of this machine.
"""

import argparse
from collections.abc import Iterator
import gc
import os
import pathlib
import re
import sys
import time
import traceback
from typing import Any, NamedTuple

# Each program runs once: compile it fast.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')
os.environ.setdefault('KERAS_BACKEND', 'jax')
sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2])]

from helpers import laws, zoo  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import keras  # noqa: E402

import slim_jax  # noqa: E402

COLUMNS = (
  'library',
  'architecture',
  'equations',
  'trace',
  'plan',
  'params',
  'MACs',
  'error, float32',
  'error, float64',
  'full width',
)
SMALLEST = re.compile(r'at least (\d+)')
WITHOUT_BATCH_NORM = ('ConvNeXt', 'VGG')  # large, and nothing to slim


class Row(NamedTuple):
  """One architecture; sizes and times are of the float32 network.

  Attributes:
    equations: of the flat program of inference.
    trace_s: seconds to trace it.
    plan_s: seconds of `slim_jax.plan`, tracing included.
    params: share of parameters removed.
    macs: share of multiply-accumulates removed.
    errors: relative, in float32 and float64.
    unknown: operations left at full width.
  """

  equations: int
  trace_s: float
  plan_s: float
  params: float
  macs: float
  errors: list[float]
  unknown: tuple[str, ...]

  def cells(self) -> list[str]:
    names = sorted({operation.partition('(')[0] for operation in self.unknown})
    return [
      f'{self.equations:,}',
      f'{self.trace_s:.2f} s',
      f'{self.plan_s:.2f} s',
      f'-{self.params:.0%}',
      f'-{self.macs:.0%}',
      *(f'{e:.0e}' for e in self.errors),
      f'{len(self.unknown)} ({", ".join(names)})' if names else '0',
    ]


def measure(case: zoo.Case, fraction: float, with_laws: bool) -> Row | None:
  """The row of a case; None where nothing can die."""
  row, errors = None, []
  for dtype in (jnp.float32, jnp.float64):
    jax.config.update('jax_enable_x64', dtype == jnp.float64)
    model = zoo.build(case, dtype)
    if not any(jax.tree.leaves(model.scales)):
      return None
    dead = dead_channels(model, fraction)
    start = time.perf_counter()
    program, _ = slim_jax.jaxprs.trace(model.infer, model.variables, model.x)
    traced = time.perf_counter()
    plan = slim_jax.plan(model.infer, model.variables, model.x, dead=dead)
    planned = time.perf_counter()
    thin, thin_variables = slim_jax.thin(model.infer, plan), plan.slice(model.variables)
    if row is None:
      before = slim_jax.count(model.infer, model.variables, model.x)
      after = slim_jax.count(thin, thin_variables, model.x)
      row = Row(
        len(program.equations),
        traced - start,
        planned - traced,
        1 - after.params / before.params,
        1 - after.macs / before.macs,
        errors,
        plan.unknown,
      )
    # On a CPU, depthwise convolutions would else take minutes and gigabytes to compile.
    last = slim_jax.for_cpu
    want = jax.jit(last(model.infer))(slim_jax.mask(model.variables, dead), model.x)
    errors.append(laws.distance(jax.jit(last(thin))(thin_variables, model.x), want))
    if with_laws and dtype == jnp.float64:
      laws.check(model, dead, 1e-10, last=last)
    del model, program, plan, thin, thin_variables, want
    jax.clear_caches()
  jax.config.update('jax_enable_x64', False)
  return row


def dead_channels(model: zoo.Model, fraction: float) -> Any:
  """The smallest scales; where the zoo names kernels instead, random neurons."""
  if any(jax.tree.leaves(slim_jax.batch_norm_scales(model.variables))):
    return slim_jax.select_global(model.variables, fraction=fraction, min_channels=1)
  return laws.random_dead(model.variables, fraction, scales=model.scales)


def keras_cases(only: list[str] | None) -> Iterator[zoo.Case]:
  """Every builder of Keras Applications, at the smallest image it takes.

  Eight images: where the last maps are of one pixel, the statistics of two images alone would
  amplify the rounding of 50 layers beyond any tolerance.
  """
  for name in sorted(vars(keras.applications)):
    if name[0].isupper() and not name.startswith(WITHOUT_BATCH_NORM):
      if only and name not in only:
        continue
      size = smallest(name)
      yield zoo.Case(
        f'keras_{name}', zoo.keras.application(name, size), (8, size, size, 3), zoo.keras.functions
      )


def smallest(name: str) -> int:
  """The least image size of an architecture: Keras names it when it refuses a smaller one."""
  try:
    vars(keras.applications)[name](weights=None, input_shape=(1, 1, 3), classes=5)
  except ValueError as error:
    if found := SMALLEST.search(str(error)):
      return int(found[1])
  return 32


def show(*cells: Any) -> None:
  print('|', ' | '.join(map(str, cells)), '|', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--only', nargs='*', help='names of architectures')
  parser.add_argument('--keras-all', action='store_true', help='all of Keras Applications instead')
  parser.add_argument('--laws', action='store_true', help='training and gradients too')
  parser.add_argument('--fraction', type=float, default=0.5, help='of channels to remove')
  args = parser.parse_args()
  show(*COLUMNS)
  show(*['---'] * len(COLUMNS))
  for case in keras_cases(args.only) if args.keras_all else zoo.CASES:
    library, name = case.library.__module__.rpartition('.')[2], case.name
    name = name.removeprefix(f'{library}_')
    if args.only and name not in args.only:
      continue
    try:
      row = measure(case, args.fraction, args.laws)
      cells = row.cells() if row else ['BatchNorms without scales']
    except Exception as error:  # pylint: disable=broad-exception-caught  (the next may do)
      traceback.print_exc()
      jax.config.update('jax_enable_x64', False)
      cells = [f'{type(error).__name__}: {error}'.replace('\n', ' ').replace('|', '/')[:200]]
    show(library, name, *cells)
    keras.backend.clear_session()
    jax.clear_caches()
    gc.collect()


if __name__ == '__main__':
  main()
