"""Files of a thin network that work without slim_jax.

  python -m slim_jax.export --workdir=DIR [--format=stablehlo|onnx|safetensors] [--output=PATH]
    [--platforms=cpu,cuda,tpu] [--opset=17]

stablehlo    the network with its weights, from pixel values to logits, for any batch:
             `jax.export.deserialize(open(PATH, 'rb').read()).call(images)`
onnx         the same for other runtimes (with the extra `onnx`), computed in float32:
             `onnxruntime.InferenceSession(PATH).run(None, {'image': images})`
safetensors  the thin weights by path: `safetensors.numpy.load_file(PATH)`, and in the metadata
             which indices of each axis of the original weights they are

Beside it stands PATH.json: shape of the images, mean and standard deviation of their channels,
class names, the accuracy that was measured, parameters, MACs and widths; an ONNX file has them in
its metadata, too. The network is that of the last complete stage of the run, but for stages from
scratch.
"""

from collections.abc import Callable, Sequence
import json
from typing import Any

from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import slim_jax
from slim_jax import channels
from slim_jax import command
from slim_jax import files
from slim_jax import finished
from slim_jax import onnx_file
from slim_jax import tree

PyTree = Any

# What `jax.export` can lower for, wherever it runs.
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')

_FORMAT = flags.DEFINE_enum('format', 'stablehlo', ['stablehlo', 'onnx', 'safetensors'],
                            'What to write.')
_OUTPUT = flags.DEFINE_string('output', None, 'The file; DIR/network.FORMAT unless given.')
_PLATFORMS = flags.DEFINE_list('platforms', ['cpu', 'cuda', 'tpu'],
                               f'Where stablehlo will run: of {", ".join(PLATFORMS)}.')
_OPSET = flags.DEFINE_integer('opset', onnx_file.OPSET, "Version of ONNX's operations.",
                              lower_bound=onnx_file.OPSET)
flags.register_validator('platforms', lambda names: names and set(names) <= set(PLATFORMS),
                         message=f'must be some of {", ".join(PLATFORMS)}')


def main() -> None:
  """Exports the run of the command line."""
  workdir = files.path_of(command.WORKDIR.value)
  about = finished.about(workdir)
  about['format'] = _FORMAT.value
  if _FORMAT.value == 'onnx':
    about['opset'] = _OPSET.value
    apply, variables = finished.load(workdir, dtype='float32')
    content = onnx_file.convert(lambda image: apply(variables, image), about['image'],
                                about=about, opset=_OPSET.value)
  elif _FORMAT.value == 'stablehlo':
    about['platforms'] = _PLATFORMS.value
    content = stablehlo(*finished.load(workdir), about['image'], _PLATFORMS.value)
  else:
    content = weights(finished.load(workdir)[1], finished.plan(workdir))
  path = files.path_of(_OUTPUT.value or workdir / f'network.{_FORMAT.value}')
  files.write(path, content)
  files.write_json(path.with_name(path.name + '.json'), about)
  logging.info('%s: %s bytes', path, f'{len(content):,}')


def stablehlo(apply: Callable[[PyTree, jax.Array], jax.Array], variables: PyTree,
              shape: Sequence[int], platforms: Sequence[str] = ('cpu',)) -> bytes:
  """A network with its weights, for batches of any size.

  Args:
    apply: `(variables, image)` -> logits, as `slim_jax.load` returns.
    variables: its variables, which become constants.
    shape: height, width and channels of an image, uint8.
    platforms: of `PLATFORMS`.

  Returns:
    What `jax.export.deserialize` takes; its `call` maps images uint8 [n, *shape] to logits.

  References:
    https://docs.jax.dev/en/latest/export/export.html
  """
  batch = jax.export.symbolic_shape('batch')
  image = jax.ShapeDtypeStruct((*batch, *shape), jnp.uint8)
  if tuple(platforms) == ('cpu',):
    apply = slim_jax.for_cpu(apply)
  exported = jax.export.export(jax.jit(lambda image: apply(variables, image)),
                               platforms=tuple(platforms))(image)
  return bytes(exported.serialize())


def weights(variables: PyTree, plan: channels.Plan | None = None) -> bytes:
  """Variables as safetensors, named by their paths ('params/Conv_0/kernel').

  Args:
    variables: thin ones, where there is a plan.
    plan: what is left of the original network.

  Returns:
    The file. Its metadata holds JSON under 'names', 'shapes' (of the original variables, by name)
    and 'kept': for each axis of each the indices that are left of the original, null for all.
  """
  arrays, shapes, kept = {}, {}, {}
  for path, leaf in tree.flatten(variables).items():
    name = tree.show(path)
    arrays[name] = np.ascontiguousarray(leaf)
    shapes[name] = plan.cuts[path].shape if plan else leaf.shape
    indices = plan.cuts[path].indices if plan else map(np.arange, leaf.shape)
    kept[name] = [None if len(index) == size else index.tolist()
                  for index, size in zip(indices, shapes[name], strict=True)]
  return safetensors.numpy.save(arrays, metadata={
      'names': json.dumps(sorted(arrays)), 'shapes': json.dumps(shapes),
      'kept': json.dumps(kept)})


if __name__ == '__main__':
  command.run(main, needs_config=False)
