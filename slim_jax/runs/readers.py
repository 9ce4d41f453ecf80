"""Readers of the text files of a run: whatever is wrong with one is a WorkdirError.

Each file has one reader here. A file that passes has the fields that the program reads of it, with
values of the right kind; other fields are left as they are, since other versions have others.
"""

from collections.abc import Callable, Iterator, Mapping
import io
import json
from typing import Any

from etils import epath
import ml_collections

from slim_jax.display import quantities
from slim_jax.runs import schema
from slim_jax.runs.errors import WorkdirError
from slim_jax.runs.stages import NAMES
from slim_jax.runtime import files
from slim_jax.runtime.config import Config

# Bytes that a text file of a run may have.
_MOST = 2**28
# Numbers beyond it are no figures of a network, and overflow in arithmetic.
_LARGEST = 1e300
_LARGEST_IMAGE = 2**31


def read_json(path: epath.Path) -> Any:
  """Reads a JSON file.

  Raises:
    WorkdirError: it cannot be read.
  """
  try:
    return _parse(files.read(path, most=_MOST).decode())
  except (OSError, ValueError, RecursionError) as error:
    raise WorkdirError(f'{path} cannot be read: {error}') from error


def records(path: epath.Path) -> list[dict[str, Any]]:
  """Reads stages.json, the records of the complete stages in order; [] if it does not exist.

  Raises:
    WorkdirError: it is damaged.
  """
  value = read_json(path) if path.exists() else []
  try:
    if not isinstance(value, list):
      raise ValueError('it is no list')
    for number, record in enumerate(value, start=1):
      what = f'record {number}'
      _check(record, _OF_RECORD, required=_FIGURES, what=what)
      figures = dict.fromkeys(quantities.metrics_of(record), _NUMBER)
      _check(record, figures, required=(*figures, quantities.judge_of(record)), what=what)
    if len({(record['pass'], record['stage']) for record in value}) < len(value):
      raise ValueError('a stage is there twice')
  except ValueError as error:
    raise WorkdirError(
      f'{path} is damaged: {error}. It must hold a record of each complete stage, or not exist'
    ) from error
  return value


