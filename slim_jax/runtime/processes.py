"""The processes of a run: one, or one on each machine that trains together.

Every process runs the same program on its own devices and its own part of each batch, and all hold
the same state. The first process writes the files; all must be able to read them.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
import socket
import sys
import threading
import time
from typing import Any
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np

from slim_jax.errors import SlimError

# Set by hand or by launch/processes.sh, unless a cluster describes the processes.
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


# Seconds, if they are to be others: until all processes have to be there, and that one waits for the
# others later, in a step or between stages.
_START_TIMEOUT, _STEP_TIMEOUT = 'SLIM_JAX_START_TIMEOUT', 'SLIM_JAX_STEP_TIMEOUT'
_SECONDS = {_START_TIMEOUT: 300, _STEP_TIMEOUT: 7200}
# JAX's own timeout ends the process with a stack trace; ours comes first.
_MARGIN = 60


class ProcessError(SlimError):
  """The processes cannot work together; the message says why."""


def join(*, multihost: bool = False, environ: Mapping[str, str] = os.environ) -> None:
  """Joins the other processes of the run, if there are any. Call it before anything else of JAX.

  There are others if the environment is that of `srun` with several tasks, or has `VARIABLES`: the
  address 'host:port' of the first process, the number of processes, and the index of this one.

  Args:
    multihost: whether JAX finds them by itself, as it can on a slice of Cloud TPUs.
    environ: the environment.

  The first process listens at the address that it was given, and at no other of its machine, unless
  JAX_COORDINATOR_BIND_ADDRESS says so. If not all processes are there in time
  (SLIM_JAX_START_TIMEOUT, in seconds), those that are say so and end.

  Raises:
    ProcessError: variables are missing or are not numbers, or the first process cannot listen at
      its address.
  """
  given = {name: environ[name] for name in VARIABLES if name in environ}
  if not given and not multihost and not _is_srun(environ):
    return
  arguments = _parse(given) if given else {}
  if arguments.get('process_id') == 0 and 'JAX_COORDINATOR_BIND_ADDRESS' not in environ:
    arguments['coordinator_bind_address'] = arguments['coordinator_address']
    _check_address(arguments['coordinator_address'])
  seconds = _timeout(_START_TIMEOUT, environ)
  address = arguments.get('coordinator_address', 'the first one')
  with _PATIENCE.until(seconds, f'not all processes have reached {address}'):
    jax.distributed.initialize(**arguments, initialization_timeout=seconds + _MARGIN)


def is_first() -> bool:
  """Returns whether this process writes the files."""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Waits until every process has called this; ends the process if that takes too long.

  Args:
    name: the same in every process; JAX raises an error with the names otherwise.
  """
  if jax.process_count() > 1:
    with _PATIENCE.until(_timeout(_STEP_TIMEOUT), f'not all processes have come to {name!r}'):
      multihost_utils.sync_global_devices(name)


def step_begins() -> None:
  """Starts the clock for a step that all processes take together; the last one is over."""
  if jax.process_count() > 1:
    _PATIENCE.begin(_timeout(_STEP_TIMEOUT), 'a step of the training has not ended')


def steps_end() -> None:
  """Stops the clock of `step_begins`."""
  _PATIENCE.end()


def same_number(value: int) -> int:
  """Returns the value of the first process, an int32, in all of them."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def same_numbers(values: Sequence[int]) -> list[int]:
  """Returns the values of the first process, int32, in all of them."""
  if jax.process_count() == 1:
    return list(values)
  count = same_number(len(values))
  if not count:
    return []
  padded = np.resize(np.asarray(values, np.int32), count)
  return [int(value) for value in multihost_utils.broadcast_one_to_all(padded)]


def all_say(yes: bool) -> bool:
  """Returns whether every process says yes; all get the same answer."""
  if jax.process_count() == 1:
    return yes
  return bool(np.all(multihost_utils.process_allgather(np.int32(yes))))


def check_same(what: str, text: str) -> None:
  """Raises ProcessError in every process unless all pass the same text.

  Args:
    what: name of what the text describes, the same in every process.
    text: anything that must be the same.
  """
  if jax.process_count() == 1:
    return
  crcs = np.ravel(multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode()))))
  if different := [index for index, crc in enumerate(crcs) if crc != crcs[0]]:
    raise ProcessError(
      f'the processes do not agree on the {what}: {", ".join(map(str, different))} differs from '
      'the first. All need the same command, config and files'
    )


def same(tree: Any) -> Any:
  """Returns the arrays of the first process in all of them."""
  return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


@contextlib.contextmanager
def one_after_another(name: str) -> Iterator[None]:
  """Runs the block in the first process, and then in the others."""
  if not is_first() and jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)  # as long as it takes: to prepare data takes hours
  yield
  if is_first():
    wait(name)


def _check_address(address: str) -> None:
  """Raises ProcessError if this machine cannot listen at an address; JAX would crash."""
  host, _, port = address.rpartition(':')
  try:
    for family, kind, protocol, _, found in socket.getaddrinfo(
      host.strip('[]'), port, type=socket.SOCK_STREAM
    ):
      with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(found)
  except OSError as error:
    raise ProcessError(
      f'process 0 cannot listen at JAX_COORDINATOR_ADDRESS={address}: {error}. The address must be '
      'one of the machine of process 0, with a free port; if others reach it under another name, '
      'JAX_COORDINATOR_BIND_ADDRESS says where it listens'
    ) from error


class _Patience:
  """Ends the process if something takes too long, with a line that says what."""

  def __init__(self):
    self._limit: tuple[float, float, str] | None = None  # when it is over, seconds, what
    self._thread: threading.Thread | None = None

  def begin(self, seconds: float, what: str) -> None:
    """Starts the clock, again if it runs."""
    self._limit = time.monotonic() + seconds, seconds, what
    if self._thread is None:
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()

  def end(self) -> None:
    """Stops the clock."""
    self._limit = None

  @contextlib.contextmanager
  def until(self, seconds: float, what: str) -> Iterator[None]:
    """Runs the clock during the block."""
    self.begin(seconds, what)
    try:
      yield
    finally:
      self.end()

  def _watch(self) -> None:
    while True:
      time.sleep(1)
      limit = self._limit
      if limit and time.monotonic() > limit[0]:
        _give_up(*limit[1:])


_PATIENCE = _Patience()


def _give_up(seconds: float, what: str) -> None:
  print(
    f'ProcessError: {what} after {seconds:g} s: another process was not started, hangs, or is '
    'gone. Complete stages and checkpoints are kept; the same commands continue',
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)  # the main thread waits in JAX, where no exception reaches it


def _timeout(name: str, environ: Mapping[str, str] = os.environ) -> int:
  text = environ.get(name, str(_SECONDS[name]))
  if not text.isdecimal() or not int(text):
    raise ProcessError(f'{name}={text} must be a number of seconds')
  return int(text)


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
