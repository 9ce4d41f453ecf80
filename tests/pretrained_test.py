"""Runs that start from weights of elsewhere: every format, heads of other classes, and errors."""

import json

from helpers import configs, torch_networks
from helpers.commands import TINY
from helpers.trees import same
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

import slim_jax
from slim_jax import data, models, tree
from slim_jax.export import safetensors_file
from slim_jax.models import from_torch, narrow
from slim_jax.runs import errors, finished, pipeline, pretrained, stages
from slim_jax.training import checkpoint

IMAGE = (8, 8, 3)
WIDTHS = torch_networks.NETWORKS['vgg'][1].widths
NEW = ('params/Dense_0/bias', 'params/Dense_0/kernel')


def model_of(classes=5):
  return models.VGG(num_classes=classes, widths=WIDTHS)


def variables_of(model, seed=0):
  """Random variables, no value twice."""
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *IMAGE)), train=False)
  )
  random = np.random.RandomState(seed)
  return jax.tree.map(lambda leaf: random.rand(*leaf.shape).astype(leaf.dtype), shapes)


def write_safetensors(path, variables):
  path = path / 'weights.safetensors'
  path.write_bytes(safetensors_file.convert(variables))
  return path


def write_torch(path, variables):
  """By the names of the authors' code, from arrays that give these variables."""
  network, _ = torch_networks.NETWORKS['vgg']
  arrays = torch_networks.random_weights(network)
  jax.tree.map(
    lambda to, of: to.__setitem__(..., of),
    variables,
    jax.tree.map(np.array, from_torch.from_state_dict(model_of(), arrays)),
  )
  path = path / 'vgg.safetensors'
  safetensors.numpy.save_file(
    {f'module.{name}': np.asarray(value) for name, value in arrays.items()}, path
  )
  return path


def write_orbax(path, variables):
  """A checkpoint as training loops keep it, with more than variables."""
  path = path / 'checkpoint'
  with ocp.StandardCheckpointer() as writer:
    writer.save(path, {**variables, 'step': jnp.int32(3), 'opt_state': [variables['params']]})
  return path


def write_numbered(path, variables):
  path = path / 'checkpoints'
  with ocp.CheckpointManager(path) as manager:
    for step, tree_ in ((9, jax.tree.map(np.zeros_like, variables)), (10, variables)):
      manager.save(step, args=ocp.args.StandardSave(tree_))
      manager.wait_until_finished()
  return path


formats = pytest.mark.parametrize(
  'write', [write_safetensors, write_torch, write_orbax, write_numbered]
)


@formats
def test_weights_of_every_format(write, tmp_path):
  variables = variables_of(model_of())
  path = write(tmp_path, variables)
  found = pretrained.load(str(path), model_of(), variables_of(model_of(), seed=1), IMAGE)
  assert found.new == () and same(found.variables, variables)
  assert jax.tree.structure(found.variables) == jax.tree.structure(variables)


@formats
def test_a_head_for_other_classes_is_new(write, tmp_path):
  variables = variables_of(model_of())
  path = write(tmp_path, variables)
  fresh = variables_of(model_of(7), seed=1)
  found = pretrained.load(str(path), model_of(7), fresh, IMAGE)
  assert found.new == NEW
  for name, leaf in tree.flatten(found.variables).items():
    source = fresh if tree.show(name) in NEW else variables
    np.testing.assert_array_equal(leaf, tree.flatten(source)[name])


@formats
def test_weights_of_another_network_are_refused(write, tmp_path):
  path = write(tmp_path, variables_of(model_of()))
  wider = models.VGG(num_classes=7, widths=(*WIDTHS[:-1], 18))
  with pytest.raises(errors.ConfigError, match=f'config.init_from={path}') as error:
    pretrained.load(str(path), wider, variables_of(wider), IMAGE)
  (line,) = [line for line in str(error.value).splitlines() if 'of another shape: ' in line]
  # Several layers differ, so it is not for other classes alone.
  assert (
    'feature.14.weight is [16, 10, 3, 3], not [18, 10, 3, 3]' in line
    or 'Conv_4/kernel is [3, 3, 10, 16], not [3, 3, 10, 18]' in line
  )


