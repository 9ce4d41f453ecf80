"""What a config can ask for besides: model choice, new weights, tied channels, streams."""

import json

from helpers import configs
import jax
import numpy as np
import PIL.Image
import pytest

import slim_jax
from slim_jax import data, tree
from slim_jax.display import tables
from slim_jax.runs import checks, errors, network, pipeline, pruning, stages
from slim_jax.training import checkpoint, feed, steps


@pytest.fixture(scope='module')
def evaluated():
  """Parameters of the variables by which an evaluation has been traced."""
  return []


@pytest.fixture(scope='module')
def finished(digits_dir, tmp_path_factory, evaluated):
  config = configs.with_options(data_dir=digits_dir)
  workdir = tmp_path_factory.mktemp('run')
  eval_step = steps.eval_step

  def traced(predict, variables, batch, **options):
    evaluated.append(sum(leaf.size for leaf in jax.tree.leaves(variables['params'])))
    return eval_step(predict, variables, batch, **options)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(steps, 'eval_step', traced)
    return config, workdir, {row['stage']: row for row in pipeline.run(config, workdir)}


def variables_of(workdir, stage):
  arrays = checkpoint.read(workdir / 'checkpoints' / stage)
  return {name: arrays[name] for name in ('params', 'batch_stats')}


def lines_of(workdir, stage):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [line for line in lines if line['stage'] == stage]


def test_pull_decides_the_strength(finished):
  _, _, rows = finished
  sparse = rows['sparse']
  assert sparse['pull'] == pytest.approx(1.5) and sparse['start'] == 0.5
  # 8 steps, twice the learning rate: 4 at 0.2, 2 at 0.02 and 2 at 0.002.
  assert sparse['strength'] * 10 * 0.844 > 1.5 > sparse['strength'] * 0.844
  assert sparse['warning'] == '' and 0 <= sparse['small_scales'] <= 1


def test_evaluation_is_traced_once_for_each_network(finished, evaluated):
  _, _, rows = finished
  assert len(rows) == 6
  assert evaluated == [rows['sparse']['params'], rows['pruned']['params']]


def test_learning_rate_follows_the_batch_size(finished):
  _, workdir, _ = finished
  assert [line['learning_rate'] for line in lines_of(workdir, 'baseline')] == (
    pytest.approx([0.2, 0.02, 0.002])
  )


def test_model_is_the_best_on_the_validation_split(finished):
  config, workdir, rows = finished
  for stage in ('baseline', 'finetuned', 'scratch-e'):
    accuracy = [line['valid_accuracy'] for line in lines_of(workdir, stage)]
    best = max(range(len(accuracy)), key=lambda i: (accuracy[i], i)) + 1
    assert rows[stage]['best_epoch'] == best
  assert 'best_epoch' not in rows['sparse'] and 'best_epoch' not in rows['pruned']
  assert 'valid_accuracy' not in lines_of(workdir, 'sparse')[0]

  # What is reported is that model, and the next stage would start from it.
  train_data, test = (
    data.load('digits', data_dir=config.data_dir, split=split)
    for split in (config.train_split, config.test_split)
  )
  net = network.create(config, 10)
  image = data.normalize(test.image, train_data.mean, train_data.std)
  logits = net.predict(variables_of(workdir, '0-baseline'), image)
  assert np.mean(np.argmax(logits, -1) == test.label) == (
    pytest.approx(rows['baseline']['accuracy'])
  )


def test_table_names_the_best(finished):
  _, _, rows = finished
  table = tables.table(list(rows.values()))
  stages = list(table.columns[1].cells)
  assert stages[0] == f'baseline (best, epoch {rows["baseline"]["best_epoch"]})'
  assert stages[1] == 'sparse'


def test_scratch_trains_the_thin_network_from_new_weights(finished):
  _, workdir, rows = finished
  assert list(rows) == ['baseline', 'sparse', 'pruned', 'finetuned', 'scratch-e', 'scratch-b']
  for name in ('scratch-e', 'scratch-b'):
    assert [rows[name][k] for k in ('params', 'macs', 'widths')] == [
      rows['pruned'][k] for k in ('params', 'macs', 'widths')
    ]
  assert len(lines_of(workdir, 'scratch-e')) == 2
  assert (
    len(lines_of(workdir, 'scratch-b'))
    == round(2 * rows['baseline']['macs'] / rows['pruned']['macs'])
    > 2
  )
  a, b = (variables_of(workdir, f'1-scratch-{letter}') for letter in 'eb')
  assert jax.tree.map(np.shape, a) == jax.tree.map(np.shape, b)
  assert not np.array_equal(a['params']['Conv_0']['kernel'], b['params']['Conv_0']['kernel'])


