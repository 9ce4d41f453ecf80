"""Checkpoints restore what was saved; damage is noticed and named."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from slim_jax.training import checkpoint, integrity, train_state


def make_state(step=0, channels=4):
  variables = {
    'params': {
      'Conv_0': {'kernel': jnp.arange(9.0 * channels).reshape(3, 3, 1, channels)},
      'BatchNorm_0': {'scale': jnp.full(channels, 0.5), 'bias': jnp.zeros(channels, jnp.bfloat16)},
    },
    'batch_stats': {'BatchNorm_0': {'mean': jnp.ones(channels) * step}},
  }
  tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(lambda step: 0.1, momentum=0.9))
  return train_state.create_state(None, variables, tx).replace(step=jnp.int32(step))


def save(directory, *steps):
  with checkpoint.open_manager(directory, keep=3) as manager:
    for step in steps:
      checkpoint.save(manager, step, make_state(step), seconds=step / 2, totals={'loss': 0.25})


def restore(directory, like=None):
  with checkpoint.open_manager(directory, keep=3) as manager:
    return checkpoint.restore(manager, make_state() if like is None else like)


def files(directory):
  """Returns the files of the items of a checkpoint."""
  return [path for path in sorted(pathlib.Path(directory).glob('*/**/*')) if path.is_file()]


def test_newest_comes_back_as_it_was(tmp_path):
  save(tmp_path, 5, 10)
  state, seconds, totals = restore(tmp_path)
  for restored, saved in zip(jax.tree.leaves(state), jax.tree.leaves(make_state(10)), strict=True):
    np.testing.assert_array_equal(restored, saved)
    assert restored.dtype == saved.dtype
  assert seconds == 5.0 and totals == {'loss': 0.25}


def test_nothing_saved_nothing_restored(tmp_path):
  assert restore(tmp_path) is None
  with pytest.raises(checkpoint.CheckpointError, match='no checkpoint in'):
    checkpoint.read(tmp_path)
  with pytest.raises(checkpoint.CheckpointError, match='there is no directory'):
    checkpoint.read(tmp_path / 'nowhere')


def test_keeps_the_newest(tmp_path):
  save(tmp_path, 1, 2, 3, 4)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['2', '3', '4']


def test_sizes_of_zero(tmp_path):
  """A layer without channels is saved like any other."""
  with checkpoint.open_manager(tmp_path, keep=1) as manager:
    checkpoint.save(manager, 1, make_state(channels=0), seconds=0.0)
  state, *_ = restore(tmp_path, make_state(channels=0))
  assert jax.tree.map(np.shape, state.params) == (
    jax.tree.map(np.shape, make_state(channels=0).params)
  )
  assert state.params['BatchNorm_0']['bias'].dtype == jnp.bfloat16


def test_differences_are_listed(tmp_path):
  save(tmp_path, 1)
  like = make_state(channels=3)
  like.params['Dense_0'] = {'bias': jnp.zeros(2)}
  del like.batch_stats['BatchNorm_0']
  with pytest.raises(checkpoint.CheckpointError) as error:
    restore(tmp_path, like)
  lines = str(error.value).splitlines()
  assert lines[1] == 'missing: params/Dense_0/bias'
  assert lines[2] == 'unexpected: batch_stats/BatchNorm_0/mean'
  assert 'params/Conv_0/kernel is float32[3, 3, 1, 4], not float32[3, 3, 1, 3]' in lines[3]


def damages(path):
  """Damages a file in several ways, and puts it back at the end."""
  whole = path.read_bytes()
  for damaged in (b'', whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
    path.write_bytes(damaged)
    yield
  path.write_bytes(whole)


def test_any_damaged_file_is_named_and_never_replaced_by_another_checkpoint(tmp_path):
  save(tmp_path, 1, 2)
  for path in files(tmp_path / '2'):
    for _ in damages(path):
      with pytest.raises(checkpoint.CheckpointError, match=f'{tmp_path}/2 .*{path.name}'):
        checkpoint.read(tmp_path)
  assert checkpoint.read(tmp_path)['step'] == 2
  assert checkpoint.read(tmp_path, step=1)['step'] == 1


def test_training_continues_from_the_one_before(tmp_path, caplog):
  save(tmp_path, 1, 2)
  path = files(tmp_path / '2')[0]
  path.write_bytes(b'')
  assert restore(tmp_path)[0].step == 1
  assert path.name in caplog.text and str(tmp_path / '2') in caplog.text


def test_arrays_are_those_of_the_digest(tmp_path):
  save(tmp_path, 1, 2)
  digest = integrity.digest(checkpoint.arrays_of(make_state(1)))
  assert checkpoint.read(tmp_path, step=1, digest=digest)['step'] == 1
  with pytest.raises(checkpoint.CheckpointError, match='2 is not the one that was recorded'):
    checkpoint.read(tmp_path, digest=digest)
  with pytest.raises(checkpoint.CheckpointError, match=r'no checkpoint .*7 \(others there: 1, 2\)'):
    checkpoint.read(tmp_path, step=7)


def test_a_digest_tells_every_change():
  state = checkpoint.arrays_of(make_state())
  same = checkpoint.arrays_of(jax.tree.map(jnp.asarray, make_state()))
  assert integrity.digest(state) == integrity.digest(same)
  others = [
    {**state, 'step': np.int64(0)},
    {**state, 'step': np.int32(1)},
    {**state, 'step': np.zeros(1, np.int32)},
    {**state, 'other': np.zeros(0)},
    {'a': state},
    {name: value for name, value in state.items() if name != 'step'},
  ]
  digests = {integrity.digest(tree) for tree in (state, *others)}
  assert len(digests) == 1 + len(others)


def rewrite(directory, change):
  """Writes the items of a checkpoint again, as Orbax would with other content."""
  meta = directory / 'meta' / 'metadata'
  meta.write_text(json.dumps(change(json.loads(meta.read_text()))))
  (directory / integrity.CHECKSUMS).unlink()


def plain(meta):
  """What older versions wrote."""
  return {name: meta[name] for name in ('seconds', 'empty', 'totals')}


def test_without_checksums_of_files_the_digest_notices(tmp_path):
  """In an object store, and in a copy without the file."""
  save(tmp_path, 1, 2)
  rewrite(tmp_path / '2', lambda meta: {**meta, 'seconds': 7.0})
  with pytest.raises(checkpoint.CheckpointError, match='its description is not the one'):
    checkpoint.read(tmp_path)
  rewrite(tmp_path / '1', lambda meta: integrity.sealed(plain(meta), {'step': np.int32(3)}))
  with pytest.raises(checkpoint.CheckpointError, match='its arrays are not those'):
    checkpoint.read(tmp_path, step=1)


def test_a_checkpoint_of_an_older_version_is_read_and_said(tmp_path, caplog):
  save(tmp_path, 1)
  rewrite(tmp_path / '1', plain)
  assert checkpoint.read(tmp_path)['step'] == 1
  assert '1 has no checksums, so damage may go unnoticed' in caplog.text


def test_unreadable_checkpoint_is_set_aside(tmp_path):
  save(tmp_path, 1, 2)
  for _ in range(2):
    files(tmp_path / '2')[0].write_bytes(b'')
    state, *_ = restore(tmp_path)
    assert state.step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2.unreadable']
    save(tmp_path, 2)
    assert restore(tmp_path)[0].step == 2


def test_error_when_none_can_be_read(tmp_path):
  save(tmp_path, 1, 2)
  for step in '12':
    files(tmp_path / step)[-1].unlink()
  with pytest.raises(checkpoint.CheckpointError, match='delete that directory') as error:
    restore(tmp_path)
  assert all(str(tmp_path / step) in str(error.value) for step in '12')
  assert (tmp_path / '2').exists()


def test_damage_without_a_list_of_checksums(tmp_path):
  """A copy of a checkpoint may lack the checksums."""
  save(tmp_path, 1, 2)
  (tmp_path / '2' / integrity.CHECKSUMS).unlink()
  assert checkpoint.read(tmp_path)['step'] == 2


def test_moved_directory(tmp_path):
  save(tmp_path / 'here', 3)
  (tmp_path / 'here').rename(tmp_path / 'there')
  assert checkpoint.read(tmp_path / 'there')['step'] == 3


def test_best_checkpoint_stays_and_is_what_the_stage_ends_with(tmp_path):
  with checkpoint.open_manager(tmp_path, keep=1) as manager:
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.9), (4, 0.7)):
      checkpoint.save(manager, step, {'w': np.full(2, step)}, seconds=0.0, score=score)
    manager.wait_until_finished()
    assert sorted(manager.all_steps()) == [3, 4]
    restored, *_ = checkpoint.restore(manager, {'w': np.zeros(2, int)})
    assert restored['w'][0] == 4
  assert checkpoint.read(tmp_path)['w'][0] == 3
