"""The benchmarks run, without PyTorch, at their smallest; and their tables say what was found."""

import importlib
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models

BENCHMARKS = pathlib.Path(__file__).parent / 'benchmarks'
sys.path.append(str(BENCHMARKS))

import evaluation  # noqa: E402  (from there)
import memory  # noqa: E402
import native  # noqa: E402
import planning  # noqa: E402
import realised  # noqa: E402
import side_by_side  # noqa: E402
import training  # noqa: E402


def options_of(*arguments, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['benchmark', *map(str, arguments)])
  return side_by_side.parse(side_by_side.options('One line.', rounds=2, peer=False))


def run(benchmark, *arguments, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['benchmark', *map(str, arguments)])
  benchmark.main()


@pytest.mark.parametrize(
  'benchmark',
  [training, planning, realised, evaluation, memory],
  ids=lambda module: module.__name__,
)
def test_help(benchmark, monkeypatch, capsys):
  with pytest.raises(SystemExit) as error:
    run(benchmark, '--help', monkeypatch=monkeypatch)
  assert error.value.code == 0
  assert f'python tests/benchmarks/{benchmark.__name__}.py' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['budget', 'growth', 'input', 'widths'])
def test_help_of_those_without_a_peer(name, monkeypatch, capsys):
  with pytest.raises(SystemExit) as error:
    run(importlib.import_module(name), '--help', monkeypatch=monkeypatch)
  assert error.value.code == 0 and 'usage: benchmark' in capsys.readouterr().out


def test_planning_alone(tmp_path, monkeypatch, capsys):
  path = tmp_path / 'planning.json'
  run(
    planning,
    '--alone',
    '--network',
    '--depth',
    20,
    '--rounds',
    1,
    '--no-call',
    '--json',
    path,
    monkeypatch=monkeypatch,
  )
  found = json.loads(path.read_text())
  (row,) = found['rows']
  assert row['network'] == 'PreResNet-20'
  assert 0 < row['plan, s'] < row['slim_jax, s'] and row['Torch-Pruning, s'] is None
  assert 0.2 < row['params left'] < 0.5
  assert found['machine']['cores'] >= 1 and found['machine']['jax'] == jax.__version__
  assert len(capsys.readouterr().out.splitlines()) == 3


def test_memory_is_that_of_a_process():
  """Of one that imports JAX: neither nothing nor gigabytes."""
  if not memory.STATUS.exists():
    pytest.skip('peak memory is read from /proc')
  assert 50 < memory.measured('start', 'vgg19', 1) < 2000
  assert memory.peak() > 50


def test_calls_take_turns_and_the_first_does_not_count(monkeypatch):
  options, order = options_of(monkeypatch=monkeypatch), []
  monkeypatch.setattr(side_by_side, 'PAUSE', 0)
  calls = {name: (lambda name=name: order.append(name)) for name in 'ab'}
  times = side_by_side.take_turns(calls, options)
  assert order == list('ababab')
  assert {name: len(found) for name, found in times.items()} == {'a': 2, 'b': 2}


def test_tables_are_printed_and_written(tmp_path, monkeypatch, capsys):
  path = tmp_path / 'table.json'
  options = options_of('--json', path, monkeypatch=monkeypatch)
  table = side_by_side.Table(('name', 'seconds', 'ratio'), options)
  table.add('one', 0.123456, None)
  assert json.loads(path.read_text())['rows'] == [
    {'name': 'one', 'seconds': 0.123456, 'ratio': None}
  ]
  assert capsys.readouterr().out.splitlines()[-1] == '| one | 0.123 |  |'
  with pytest.raises(ValueError):
    table.add('too few')


def test_options_are_checked(monkeypatch, capsys):
  with pytest.raises(SystemExit):
    options_of('--rounds', 0, monkeypatch=monkeypatch)
  assert '--rounds must be at least 1, got 0' in capsys.readouterr().err


@pytest.mark.parametrize(
  'name, model',
  [
    ('vgg19', models.create('vgg19', num_classes=4)),
    ('preresnet164', models.PreResNet(num_classes=4, depth=20, width=4)),
    ('densenet40', models.DenseNet(num_classes=4, depth=13, growth=4)),
    ('resnet50', models.ResNet(num_classes=4, blocks=(2, 1, 1, 1), width=4)),
  ],
)
def test_native_networks_have_the_layers_of_thin_ones(name, model):
  """Of thin variables, the tree and the arithmetic; of full ones, the outputs too."""
  image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros(image.shape), train=False)
  )
  rng = np.random.default_rng(0)
  full = jax.tree.map(lambda a: rng.uniform(size=a.shape).astype('float32'), shapes)

  def function(module):
    return lambda variables, x: module.apply(variables, x, train=False)

  dead = slim_jax.select_global(full, fraction=0.5, min_channels=1)
  plan = slim_jax.plan(function(model), full, image, dead=dead)
  thin = plan.slice(shapes)
  narrow = native.create(name, thin['params'])
  of = lambda module: jax.eval_shape(
    lambda x: module.init(jax.random.key(0), x, train=False), image
  )
  assert jax.tree.map(lambda a: a.shape, of(narrow)) == jax.tree.map(lambda a: a.shape, thin)
  assert (
    slim_jax.count(function(narrow), thin, image).macs
    == slim_jax.count(slim_jax.thin(function(model), plan), thin, image).macs
  )
  if name != 'vgg19':  # which is the model itself, and large
    x = rng.normal(size=image.shape).astype('float32')
    same = native.create(name, full['params'])
    full = jax.tree.map(lambda a: 0.1 * a, full)
    want, got = (jax.jit(function(m))(full, x) for m in (model, same))
    np.testing.assert_allclose(got, want, rtol=1e-4)
