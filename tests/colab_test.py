"""The notebook runs from its first cell to its last, and its figures hold."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

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
  assert re.search(r'finetuned +\d', text)
  assert sum('image/png' in out.get('data', {}) for out in outputs) == 2


def test_notebook_is_committed_without_outputs():
  for cell in json.loads((ROOT / 'launch' / 'colab.ipynb').read_text())['cells']:
    assert not cell.get('outputs') and not cell.get('execution_count')