def test_other_names_are_listed(tmp_path):
  path = write_orbax(tmp_path, variables_of(model_of()))
  other = models.PreResNet(num_classes=5, depth=11, width=4)
  with pytest.raises(errors.ConfigError) as error:
    pretrained.load(str(path), other, variables_of(other), IMAGE)
  first, missing, unexpected, *_ = str(error.value).splitlines()
  assert first == f'config.init_from={path} does not fit config.model:'
  assert missing.startswith('  missing: ') and missing.endswith(' ...') and len(missing) < 420
  assert 'params/BatchNorm_1/bias' in unexpected


def test_networks_without_counterpart_take_no_names_of_pytorch(tmp_path):
  path = write_torch(tmp_path, variables_of(model_of()))
  other = models.MLP(num_classes=5)
  with pytest.raises(errors.ConfigError, match='no network of the PyTorch implementations'):
    pretrained.load(str(path), other, variables_of(other), IMAGE)


def test_what_cannot_be_read_is_told(tmp_path):
  variables = variables_of(model_of())
  with pytest.raises(errors.ConfigError, match='nowhere: there is no such file or directory'):
    pretrained.read(str(tmp_path / 'nowhere'))
  path = write_safetensors(tmp_path, variables)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(
    errors.ConfigError, match='is no safetensors file, or is damaged: .*save_file'
  ):
    pretrained.read(str(path))
  head = b'{"params/x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}'
  path.write_bytes(len(head).to_bytes(8, 'little') + head + bytes(2))
  with pytest.raises(errors.ConfigError, match='has arrays of type BF16: save them as float32'):
    pretrained.read(str(path))
  (tmp_path / 'empty').mkdir()
  with pytest.raises(
    errors.ConfigError, match='empty is neither an Orbax checkpoint nor a workdir'
  ):
    pretrained.read(str(tmp_path / 'empty'))
  path = write_orbax(tmp_path, variables)
  (path / '_METADATA').write_bytes((path / '_METADATA').read_bytes()[:50])
  with pytest.raises(
    checkpoint.CheckpointError, match='checkpoint cannot be read: its list of arrays'
  ):
    pretrained.read(str(path))
  with ocp.StandardCheckpointer() as writer:
    writer.save(tmp_path / 'state', {'weights': jnp.ones(2), 'step': jnp.int32(3)})
  with pytest.raises(
    errors.ConfigError, match="state holds no tree with 'params', only step, weig"
  ):
    pretrained.read(str(tmp_path / 'state'))


@pytest.fixture(scope='module')
def config(digits_dir):
  config = configs.load('digits')
  config.update_from_flattened_dict(
    {
      **TINY,
      'data_dir': digits_dir,
      'passes': 1,
      'train.epochs': 1,
      'finetune.epochs': 0,
      'prune.bias': 'zero',
    }
  )
  return config


@pytest.fixture(scope='module')
def run(config, tmp_path_factory):
  """A complete run: baseline, sparse, pruned."""
  workdir = tmp_path_factory.mktemp('run')
  return workdir, pipeline.run(config, workdir)


def changed(config, **changes):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(changes)
  return config


def stage(workdir, name):
  arrays = checkpoint.read(workdir / 'checkpoints' / name)
  return {name: arrays[name] for name in ('params', 'batch_stats')}