def test_load_and_changes_leave_scratch_aside(finished):
  config, workdir, rows = finished
  _, variables = slim_jax.load(workdir)
  jax.tree.map(np.testing.assert_array_equal, variables, variables_of(workdir, '1-finetuned'))
  with config.unlocked():
    config = configs.with_options(data_dir=config.data_dir, **{'scratch.b': False})
  assert {row['stage']: row for row in pipeline.run(config, workdir)} == rows


@pytest.mark.parametrize('tied', ['sum', 'max'])
def test_tied_channels_go_together_in_every_pass(tied):
  config = configs.with_options(**{'prune.tied': tied})
  with config.unlocked():
    config.model = {'name': 'resnet', 'blocks': (2, 2), 'width': 4}
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
  original = net = network.create(config, 10)
  random = np.random.RandomState(0)

  def shuffled(variables):
    return tree.map_with_path(
      lambda path, x: random.rand(*x.shape).astype(np.float32) + 0.01, variables
    )

  before = shuffled(net.shapes(image))
  widths = []
  for _ in range(2):
    dead = pruning.select_dead(net, before, image, config.prune)
    plan = slim_jax.plan(
      original.predict,
      original.shapes(image),
      image,
      dead=net.plan.lift(dead) if net.plan else dead,
    )
    net = network.create(config, 10, plan)
    before = shuffled(net.shapes(image))
    thin = tree.flatten(before)
    # The stream itself gets thin: all that is added to it has as many channels.
    out = [
      thin['params', f'Block_{block}', name, 'kernel'].shape[-1]
      for stage in ((0, 1), (2, 3))
      for block, name in zip((stage[0], *stage), ('projection', 'Conv_2', 'Conv_2'))
    ]
    assert out == [out[0]] * 3 + [out[3]] * 3
    widths.append((out[0], out[3]))
  assert np.all(np.diff([(16, 32), *widths], axis=0) < 0), widths


@pytest.mark.parametrize('strict, removed', [(True, 9), (False, 4)])
def test_equal_scales(strict, removed):
  """The configs of the paper remove all whose scale equals the threshold, others as many as asked."""
  config = configs.with_options(**{'prune.fraction': 0.3, 'prune.strict': strict})
  assert configs.load('cifar10_vgg19').prune.strict and not configs.load('digits').prune.strict
  image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
  net = network.create(config, 10)
  scales = {'BatchNorm_0': np.zeros(6), 'BatchNorm_1': np.array([1, 0, 0, 2, 0, 3])}
  variables = tree.map_with_path(
    lambda path, x: scales[path[-2]] if path[-1] == 'scale' else x, net.shapes(image)
  )
  with config.unlocked():
    config.prune.min_channels = 0
  dead = pruning.select_dead(net, variables, image, config.prune)
  assert sum(mark.sum() for mark in jax.tree.leaves(dead)) == removed
  difference = pruning.unlike_asked(dead, config.prune, variables)
  if strict:
    assert difference.startswith('prune.fraction=0.3 asks for 4 of 12 channels, 9 (75.0%) are')
  else:
    assert not difference


@pytest.mark.parametrize(
  'changes, said',
  [
    ({}, ''),
    ({'per_layer': True}, ''),
    ({'fraction': 0.0}, ''),
    ({'target': 'macs:0.5'}, ''),
    ({'keep': ('*BatchNorm_0*',)}, ''),
    ({'max_fraction': 0.2}, 'asks for 7 of 12 channels, 2 (16.7%)'),
    ({'multiple_of': 4}, 'asks for 7 of 12 channels, 4 (33.3%)'),
  ],
)
def test_a_share_that_is_not_the_one_asked_for(changes, said):
  config = configs.with_options(**{'prune.fraction': 0.5, 'prune.min_channels': 0})
  image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
  net = network.create(config, 10)
  random = np.random.RandomState(0)
  variables = tree.map_with_path(
    lambda path, x: random.rand(*x.shape).astype(np.float32), net.shapes(image)
  )
  with config.unlocked():
    config.prune.update(changes)
  difference = pruning.unlike_asked(
    pruning.select_dead(net, variables, image, config.prune), config.prune, variables
  )
  assert said in difference and bool(said) == bool(difference)


