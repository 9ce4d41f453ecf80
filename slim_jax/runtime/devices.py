"""The devices of a run, how arrays lie on them, and functions mapped over them.

With several processes, all devices of all of them belong to the run; arrays are those of the
devices of this process.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax.cpu import options

PyTree = Any
Devices = tuple[jax.Device, ...]


def local(count: int = 0) -> Devices:
  """The first `count` devices of this process; all of them for 0, as several processes need."""
  return tuple(jax.local_devices()[: count or None])


def total(places: Devices) -> int:
  """How many devices the run has in all processes, of which this one has `places`."""
  return len(places) * jax.process_count()


def numbers(places: Devices) -> np.ndarray:
  """int32 [devices], the numbers of these among all devices of the run."""
  return np.arange(len(places), dtype=np.int32) + jax.process_index() * len(places)


def share_threads(places: Devices) -> bool:
  """Whether the run has several virtual devices of a CPU.

  They share one pool of threads, which several calls in flight can fill with devices that wait for
  others, for ever: each call has to end before the next one.
  """
  return total(places) > 1 and places[0].platform == 'cpu'


def mapped(
  f: Callable[..., PyTree],
  places: Devices,
  *,
  in_axes: Any,
  out_axes: Any,
  donate_argnums: tuple[int, ...] = (),
  training: bool = False,
) -> Callable[..., PyTree]:
  """`jax.pmap` over the axis 'batch', which is all devices of the run.

  Args:
    f: a function of the arrays of one device.
    places: the devices of this process.
    in_axes: as `jax.pmap` takes it; the axis of what is split is that of `places`.
    out_axes: likewise.
    donate_argnums: likewise.
    training: whether a network runs in it in training mode.
  """
  alone = jax.process_count() == 1
  run = jax.pmap(
    f,
    axis_name='batch',
    in_axes=in_axes,
    out_axes=out_axes,
    donate_argnums=donate_argnums,
    devices=places if alone else None,
  )
  chosen = options.cpu_options(training=training)
  return options.with_options(run, chosen) if alone and chosen else run


def replicate(tree: PyTree, devices: Devices) -> PyTree:
  """A copy of `tree` on every device, laid out as a mapped step leaves it.

  Args:
    tree: arrays without a device axis.
    devices: where to put them.

  Returns:
    The same arrays. The step is compiled once: were they on one device at first, it
    would be compiled for that layout and again for its own results.
  """
  # Not `device_put`, which may share memory: the step consumes its state.
  return _copier(devices)(tree)


def split(tree: PyTree, devices: Devices) -> PyTree:
  """Arrays [devices, ...] from the host, each device with its own part."""
  return jax.device_put(tree, _sharding(devices, jax.sharding.PartitionSpec('batch')))


def _sharding(devices: Devices, spec: jax.sharding.PartitionSpec) -> jax.sharding.Sharding:
  mesh = jax.sharding.Mesh(np.array(devices), ('batch',))
  return jax.sharding.NamedSharding(mesh, spec)


@functools.cache
def _copier(devices: Devices) -> Callable[[PyTree], PyTree]:
  return jax.jit(
    lambda tree: jax.tree.map(jnp.copy, tree),
    out_shardings=_sharding(devices, jax.sharding.PartitionSpec()),
  )
