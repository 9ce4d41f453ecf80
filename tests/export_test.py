"""Exported files give the same logits in a process that has no slim_jax."""

import ast
import configparser
from importlib import metadata
import json
import os
import re
import subprocess
import sys

from helpers import commands, configs
import house
import numpy as np
import pytest

from slim_jax import tree
from slim_jax.export import safetensors_file
from slim_jax.runs import finished, pipeline

# Code of processes that cannot import slim_jax, and for files that need no JAX not JAX either.
ALONE = "import sys; sys.modules['slim_jax'] = None\n"
WITHOUT_JAX = "sys.modules['jax'] = sys.modules['flax'] = None\n"


@pytest.fixture(
  scope='module',
  params=[
    {},
    pytest.param(
      {'model.name': 'preresnet', 'model.depth': 11, 'model.width': 4}, marks=pytest.mark.slow
    ),
    pytest.param(
      {'model.name': 'densenet', 'model.depth': 7, 'model.growth': 4, 'model.stem': 4},
      marks=pytest.mark.slow,
    ),
  ],
  ids=['vgg', 'preresnet', 'densenet'],
)
def run(request, digits_dir, tmp_path_factory):
  config = configs.load('digits')
  config.update_from_flattened_dict(
    {
      **commands.TINY,
      'data_dir': digits_dir,
      'baseline_epochs': 0,
      'train.epochs': 1,
      'finetune.epochs': 1,
      'passes': 1,
    }
  )
  if request.param:
    with config.unlocked():
      del config.model['widths']
      for name, value in request.param.items():
        config.model[name.removeprefix('model.')] = value
  workdir = tmp_path_factory.mktemp('run')
  pipeline.run(config, workdir)
  return workdir


def call(workdir, *flags):
  return commands.run([sys.executable, '-m', 'slim_jax.export', f'--workdir={workdir}', *flags])


def alone(tmp_path, code, *arguments):
  """Runs code in a process that cannot import slim_jax."""
  subprocess.run(
    [sys.executable, '-c', ALONE + code, *map(str, arguments)], cwd=tmp_path, check=True
  )


