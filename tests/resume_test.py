"""What may change between two calls of a run, field by field; and tables for spreadsheets."""

import csv
import json

from etils import epath
import pytest

from slim_jax.errors import SlimError
from slim_jax.runs import pipeline, recording, stages
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir, WorkdirError

# Other values of fields that take only some.
OTHERS = {
  'dataset': 'mnist',
  'dtype': 'bfloat16',
  'loss': 'pkg.losses:own',
  'test_split': 'test[:50]',
  'train_split': 'train[:128]',
  'valid_split': 'train[256:300]',
  'prune.target': 'macs:0.5',
  'track': 'wandb',
}


def other(name, value):
  """Returns another value of the type of a field."""
  if name in OTHERS:
    return OTHERS[name]
  if isinstance(value, bool):
    return not value
  if isinstance(value, (int, float)):
    return value + (1 if isinstance(value, int) else 0.125)
  return f'{value}x' if isinstance(value, str) else (*value, value[-1] if value else 'x')


@pytest.mark.slow
def test_every_field_that_changes_is_harmless_or_refused_by_name(two_passes):
  """Of a complete run, so that nothing has to be computed to find out."""
  config, workdir, records = two_passes
  before = (workdir / 'config.json').read_text()
  fields = json.loads(json.dumps(config.to_dict()))
  tried = 0

  def names(value, above=''):
    for name, inner in value.items():
      if isinstance(inner, dict):
        yield from names(inner, f'{above}{name}.')
      else:
        yield f'{above}{name}'

  for name in names(fields):
    changed = config.copy_and_resolve_references().unlock()
    *sections, last = name.split('.')
    section = changed
    for each in sections:
      section = section[each]
    section[last] = other(name, section[last])
    harmless = any(f'{name}.'.startswith(f'{field}.') for field in stages.HARMLESS)
    if name.startswith('scratch'):
      continue  # another stage to run, not another value
    tried += 1
    try:
      again = pipeline.run(changed, workdir)
    except WorkdirError as error:
      assert not harmless and name in str(error) and 'differs from what' in str(error), name
    except SlimError as error:
      assert last in str(error), name  # it cannot be a value at all
    else:
      assert harmless and again == records, name
  assert tried > 60
  assert (workdir / 'config.json').read_text() == before


def test_no_cell_of_a_table_is_a_formula(tmp_path):
  workdir = Workdir(epath.Path(tmp_path))
  write = workdir.metrics_writer(Stage(0, 'baseline'), step=0)
  write(step=1, epoch=1, loss=-0.5, **{'=cmd': 1.0, 'note': '=HYPERLINK("http://x")'})
  write(step=2, epoch=2, loss=0.5, note='@x', group={'+y': '-z', 'w': 'plain'})
  recording.write_csv(workdir)
  with open(tmp_path / 'metrics.csv', newline='') as file:
    header, *rows = csv.reader(file)
  texts = (*header, *rows[0], *rows[1])
  assert not [text for text in texts if text[:1] in '=+@\t\r' and text]
  assert rows[0][header.index('loss')] == '-0.5' and "'-z" in rows[1] and 'plain' in rows[1]


@pytest.mark.parametrize('text', ['=1', '+1', '-x', '@x', '\t=1'])
def test_texts_that_begin_like_formulas_stay_texts(text, tmp_path):
  workdir = Workdir(epath.Path(tmp_path))
  workdir.metrics_writer(Stage(0, 'baseline'), step=0)(step=1, text=text)
  recording.write_csv(workdir)
  assert f"'{text}" in (tmp_path / 'metrics.csv').read_text()
