"""A network as an ONNX file, through jax2onnx.

jax2onnx writes what `onnx_spelling` has made of the network. onnxruntime then removes what cancels
(transpositions, BatchNorms behind convolutions) with those of its optimisations that keep to
operations of ONNX, which any runtime knows; and runs the file beside JAX.
"""

from collections.abc import Callable, Mapping, Sequence
import importlib.metadata
import importlib.util
import json
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax.errors import SlimError
from slim_jax.export import onnx_spelling

_PACKAGES = ('jax2onnx', 'onnx', 'onnxruntime')

# Of the operations that are written unless asked otherwise: older runtimes know it, too.
OPSET = 17

# Logits of the file and of JAX, relative to the largest: what rounding may do in a deep network.
_TOLERANCE = 1e-4
_EXACT = ('CPUExecutionProvider',)  # others may round more, or write what is theirs alone


class OnnxError(SlimError):
  """A network cannot be written as ONNX; the message says why."""


def convert(
  f: Callable[[jax.Array], jax.Array],
  shape: Sequence[int],
  *,
  about: Mapping[str, Any] | None = None,
  opset: int = OPSET,
) -> bytes:
  """A function of images as an ONNX file, weights inside, for batches of any size.

  Args:
    f: images uint8 [n, *shape] -> logits float32 [n, classes].
    shape: height, width and channels of an image.
    about: what goes into the metadata of the file, each value as JSON but for strings.
    opset: version of the operations.

  Returns:
    The file: input 'image', output 'logits'. onnxruntime has run it, and gave the logits of `f`.

  Raises:
    OnnxError: the packages are not there, or do not fit this JAX; the network holds what they
      cannot write; or the logits differ.
  """
  jax2onnx, onnx, _ = map(_load, _PACKAGES)
  image = jax.ShapeDtypeStruct((*jax.export.symbolic_shape('batch'), *shape), jnp.uint8)
  try:
    spelled = onnx_spelling.spell(f, image)
    model = jax2onnx.to_onnx(
      spelled,
      [image],
      opset=opset,
      model_name='slim_jax',
      input_names=['image'],
      output_names=['logits'],
    )
    del model.graph.value_info[:]  # shapes in between, which its own changes may have made wrong
    model = _simplify(model)
  # For what they do not know, all parts of them have errors of their own.
  except Exception as error:  # pylint: disable=broad-except
    raise OnnxError(
      f'jax2onnx {_version("jax2onnx")} cannot write this network with JAX '
      f'{jax.__version__}: {type(error).__name__}: {_first_line(error)}. '
      '--format=stablehlo needs nothing but JAX'
    ) from error
  onnx.helper.set_model_props(
    model,
    {
      name: value if isinstance(value, str) else json.dumps(value)
      for name, value in (about or {}).items()
    },
  )
  onnx.checker.check_model(model, full_check=True)
  content = model.SerializeToString()
  _compare(f, session(content, providers=_EXACT), shape)
  return content


def session(content: bytes, *, providers: Sequence[str] | None = None, **options: Any) -> Any:
  """An `onnxruntime.InferenceSession` of a file.

  Args:
    content: the file.
    providers: where it runs; on all that this onnxruntime has unless given.
    **options: attributes of `onnxruntime.SessionOptions`.
  """
  onnxruntime = _load('onnxruntime')
  chosen = onnxruntime.SessionOptions()
  chosen.log_severity_level = 3  # errors
  # Threads that have nothing to do would disturb what runs next.
  chosen.add_session_config_entry('session.intra_op.allow_spinning', '0')
  for name, value in options.items():
    setattr(chosen, name, value)
  return onnxruntime.InferenceSession(
    content, chosen, providers=providers or onnxruntime.get_available_providers()
  )


def missing() -> list[str]:
  """Those of the packages of the extra `onnx` that are not installed."""
  return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


def _load(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    why = (
      f'needs the extra onnx: python -m pip install -e .[onnx] ({name} is not installed)'
      if name in missing()
      else f'cannot load {name} {_version(name)} with JAX {jax.__version__}: {_first_line(error)}'
    )
    raise OnnxError(f'ONNX {why}') from error


def _version(name: str) -> str:
  return importlib.metadata.version(name)


def _first_line(error: Exception) -> str:
  return str(error).strip().partition('\n')[0][:300]


def _simplify(model: Any) -> Any:
  """The model as onnxruntime makes it with the optimisations that keep to ONNX's operations."""
  onnx, onnxruntime = _load('onnx'), _load('onnxruntime')
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / 'simple.onnx'
    session(
      model.SerializeToString(),
      providers=_EXACT,
      optimized_model_filepath=str(path),
      graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    )
    simple = onnx.load(path)
  used = {node.domain for node in simple.graph.node}
  for number in reversed(range(len(simple.opset_import))):
    if simple.opset_import[number].domain not in used:
      del simple.opset_import[number]
  return simple


def _compare(f: Callable[[jax.Array], jax.Array], runner: Any, shape: Sequence[int]) -> None:
  """Raises OnnxError where the file gives other logits than the function."""
  for batch in (1, 3):
    image = np.random.default_rng(batch).integers(0, 256, (batch, *shape), np.uint8)
    with jax.default_matmul_precision('highest'):
      want = np.asarray(jax.jit(f)(image))
    (found,) = runner.run(None, {'image': image})
    if found.shape != want.shape:
      raise OnnxError(f'the ONNX file gives logits {found.shape} where JAX gives {want.shape}')
    error, largest = np.abs(found - want).max(), np.abs(want).max()
    if not error <= _TOLERANCE * largest:
      raise OnnxError(
        f'the ONNX file gives other logits than JAX, {error:.3g} apart where the '
        f'largest is {largest:.3g}: it is not written'
      )
