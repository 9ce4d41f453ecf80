"""Measures the network of a run on this machine, full and thin, in JAX and in onnxruntime.

  python -m slim_jax.latency --workdir=DIR [--batches=1,64]

The full network is the unpruned one of the config, with new weights; the thin network is that of
the last complete stage. They are timed in turns, so that other load on the machine slows both, and
medians are shown and written to DIR/latency.json. onnxruntime is measured if the extra `onnx` is
installed.
"""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any

from absl import flags, logging
import jax
import numpy as np

import slim_jax
from slim_jax import command
from slim_jax.costs import timing
from slim_jax.display import tables
from slim_jax.export import onnx_file
from slim_jax.runs import finished
from slim_jax.runtime import files

PyTree = Any

# What `slim_jax.load` returns: `(variables, images uint8)` -> logits, and the variables.
Loaded = tuple[Callable[[PyTree, jax.Array], jax.Array], PyTree]


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_list('batches', ['1', '64'], 'Numbers of images in a batch.')
  flags.register_validator(
    'batches',
    lambda batches: batches and all(n.isdecimal() and int(n) for n in batches),
    message='must be positive numbers, as in 1,64',
  )


def main() -> None:
  """Measures the run of the command line."""
  tables.show_latency(run(flags.FLAGS.workdir, [int(n) for n in flags.FLAGS.batches or ()]))


def run(workdir: files.PathLike, batches: Sequence[int]) -> list[dict[str, Any]]:
  """Measures the network of a run, full and thin, and writes latency.json.

  Args:
    workdir: directory of a run.
    batches: numbers of images in a batch.

  Returns:
    The rows of `measure` for JAX and for onnxruntime. If onnxruntime cannot be used, the reason is
    logged.

  Raises:
    WorkdirError: the directory holds no run with a complete stage.
  """
  workdir = files.path_of(workdir)
  about = finished.about(workdir)
  shape, dtype = about['image'], finished.dtype(about)
  networks = {'full': finished.unpruned(workdir), 'thin': finished.load(workdir)}
  compiled = {**networks, 'thin': finished.load(workdir, compiled=True)}
  rows = measure(in_jax(compiled), shape, batches, runtime='jax', dtype=dtype)
  try:
    exported = {
      name: onnx_file.convert(lambda image, net=net: net[0](net[1], image), shape, dtype=dtype)
      for name, net in networks.items()
    }
    rows += measure(in_onnxruntime(exported), shape, batches, runtime='onnxruntime', dtype=dtype)
  except onnx_file.OnnxError as error:
    logging.warning('onnxruntime is not measured: %s', error)
  path = workdir / 'latency.json'
  files.write_json(
    path, {'device': jax.devices()[0].device_kind, 'cores': os.cpu_count(), 'rows': rows}
  )
  logging.info('median seconds of a batch: %s', path)
  return rows


def measure(
  runs: Mapping[str, Callable[[np.ndarray], Any]],
  shape: Sequence[int],
  batches: Sequence[int],
  *,
  runtime: str,
  dtype: str = 'uint8',
) -> list[dict[str, Any]]:
  """Times networks.

  Args:
    runs: images [n, *shape] -> outputs, by name.
    shape: height, width and channels.
    batches: numbers n of images.
    runtime: name of the library that runs the networks.
    dtype: of the images.

  Returns:
    For each batch: runtime, batch, and the median seconds of the batch by name.
  """
  rows = []
  for batch in batches:
    image = np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8).astype(dtype)
    calls = {name: lambda run=run: run(image) for name, run in runs.items()}
    rows.append({'runtime': runtime, 'batch': batch, **timing.medians(calls)})
  return rows


def in_jax(networks: Mapping[str, Loaded]) -> dict[str, Callable[[np.ndarray], Any]]:
  """Returns the networks as functions of images, compiled by JAX for its first device."""

  def run(apply: Callable[..., jax.Array], variables: PyTree) -> Callable[[np.ndarray], Any]:
    compiled = jax.jit(slim_jax.for_cpu(apply), compiler_options=slim_jax.cpu_options())
    variables = jax.device_put(variables)
    return lambda image: compiled(variables, image)

  return {name: run(*network) for name, network in networks.items()}


def in_onnxruntime(exported: Mapping[str, bytes]) -> dict[str, Callable[[np.ndarray], Any]]:
  """Returns ONNX files as functions of images; raises OnnxError if onnxruntime is missing."""

  def run(content: bytes) -> Callable[[np.ndarray], Any]:
    session = onnx_file.session(content)
    return lambda image: session.run(None, {'image': image})

  return {name: run(content) for name, content in exported.items()}


if __name__ == '__main__':
  command.run(main, define_flags, needs_config=False)