def test_biases_stay_in_every_pass(finished, tmp_path):
  config, _, _ = finished
  config = configs.with_options(
    data_dir=config.data_dir,
    **{
      'prune.bias': 'keep',
      'passes': 2,
      'baseline_epochs': 0,
      'finetune.epochs': 1,
      'recalibrate_batches': 2,
      'valid_split': '',
      'scratch.e': False,
      'scratch.b': False,
    },
  )
  records = pipeline.run(config, tmp_path)
  assert [row['stage'] for row in records] == ['sparse', 'pruned', 'recalibrated', 'finetuned'] * 2
  full = network.create(config, 10)
  image = np.random.RandomState(0).randn(5, 8, 8, 1).astype(np.float32)
  before = None
  for number in (1, 2):
    plan = slim_jax.Plan.load(tmp_path / f'plan-{number}.npz')
    variables = variables_of(tmp_path, f'{number}-sparse')
    dead = slim_jax.select_global(variables, fraction=config.prune.fraction, min_channels=1)
    if before is not None:
      dead, variables = before.lift(dead), before.expand(variables)
    got = slim_jax.thin(full.predict, plan)(variables_of(tmp_path, f'{number}-pruned'), image)
    want = full.predict(slim_jax.mask(variables, dead, bias='keep'), image)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    before = plan
    pruned, after = (
      variables_of(tmp_path, f'{number}-{name}') for name in ('pruned', 'recalibrated')
    )
    jax.tree.map(np.testing.assert_array_equal, pruned['params'], after['params'])
    assert all(
      not np.array_equal(*pair)
      for pair in zip(*map(jax.tree.leaves, (pruned['batch_stats'], after['batch_stats'])))
    )
  assert slim_jax.load(tmp_path)[0] is not None


@pytest.mark.parametrize(
  'changes',
  [
    {'train.term': 'proximal', 'train.strength_warmup_epochs': 0.5, 'train.pull': 0.6},
    {'train.term': 'polarization', 'train.weigh_macs': True},
    pytest.param(
      {
        'train.term': 'proximal',
        'cross_replica_batch_norm': True,
        'devices': 2,
        'accumulate_steps': 2,
        'steps_per_call': 3,
        'recalibrate_batches': 2,
      },
      marks=pytest.mark.slow,
    ),
  ],
)
def test_sparsity_terms_and_ways_to_train(finished, tmp_path, changes):
  config, _, _ = finished
  config = configs.with_options(
    data_dir=config.data_dir,
    **{'baseline_epochs': 1, 'valid_split': '', 'scratch.e': False, 'scratch.b': False, **changes},
  )
  rows = {row['stage']: row for row in pipeline.run(config, tmp_path)}
  assert rows['sparse']['pull'] == pytest.approx(changes.get('train.pull', 1.5))
  scale = np.concatenate(
    [
      np.ravel(leaf['scale'])
      for name, leaf in variables_of(tmp_path, '1-sparse')['params'].items()
      if 'BatchNorm' in name
    ]
  )
  assert np.any(scale == 0) and np.all(scale <= 1)
  below = [line['scales_below'] for line in lines_of(tmp_path, 'sparse')]
  assert len(below) == 2 and below[-1]['0.0001'] >= np.mean(scale == 0) > 0
  assert (tmp_path / 'sparsity-1.png').stat().st_size > 5000
  assert rows['finetuned']['accuracy'] > 0


def test_recalibration_may_still_change_before_it_is_done(finished):
  config, _, _ = finished
  free = [
    stages.unused_fields(config, lambda stage, begun=begun: stage.name in begun)
    for begun in ({'baseline'}, {'baseline', 'sparse'}, {'baseline', 'sparse', 'finetuned'})
  ]
  assert ['recalibrate_batches' in names for names in free] == [True, True, False]
  assert ['prune.fraction' in names for names in free] == [True, True, False]
  assert ['prune.units' in names for names in free] == [True, False, False]
  assert ['train.pull' in names for names in free] == [True, False, False]


