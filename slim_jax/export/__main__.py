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

from typing import Any

from absl import flags, logging

from slim_jax import command
from slim_jax.export import onnx_file, safetensors_file, stablehlo
from slim_jax.runs import finished
from slim_jax.runtime import files

PyTree = Any


_FORMAT = flags.DEFINE_enum(
  'format', 'stablehlo', ['stablehlo', 'onnx', 'safetensors'], 'What to write.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'The file; DIR/network.FORMAT unless given.')
_PLATFORMS = flags.DEFINE_list(
  'platforms',
  ['cpu', 'cuda', 'tpu'],
  f'Where stablehlo will run: of {", ".join(stablehlo.PLATFORMS)}.',
)
_OPSET = flags.DEFINE_integer(
  'opset', onnx_file.OPSET, "Version of ONNX's operations.", lower_bound=onnx_file.OPSET
)
flags.register_validator(
  'platforms',
  lambda names: names and set(names) <= set(stablehlo.PLATFORMS),
  message=f'must be some of {", ".join(stablehlo.PLATFORMS)}',
)


def main() -> None:
  """Exports the run of the command line."""
  workdir = files.path_of(command.WORKDIR.value)
  about = finished.about(workdir)
  about['format'] = _FORMAT.value
  if _FORMAT.value == 'onnx':
    about['opset'] = _OPSET.value
    apply, variables = finished.load(workdir, dtype='float32')
    content = onnx_file.convert(
      lambda image: apply(variables, image), about['image'], about=about, opset=_OPSET.value
    )
  elif _FORMAT.value == 'stablehlo':
    about['platforms'] = _PLATFORMS.value
    content = stablehlo.convert(*finished.load(workdir), about['image'], _PLATFORMS.value)
  else:
    content = safetensors_file.convert(finished.load(workdir)[1], finished.plan(workdir))
  path = files.path_of(_OUTPUT.value or workdir / f'network.{_FORMAT.value}')
  files.write(path, content)
  files.write_json(path.with_name(path.name + '.json'), about)
  logging.info('%s: %s bytes', path, f'{len(content):,}')


if __name__ == '__main__':
  command.run(main, needs_config=False)
