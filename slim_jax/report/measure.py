"""What a network takes: its time, measured here and now, and what can be counted."""

from collections.abc import Callable, Sequence
import functools
import re
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections

from slim_jax import jaxprs
from slim_jax.channels.plan import Plan
from slim_jax.costs import counting, timing
from slim_jax.cpu import cpu_options
from slim_jax.display import progress
from slim_jax.runs import network
from slim_jax.runs.workdir import Workdir, WorkdirError, read_json
from slim_jax.runtime.config import Config

BATCHES = (1, 64)
# MACs of one call beyond which it takes seconds.
_HUGE = {'cpu': 1e11}
_HUGE_ELSEWHERE = 2e13


def networks(workdir: Workdir) -> '_Networks':
  """The networks of a run, by their plans.

  Raises:
    WorkdirError: config.json or dataset.json cannot be read, or is of another version.
  """
  config, dataset = (read_json(workdir.path / name) for name in ('config.json', 'dataset.json'))
  try:
    return _Networks(
      ml_collections.ConfigDict(config),
      int(dataset['num_classes']),
      tuple(map(int, dataset['image'])),
    )
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise WorkdirError(
      f'config.json and dataset.json of {workdir.path} do not say all of what '
      f'this version of slim_jax makes the network from: {error}'
    ) from error


class _Networks:
  """See `networks`; made here, so that what is wrong shows at once."""

  def __init__(self, config: Config, num_classes: int, shape: tuple[int, ...]):
    self._config, self._num_classes, self._shape = config, num_classes, shape
    self.of(None)  # raises where the config names no network

  def of(self, plan: Plan | None) -> network.Network:
    """The network that a plan leaves; the full one for None."""
    return network.create(self._config, self._num_classes, plan)

  def count(self, plan: Plan | None) -> counting.Cost:
    """What it costs for one image."""
    image = self._image(1)
    net = self.of(plan)
    return counting.count(net.predict, net.shapes(image), image)

  def call(self, plan: Plan | None, batch: int) -> Callable[[], jax.Array]:
    """A call with so many images, compiled when it is first made; the weights are zero."""
    net, image = self.of(plan), self._image(batch)
    variables, image = jax.tree.map(
      lambda shape: jnp.zeros(shape.shape, shape.dtype), (net.shapes(self._image(1)), image)
    )
    compiled = jax.jit(net.infer, compiler_options=cpu_options())
    return functools.partial(compiled, variables, image)

  def modules(self) -> list[str]:
    """Paths of the modules of the full network, without the root, in the order of their use."""
    net, image = self.of(None), self._image(1)
    program, _ = jaxprs.trace(net.predict, net.shapes(image), image)
    found: dict[str, None] = {}
    for eqn in program.equations:
      names = eqn.module.split('/')[1:]
      found.update(dict.fromkeys('/'.join(names[:n]) for n in range(1, len(names) + 1)))
    return list(found)

  def _image(self, batch: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *self._shape), jnp.float32)


def latency(found: _Networks, plan: Plan | None) -> dict[str, Any]:
  """Times the full network and the thin one on the first device of this process.

  Returns:
    device and platform; jax, its version; time of the measurement (ISO 8601, UTC); and rows:
    network ('full', 'thin'), batch, and seconds of one call, or skipped, why it was not measured.
  """
  device = jax.local_devices()[0]
  huge = _HUGE.get(device.platform, _HUGE_ELSEWHERE)
  cuts = {'full': None} if plan is None else {'full': None, 'thin': plan}
  macs = {name: found.count(cut).macs for name, cut in cuts.items()}
  rows = []
  for batch in BATCHES:
    todo = [name for name in cuts if batch * macs[name] <= huge]
    why = 'so many MACs in one call take long on this device'
    seconds: dict[str, float] = {}
    try:
      with progress.phase(f'measuring the network, images at a time: {batch}'):
        seconds = timing.medians(
          {name: found.call(cuts[name], batch) for name in todo}, least=3, enough=0.3
        )
    except jax.errors.JaxRuntimeError as error:  # no memory, as a rule
      why = str(error).partition('\n')[0][:200]
      logging.warning('the network was not measured: %s', why)
    rows += [
      {
        'network': name,
        'batch': batch,
        **({'seconds': seconds[name]} if name in seconds else {'skipped': why}),
      }
      for name in cuts
    ]
  return {
    'device': device.device_kind,
    'platform': device.platform,
    'jax': jax.__version__,
    'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    'rows': rows,
  }


def in_order(paths: Sequence[str], modules: Sequence[str]) -> list[str]:
  """Paths of scales as the network uses them; those it does not name come last, by number."""
  place = {name: i for i, name in enumerate(modules)}

  def key(path: str):
    natural = [
      (part.isdigit(), int(part) if part.isdigit() else 0, part)
      for part in re.split(r'(\d+)', path)
    ]
    return place.get(short(path), len(place)), natural

  return sorted(paths, key=key)


def short(path: str) -> str:
  """'Bottleneck_0/BatchNorm_1' for 'params/Bottleneck_0/BatchNorm_1/scale'."""
  return '/'.join(path.split('/')[1:-1]) or path
