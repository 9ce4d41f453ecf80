"""Exports a function as ONNX, through jax2onnx.

1. `onnx_rewrites` rewrites the function into operations that jax2onnx converts well.
2. jax2onnx converts it.
3. onnxruntime removes what cancels (transpositions, BatchNorms behind convolutions), with those
   of its optimisations that keep to the operations of ONNX, which any runtime knows.
4. onnxruntime runs the file, and its results are compared with those of JAX.
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
import jax.typing
import numpy as np

from slim_jax.errors import SlimError
from slim_jax.export import onnx_biases, onnx_rewrites

_PACKAGES = ('jax2onnx', 'onnx', 'onnxruntime')

# Default version of the operations: one that older runtimes know, too.
OPSET = 17

# Largest difference between file and JAX, relative to the largest output: rounding in a deep
# network stays below it.
_TOLERANCE = 1e-4
# Other providers may round more, or write operations that only they know.
_EXACT = ('CPUExecutionProvider',)


class OnnxError(SlimError):
  """A function cannot be exported as ONNX; the message says why."""


def convert(
  f: Callable[[jax.Array], jax.Array],
  shape: Sequence[int],
  *,
  dtype: jax.typing.DTypeLike = 'uint8',
  names: tuple[str, str] = ('image', 'logits'),
  opset: int = OPSET,
  about: Mapping[str, Any] | None = None,
) -> bytes:
  """Returns a function as an ONNX file, its weights inside, for batches of any size.

  Args:
    f: maps an array [n, *shape] to an array, such as images to logits. Arrays that it closes over
      become constants.
    shape: of one element of the batch: height, width and channels of an image.
    dtype: of the input.
    names: of the input and of the output in the file.
    opset: version of ONNX's operations.
    about: metadata of the file. Strings are written as they are, other values as JSON.

  Returns:
    The content of the file, after onnxruntime has run it with the results of `f`.

  Raises:
    OnnxError: the packages are missing, or do not fit this JAX; the function has operations that
      they cannot write; or the results differ.
  """
  jax2onnx, onnx, _ = map(package, _PACKAGES)
  batch = jax.ShapeDtypeStruct((*jax.export.symbolic_shape('batch'), *shape), jnp.dtype(dtype))
  try:
    model = jax2onnx.to_onnx(
      onnx_rewrites.rewrite(f, batch),
      [batch],
      opset=opset,
      model_name='slim_jax',
      input_names=[names[0]],
      output_names=[names[1]],
    )
    # Its own optimisations leave wrong shapes of intermediate results.
    del model.graph.value_info[:]
    model = _simplify(model)
    onnx_biases.merge(model, onnx)
  # Each of these packages raises errors of its own for what it does not support.
  except Exception as error:  # pylint: disable=broad-except
    raise OnnxError(
      f'jax2onnx {_version("jax2onnx")} cannot write this function with JAX '
      f'{jax.__version__}: {type(error).__name__}: {_first_line(error)}. '
      'StableHLO (--format=stablehlo) can be written for every function'
    ) from error
  properties = {
    name: value if isinstance(value, str) else json.dumps(value)
    for name, value in (about or {}).items()
  }
  onnx.helper.set_model_props(model, properties)
  onnx.checker.check_model(model, full_check=True)
  content = model.SerializeToString()
  _compare(f, session(content, providers=_EXACT), batch)
  return content


def session(content: bytes, *, providers: Sequence[str] | None = None, **options: Any) -> Any:
  """Returns an `onnxruntime.InferenceSession` of a file.

  Args:
    content: of the file.
    providers: where it runs; by default all that this onnxruntime has, in its order.
    **options: attributes of `onnxruntime.SessionOptions`.

  Raises:
    OnnxError: onnxruntime is missing.
  """
  onnxruntime = package('onnxruntime')
  session_options = onnxruntime.SessionOptions()
  session_options.log_severity_level = 3  # errors
  # Threads that spin while they wait would slow down whatever runs next.
  session_options.add_session_config_entry('session.intra_op.allow_spinning', '0')
  for name, value in options.items():
    setattr(session_options, name, value)
  return onnxruntime.InferenceSession(
    content, session_options, providers=providers or onnxruntime.get_available_providers()
  )


def missing() -> list[str]:
  """Returns the packages of the extra `onnx` that are not installed."""
  return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


def package(name: str) -> Any:
  """Imports a package of the extra `onnx`; raises OnnxError if that is impossible."""
  try:
    return importlib.import_module(name)
  except ImportError as error:
    reason = (
      f"needs the extra onnx: python -m pip install 'slim_jax[onnx]' ({name} is not installed)"
      if name in missing()
      else f'cannot load {name} {_version(name)} with JAX {jax.__version__}: {_first_line(error)}'
    )
    raise OnnxError(f'ONNX {reason}') from error


def _version(name: str) -> str:
  return importlib.metadata.version(name)


def _first_line(error: Exception) -> str:
  return str(error).strip().partition('\n')[0][:300]


def _simplify(model: Any) -> Any:
  """Returns the model after onnxruntime's optimisations that keep to ONNX's operations."""
  onnx, onnxruntime = package('onnx'), package('onnxruntime')
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


def _compare(f: Callable[[jax.Array], jax.Array], runner: Any, batch: jax.ShapeDtypeStruct) -> None:
  """Raises OnnxError if the file gives other results than the function on random inputs."""
  (name,) = (each.name for each in runner.get_inputs())
  for size in (1, 3):
    x = _random((size, *batch.shape[1:]), batch.dtype, seed=size)
    with jax.default_matmul_precision('highest'):
      want = np.asarray(jax.jit(f)(x))
    (got,) = runner.run(None, {name: x})
    if got.shape != want.shape:
      raise OnnxError(f'the ONNX file returns shape {got.shape} where JAX returns {want.shape}')
    error, largest = np.abs(got - want).max(), np.abs(want).max()
    if not error <= _TOLERANCE * largest:
      raise OnnxError(
        f'the ONNX file gives other results than JAX: they differ by {error:.3g}, and the '
        f'largest is {largest:.3g}. It is not written'
      )


def _random(shape: Sequence[int], dtype: Any, *, seed: int) -> np.ndarray:
  """Returns pixels for uint8, 0 and 1 for other integers (valid as indices), else normal values."""
  rng = np.random.default_rng(seed)
  if jnp.issubdtype(dtype, jnp.floating):
    return rng.normal(size=shape).astype(dtype)
  return rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
