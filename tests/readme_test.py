"""What the README says runs."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def blocks(language):
  return re.findall(rf'```{language}\n(.*?)```', README, re.S)


def test_the_library_example_runs(capsys):
  example = next(code for code in blocks('python') if 'class Net' in code)
  exec(compile(example, 'README.md', 'exec'), {'__name__': 'readme'})  # pylint: disable=exec-used
  full, thin = map(int, capsys.readouterr().out.split('->'))
  assert thin < 0.6 * full


def test_the_first_two_commands_exist():
  commands = blocks('')[0].strip().splitlines()
  assert commands == ['bash launch/demo.sh', 'bash launch/test.sh']
  assert commands[1] in (ROOT / '.ci/run').read_text()


@pytest.mark.parametrize('path', sorted(set(
    re.findall(r'(?:configs|launch|slim_jax|tests)/[a-z]\w*(?:/\w+)*\.(?:py|sh)', README))))
def test_files_named_exist(path):
  assert (ROOT / path).exists()


def test_every_config_has_its_row():
  for config in (ROOT / 'configs').glob('*.py'):
    assert f'| `{config.name}` |' in README