def metrics(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields text and values of each complete line of metrics.jsonl, if there is such a file.

  Raises:
    WorkdirError: a line is damaged.
  """
  for number, text in enumerate(_lines(path), start=1):
    if text.endswith('\n'):  # a killed run may have left half a line at the end
      try:
        line = _parse(text)
        _check(line, _OF_LINE, required=('pass', 'stage', 'step'), what='it')
      except (ValueError, RecursionError) as error:
        raise WorkdirError(
          f'{path}, line {number}, is damaged ({error}): delete the line, or the whole '
          'file, which no stage depends on'
        ) from error
      yield text, line


def starts(path: epath.Path) -> list[dict[str, Any]]:
  """Reads starts.jsonl; damaged lines are left out, since nothing depends on them.

  Raises:
    WorkdirError: the file cannot be read.
  """
  result = []
  for text in _lines(path):
    try:
      line = _parse(text)
    except (ValueError, RecursionError):
      continue
    if isinstance(line, dict):
      result.append(line)
  return result


def dataset(path: epath.Path) -> dict[str, Any]:
  """Reads dataset.json.

  Raises:
    WorkdirError: it cannot be read, or does not describe images.
  """
  value = read_json(path)
  try:
    _check(value, _OF_DATASET, required=tuple(_OF_DATASET)[:5], what='it')
    height, width, channels = value['image']
    if height * width * channels > _LARGEST_IMAGE:
      raise ValueError(f'its images of {value["image"]} are too large')
    for name, size in (
      ('class_names', value['num_classes']),
      ('mean', channels),
      ('std', channels),
    ):
      if len(value[name]) != size:
        raise ValueError(f'it has {len(value[name])} values of {name}, not {size}')
  except ValueError as error:
    raise WorkdirError(f'{path} is damaged: {error}') from error
  return value


def config(path: epath.Path) -> Config:
  """Reads config.json; fields that it lacks have their defaults.

  Raises:
    WorkdirError: it cannot be read, or is no config of this version.
  """
  value = read_json(path)
  try:
    if not isinstance(value, dict):
      raise ValueError('it is no table of fields')
    result = schema.complete(ml_collections.ConfigDict(value), source='the config of the run')
    problems = list(schema.problems(result))
  # ConfigDict raises errors of several kinds for names that cannot be fields.
  except Exception as error:  # pylint: disable=broad-except
    raise WorkdirError(f'{path} is damaged: {error}') from error
  if problems:
    raise WorkdirError(f'{path} is no config of this version of slim_jax: {"; ".join(problems)}')
  return result


def _lines(path: epath.Path) -> list[str]:
  """Returns the lines of a file with their ends, [] if it does not exist."""
  if not path.exists():
    return []
  try:
    # Not `splitlines`, which also ends a line at characters that JSON may contain.
    return io.StringIO(files.read(path, most=_MOST).decode(), newline='\n').readlines()
  except (OSError, ValueError) as error:
    raise WorkdirError(f'{path} cannot be read: {error}') from error


def _parse(text: str) -> Any:
  """Parses JSON; raises ValueError for text that could not be written again."""
  value = json.loads(text)
  json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be shown
  return value


def _check(
  value: Any,
  kinds: Mapping[str, tuple[Callable[[Any], bool], str]],
  *,
  required: tuple[str, ...],
  what: str,
) -> None:
  """Raises ValueError unless a table has the required fields, and fields of the right kinds."""
  if not isinstance(value, dict):
    raise ValueError(f'{what} is no table of fields')
  for name in required:
    if name not in value:
      raise ValueError(f'{what} has no {name}')
  for name, (is_kind, kind) in kinds.items():
    if name in value and not is_kind(value[name]):
      raise ValueError(f'{what} has {name}={str(value[name])[:80]}, not {kind}')


def is_number(value: Any) -> bool:
  """Returns whether a value of JSON is a finite number."""
  return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def is_whole(value: Any) -> bool:
  """Returns whether a value of JSON is an integer that is not negative."""
  return isinstance(value, int) and is_number(value) and value >= 0


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _list_of(is_kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, list) and all(map(is_kind, value))


def _are_widths(value: Any) -> bool:
  return isinstance(value, dict) and all(map(is_whole, value.values()))


def _is_result(value: Any) -> bool:
  return (
    isinstance(value, dict)
    and is_whole(value.get('step'))
    and all(_is_text(value.get(name)) for name in ('arrays', 'network'))
    and _is_text(value.get('plan', ''))
  )


_NUMBER = is_number, 'a number'
_COUNT = is_whole, 'a count'
_TEXT = _is_text, 'a text'
_OF_STAGE = {
  'pass': (lambda value: is_whole(value) and value < 10**6, 'the number of a pass'),
  'stage': (lambda value: _is_text(value) and value in NAMES, 'the name of a stage'),
}
_OF_RECORD = {
  **_OF_STAGE,
  **dict.fromkeys(('loss', 'accuracy', 'seconds', 'strength', 'pull', 'start'), _NUMBER),
  **dict.fromkeys(('small_scales', 'start_accuracy'), _NUMBER),
  **dict.fromkeys(('params', 'macs', 'best_epoch', 'stopped_epoch'), _COUNT),
  **dict.fromkeys(('judge', 'warning'), _TEXT),
  **dict.fromkeys(('metrics', 'new_head'), (_list_of(_is_text), 'a list of names')),
  'widths': (_are_widths, 'a width for each layer'),
  'result': (_is_result, 'step and digests'),
}
_FIGURES = ('pass', 'stage', 'loss', 'params', 'macs', 'seconds')
_OF_LINE = {
  **_OF_STAGE,
  **dict.fromkeys(('step', 'epoch'), _COUNT),
  **dict.fromkeys(('loss', 'accuracy', 'learning_rate', 'images_per_second', 'time'), _NUMBER),
}
_OF_DATASET = {
  'image': (
    lambda value: _list_of(is_whole)(value) and len(value) == 3 and all(value),
    'height, width and channels',
  ),
  'num_classes': (lambda value: is_whole(value) and value > 0, 'a positive count'),
  'class_names': (_list_of(_is_text), 'a list of names'),
  'mean': (_list_of(is_number), 'a list of numbers'),
  'std': (lambda value: _list_of(is_number)(value) and all(x > 0 for x in value), 'positive'),
  'dtype': (lambda value: value in ('uint8', 'float32'), 'uint8 or float32'),
  'splits': (lambda value: isinstance(value, dict), 'a table of splits'),
}
