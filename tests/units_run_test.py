"""Runs of networks without BatchNorm: gates while they train sparsely, folded at the cut."""

import json

from helpers import configs
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models, tree
from slim_jax.export import safetensors_file, stablehlo
from slim_jax.models import narrow_networks
from slim_jax.report import page
from slim_jax.runs import checks, default, errors, gated, pipeline, stages
from slim_jax.runs import finished as runs_finished
from slim_jax.runs.run import open_run
from slim_jax.runs.workdir import Workdir
from slim_jax.training import checkpoint

FIELDS = {
  'train_split': 'train[:128]',
  'test_split': 'test[:50]',
  'eval_batch_size': 50,
  'model.patch': 4,
  'model.width': 8,
  'model.heads': (3,),
  'model.head_dim': 4,
  'model.neurons': (48,),
  'baseline_epochs': 0,
  'train.epochs': 2,
  'train.warmup_epochs': 0.0,
  'finetune.epochs': 0,
  'prune.target': 'macs:0.8',
  'prune.reconstruct_batches': 1,
  'prune.keep': ('*heads*',),
  'passes': 2,
  'devices': 1,
}


def config_of(digits_dir, **changes):
  return configs.load('digits_vit', data_dir=digits_dir, **{**FIELDS, **changes})


@pytest.fixture(scope='module')
def finished(digits_dir, tmp_path_factory):
  config, workdir = config_of(digits_dir), tmp_path_factory.mktemp('run')
  return config, workdir, pipeline.run(config, workdir)


def arrays(workdir, stage):
  return checkpoint.read(workdir / 'checkpoints' / stage)


def test_two_passes_remove_units(finished):
  _, _, records = finished
  names = [record['stage'] for record in records]
  assert names == ['sparse', 'pruned'] * 2
  full, first, _, second = records
  assert 0.6 < first['macs'] / full['macs'] <= 0.8 and 0.6 < second['macs'] / first['macs'] <= 0.8
  assert full['widths']['params/gates/Block_0/Dense_0/neurons/scale'] == 48
  assert {
    record['widths']['params/gates/Block_0/Attention_0/heads/scale'] for record in records
  } == {3}
  assert (
    sum(second['widths'].values()) < sum(first['widths'].values()) < sum(full['widths'].values())
  )
  assert full['start'] == 1.0
  assert first['reconstruct_images'] == 64


def test_gates_are_folded_at_the_cut(finished):
  """The thin network computes what the gated one does without the units that went."""
  config, workdir, _ = finished
  opened = open_run(config, Workdir(workdir))
  sparse, pruned = (arrays(workdir, stage) for stage in ('1-sparse', '1-pruned'))
  assert gated.GATES not in pruned['params']
  plan = Workdir(workdir).plan_after(stages.Stage(1, 'pruned'))
  assert opened.units is not None and plan is not None
  params = {name: part for name, part in sparse['params'].items() if name != gated.GATES}
  gates = gated.parted({'params': sparse['params']}, opened.units)[1]
  folded = slim_jax.fold({'params': params}, gates, opened.units)
  thin = tree.flatten(plan.slice(folded))
  refitted = 0
  for path, leaf in tree.flatten({'params': pruned['params']}).items():
    same = np.allclose(leaf, thin[path], atol=1e-6)
    refitted += not same
    assert same or path[-1] == 'kernel'
  assert refitted == 1  # the layer that reads the neurons


def test_momentum_is_kept(finished):
  """Adam's means of what stays, through the cut and into the next pass."""
  _, workdir, _ = finished
  plan = Workdir(workdir).plan_after(stages.Stage(1, 'pruned'))
  assert plan is not None
  sparse, pruned = (
    tree.flatten(arrays(workdir, f'1-{s}')['opt_state']) for s in ('sparse', 'pruned')
  )
  path = next(p for p in pruned if p[-4:] == ('mu', 'Block_0', 'Dense_1', 'kernel'))
  cut = plan.cuts['params', *path[-3:]]
  np.testing.assert_array_equal(pruned[path], sparse[path][np.ix_(*cut.indices)])
  assert np.abs(pruned[path]).max() > 0
  assert not any(gated.GATES in path for path in pruned)


