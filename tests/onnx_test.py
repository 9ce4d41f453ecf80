"""ONNX files give the logits of JAX, in a process that has no JAX; and how fast they are."""

import collections
import importlib.util
import json
import subprocess
import sys

from helpers import commands, configs, zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import latency
from slim_jax.display import tables
from slim_jax.export import onnx_file, onnx_rewrites
from slim_jax.runs import finished, pipeline

needs_onnx = pytest.mark.skipif(
  bool(onnx_file.missing()), reason=f'not installed: {onnx_file.missing()}'
)
# What the converter and its own libraries warn of while they are imported and used.
theirs = pytest.mark.filterwarnings('ignore')

ALONE = """
import sys
sys.modules['slim_jax'] = sys.modules['jax'] = sys.modules['jax2onnx'] = None
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
images = np.load('images.npy')
logits, = session.run(['logits'], {'image': images})
one, = session.run(None, {'image': images[:1]})
np.savez('logits.npz', seven=logits, one=one, **session.get_modelmeta().custom_metadata_map)
"""


@pytest.fixture(scope='module')
def run(digits_dir, tmp_path_factory):
  """A thin pre-activation ResNet, which picks channels from streams."""
  config = configs.load('digits')
  config.update_from_flattened_dict(
    {
      **commands.TINY,
      'data_dir': digits_dir,
      'baseline_epochs': 0,
      'train.epochs': 1,
      'finetune.epochs': 0,
      'passes': 1,
      'prune.fraction': 0.5,
      'dtype': 'bfloat16',
    }
  )
  with config.unlocked():
    del config.model['widths']
    config.model.update(name='preresnet', depth=11, width=4)
  workdir = tmp_path_factory.mktemp('run')
  pipeline.run(config, workdir)
  return workdir


def thin_of(name):
  """A thin network of the zoo, as a function of images of pixels; and their shape."""
  case = zoo.case(name)
  model = zoo.build(case, jnp.float32)
  dead = slim_jax.select_global(model.variables, fraction=0.5, min_channels=1)
  plan = slim_jax.plan(model.infer, model.variables, model.x, dead=dead)
  variables, thin = plan.slice(model.variables), slim_jax.thin(model.infer, plan)
  return lambda image: thin(variables, image.astype(jnp.float32) / 64 - 2), case.shape[1:]


def logits_of(content, image):
  return onnx_file.session(content).run(None, {'image': image})[0]


