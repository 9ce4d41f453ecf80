"""The processes of a run: one, or one on each machine that trains together.

Every process runs the same program on its own devices and its own part of each batch; all hold
the same state. The first one writes the files, which all must be able to read.
"""

from collections.abc import Iterator, Mapping
import contextlib
import os

import jax
from jax.experimental import multihost_utils
import numpy as np

from slim_jax.errors import SlimError

# Set by hand, or by launch/processes.sh, where no cluster tells it.
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


class ProcessError(SlimError):
  """Processes cannot work together; the message says why."""


def join(*, found: bool = False, environ: Mapping[str, str] = os.environ) -> None:
  """Joins the other processes of the run, if there are any; call it before all else of JAX.

  There are where the environment is that of `srun` with several tasks, or has `VARIABLES`: the
  address 'host:port' of the first process, how many there are, and the number of this one.

  Args:
    found: whether JAX is to find them by itself, as it can on a slice of Cloud TPUs.
    environ: the environment.

  Raises:
    ProcessError: the variables are incomplete or are no numbers.
  """
  given = {name: environ[name] for name in VARIABLES if name in environ}
  if given:
    jax.distributed.initialize(**_parse(given))
  elif found or _is_srun(environ):
    jax.distributed.initialize()


def is_first() -> bool:
  """Whether this process writes the files."""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Waits until every process has come to this place.

  Args:
    name: of the place; the error names it where processes have come to different ones.
  """
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def same_number(value: int) -> int:
  """What the first process gives, int32, for all of them."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def one_after_another(name: str) -> Iterator[None]:
  """The block is run by the first process, and when it is done by the others."""
  if not is_first():
    wait(name)
  yield
  if is_first():
    wait(name)


def _parse(given: Mapping[str, str]) -> dict[str, str | int]:
  missing = [name for name in VARIABLES if name not in given]
  if missing:
    raise ProcessError(
      f'{", ".join(given)} is set and {", ".join(missing)} is not: several '
      f'processes need {", ".join(VARIABLES)}, one process none of them'
    )
  address, count, number = (given[name] for name in VARIABLES)
  if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
    raise ProcessError(
      f'JAX_NUM_PROCESSES={count} and JAX_PROCESS_ID={number} must be integers, '
      'and the second less than the first'
    )
  return {'coordinator_address': address, 'num_processes': int(count), 'process_id': int(number)}


def _is_srun(environ: Mapping[str, str]) -> bool:
  """Whether SLURM has started more than this process; a shell in an allocation is alone."""
  return 'SLURM_PROCID' in environ and environ.get('SLURM_STEP_NUM_TASKS', '1') != '1'
