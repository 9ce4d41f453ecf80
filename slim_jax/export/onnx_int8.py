"""Quantises an ONNX file to int8, and measures what that costs and saves.

Weights have a scale for each channel; activations have one each, calibrated on images. The file keeps
to the operations of ONNX: QuantizeLinear and DequantizeLinear stand around what a runtime computes in
integers (Jacob et al., CVPR 2018).
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import importlib
import logging
import pathlib
import tempfile
from typing import Any

import numpy as np

from slim_jax.costs import timing
from slim_jax.export import onnx_file

# Images per call while activations are calibrated and results are compared.
_BATCH = 64


def convert(content: bytes, images: np.ndarray) -> bytes:
  """Returns an ONNX file with int8 weights and activations.

  Args:
    content: a file of `onnx_file.convert`.
    images: inputs like those that it will see, [n, ...]; some hundreds suffice.

  Returns:
    The content of the quantised file, with the same input, output and metadata.

  Raises:
    OnnxError: onnx or onnxruntime is missing, or cannot quantise the file.
  """
  onnx, _ = onnx_file.package('onnx'), onnx_file.package('onnxruntime')
  quantization = importlib.import_module('onnxruntime.quantization')

  class Reader(quantization.CalibrationDataReader):
    """Yields the images in batches."""

    def __init__(self, name: str):
      batches = (images[i : i + _BATCH] for i in range(0, len(images), _BATCH))
      self._batches = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
      return next(self._batches, None)

  model = onnx.load_from_string(content)
  properties = {each.key: each.value for each in model.metadata_props}
  with tempfile.TemporaryDirectory() as directory, _quiet():
    path = pathlib.Path(directory) / 'int8.onnx'
    try:
      quantization.quantize_static(
        model,
        path,
        Reader(model.graph.input[0].name),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
      )
    # onnxruntime raises errors of many types.
    except Exception as error:  # pylint: disable=broad-except
      raise onnx_file.OnnxError(
        f'onnxruntime cannot quantise this file: {type(error).__name__}: {error}'
      ) from error
    quantised = onnx.load(path)
  onnx.helper.set_model_props(quantised, properties)
  onnx.checker.check_model(quantised, full_check=True)
  return quantised.SerializeToString()


def compare(
  contents: Mapping[str, bytes],
  images: np.ndarray,
  measure: Callable[[np.ndarray], Mapping[str, float]],
) -> list[dict[str, Any]]:
  """Measures files side by side.

  Args:
    contents: of ONNX files, by name.
    images: to run them on, [n, ...].
    measure: maps the outputs for all images to figures, such as accuracy.

  Returns:
    For each file: file, its figures, bytes, and seconds of one call for 1 image and for 64.
  """
  sessions = {name: onnx_file.session(content) for name, content in contents.items()}
  run = lambda session, x: session.run(None, {session.get_inputs()[0].name: x})[0]
  rows: dict[str, dict[str, Any]] = {name: {'file': name} for name in contents}
  for name, session in sessions.items():
    parts = [run(session, images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
    rows[name] |= {**measure(np.concatenate(parts)), 'bytes': len(contents[name])}
  for batch in (1, _BATCH):
    x = np.resize(images[:batch], (batch, *images.shape[1:]))
    calls = {name: lambda s=session: run(s, x) for name, session in sessions.items()}
    for name, seconds in timing.medians(calls).items():
      rows[name][f'seconds_{batch}'] = seconds
  return list(rows.values())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps onnxruntime from advising a step that is done already."""
  before = logging.root.manager.disable
  logging.disable(logging.WARNING)
  try:
    yield
  finally:
    logging.disable(before)
