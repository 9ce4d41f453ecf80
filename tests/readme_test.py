"""What the README says runs."""

import os

os.environ.setdefault('KERAS_BACKEND', 'jax')

import pathlib
import re

from helpers import configs
from helpers.commands import TINY
import jax
import pytest

import slim_jax
from slim_jax.runs import pipeline

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def blocks(language):
  return re.findall(rf'```{language}\n(.*?)```', README, re.S)


def run(code):
  """What the code leaves behind, by name."""
  made = {'__name__': 'readme'}
  with jax.numpy_rank_promotion('allow'):  # what JAX does unless told otherwise
    exec(compile(code, 'README.md', 'exec'), made)  # pylint: disable=exec-used
  return made


def one(text):
  """The only python block with this text in it."""
  (code,) = [code for code in blocks('python') if text in code]
  return code


def test_the_library_example_runs(capsys):
  run(one('class Net(nn.Module)'))
  full, thin = map(int, capsys.readouterr().out.split('->'))
  assert thin < 0.6 * full


def test_tied_channels_are_selected():
  made = run(one('class Net(nn.Module)') + one('slim_jax.streams('))
  lost = sum(int(d.sum()) for d in jax.tree.leaves(made['dead']))
  assert 20 <= lost <= 28  # of 16 + 32, which are no stream


def test_budgets_guards_and_scores():
  made = run(one('class Net(nn.Module)') + one('slim_jax.select_budget('))
  first, second = (made['dead']['params'][f'BatchNorm_{i}']['scale'] for i in range(2))
  assert not first.any()
  assert second.sum() % 4 == 0 and 16 <= second.sum() <= 25
  thin = made['plan'].slice(made['variables'])
  logits = slim_jax.thin(made['apply'], made['plan'])(thin, made['x'])
  kept = slim_jax.mask(made['variables'], made['dead'], bias='keep')
  assert jax.numpy.allclose(logits, made['apply'](kept, made['x']), atol=1e-5)


LIBRARIES = ['from flax import nnx', 'import haiku as hk', 'import equinox as eqx', 'KERAS_BACKEND']


@pytest.mark.parametrize('library', LIBRARIES)
def test_the_example_of_every_library_runs(library):
  made = run(one(library))
  before, after = (
    slim_jax.count(made['apply'], made['variables'], made['x']),
    slim_jax.count(slim_jax.thin(made['apply'], made['plan']), made['thin_variables'], made['x']),
  )
  assert after.macs < 0.6 * before.macs
  assert made['logits'].shape == (len(made['x']), 10)


def test_a_finished_run_is_loaded(tmp_path, monkeypatch):
  config = configs.load('digits')
  config.update_from_flattened_dict(
    {
      **TINY,
      'data_dir': str(tmp_path / 'data'),
      'passes': 1,
      'train.epochs': 1,
      'finetune.epochs': 0,
      'baseline_epochs': 0,
    }
  )
  pipeline.run(config, tmp_path / 'runs/digits')
  monkeypatch.chdir(tmp_path)
  run(one('slim_jax.load('))


def test_the_narrow_module_runs():
  made = run(one('narrow.module('))
  assert 47 <= sum(width for width in made['thin_net'].widths if width != 'M') <= 48
  thin = slim_jax.thin(made['apply'], made['plan'])(
    made['plan'].slice(made['variables']), made['x']
  )
  assert jax.numpy.allclose(made['logits'], thin, atol=1e-5)


def test_every_python_block_is_run_above():
  assert len(blocks('python')) == 5 + len(LIBRARIES)


def test_the_first_two_commands_exist():
  commands = blocks('')[0].strip().splitlines()
  assert commands == ['bash launch/demo.sh', 'bash launch/test.sh']
  assert commands[1] in (ROOT / '.ci/run').read_text()


@pytest.mark.parametrize(
  'path',
  sorted(
    set(re.findall(r'(?:configs|launch|slim_jax|tests)/[a-z]\w*(?:/[a-z]\w*)*\.(?:py|sh)', README))
  ),
)
def test_files_named_exist(path):
  assert (ROOT / path).exists()


def test_every_config_has_its_row():
  for config in (ROOT / 'configs').glob('*.py'):
    assert f'| `{config.name}` |' in README