def test_a_run_starts_from_a_stage_of_another(config, run, tmp_path):
  """Baseline and sparse stage do, networks from scratch do not; nothing moves but by training."""
  workdir, records = run
  source = workdir / 'checkpoints' / '0-baseline'
  config = changed(
    config,
    **{
      'init_from': str(source),
      'train.learning_rate': 1e-9,
      'train.strength': 0.0,
      'scratch.e': True,
    },
  )
  found = {row['stage']: row for row in pipeline.run(config, tmp_path)}
  want = stage(workdir, '0-baseline')['params']
  for name in ('0-baseline', '1-sparse'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
      stage(tmp_path, name)['params'],
      want,
    )
  for name in ('baseline', 'sparse'):
    assert found[name]['new_head'] == []
    assert found[name]['start_accuracy'] == records[0]['accuracy']
  assert 'new_head' not in found['pruned'] and 'new_head' not in found['scratch-e']
  kernels = [
    stage(tmp_path, name)['params']['Dense_0']['kernel'] for name in ('1-pruned', '1-scratch-e')
  ]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-2
  rows = json.loads((tmp_path / 'summary.json').read_text())['stages']
  assert rows[0]['start_accuracy'] == records[0]['accuracy']


def test_a_new_head_is_said_and_what_is_complete_needs_no_weights(config, run, tmp_path, caplog):
  workdir, _ = run
  variables = stage(workdir, '0-baseline')
  variables['params']['Dense_0'] = {
    'kernel': np.ones((6, 4), np.float32),
    'bias': np.ones(4, np.float32),
  }
  path = write_safetensors(tmp_path, variables)
  config = changed(config, init_from=str(path), baseline_epochs=0)
  sparse = stages.Stage(1, 'sparse')
  with caplog.at_level('INFO', logger='absl'):
    (row,) = pipeline.run(config, tmp_path / 'run', last=sparse)
  assert row['new_head'] == list(NEW) and 'start_accuracy' not in row
  assert 'another number of classes than 10, so the head is new: params/De' in caplog.text
  path.unlink()
  assert pipeline.run(config, tmp_path / 'run', last=sparse) == [row]
  assert len(pipeline.run(config, tmp_path / 'run')) == 2


def test_errors_come_before_data_are_looked_for(config, tmp_path):
  config = changed(config, init_from=str(tmp_path / 'no'), dataset='folder:/nowhere')
  with pytest.raises(errors.ConfigError, match='no: there is no such file or directory'):
    pipeline.run(config, tmp_path / 'run')


def test_weights_that_do_not_fit_leave_nothing_behind(config, run, tmp_path):
  workdir, _ = run
  source = str(workdir / 'checkpoints' / '0-baseline')
  other = changed(config, **{'init_from': source, 'model.widths': (6, 'M', 7)})
  with pytest.raises(errors.ConfigError, match='BatchNorm_1/scale is .6., not .7.'):
    pipeline.run(other, tmp_path)
  assert not (tmp_path / 'config.json').exists() and not (tmp_path / 'checkpoints').exists()


def test_a_pruned_run_is_no_start(run):
  workdir, _ = run
  with pytest.raises(
    errors.ConfigError, match='pruned already; give one of its stages: .*/0-baseline or .*/1-sparse'
  ):
    pretrained.read(str(workdir))


def test_a_run_that_is_not_pruned_is_one(config, run, tmp_path):
  workdir, records = run
  (tmp_path / 'stages.json').write_text(json.dumps(records[:1]))
  (tmp_path / 'checkpoints').symlink_to(workdir / 'checkpoints')
  found = pretrained.read(str(tmp_path))
  want = tree.flatten(stage(workdir, '0-baseline'))
  assert all(np.array_equal(found[path], leaf) for path, leaf in want.items())


def test_the_module_of_a_finished_run(config, run):
  workdir, records = run
  module = finished.module(workdir)
  assert list(records[-1]['widths'].values()) == [w for w in module.widths if w != 'M']
  about = finished.about(workdir)
  apply, variables = slim_jax.load(workdir)
  images = np.random.RandomState(0).randint(0, 256, (3, 8, 8, 1)).astype(np.uint8)
  x = data.normalize(images, *(np.float32(about[name]) for name in ('mean', 'std')))
  np.testing.assert_allclose(
    module.apply(variables, x, train=False), apply(variables, images), rtol=1e-5, atol=1e-6
  )
  assert about['module'] == narrow.describe(module)
  assert json.loads(json.dumps(about))['module']['widths'] == list(module.widths)
