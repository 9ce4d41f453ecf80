"""The directory of a run: its files, and which stages are complete.

  config.json     the config
  dataset.json    shape, classes and normalisation of the images
  stages.json     a record of each complete stage, in order
  plan-N.npz      the plan of the network after pass N
  checkpoints/    checkpoints of each stage, in N-STAGE
  metrics.jsonl   a line of metrics for each epoch; metrics.csv: the same as a table
  scales-N.npz    every scale at each epoch of the sparse stage of pass N
  sparsity-N.png  shares of small scales by epoch in the sparse stage of pass N
  tensorboard/    event files of each stage, in N-STAGE, and the table of the stages
  starts.jsonl    a line for each call that has trained: command, versions, devices
  summary.json    config and stages, when all are complete
  report/         the page of the run and its figures; latency.json: times measured for it
  lock            held by the process that runs

Files are replaced whole, so a run may be killed at any moment.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import time
from typing import Any

from absl import logging
from etils import epath

from slim_jax import tree
from slim_jax.channels.plan import Plan
from slim_jax.channels.plan_file import PlanError
from slim_jax.runs import readers, schema
from slim_jax.runs.errors import WorkdirError
from slim_jax.runs.readers import read_json
from slim_jax.runs.stages import Stage
from slim_jax.runtime import files, processes

# Where a run writes; `checkpoints` and `tensorboard` have a directory for each stage.
_DIRECTORIES = ('checkpoints', 'tensorboard', 'report')
# Of a file system without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# Bytes of the file of a plan, which is compressed.
_LARGEST_PLAN = 2**28


@dataclasses.dataclass(frozen=True)
class Workdir:
  """The directory of a run.

  Attributes:
    path: absolute path.
  """

  path: epath.Path

  def checkpoints(self, stage: Stage) -> epath.Path:
    """Returns the directory of a stage's checkpoints."""
    return self.path / 'checkpoints' / f'{stage.number}-{stage.name}'

  def events(self, stage: Stage) -> epath.Path:
    """Returns the directory of a stage's event files."""
    return self.path / 'tensorboard' / f'{stage.number}-{stage.name}'

  def scales(self, stage: Stage) -> epath.Path:
    """Returns the file of a sparse stage's scales by epoch."""
    return self.path / f'scales-{stage.number}.npz'

  @contextlib.contextmanager
  def locked(self, *, flock: Callable[[Any, int], None] = fcntl.flock) -> Iterator[None]:
    """Keeps other runs out of the directory within this block.

    The lock belongs to the operating system, so a killed run leaves none behind. Object stores have
    no locks, and some network file systems have none either, which a warning says. If a run has
    several processes, the first one holds the lock.

    Args:
      flock: locks an open file.

    Raises:
      LinkError: a directory in which the run writes is a link.
      WorkdirError: another run holds the lock, or the processes of this run see different
        directories.
    """
    path = self.path / 'lock'
    name = str(processes.same_number(time.time_ns() % 2**31))
    if not processes.is_first():
      processes.wait('lock')
      if not path.exists() or path.read_text() != name:
        raise WorkdirError(
          f'{self.path} is not the directory that the first process writes: all '
          'processes of a run need the same directory, for example on a network file system'
        )
      yield
      return
    with contextlib.ExitStack() as stack:
      try:
        self.path.mkdir(parents=True, exist_ok=True)
        files.refuse_links(path, *(self.path / each for each in _DIRECTORIES))
        if not files.is_remote(path):
          _lock(stack.enter_context(path.open('a')), flock)
        path.write_text(name)
      except BlockingIOError as error:
        raise WorkdirError(
          f'another run is at work in {self.path}: wait for it, or choose another workdir'
        ) from error
      except OSError as error:
        raise WorkdirError(f'cannot write in the workdir {self.path}: {error}') from error
      processes.wait('lock')
      yield

  def records(self) -> list[dict[str, Any]]:
    """Returns the records of the complete stages, in order.

    Raises:
      WorkdirError: stages.json is damaged.
    """
    return readers.records(self.path / 'stages.json')

  def record(self, stage: Stage) -> dict[str, Any]:
    """Returns the record of a complete stage.

    Raises:
      WorkdirError: the stage is not complete, or stages.json is damaged.
    """
    for record in self.records():
      if Stage.of(record) == stage:
        return record
    raise WorkdirError(f'{self.path}: {stage} is not complete')

  def complete_stages(self) -> list[Stage]:
    """Returns the complete stages in order, without those from scratch."""
    return [stage for stage in map(Stage.of, self.records()) if not stage.is_scratch]

  def write_records(self, records: list[dict[str, Any]]) -> None:
    """Replaces the records of the complete stages."""
    files.write_json(self.path / 'stages.json', records)

  def begin_from(self, other: 'Workdir') -> None:
    """Begins a new run with the complete stages of another. An existing run is left alone.

    Args:
      other: a run that has not been pruned yet. Checkpoints are hard links if the file system
        supports them, and copies otherwise; they are never changed.
    """
    with processes.one_after_another('begin_from'):
      if not (self.path / 'stages.json').exists():
        self._begin_from(other)

  def _begin_from(self, other: 'Workdir') -> None:
    for record in other.records():
      stage = Stage.of(record)
      files.copy(other.checkpoints(stage), self.checkpoints(stage))
      if stage.name == 'sparse' and other.scales(stage).exists():
        files.copy(other.scales(stage), self.scales(stage))
    for name in ('dataset.json', 'config.json', 'metrics.jsonl', 'starts.jsonl'):
      if (other.path / name).exists():
        files.write(self.path / name, (other.path / name).read_bytes())
    self.write_records(other.records())

  def check_unchanged(
    self,
    name: str,
    value: dict[str, Any],
    *,
    free: tuple[str, ...] = (),
    added: tuple[str, ...] = (),
  ) -> None:
    """Checks that a JSON file of the run, if it exists, has the values of this call.

    Args:
      name: name of the file. Fields that config.json of an older run lacks have their defaults.
      value: content of the file according to this call.
      free: dotted fields and sections that may differ.
      added: fields that the file of an older run may lack.

    Raises:
      WorkdirError: other fields differ; the message lists them.
    """
    path = self.path / name
    if not path.exists():
      return
    there = read_json(path)
    if name == 'config.json':
      there = schema.complete_json(there)
    value = {field: part for field, part in value.items() if field in there or field not in added}
    before, now = _flatten(there), _flatten(value)
    lines = [
      f'  {".".join(p)}: {before.get(p)} there, {now.get(p)} now'
      for p in sorted({*before, *now})
      if before.get(p) != now.get(p)
      and not any('.'.join(p[:n]) in free for n in range(1, len(p) + 1))
    ]
    if lines:
      raise WorkdirError(
        f'{path} differs from what this call asks for; use the same values to '
        'continue that run, or another workdir for a new one\n' + '\n'.join(lines)
      )

  def add_start(self, values: Mapping[str, Any]) -> None:
    """Adds a line about a call that trains."""
    files.append(self.path / 'starts.jsonl', json.dumps(values))

  def starts(self) -> list[dict[str, Any]]:
    """Returns the lines about calls that have trained, in order; [] for runs without any."""
    return readers.starts(self.path / 'starts.jsonl')

  def plan_after(self, stage: Stage) -> Plan | None:
    """Returns the plan of the network after a stage; None if it is not pruned.

    Raises:
      WorkdirError: the plan cannot be read, or is another one than a record of the stage says.
    """
    if stage.prunings < 1:
      return None
    path = self._plan_path(stage.prunings)
    try:
      content = files.read(path, most=_LARGEST_PLAN)
      plan = Plan.load(io.BytesIO(content))
    except (OSError, PlanError) as error:
      raise WorkdirError(f'the plan {path} cannot be read: {error}') from error
    for record in self.records():
      recorded = record.get('result', {}).get('plan', '')
      if Stage.of(record).prunings == stage.prunings and recorded not in ('', _digest(content)):
        raise WorkdirError(f'the plan {path} is not the one of {Stage.of(record)}: put it back')
    return plan

  def plan_digest(self, stage: Stage) -> str:
    """Returns a hash of the file of the plan after a stage, 16 hexadecimal digits."""
    return _digest(self._plan_path(stage.prunings).read_bytes())

  def save_plan(self, plan: Plan, stage: Stage) -> None:
    """Writes the plan of a pruned stage."""
    content = io.BytesIO()
    plan.save(content)
    files.write(self._plan_path(stage.number), content.getvalue())

  def discard(self, stage: Stage) -> None:
    """Deletes what an interrupted stage without training has left: its checkpoint and its plan."""
    if processes.is_first():
      files.refuse_links(self.checkpoints(stage))
      if self.checkpoints(stage).exists():
        self.checkpoints(stage).rmtree()
      if stage.name == 'pruned':
        self._plan_path(stage.number).unlink(missing_ok=True)
    processes.wait('discard')

  def metrics_writer(self, stage: Stage, *, step: int) -> Callable[..., None]:
    """Returns a function that appends its keyword arguments as a line of metrics.

    Args:
      stage: the stage of the lines.
      step: step of the checkpoint that the stage continues from. Lines of the stage after this
        step are dropped, because they will be written again.
    """

    def is_later(line: dict[str, Any]) -> bool:
      return Stage.of(line) == stage and line['step'] > step

    path = self.path / 'metrics.jsonl'
    if processes.is_first() and path.exists():
      kept = [text for text, line in self._lines() if not is_later(line)]
      files.write(path, ''.join(kept))

    def record(**values: Any) -> None:
      line = {'pass': stage.number, 'stage': stage.name, **values}
      files.append(path, json.dumps(line))

    return record

  def metrics(self, stage: Stage | None = None) -> list[dict[str, Any]]:
    """Returns the lines of metrics of a stage, or of all stages if None; one line per epoch.

    Raises:
      WorkdirError: a line is damaged.
    """
    return [line for _, line in self._lines() if stage in (None, Stage.of(line))]

  def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields text and values of each complete line of metrics."""
    return readers.metrics(self.path / 'metrics.jsonl')

  def _plan_path(self, number: int) -> epath.Path:
    return self.path / f'plan-{number}.npz'


def _lock(file: Any, flock: Callable[[Any, int], None]) -> None:
  """Locks an open file; warns where the file system has no locks."""
  try:
    flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    logging.warning(
      '%s: this file system has no locks (%s), so nothing keeps a second run out of the directory',
      file.name,
      error.strerror,
    )


def columns(line: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Yields names and values of a line of metrics; names within a group are 'group/name'."""
  for name, value in line.items():
    if isinstance(value, Mapping):
      yield from ((f'{name}/{inner}', number) for inner, number in columns(value))
    else:
      yield name, value


def _digest(content: bytes) -> str:
  return hashlib.blake2b(content, digest_size=8).hexdigest()


def _flatten(value: dict[str, Any]) -> dict[tree.Path, str]:
  """Returns the JSON text of every field by path; a list is one field."""
  leaves = tree.flatten(value, is_leaf=lambda node: not isinstance(node, dict))
  return {path: json.dumps(leaf) for path, leaf in leaves.items()}
