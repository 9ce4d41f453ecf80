"""Exported files give the same logits in a process that has no slim_jax."""

import json
import subprocess
import sys

import numpy as np
import pytest

import commands
import config_test
from slim_jax import finished
from slim_jax import pipeline
from slim_jax import tree

# Keeps `slim_jax` from being imported.
ALONE = "import sys; sys.modules['slim_jax'] = None\n"


@pytest.fixture(scope='module', params=[
    {}, {'model.name': 'preresnet', 'model.depth': 11, 'model.width': 4},
    {'model.name': 'densenet', 'model.depth': 7, 'model.growth': 4, 'model.stem': 4}],
                ids=['vgg', 'preresnet', 'densenet'])
def run(request, tmp_path_factory):
  config = config_test.load('digits').get_config()
  config.update_from_flattened_dict({
      **commands.TINY, 'data_dir': str(tmp_path_factory.mktemp('tfds')), 'baseline_epochs': 0,
      'train.epochs': 1, 'finetune.epochs': 1, 'passes': 1})
  if request.param:
    with config.unlocked():
      del config.model['widths']
      for name, value in request.param.items():
        config.model[name.removeprefix('model.')] = value
  workdir = tmp_path_factory.mktemp('run')
  pipeline.run(config, workdir)
  return workdir


def export(workdir, *flags):
  return commands.run([sys.executable, '-m', 'slim_jax.export', f'--workdir={workdir}', *flags])


def alone(tmp_path, code, *arguments):
  """Runs code far from here."""
  subprocess.run([sys.executable, '-c', ALONE + code, *map(str, arguments)], cwd=tmp_path,
                 check=True)


def test_stablehlo_gives_the_same_logits(run, tmp_path):
  export(run)
  images = np.random.RandomState(0).randint(0, 256, (7, 8, 8, 1)).astype(np.uint8)
  np.save(tmp_path / 'images.npy', images)
  alone(tmp_path, 'import jax, numpy as np\n'
        "f = jax.export.deserialize(open(sys.argv[1], 'rb').read())\n"
        "assert f.platforms == ('cpu', 'cuda', 'tpu')\n"
        "images = np.load('images.npy')\n"
        "np.savez('logits.npz', seven=f.call(images), one=f.call(images[:1]))\n",
        run / 'network.stablehlo')
  logits = np.load(tmp_path / 'logits.npz')
  apply, variables = finished.load(run)
  want = apply(variables, images)
  np.testing.assert_allclose(logits['seven'], want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(logits['one'], want[:1], rtol=1e-5, atol=1e-5)
  about = json.loads((run / 'network.stablehlo.json').read_text())
  assert about['image'] == [8, 8, 1] and len(about['class_names']) == 10
  assert about['stage'] == 'finetuned, pass 1' and 0 <= about['accuracy'] <= 1


def test_safetensors_have_the_thin_weights(run, tmp_path):
  export(run, '--format=safetensors', f'--output={tmp_path}/thin.safetensors')
  alone(tmp_path, 'import numpy as np, safetensors.numpy\n'
        "np.savez('w.npz', **safetensors.numpy.load_file('thin.safetensors'))\n")
  found = dict(np.load(tmp_path / 'w.npz'))
  _, variables = finished.load(run)
  want = {tree.show(path): leaf for path, leaf in tree.flatten(variables).items()}
  assert set(found) == set(want)
  for name, leaf in want.items():
    np.testing.assert_array_equal(found[name], leaf)
  about = json.loads((tmp_path / 'thin.safetensors.json').read_text())
  assert about['widths'] and about['params'] == sum(
      leaf.size for name, leaf in want.items() if name.startswith('params/'))


def test_export_says_what_is_wrong(tmp_path):
  command = [sys.executable, '-m', 'slim_jax.export', f'--workdir={tmp_path}']
  assert 'holds no run with a complete stage' in commands.run(command, code=1)
  assert 'must be some of cpu, cuda' in commands.run([*command, '--platforms=gpu'], code=1)