def test_stablehlo_gives_the_same_logits(run, tmp_path):
  call(run)
  images = np.random.RandomState(0).randint(0, 256, (7, 8, 8, 1)).astype(np.uint8)
  np.save(tmp_path / 'images.npy', images)
  alone(
    tmp_path,
    'import jax, numpy as np\n'
    "f = jax.export.deserialize(open(sys.argv[1], 'rb').read())\n"
    "assert f.platforms == ('cpu', 'cuda', 'tpu')\n"
    "images = np.load('images.npy')\n"
    "np.savez('logits.npz', seven=f.call(images), one=f.call(images[:1]))\n",
    run / 'network.stablehlo',
  )
  logits = np.load(tmp_path / 'logits.npz')
  apply, variables = finished.load(run)
  want = apply(variables, images)
  np.testing.assert_allclose(logits['seven'], want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(logits['one'], want[:1], rtol=1e-5, atol=1e-5)
  about = json.loads((run / 'network.stablehlo.json').read_text())
  assert about['image'] == [8, 8, 1] and len(about['class_names']) == 10
  assert about['stage'] == 'finetuned, pass 1' and 0 <= about['accuracy'] <= 1


def test_safetensors_and_their_definition_are_the_network(run, tmp_path):
  call(run, '--format=safetensors', f'--output={tmp_path}/thin.safetensors')
  image = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
  np.save(tmp_path / 'image.npy', image)
  alone(
    tmp_path,
    'import jax, network, numpy as np, safetensors.numpy\n'
    "np.savez('w.npz', **safetensors.numpy.load_file('thin.safetensors'))\n"
    "apply, variables = network.load('thin.safetensors')\n"
    "np.save('logits.npy', jax.jit(apply)(variables, np.load('image.npy')))\n",
  )
  loaded = dict(np.load(tmp_path / 'w.npz'))
  apply, variables = finished.load(run)
  logits = np.asarray(apply(variables, image))
  np.testing.assert_allclose(
    np.load(tmp_path / 'logits.npy'), logits, atol=2e-6 * abs(logits).max()
  )
  want = {tree.show(path): leaf for path, leaf in tree.flatten(variables).items()}
  assert set(loaded) == set(want)
  for name, leaf in want.items():
    np.testing.assert_array_equal(loaded[name], leaf)
  about = json.loads((tmp_path / 'thin.safetensors.json').read_text())
  assert about['widths'] and about['params'] == sum(
    leaf.size for name, leaf in want.items() if name.startswith('params/')
  )


def test_safetensors_have_the_original_indices(run, tmp_path):
  """They are enough to build the full network with zeros, whatever its streams are."""
  (tmp_path / 'thin.safetensors').write_bytes(
    safetensors_file.convert(finished.load(run)[1], plan=finished.plan(run))
  )
  alone(
    tmp_path,
    WITHOUT_JAX + 'import json, numpy as np, safetensors\n'
    "with safetensors.safe_open('thin.safetensors', 'numpy') as file:\n"
    '  shapes, kept = (json.loads(file.metadata()[name]) for name in ("shapes", "kept"))\n'
    '  full = {}\n'
    '  for name in file.keys():\n'
    '    full[name] = np.zeros(shapes[name], np.float32)\n'
    '    at = [range(n) if k is None else k for n, k in zip(shapes[name], kept[name])]\n'
    '    full[name][np.ix_(*at)] = file.get_tensor(name)\n'
    "np.savez('full.npz', **full)\n",
  )
  loaded = dict(np.load(tmp_path / 'full.npz'))
  plan = finished.plan(run)
  assert plan is not None
  want = tree.flatten(plan.expand(finished.load(run)[1]))
  assert set(loaded) == set(map(tree.show, want))
  for path, leaf in want.items():
    np.testing.assert_array_equal(loaded[tree.show(path)], leaf)


def test_export_says_what_is_wrong(tmp_path):
  command = [sys.executable, '-m', 'slim_jax.export', f'--workdir={tmp_path}']
  assert 'holds no run with a complete stage' in commands.run(command, code=1)
  assert 'must be some of cpu, cuda' in commands.run([*command, '--platforms=gpu'], code=1)


def test_no_import_defines_flags(tmp_path):
  """Other absl programs may have flags of the same names, and call what the commands call."""
  (tmp_path / 'program.py').write_text(
    'from absl import app, flags\n'
    "for name in ('format', 'output', 'platforms', 'opset', 'workdir', 'config', 'report', 'until',\n"
    "             'points', 'tolerance', 'sweep', 'batches', 'layer', 'measure', 'allocator'):\n"
    "  flags.DEFINE_string(name, None, 'of the program')\n"
    'import jax, jax.numpy as jnp, numpy as np\n'
    'from slim_jax import command, latency, look, main, sweep\n'
    'from slim_jax.export import __main__, onnx_file, safetensors_file, stablehlo\n'
    'from slim_jax.report import __main__\n'
    'from slim_jax.runs import default\n'
    'def program(argv):\n'
    "  f = lambda x: {'sum': x.sum(1), 'double': 2 * x}\n"
    "  content = stablehlo.convert(f, (3,), dtype='float32')\n"
    '  result = jax.export.deserialize(content).call(np.ones((5, 3), np.float32))\n'
    "  assert (result['sum'] == 3).all() and result['double'].shape == (5, 3)\n"
    "  assert sweep.parse(default.get_config(), ['seed=1,2']) == {'seed': [1, 2]}\n"
    "  rows = [{'fraction': x, 'accuracy': 1, 'recalibrated': 1 - x} for x in (0, .25, .5)]\n"
    '  assert look.suggest(rows, 30) == rows[1]\n'
    "  (row,) = latency.measure({'f': lambda x: x}, (2, 2, 1), (4,), runtime='numpy')\n"
    "  assert row['batch'] == 4 and flags.FLAGS.format == 'theirs'\n"
    'app.run(program)\n'
  )
  environ = {**os.environ, 'PYTHONPATH': str(commands.ROOT)}
  command = [sys.executable, 'program.py', '--format=theirs']
  subprocess.run(command, cwd=tmp_path, env=environ, check=True)


def test_help_names_the_flags_and_how_to_use_a_file():
  text = commands.run([sys.executable, '-m', 'slim_jax.export', '--help'], code=1)
  for part in (
    '--workdir',
    '--format',
    '--platforms',
    'jax.export.deserialize',
    'InferenceSession',
  ):
    assert part in text, part


def normal(name):
  """The name of a distribution as pip compares it."""
  return name.lower().replace('-', '_')


def required(setup, extras):
  """The distributions that pip installs for some extras."""
  lists = [
    setup['options']['install_requires'],
    *(setup['options.extras_require'][e] for e in extras),
  ]
  lines = [line for text in lists for line in text.splitlines() if line]
  return {normal(re.split(r'[\[<>=;]', line)[0].strip()) for line in lines}


def imported(paths):
  """The packages that files import, but for the standard library and ours."""
  packages = set()
  for path in paths:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        packages |= {alias.name.split('.')[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        packages.add(node.module.split('.')[0])
  return packages - {*sys.stdlib_module_names, 'slim_jax'}


# Rooms of the library that import another library, which whoever uses them has.
OF_OTHER_LIBRARIES = {'models', 'adapters', 'linen', 'nnx', 'equinox', 'haiku', 'keras'}


@pytest.mark.parametrize('extras', [(), ('train',)], ids=['library', 'program'])
def test_imports_are_requirements(extras):
  """Those of the program too; and flatbuffers, which jax.export needs and JAX leaves out."""
  setup = configparser.ConfigParser()
  setup.read(commands.ROOT / 'setup.cfg')
  library = set().union(*house.LIBRARY) - OF_OTHER_LIBRARIES
  rooms = set().union(*house.PROGRAM) | {'models'} if extras else library
  packages = imported(path for path in house.sources() if house.room_of(path) in rooms)
  packages |= {'flatbuffers'} if extras else set()
  assert ({'jinja2', 'flatbuffers', 'flax'} if extras else {'jax', 'optax'}) <= packages
  distributions = {
    package: set(map(normal, names)) for package, names in metadata.packages_distributions().items()
  }
  # The library meets flax in parameters of NNX alone, whose owner has it.
  wanted = required(setup, extras) | {'flax'}
  missing = {package for package in packages if not wanted & distributions[package]}
  assert not missing, missing