@pytest.mark.parametrize(
  'changes, check_widths',
  [
    ({'prune.target': 'params:0.4'}, lambda widths: widths != [6, 6]),
    ({'prune.target': 'latency:1'}, lambda widths: widths == [6, 6]),
    ({'prune.target': 'threshold:0.5'}, lambda widths: widths != [6, 6]),
    ({'prune.target': 'gap'}, lambda widths: widths != [6, 6]),
    ({'prune.keep': ('*BatchNorm_0*',)}, lambda widths: widths[0] == 6 > widths[1]),
    ({'prune.multiple_of': 3}, lambda widths: all(n % 3 == 0 for n in widths)),
  ],
)
def test_what_goes_is_said_in_the_config(changes, check_widths):
  config = configs.with_options(**changes)
  net = network.create(config, 10)
  image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
  random = np.random.RandomState(0)
  variables = jax.tree.map(
    lambda x: random.rand(*x.shape).astype(np.float32) + 0.01, net.shapes(image)
  )
  dead = pruning.select_dead(net, variables, image, config.prune)
  widths = [int((~mark).sum()) for mark in jax.tree.leaves(dead)]
  assert check_widths(widths), widths
  if config.prune.target.startswith('params'):
    plan = slim_jax.plan(net.predict, variables, image, dead=dead)
    left = slim_jax.count(slim_jax.thin(net.predict, plan), plan.slice(variables), image).params
    assert left <= 0.4 * slim_jax.count(net.predict, variables, image).params


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Photographs of two classes and several sizes."""
  path, random = tmp_path_factory.mktemp('photos'), np.random.RandomState(0)
  for split, count in (('train', 12), ('val', 5)):
    for label, name in enumerate(('dark', 'light')):
      (path / split / name).mkdir(parents=True)
      for i in range(count):
        pixels = random.randint(0, 128, (20 + i, 30, 3)) + 127 * label
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(path / split / name / f'{i}.png')
  return path


def make_stream_config(folder):
  return configs.with_options(
    **{
      'dataset': f'folder:{folder}',
      'image_size': 16,
      'train_split': 'train',
      'test_split': 'val',
      'valid_split': '',
      'batch_size': 8,
      'base_batch_size': 0,
      'augment.kind': 'imagenet',
      'augment.pad': 0,
      'augment.flip': True,
      'baseline_epochs': 0,
      'finetune.epochs': 0,
      'scratch.e': False,
      'scratch.b': False,
    }
  )


def test_photographs_are_streamed(folder, tmp_path):
  records = pipeline.run(make_stream_config(folder), tmp_path)
  assert [row['stage'] for row in records] == ['sparse', 'pruned']
  lines = lines_of(tmp_path, 'sparse')
  assert [line['step'] for line in lines] == [3, 6]
  apply, variables = slim_jax.load(tmp_path)
  assert apply(variables, np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 2)


def test_stream_continues_where_it_stopped(folder):
  config = make_stream_config(folder)
  train_data = data.load(config.dataset, split='train', image_size=16)
  batches = feed.create(train_data, config, key=jax.random.key(0))
  whole = [jax.device_get(part) for _, part in zip(range(5), batches.steps(0))]
  rest = [jax.device_get(part) for _, part in zip(range(2), batches.steps(3))]
  assert whole[0]['image'].shape == (1, 8, 16, 16, 3)
  jax.tree.map(np.testing.assert_array_equal, whole[3:], rest)


def test_splits_must_belong_together(folder):
  config = make_stream_config(folder)
  one = data.load(config.dataset, split='train', image_size=16)
  other = data.load(config.dataset, split='val', image_size=24)
  with pytest.raises(errors.ConfigError, match=r"test_split='val' has images \(24, 24, 3\)"):
    checks.check_data(config, one, other, 'test_split')


def test_batches_are_the_same_on_any_number_of_devices(finished):
  config, _, _ = finished
  train_data = data.load('digits', data_dir=config.data_dir, split='train[:256]')
  seen = []
  for count in (1, 4):
    config = configs.with_options(devices=count)
    part = next(feed.create(train_data, config, key=jax.random.key(0)).steps(5))
    assert part.sharding.num_devices == count and part.shape == (count, 256 // count)
    seen.append(sorted(np.asarray(part)[:, 64 // count : 128 // count].ravel()))
  assert seen[0] == seen[1]


def test_a_pull_that_is_far_too_large_is_warned_of(digits_dir, tmp_path, caplog):
  """In the first epoch that shows it, and in the record."""
  config = configs.with_options(
    data_dir=digits_dir,
    **{'train.term': 'proximal', 'train.pull': 50, 'train.epochs': 2, 'baseline_epochs': 0},
  )
  with caplog.at_level('WARNING', 'absl'):
    (sparse,) = pipeline.run(config, tmp_path, last=stages.named(config, 'sparse'))
  early = [
    r.getMessage() for r in caplog.records if 'Lower config.train.strength' in r.getMessage()
  ]
  assert len(early) == 1 and early[0].startswith('sparse, pass 1, epoch 1: 100% of the scales')
  assert sparse['warning'].startswith('100% of the scales are below 0.01')
