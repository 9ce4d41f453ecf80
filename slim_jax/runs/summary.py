"""summary.json: config and figures of a run, for programs."""

from collections.abc import Sequence
from typing import Any

from etils import epath

from slim_jax.display import quantities, tables
from slim_jax.runtime import files

# Figures of every stage, and figures that only some stages have.
_ALWAYS = ('loss', 'params', 'macs', 'seconds')
_SOMETIMES = (
  'metrics',
  'judge',
  'best_epoch',
  'stopped_epoch',
  'strength',
  'pull',
  'start',
  'small_scales',
  'new_head',
  'start_accuracy',
)


def write(path: epath.Path, config: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
  """Writes {'config': ..., 'warnings': [...], 'stages': [...]}, with one row per stage."""
  files.write_json(
    path, {'config': config, 'warnings': tables.warnings(records), 'stages': rows(records)}
  )


def rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the figures of each stage without what is long, such as its widths."""
  return [
    {
      name: record[name]
      for name in ('pass', 'stage', *quantities.metrics_of(record), *_ALWAYS, *_SOMETIMES)
      if name in record
    }
    for record in records
  ]
