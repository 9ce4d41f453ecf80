"""The networks of a run: the full one, and those that its plans leave."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp

from slim_jax import jaxprs
from slim_jax.channels.plan import Plan
from slim_jax.costs import counting
from slim_jax.cpu import cpu_options
from slim_jax.runs import network, readers
from slim_jax.runs.workdir import Workdir, WorkdirError
from slim_jax.runtime.config import Config
from slim_jax.structure.unit import Units


@dataclasses.dataclass(frozen=True)
class Architecture:
  """What the networks of a run are built from.

  Plans are those of the run; None stands for the full network.

  Attributes:
    config: of the run.
    num_classes: length of the logits.
    image_shape: height, width and channels.
  """

  config: Config
  num_classes: int
  image_shape: tuple[int, ...]

  def network(self, plan: Plan | None) -> network.Network:
    """Returns the network that a plan leaves."""
    return network.create(self.config, self.num_classes, plan)

  def units(self, plan: Plan | None) -> Units | None:
    """Returns the units of the network that a plan leaves, if those of the config get gates."""
    where = self.config.prune.units
    if not where:
      return None
    return network.with_gates(self.network(plan), self._image(1), where).units

  def cost(self, plan: Plan | None) -> counting.Cost:
    """Returns what the network costs for one image."""
    net, image = self.network(plan), self._image(1)
    return counting.count(net.predict, net.shapes(image), image)

  def call(self, plan: Plan | None, batch: int) -> Callable[[], jax.Array]:
    """Returns a call of the network on `batch` images, compiled on its first use.

    Weights and images are zero: the time of a call does not depend on their values.
    """
    net, image = self.network(plan), self._image(batch)
    variables, image = jax.tree.map(
      lambda shape: jnp.zeros(shape.shape, shape.dtype), (net.shapes(self._image(1)), image)
    )
    compiled = jax.jit(net.infer, compiler_options=cpu_options())
    return functools.partial(compiled, variables, image)

  def modules(self) -> list[str]:
    """Returns the paths of the modules of the full network in the order of their use."""
    net, image = self.network(None), self._image(1)
    program, _ = jaxprs.trace(net.predict, net.shapes(image), image)
    paths: dict[str, None] = {}
    for eqn in program.equations:
      names = eqn.module.split('/')[1:]
      paths.update(dict.fromkeys('/'.join(names[:n]) for n in range(1, len(names) + 1)))
    return list(paths)

  def _image(self, batch: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *self.image_shape), jnp.float32)


def read(workdir: Workdir) -> Architecture:
  """Reads the architecture of a run.

  Raises:
    WorkdirError: config.json or dataset.json cannot be read, or is of another version.
  """
  config = readers.config(workdir.path / 'config.json')
  dataset = readers.dataset(workdir.path / 'dataset.json')
  try:
    architecture = Architecture(config, dataset['num_classes'], tuple(dataset['image']))
    architecture.network(None)  # Raises now if the config names no network.
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise WorkdirError(
      f'config.json and dataset.json of {workdir.path} do not have all that this version of '
      f'slim_jax needs to build the network: {error}'
    ) from error
  return architecture


def in_order(paths: Sequence[str], modules: Sequence[str]) -> list[str]:
  """Returns paths of scales in the order of use of their modules.

  Args:
    paths: of scales, such as 'params/BatchNorm_0/scale'.
    modules: what `Architecture.modules` returns. Scales of other modules come last, by number.
  """
  position = {name: i for i, name in enumerate(modules)}

  def key(path: str):
    natural = [
      (part.isdigit(), int(part) if part.isdigit() else 0, part)
      for part in re.split(r'(\d+)', path)
    ]
    return position.get(module_of(path), len(position)), natural

  return sorted(paths, key=key)


def module_of(path: str) -> str:
  """Returns 'Bottleneck_0/BatchNorm_1' for 'params/Bottleneck_0/BatchNorm_1/scale'."""
  return '/'.join(path.split('/')[1:-1]) or path
