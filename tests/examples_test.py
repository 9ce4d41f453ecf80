"""The examples of launch/examples/ run: loops of one's own, `fit` of Keras, a server."""

import io
import json
import pathlib
import re
import runpy
import sys
import threading
import urllib.request

import jax
import numpy as np
from PIL import Image
import pytest

import slim_jax

EXAMPLES = pathlib.Path(__file__).parents[1] / 'launch' / 'examples'
LOOPS = ('nnx_loop', 'keras_fit')
ALIKE = ('linen_loop', 'equinox_loop')  # the functions they call have tests of their own


def test_there_are_no_others():
  assert {path.stem for path in EXAMPLES.glob('*.py')} == {*LOOPS, *ALIKE, 'vit_loop', 'serve'}


@pytest.mark.parametrize(
  'name', [*LOOPS, *(pytest.param(name, marks=pytest.mark.slow) for name in ALIKE)]
)
def test_loops_run(name, monkeypatch, capsys):
  path = EXAMPLES / f'{name}.py'
  assert len(path.read_text().splitlines()) <= 60
  monkeypatch.setattr(sys, 'argv', [str(path), '1'])
  with jax.numpy_rank_promotion('allow'):  # JAX's default
    made = runpy.run_path(str(path))
  words = r'sparse: [\d.]+%.*\nchannels -5.*MACs.*\npruned: .*\nfine-tuned: [\d.]+%'
  assert re.match(words, capsys.readouterr().out)
  assert made['info'].after.macs < 0.3 * made['info'].before.macs


@pytest.mark.slow
def test_the_loop_with_gates_runs(monkeypatch, capsys):
  path = EXAMPLES / 'vit_loop.py'
  assert len(path.read_text().splitlines()) <= 60
  monkeypatch.setattr(sys, 'argv', [str(path), '1'])
  with jax.numpy_rank_promotion('allow'):  # JAX's default
    runpy.run_path(str(path))
  macs = [int(n.replace(',', '')) for n in re.findall(r'([\d,]+) MACs', capsys.readouterr().out)]
  assert len(macs) == 3 and macs[1] == macs[2] < 0.51 * macs[0]


def test_the_server_answers(two_passes):
  _, workdir, _ = two_passes
  server = runpy.run_path(str(EXAMPLES / 'serve.py'))['server'](workdir, 0)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'png')
    url = f'http://localhost:{server.server_port}'
    with urllib.request.urlopen(url, file.getvalue()) as reply:
      answer = json.load(reply)
  finally:
    server.shutdown()
    server.server_close()
  apply, variables = slim_jax.load(workdir)
  probabilities = jax.nn.softmax(apply(variables, pixels[None, :, :, None]))[0]
  assert answer['class'] == str(int(probabilities.argmax()))
  np.testing.assert_allclose(answer['probability'], probabilities.max(), rtol=1e-5)
