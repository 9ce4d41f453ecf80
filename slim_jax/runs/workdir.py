"""The directory of a run: what lies where, and what of it is complete.

  config.json     the config
  dataset.json    shape, classes and normalisation of the images
  stages.json     a record of each stage that is complete, in order
  plan-N.npz      what is left of the original network after pass N
  checkpoints/    of each stage, in N-STAGE
  metrics.jsonl   a line of metrics for each epoch; metrics.csv: the same as a table
  scales-N.npz    every scale at each epoch of the sparse stage of pass N
  sparsity-N.png  how many scales were small as it went
  tensorboard/    event files of each stage, in N-STAGE, and the table of the stages
  starts.jsonl    a line for each call that has trained: command, versions, devices
  summary.json    config and stages, once all are complete
  report/         the page of the run and its figures; latency.json: what was measured for it
  lock            held by the process that runs

Files are replaced whole, so that a run may end at any moment.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import fcntl
import io
import json
import time
from typing import Any

from etils import epath

from slim_jax import tree
from slim_jax.channels.plan import Plan
from slim_jax.errors import SlimError
from slim_jax.runs import schema
from slim_jax.runs.stages import Stage
from slim_jax.runtime import files, processes


class WorkdirError(SlimError):
  """A directory holds another run, or none; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Workdir:
  """The directory of a run.

  Attributes:
    path: absolute path.
  """

  path: epath.Path

  def checkpoints(self, stage: Stage) -> epath.Path:
    """The directory of a stage's checkpoints."""
    return self.path / 'checkpoints' / f'{stage.number}-{stage.name}'

  def events(self, stage: Stage) -> epath.Path:
    """The directory of a stage's event files."""
    return self.path / 'tensorboard' / f'{stage.number}-{stage.name}'

  def scales(self, stage: Stage) -> epath.Path:
    """The file of a sparse stage's scales by epoch."""
    return self.path / f'scales-{stage.number}.npz'

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """No other process runs in the directory within this block.

    The lock is the operating system's, so that a run that is killed leaves none behind; object
    stores have none. Of several processes of one run the first holds it.

    Raises:
      WorkdirError: another run does, or not all processes of this one see the directory.
    """
    path = self.path / 'lock'
    name = str(processes.same_number(time.time_ns() % 2**31))
    if not processes.is_first():
      processes.wait('lock')
      if not path.exists() or path.read_text() != name:
        raise WorkdirError(
          f'{self.path} is not the directory that the first process writes: all '
          'processes of a run need the same one, as on a network file system'
        )
      yield
      return
    with contextlib.ExitStack() as stack:
      try:
        self.path.mkdir(parents=True, exist_ok=True)
        if not files.is_remote(path):
          fcntl.flock(stack.enter_context(path.open('a')), fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """The records of the complete stages, in order."""
    path = self.path / 'stages.json'
    records = read_json(path) if path.exists() else []
    if not isinstance(records, list) or not all(
      isinstance(record, dict) and {'pass', 'stage'} <= record.keys() for record in records
    ):
      raise WorkdirError(
        f'{path} is damaged: it must hold a record of each stage that is complete, or not exist'
      )
    return records

  def complete(self) -> list[Stage]:
    """The complete stages in order, but for those from scratch."""
    return [stage for stage in map(Stage.of, self.records()) if not stage.is_scratch]

  def write_records(self, records: list[dict[str, Any]]) -> None:
    """Makes these the records of the complete stages."""
    files.write_json(self.path / 'stages.json', records)

  def adopt(self, other: 'Workdir') -> None:
    """Begins a new run with the complete stages of another; a run that is there stays.

    Args:
      other: a run of which nothing is pruned yet. Checkpoints are linked where the file
        system can, not copied; they are never changed.
    """
    with processes.one_after_another('adopt'):
      if not (self.path / 'stages.json').exists():
        self._adopt(other)

  def _adopt(self, other: 'Workdir') -> None:
    for record in other.records():
      stage = Stage.of(record)
      files.copy(other.checkpoints(stage), self.checkpoints(stage))
      if stage.name == 'sparse' and other.scales(stage).exists():
        files.copy(other.scales(stage), self.scales(stage))
    for name in ('dataset.json', 'config.json', 'metrics.jsonl', 'starts.jsonl'):
      if (other.path / name).exists():
        files.write(self.path / name, (other.path / name).read_bytes())
    self.write_records(other.records())

  def compare(self, name: str, value: dict[str, Any], *, free: tuple[str, ...] = ()) -> None:
    """Compares a JSON file, if there is one, with what it would be now.

    Args:
      name: of the file. In config.json, fields that are newer than the run have their defaults.
      value: what it would say.
      free: fields and sections that may differ, dotted.

    Raises:
      WorkdirError: listing what differs.
    """
    path = self.path / name
    if not path.exists():
      return
    there = read_json(path)
    if name == 'config.json':
      there = schema.complete_json(there)
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

  def started(self, values: Mapping[str, Any]) -> None:
    """Records a call that trains."""
    files.append(self.path / 'starts.jsonl', json.dumps(values))

  def starts(self) -> list[dict[str, Any]]:
    """The calls that have trained, in order; those of earlier versions of slim_jax left no line."""
    path = self.path / 'starts.jsonl'
    if not path.exists():
      return []
    result = []
    for text in path.read_text().splitlines():
      with contextlib.suppress(ValueError):  # half a line, of a process that was killed
        result.append(json.loads(text))
    return [start for start in result if isinstance(start, dict)]

  def plan_after(self, stage: Stage) -> Plan | None:
    """What is left of the original network after a stage; None for all of it."""
    if stage.cuts < 1:
      return None
    path = self._plan_path(stage.cuts)
    try:
      return Plan.load(io.BytesIO(path.read_bytes()))
    except (OSError, ValueError) as error:
      raise WorkdirError(f'the plan {path} cannot be read: {error}') from error

  def save_plan(self, plan: Plan, stage: Stage) -> None:
    """Keeps the plan that a stage has made."""
    content = io.BytesIO()
    plan.save(content)
    files.write(self._plan_path(stage.number), content.getvalue())

  def recorder(self, stage: Stage, *, step: int) -> Callable[..., None]:
    """A function that appends its keyword arguments as a line of metrics.

    Args:
      stage: the stage that is recorded.
      step: the checkpoint it continues from. Lines that an earlier call wrote beyond
        it are dropped: they will be written again.
    """

    def goes(line: dict[str, Any]) -> bool:
      return Stage.of(line) == stage and line['step'] > step

    path = self.path / 'metrics.jsonl'
    if processes.is_first() and path.exists():
      kept = [text for text, line in self._lines() if not goes(line)]
      files.write(path, ''.join(kept))

    def record(**values: Any) -> None:
      line = {'pass': stage.number, 'stage': stage.name, **values}
      files.append(path, json.dumps(line))

    return record

  def lines(self, stage: Stage | None = None) -> list[dict[str, Any]]:
    """The metrics of a stage, or of all, an epoch each."""
    return [line for _, line in self._lines() if stage in (None, Stage.of(line))]

  def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
    """The text and the values of each line of metrics that is whole."""
    path = self.path / 'metrics.jsonl'
    if not path.exists():
      return
    for number, text in enumerate(path.read_text().splitlines(keepends=True), start=1):
      if text.endswith('\n'):  # a killed run may have left half a line at the end
        try:
          line = json.loads(text)
          line['pass'], line['stage'], line['step']  # pylint: disable=pointless-statement
        except (KeyError, TypeError, ValueError) as error:
          raise WorkdirError(
            f'{path}, line {number}, is damaged ({error}): delete the line, or the '
            'file, which is for people'
          ) from error
        yield text, line

  def _plan_path(self, number: int) -> epath.Path:
    return self.path / f'plan-{number}.npz'


def read_json(path: epath.Path) -> Any:
  """Reads a JSON file of a run; raises WorkdirError where that is impossible."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise WorkdirError(f'{path} cannot be read: {error}') from error


def columns(line: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """The values of a line of metrics by name; those of a group within it as 'group/name'."""
  for name, value in line.items():
    if isinstance(value, Mapping):
      yield from ((f'{name}/{inner}', number) for inner, number in columns(value))
    else:
      yield name, value


def _flatten(value: dict[str, Any]) -> dict[tree.Path, str]:
  """JSON text of every field by path; lists are compared whole."""
  leaves = tree.flatten(value, is_leaf=lambda node: not isinstance(node, dict))
  return {path: json.dumps(leaf) for path, leaf in leaves.items()}