@pytest.mark.slow
@needs_onnx
def test_a_run_is_exported(run, tmp_path):
  """In float32, whatever the run computed in."""
  commands.run(
    [sys.executable, '-m', 'slim_jax.export', f'--workdir={run}', '--format=onnx', '--opset=18']
  )
  images = np.random.RandomState(0).randint(0, 256, (7, 8, 8, 1)).astype(np.uint8)
  np.save(tmp_path / 'images.npy', images)
  subprocess.run([sys.executable, '-c', ALONE, str(run / 'network.onnx')], cwd=tmp_path, check=True)
  logits = dict(np.load(tmp_path / 'logits.npz'))
  apply, variables = finished.load(run, dtype='float32')
  want = apply(variables, images)
  np.testing.assert_allclose(logits['seven'], want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(logits['one'], want[:1], rtol=1e-5, atol=1e-5)
  about = json.loads((run / 'network.onnx.json').read_text())
  assert about['opset'] == 18 and about['image'] == [8, 8, 1]
  for name, value in about.items():
    inside = str(logits[name])
    assert (inside if isinstance(value, str) else json.loads(inside)) == value


@needs_onnx
@theirs
@pytest.mark.parametrize('name', ['densenet', 'inverted_residual', 'inception'])
def test_thin_networks_become_plain_graphs(name):
  import onnx  # pylint: disable=g-import-not-at-top

  f, shape = thin_of(name)
  content = onnx_file.convert(f, shape)
  image = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
  want = np.asarray(f(image))
  np.testing.assert_allclose(
    logits_of(content, image), want, rtol=1e-5, atol=1e-5 * np.abs(want).max()
  )
  model = onnx.load_from_string(content)
  (opset,) = model.opset_import
  assert (opset.domain, opset.version) == ('', onnx_file.OPSET)
  nodes = collections.Counter(node.op_type for node in model.graph.node)
  assert nodes['Transpose'] <= 3, nodes  # of the images, and where a gate leaves them
  # Nothing is computed that the weights alone determine, and no shape of a batch.
  assert not {'Shape', 'Sub', 'Sqrt', 'BatchNormalization', 'Where', 'Expand'} & set(nodes), nodes


@pytest.mark.parametrize(
  'pad', [[(0, 0, 0), (1, 2, 0)], [(0, 0, 0), (2, 1, 2)], [(0, 0, 0), (0, -1, 0)]]
)
def test_padding_is_rewritten(pad):
  check_rewrite(lambda x: jax.lax.pad(x, np.float32(3), pad), (4,))


@pytest.mark.parametrize(
  'f',
  [
    lambda x: x[:, 1:3],
    lambda x: x[:, ::2],
    lambda x: x[:, np.array([3, 0, 3])],
    lambda x: x.at[:, np.array([0, 9, 2])].get(mode='fill', fill_value=7),
    lambda x: x.reshape(-1, 2, 2).swapaxes(1, 2).reshape(x.shape),
    lambda x: x - np.arange(4, dtype=np.float32)[None],
    lambda x: jnp.maximum(x, 0),
    lambda x: jnp.maximum(x, -x),
    lambda x: np.float32(1) - x,
    lambda x: x[:, None, None] * 2,
  ],
)
def test_operations_are_rewritten(f):
  check_rewrite(f, (4,))


@pytest.mark.parametrize(
  'strides,padding',
  [((2, 2), 'VALID'), ((1, 2), 'SAME'), ((2, 1), [(0, 0), (2, 0), (0, 1), (0, 0)])],
)
@pytest.mark.parametrize('operation,start', [(jax.lax.max, -np.inf), (jax.lax.add, 0.0)])
def test_pooling_is_rewritten(operation, start, strides, padding):
  check_rewrite(
    lambda x: jax.lax.reduce_window(x, start, operation, (1, 3, 2, 1), (1, *strides, 1), padding),
    (6, 7, 2),
  )


def check_rewrite(f, shape):
  """What jax2onnx is given computes the same."""
  x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
  batch = jax.ShapeDtypeStruct((*jax.export.symbolic_shape('batch'), *shape), jnp.float32)
  spelled = jax.export.export(jax.jit(onnx_rewrites.rewrite(f, batch)))(batch)
  np.testing.assert_allclose(spelled.call(x), f(jnp.asarray(x)), rtol=1e-6, atol=1e-6)


def test_several_results_are_refused():
  with pytest.raises(ValueError, match='returns 2 arrays'):
    onnx_rewrites.rewrite(
      jnp.modf,  # pyright: ignore[reportArgumentType]
      jax.ShapeDtypeStruct((1, 4), jnp.float32),
    )


def test_bfloat16_is_refused():
  with pytest.raises(ValueError, match='bfloat16'):
    onnx_rewrites.rewrite(
      lambda x: (x.astype(jnp.bfloat16) * 2).astype(jnp.float32),
      jax.ShapeDtypeStruct((1, 4), jnp.float32),
    )


@needs_onnx
@theirs
def test_a_file_that_differs_is_not_written():
  factors = iter((1.0, 1.01))  # one for the file, one for the comparison

  def f(image):
    return next(factors) * image.astype(jnp.float32).sum((1, 2))

  with pytest.raises(onnx_file.OnnxError, match='other results than JAX'):
    onnx_file.convert(f, (2, 2, 3))


@needs_onnx
@theirs
def test_any_function_can_be_written():
  table = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
  content = onnx_file.convert(
    lambda tokens: jnp.tanh(table[tokens] @ table.T),
    (4,),
    dtype='int32',
    names=('tokens', 'scores'),
  )
  tokens = np.array([[0, 1, 4, 2], [3, 3, 0, 1]], np.int32)
  (scores,) = onnx_file.session(content).run(['scores'], {'tokens': tokens})
  np.testing.assert_allclose(scores, jnp.tanh(table[tokens] @ table.T), rtol=1e-5, atol=1e-6)


@needs_onnx
@theirs
def test_what_cannot_be_written_is_said():
  with pytest.raises(onnx_file.OnnxError, match='jax2onnx .* cannot write .*stablehlo'):
    onnx_file.convert(
      lambda image: jax.pure_callback(
        np.sin, jax.ShapeDtypeStruct(image.shape, jnp.float32), image
      ),
      (2, 2, 3),
    )


def test_missing_packages_are_said(monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  with pytest.raises(onnx_file.OnnxError, match=r'needs the extra onnx: .*\[onnx\]'):
    onnx_file.convert(lambda image: image.astype(jnp.float32), (2, 2, 3))
  assert 'jax2onnx' in onnx_file.missing()
  assert importlib.util.find_spec('jax2onnx') is None


@theirs
def test_the_table_of_latencies(run, capsys, caplog):
  rows = latency.run(run, [1, 3])
  tables.show_latency(rows)
  assert 'thin / full' in capsys.readouterr().out
  saved = json.loads((run / 'latency.json').read_text())
  assert saved['rows'] == rows and saved['device'] == 'cpu'
  # onnxruntime has no bfloat16 on CPUs.
  assert [(row['runtime'], row['batch']) for row in rows] == [('jax', 1), ('jax', 3)]
  assert 'onnxruntime is not measured' in caplog.text
  assert all(row['full'] > 0 and row['thin'] > 0 for row in rows)


@needs_onnx
@theirs
def test_latency_in_onnxruntime():
  f, shape = thin_of('grouped')
  runs = latency.in_onnxruntime({'thin': onnx_file.convert(f, shape)})
  (row,) = latency.measure(runs, shape, [2], runtime='onnxruntime')
  assert row['batch'] == 2 and 0 < row['thin'] < 10


def test_flags_of_latency_are_checked(tmp_path):
  command = [sys.executable, '-m', 'slim_jax.latency', f'--workdir={tmp_path}', '--batches=0']
  assert 'must be positive numbers' in commands.run(command, code=1)


# int8.


@needs_onnx
@theirs
def test_biases_are_those_of_the_products():
  import onnx

  rng = np.random.default_rng(0)
  kernels = [jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((6, 5), (5, 4))]
  bias = jnp.arange(5.0)[None]

  def f(x):
    hidden = jax.nn.relu(x @ kernels[0] + bias)
    return hidden @ kernels[1]  # without a bias

  model = onnx.load_from_string(onnx_file.convert(f, (6,), dtype='float32'))
  shapes = {each.name: list(each.dims) for each in model.graph.initializer}
  products = [node for node in model.graph.node if node.op_type == 'Gemm']
  assert [shapes[node.input[2]] for node in products] == [[5], [4]]
  assert 'Add' not in {node.op_type for node in model.graph.node}


@needs_onnx
@theirs
def test_int8_is_close_and_small(run, tmp_path):
  path = tmp_path / 'int8.onnx'
  command = [
    *(sys.executable, '-m', 'slim_jax.export', f'--workdir={run}', '--format=onnx-int8'),
    *(f'--output={path}', '--calibration=100'),
  ]
  output = commands.run(command)
  about = json.loads((tmp_path / 'int8.onnx.json').read_text())
  rows = {row['file']: row for row in about['files']}
  assert list(rows) == ['sparse, pass 1, float32', 'float32', 'int8'] and 'int8' in output
  record = json.loads((run / 'stages.json').read_text())[0]
  assert rows['sparse, pass 1, float32']['accuracy'] == pytest.approx(record['accuracy'], abs=0.011)
  assert rows['sparse, pass 1, float32']['bytes'] > rows['float32']['bytes']
  # Accuracy is that of the run, and int8 changes few answers and logits.
  assert rows['float32']['accuracy'] == pytest.approx(about['accuracy'], abs=0.011)
  assert abs(rows['int8']['accuracy'] - rows['float32']['accuracy']) <= 0.1
  assert rows['int8']['bytes'] == len(path.read_bytes())
  assert all(rows[name][f'seconds_{n}'] > 0 for name in rows for n in (1, 64))
  session = onnx_file.session(path.read_bytes())
  assert json.loads(session.get_modelmeta().custom_metadata_map['class_names'])[9] == '9'
  image = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
  apply, variables = finished.load(run, dtype='float32')
  want, (got,) = np.asarray(apply(variables, image)), session.run(None, {'image': image})
  assert np.abs(got - want).max() < 0.2 * np.abs(want).max()
