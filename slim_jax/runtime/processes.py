"""The processes of a run: one, or one on each machine that trains together.

Every process runs the same program on its own devices and its own part of each batch, and all hold
the same state. The first process writes the files; all must be able to read them.
"""

from collections.abc import Iterator, Mapping
import contextlib
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from slim_jax.errors import SlimError

# Set by hand or by launch/processes.sh, unless a cluster describes the processes.
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


class ProcessError(SlimError):
  """The processes cannot work together; the message says why."""


def join(*, multihost: bool = False, environ: Mapping[str, str] = os.environ) -> None:
  """Joins the other processes of the run, if there are any. Call it before anything else of JAX.

  There are others if the environment is that of `srun` with several tasks, or has `VARIABLES`: the
  address 'host:port' of the first process, the number of processes, and the index of this one.

  Args:
    multihost: whether JAX finds them by itself, as it can on a slice of Cloud TPUs.
    environ: the environment.

  Raises:
    ProcessError: variables are missing or are not numbers.
  """
  given = {name: environ[name] for name in VARIABLES if name in environ}
  if given:
    jax.distributed.initialize(**_parse(given))
  elif multihost or _is_srun(environ):
    jax.distributed.initialize()


def is_first() -> bool:
  """Returns whether this process writes the files."""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Waits until every process has called this.

  Args:
    name: the same in every process; JAX raises an error with the names otherwise.
  """
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def same_number(value: int) -> int:
  """Returns the value of the first process, an int32, in all of them."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def one_after_another(name: str) -> Iterator[None]:
  """Runs the block in the first process, and then in the others."""
  if not is_first():
    wait(name)
  yield
  if is_first():
    wait(name)


def _parse(given: Mapping[str, str]) -> dict[str, Any]:
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
  """Returns whether SLURM has started several tasks; a shell in an allocation is one process."""
  return 'SLURM_PROCID' in environ and environ.get('SLURM_STEP_NUM_TASKS', '1') != '1'