def test_the_result_loads_without_gates(finished):
  _, workdir, records = finished
  apply, variables = slim_jax.load(workdir)
  assert gated.GATES not in variables['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == records[-1]['params']
  assert apply(variables, jnp.zeros((2, 8, 8, 1), jnp.uint8)).shape == (2, 10)
  # The page shows units.
  page.at_end(workdir, timed=False)
  text = (workdir / 'report' / 'index.html').read_text()
  assert 'Units: sparse' in text and 'a part of the report is left out' not in text


def test_the_result_is_an_ordinary_module(finished, tmp_path):
  """Of other widths: in Flax with and without slim_jax, and in every export."""
  _, workdir, _ = finished
  apply, variables = slim_jax.load(workdir)
  about, plan = runs_finished.about(workdir), runs_finished.plan(workdir)
  assert about['module']['class'] == 'ViT' == about['full_module']['class']
  (path := tmp_path / 'network.safetensors').write_bytes(
    safetensors_file.convert(variables, plan=plan)
  )
  (tmp_path / 'network.safetensors.json').write_text(json.dumps(about))
  image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8))
  want = apply(variables, image)
  alone, loaded = narrow_networks.load(path)
  np.testing.assert_allclose(alone(loaded, image), want, atol=1e-5)
  predict, variables = runs_finished.load(workdir)
  file = stablehlo.convert(lambda image: predict(variables, image), about['image'])
  np.testing.assert_allclose(jax.export.deserialize(bytearray(file)).call(image), want, atol=1e-5)
  left = finished[2][-1]['widths']['params/gates/Block_0/Dense_0/neurons/scale']
  module = runs_finished.module(workdir)
  assert type(module) is models.ViT and module.neurons == (left,) and module.heads == (3,)


@pytest.mark.slow
def test_without_strength_gates_stay_one(digits_dir, tmp_path):
  """The sparse stage is then the baseline, and scores choose."""
  config = config_of(
    digits_dir,
    passes=1,
    baseline_epochs=2,
    **{'train.pull': 0.0, 'prune.score': 'activation', 'prune.keep': ()},
  )
  records = pipeline.run(config, tmp_path)
  baseline, sparse = (arrays(tmp_path, s)['params'] for s in ('0-baseline', '1-sparse'))
  gates = sparse.pop(gated.GATES)
  assert all((gate == 1).all() for gate in jax.tree.leaves(gates))
  jax.tree.map(np.testing.assert_array_equal, sparse, baseline)
  assert records[-1]['macs'] < 0.8 * records[0]['macs']
  with pytest.raises(errors.WorkdirError, match='prune.units'):
    pipeline.run(config_of(digits_dir, **{'passes': 1, 'prune.units': 'heads'}), tmp_path)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'prune.units': 'headz'}, "prune.units='headz': where: .*Kinds of this network: heads"),
    ({'prune.units': ''}, 'config.prune.units names units'),
    ({'prune.keep': ('*Blok*',)}, 'prune.keep'),
  ],
)
def test_units_that_cannot_be_found(changes, message, digits_dir, tmp_path):
  with pytest.raises(errors.ConfigError, match=message):
    pipeline.run(config_of(digits_dir, **changes), tmp_path)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'prune.bias': 'keep'}, "prune.bias must be 'zero'"),
    ({'prune.tied': 'sum'}, "prune.tied must be ''"),
    ({'train.pull': 0.0}, 'set prune.score'),
    ({'prune.score': 'tailor'}, "did you mean 'taylor'"),
    ({'prune.reconstruct_batches': -1}, 'must be at least 0'),
  ],
)
def test_options_that_units_do_not_have(changes, message):
  with pytest.raises(errors.ConfigError, match=message):
    checks.check_config(configs.load('digits_vit', **changes))


def test_each_field_of_the_cut_belongs_to_a_stage():
  fields = {f'prune.{name}' for name in default.get_config().prune}
  of_stages = {name for names in stages.LATER.values() for name in names}
  assert fields == {name for name in of_stages if name.startswith('prune.')}
