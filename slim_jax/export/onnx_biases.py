"""Gives the matrix products of an ONNX file their biases, as vectors.

jax2onnx writes a product as a Gemm with the scalar bias 0, and adds the bias of the layer afterwards.
Quantisation for each channel wants the bias in the Gemm, with a number for each channel.
"""

from typing import Any

import numpy as np


def merge(model: Any, onnx: Any) -> None:
  """Moves what is added to a Gemm into its bias, in place; other scalar biases become vectors.

  Args:
    model: an `onnx.ModelProto`.
    onnx: the package.
  """
  graph = model.graph
  arrays = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
  readers: dict[str, list[Any]] = {}
  for node in graph.node:
    for name in node.input:
      readers.setdefault(name, []).append(node)
  results = {each.name for each in graph.output}
  for gemm in [node for node in graph.node if node.op_type == 'Gemm']:
    if gemm.input[1] not in arrays or len(gemm.input) < 3 or gemm.input[2] not in arrays:
      continue
    width = _width(gemm, arrays[gemm.input[1]])
    factor = next((each.f for each in gemm.attribute if each.name == 'beta'), 1.0)
    bias = np.broadcast_to(factor * arrays[gemm.input[2]].ravel(), width)
    (output,) = gemm.output
    after = readers.get(output, [])
    added = _added(after[0], output, arrays, width) if len(after) == 1 else None
    if added is not None and output not in results:
      bias = bias + added
      gemm.output[0] = after[0].output[0]
      graph.node.remove(after[0])
    name = f'{output}_bias'
    kernel = arrays[gemm.input[1]]
    graph.initializer.append(onnx.numpy_helper.from_array(bias.astype(kernel.dtype), name))
    gemm.input[2] = name
    kept = [each for each in gemm.attribute if each.name != 'beta']
    del gemm.attribute[:]
    gemm.attribute.extend(kept)
  used = {name for node in graph.node for name in node.input}
  for each in [each for each in graph.initializer if each.name not in used]:
    graph.initializer.remove(each)


def _width(gemm: Any, kernel: np.ndarray) -> int:
  """Returns the number of outputs of a Gemm."""
  turned = any(each.name == 'transB' and each.i for each in gemm.attribute)
  return kernel.shape[0 if turned else 1]


def _added(node: Any, name: str, arrays: dict[str, np.ndarray], width: int) -> np.ndarray | None:
  """Returns the vector that a node adds to a matrix, None if it does anything else."""
  if node.op_type != 'Add':
    return None
  others = [each for each in node.input if each != name]
  if len(others) != 1 or others[0] not in arrays:
    return None
  vector = arrays[others[0]]
  return vector.ravel() if vector.size == width and vector.shape[-1] == width else None
