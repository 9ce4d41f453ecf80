"""The notebook runs from its first cell to its last, and its figures hold."""

import ast
import importlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from slim_jax.runs import default

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_notebook(tmp_path):
  code = (
    'import asyncio, sys, nbclient, nbformat\n'
    'notebook = nbformat.read("launch/colab.ipynb", as_version=4)\n'
    'nbformat.validate(notebook)\n'
    'nbclient.NotebookClient(notebook, timeout=600).execute()\n'
    'nbformat.write(notebook, sys.argv[1])\n'
  )
  path = tmp_path / 'executed.ipynb'
  environ = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '',
    'TMPDIR': str(tmp_path),
    'TFDS_DATA_DIR': str(tmp_path / 'tfds'),
    # The kernel that is found must be that of this environment.
    'JUPYTER_PATH': str(pathlib.Path(sys.prefix) / 'share' / 'jupyter'),
  }
  done = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', code, str(path)],
    cwd=ROOT,
    env=environ,
    text=True,
    check=False,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )
  assert done.returncode == 0, done.stdout
  outputs = [
    out for cell in json.loads(path.read_text())['cells'] for out in cell.get('outputs', ())
  ]
  text = ''.join(
    line
    for out in outputs
    for line in (*out.get('text', ()), *out.get('data', {}).get('text/plain', ()))
  )
  before, after = (
    int(n.replace(',', '')) for n in re.search(r'params ([\d,]+) -> ([\d,]+)', text).groups()
  )
  assert after < 0.5 * before
  assert float(re.search(r'masked network: (\S+)', text)[1]) < 1e-4
  for place in ('right after the cut', 'after fine-tuning'):
    assert float(re.search(rf'accuracy {place}: ([\d.]+)%', text)[1]) > 95
  # Progress of the loops in cells, and of a run.
  assert text.count('epoch 5 of') == 2
  assert 'sparse, pass 1: epoch 12 of 12, loss' in text
  runs = re.findall(r'baseline +([\d.]+)%.*?finetuned +([\d.]+)%', text, re.S)
  assert len(runs) == 2
  for baseline, finetuned in runs:
    assert float(baseline) > 97 and float(finetuned) > float(baseline) - 1.2
  full, cut, fitted = (
    float(re.search(rf'{name}: ([\d.]+)%', text)[1])
    for name in ('full', 'a quarter of the neurons left', 'and reconstructed')
  )
  assert cut < fitted - 20 and fitted > full - 2
  assert sum('image/png' in out.get('data', {}) for out in outputs) == 2


def cells(kind):
  notebook = json.loads((ROOT / 'launch' / 'colab.ipynb').read_text())
  return [''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == kind]


def test_every_cell_is_python_and_imports_what_exists():
  imported = set()
  for text in cells('code'):
    for node in ast.walk(ast.parse(text.replace('  %pip', '  pass  #'))):
      if isinstance(node, ast.ImportFrom) and node.module.startswith('slim_jax'):
        imported |= {(node.module, name.name) for name in node.names}
  assert ('slim_jax.runs', 'pipeline') in imported
  for module, name in imported:
    found = importlib.import_module(module)
    assert hasattr(found, name) or importlib.util.find_spec(f'{module}.{name}'), (module, name)


def test_fields_of_its_configs_exist():
  known = default.get_config()
  text = '\n'.join(cells('code'))
  dicts = re.findall(r'update_from_flattened_dict\(\{(.*?)\}\)', text, re.S)
  fields = re.findall(r"'([a-z_]+(?:\.[a-z_]+)?)':", ''.join(dicts))
  assert len(fields) > 20
  for field in fields:
    section = known
    for name in field.split('.'):
      assert name in section, field
      section = section[name]


def test_badge_and_source_are_of_one_repository():
  badge = re.search(
    r'colab\.research\.google\.com/github/([^/]+/[^/]+)/blob', cells('markdown')[0]
  )[1]
  assert f"SOURCE = 'git+https://github.com/{badge}'" in cells('code')[0]


def test_notebook_is_committed_without_outputs():
  for cell in json.loads((ROOT / 'launch' / 'colab.ipynb').read_text())['cells']:
    assert not cell.get('outputs') and not cell.get('execution_count')
