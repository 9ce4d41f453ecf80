"""Peak memory of planning and of training, full and thin, beside PyTorch.

    python tests/benchmarks/memory.py [--network vgg19 ...] [--batch 64]

Every figure is of a process of its own, in MiB: its peak as Linux counts it (VmHWM: unlike that of
getrusage it is not inherited from the process that started it), less that of a process which only
imports the libraries. Planning is from shapes; a network is trained for two steps;
the thin one has lost half of its channels, scales being random. Where the time of a step does not
matter, compilation does: XLA's own use of memory counts.
"""

import argparse
import pathlib
import re
import subprocess
import sys

import networks
import side_by_side

COLUMNS = (
  'network',
  'batch',
  'planning, MiB',
  'training full, MiB',
  'training thin, MiB',
  'PyTorch full, MiB',
  'ratio full',
  'thin/full',
)
STATUS = pathlib.Path('/proc/self/status')


def start(name: str, batch: int) -> None:
  """What every process of ours does: it has imported slim_jax, above, and JAX with it."""
  del name, batch


def planning(name: str, batch: int):
  """Select, plan and slice, all but the scales shapes; then what a thin step needs."""
  import slim_jax  # pylint: disable=import-outside-toplevel

  apply, variables, image = networks.network(name, batch)
  dead = slim_jax.select_global(variables, fraction=0.5, min_channels=1)
  plan = slim_jax.plan(apply, variables, image, dead=dead)
  return plan, plan.slice(variables)


def training_full(name: str, batch: int) -> None:
  """Two steps."""
  variables = networks.filled(networks.network(name, batch)[1])
  _steps(networks.training(networks.create(name)), variables, name, batch)


def training_thin(name: str, batch: int) -> None:
  """Two steps; planning is in it, the full weights never are."""
  plan, variables = planning(name, batch)
  _steps(
    networks.thin_training(networks.create(name), plan), networks.filled(variables), name, batch
  )


def _steps(apply, variables, name: str, batch: int) -> None:
  step = networks.stepper(apply, variables, networks.batch_of(name, batch))
  step()
  step()


def start_torch(name: str, batch: int) -> None:
  """What every process of PyTorch's does: it imports our side too, for the batch."""
  del name, batch
  import peers  # pylint: disable=import-outside-toplevel

  peers.torch.ones(1)


def training_torch(name: str, batch: int) -> None:
  """Two steps."""
  import peers  # pylint: disable=import-outside-toplevel

  step = peers.stepper(peers.create(name), networks.batch_of(name, batch))
  step()
  step()


WORK = {
  f.__name__: f
  for f in (start, planning, training_full, training_thin, start_torch, training_torch)
}


def peak() -> float:
  """MiB that this process has had resident at most."""
  return int(re.search(r'VmHWM:\s*(\d+) kB', STATUS.read_text())[1]) / 1024


def measured(what: str, name: str, batch: int) -> float:
  """The peak of a process that does it, MiB."""
  command = [
    sys.executable,
    __file__,
    '--network',
    name,
    '--batch',
    str(batch),
    '--work',
    what,
    '--alone',
  ]  # which looks for no PyTorch
  ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return float(ran.stdout.split()[-1])


def main() -> None:
  parser = side_by_side.options(__doc__, rounds=1)
  parser.add_argument(
    '--network', nargs='+', default=list(networks.NETWORKS), choices=list(networks.NETWORKS)
  )
  parser.add_argument('--batch', type=int, help='images of a batch (64, for ResNet-50 16)')
  parser.add_argument('--work', choices=list(WORK), help=argparse.SUPPRESS)
  options = side_by_side.parse(parser)
  if not STATUS.exists():
    parser.error('peak memory is read from /proc/self/status, which this system has not')
  if options.work:
    WORK[options.work](options.network[0], options.batch)
    print(peak())
    return
  table = side_by_side.Table(COLUMNS, options)
  for name in options.network:
    batch = options.batch or networks.BATCH[name]
    base = measured('start', name, batch)
    plan, full, thin = (
      measured(what, name, batch) - base for what in ('planning', 'training_full', 'training_thin')
    )
    theirs = (
      None
      if options.alone
      else (measured('training_torch', name, batch) - measured('start_torch', name, batch))
    )
    table.add(name, batch, plan, full, thin, theirs, side_by_side.ratio(full, theirs), thin / full)


if __name__ == '__main__':
  main()
