"""The devices of a run, arrays on them, and functions mapped over them.

With several processes, the run has the devices of all of them, and a process handles the arrays of
its own devices.
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
  """Returns the first `count` devices of this process; 0, which several processes need, for all."""
  return tuple(jax.local_devices()[: count or None])


def total(places: Devices) -> int:
  """Returns how many devices all processes have; this one has `places`."""
  return len(places) * jax.process_count()


def numbers(places: Devices) -> np.ndarray:
  """Returns the numbers of these devices among all of the run, int32 [devices]."""
  return np.arange(len(places), dtype=np.int32) + jax.process_index() * len(places)


def share_threads(places: Devices) -> bool:
  """Returns whether the run has several virtual devices of a CPU.

  Concurrent calls can deadlock their shared thread pool, so calls must be serialised.
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
  """Maps a function over the axis 'batch' of all devices of the run with `jax.pmap`.

  Args:
    f: a function of the arrays of one device.
    places: the devices of this process.
    in_axes: as for `jax.pmap`; a split argument has an axis of the devices `places`.
    out_axes: likewise.
    donate_argnums: likewise.
    training: whether it runs a network in training mode.
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
  """Copies a tree to every device, in the layout of the results of a mapped step.

  A step that is called with arrays on one device would be compiled for that layout first, and for
  its own results again.

  Args:
    tree: arrays without a device axis.
    devices: where to put them.
  """
  # Not `device_put`, which may share memory: the step donates its state.
  return _copier(devices)(tree)


def split(tree: PyTree, devices: Devices) -> PyTree:
  """Puts arrays [devices, ...] from the host on the devices, each with its own part."""
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
