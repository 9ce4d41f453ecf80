"""The devices of a run, and how arrays lie on them."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Devices = tuple[jax.Device, ...]


def local(count: int = 0) -> Devices:
  """The first `count` devices of this machine; all of them for 0."""
  return tuple(jax.local_devices()[:count or None])


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
  return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree),
                 out_shardings=_sharding(devices, jax.sharding.PartitionSpec()))
