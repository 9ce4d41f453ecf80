"""Exports the network of a run to a file that works without slim_jax.

  python -m slim_jax.export --workdir=DIR [--format=stablehlo|onnx|onnx-int8|safetensors]
    [--output=PATH] [--platforms=cpu,cuda,tpu] [--opset=17] [--calibration=256]

Formats:

  stablehlo    the network with its weights, from pixel values to logits, for any batch size:
               jax.export.deserialize(open(PATH, 'rb').read()).call(images)
  onnx         the same for other runtimes, computed in float32 (needs the extra `onnx`):
               onnxruntime.InferenceSession(PATH).run(None, {'image': images})
  onnx-int8    the same with int8 weights, a scale for each channel, and activations that are
               calibrated on training images; a table compares it on test images with the float file
               and, if the network is pruned, with the float file of the network before the cut
  safetensors  the thin weights by path: safetensors.numpy.load_file(PATH); the metadata has the
               indices of the original weights that they are. Beside it is network.py, the network in
               Flax, which needs nothing of slim_jax: apply, variables = network.load(PATH)

The network is that of the last complete stage, stages from scratch aside. PATH.json, beside the
file, has the shape of the images, mean and standard deviation of their channels, the class names,
the measured accuracy, parameters, MACs and widths. ONNX files have the same in their metadata.
"""

import importlib.resources
from typing import Any

from absl import flags, logging
from etils import epath

from slim_jax import command
from slim_jax.display import tables
from slim_jax.export import onnx_file, onnx_int8, safetensors_file, stablehlo
from slim_jax.runs import finished
from slim_jax.runs.stages import Stage
from slim_jax.runtime import files


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_enum(
    'format', 'stablehlo', ['stablehlo', 'onnx', 'onnx-int8', 'safetensors'], 'Format of the file.'
  )
  flags.DEFINE_string('output', None, 'Path of the file; by default DIR/network.FORMAT.')
  flags.DEFINE_list(
    'platforms',
    ['cpu', 'cuda', 'tpu'],
    f'Where a stablehlo file will run, of {", ".join(stablehlo.PLATFORMS)}.',
  )
  flags.DEFINE_integer(
    'opset',
    onnx_file.OPSET,
    "Version of ONNX's operations in an onnx file.",
    lower_bound=onnx_file.OPSET,
  )
  flags.DEFINE_integer(
    'calibration', 256, 'Training images for the calibration of an onnx-int8 file.', lower_bound=1
  )
  flags.register_validator(
    'platforms',
    lambda names: names and set(names) <= set(stablehlo.PLATFORMS),
    message=f'must be some of {", ".join(stablehlo.PLATFORMS)}',
  )


def main() -> None:
  """Exports the run given on the command line."""
  workdir = files.path_of(flags.FLAGS.workdir)
  about = {**finished.about(workdir), 'format': flags.FLAGS.format}
  convert = {
    'stablehlo': _stablehlo,
    'onnx': _onnx,
    'onnx-int8': _onnx_int8,
    'safetensors': _safetensors,
  }[flags.FLAGS.format]
  content = convert(workdir, about)
  name = 'int8.onnx' if flags.FLAGS.format == 'onnx-int8' else flags.FLAGS.format
  path = files.path_of(flags.FLAGS.output or workdir / f'network.{name}')
  files.write(path, content)
  if flags.FLAGS.format == 'safetensors' and about['full_module']:
    source = importlib.resources.files('slim_jax.models') / 'narrow_networks.py'
    files.write(path.with_name('network.py'), source.read_bytes())
  files.write_json(path.with_name(path.name + '.json'), about)
  logging.info('%s: %s bytes', path, f'{len(content):,}')


def _stablehlo(workdir: epath.Path, about: dict[str, Any]) -> bytes:
  about['platforms'] = flags.FLAGS.platforms
  apply, variables = finished.load(workdir)
  return stablehlo.convert(
    lambda image: apply(variables, image),
    about['image'],
    dtype=finished.dtype(about),
    platforms=flags.FLAGS.platforms,
  )


def _onnx(workdir: epath.Path, about: dict[str, Any], stage: Stage | None = None) -> bytes:
  about['opset'] = flags.FLAGS.opset
  apply, variables = finished.load(workdir, stage=stage, dtype='float32')
  return onnx_file.convert(
    lambda image: apply(variables, image),
    about['image'],
    dtype=finished.dtype(about),
    opset=flags.FLAGS.opset,
    about=about,
  )


def _onnx_int8(workdir: epath.Path, about: dict[str, Any]) -> bytes:
  # Imported here because the data take a third of a second, and no other format needs them.
  from slim_jax.export import calibration

  content = _onnx(workdir, about)
  training = calibration.images(workdir, 'train_split', most=flags.FLAGS.calibration)
  quantised = onnx_int8.convert(content, training.image)
  test = calibration.images(workdir, 'test_split')
  contents = {'float32': content, 'int8': quantised}
  if full := finished.uncut(workdir):
    contents = {f'{full}, float32': _onnx(workdir, about, full), **contents}
  rows = onnx_int8.compare(
    contents, test.image, lambda outputs: calibration.measure(workdir, outputs, test)
  )
  tables.show_files(rows)
  about['files'] = rows
  return quantised


def _safetensors(workdir: epath.Path, about: dict[str, Any]) -> bytes:
  _, variables = finished.load(workdir)
  return safetensors_file.convert(variables, plan=finished.plan(workdir))


if __name__ == '__main__':
  command.run(main, define_flags, needs_config=False)
