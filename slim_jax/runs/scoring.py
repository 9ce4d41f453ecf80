"""What ranks channels or units in a run: `config.prune.score`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slim_jax import tree
from slim_jax.runs import gated
from slim_jax.runs.network import Network
from slim_jax.runtime import parts
from slim_jax.selection import scores
from slim_jax.training import losses

PyTree = Any
Batch = dict[str, Any]


class Calibration(NamedTuple):
  """Batches for scores that need some, and the loss.

  Attributes:
    batches: returns that many training batches.
    loss: of outputs and a batch, see `losses`.
  """

  batches: Callable[[int], list[Batch]]
  loss: losses.Loss


class _Given(NamedTuple):
  """What a score may look at.

  Attributes:
    net: the network, with its gates if it has some.
    variables: its variables.
    image: shape of an image.
    batches: for calibration.
    loss: `(variables, batch)` -> float [], in inference mode.
  """

  net: Network
  variables: PyTree
  image: jax.ShapeDtypeStruct
  batches: Callable[[], list[Batch]]
  loss: Callable[[PyTree, Batch], jax.Array]


def _norm(given: _Given) -> PyTree:
  if given.net.units is None:
    return scores.kernel_norm(given.net.predict, given.variables, given.image)
  return scores.unit_norm(gated.folded(given.variables, given.net.units), given.net.units)


def _taylor(given: _Given) -> PyTree:
  return scores.mean_taylor(given.loss, given.variables, given.batches(), scales=given.net.scales)


def _activation(given: _Given) -> PyTree:
  if given.net.units is None:
    raise ValueError("prune.score='activation' is for units: set prune.units")
  images = [batch['image'] for batch in given.batches()]
  variables = gated.folded(given.variables, given.net.units)
  return scores.unit_activation(given.net.inner.predict, variables, given.net.units, images)


def _random(given: _Given) -> PyTree:
  return scores.random(given.variables, jax.random.key(0), scales=given.net.scales)


# Scores by the names that configs use.
SCORES: dict[str, Callable[[_Given], PyTree]] = {
  'norm': _norm,
  'taylor': _taylor,
  'activation': _activation,
  'random': _random,
}


def of(
  name: str,
  net: Network,
  variables: PyTree,
  image: jax.ShapeDtypeStruct,
  calibration: Calibration | None,
  count: int,
) -> PyTree:
  """Returns the scores of a network.

  A person's own function is called as `(f, variables, image)`. It gets `units`, `batches`, `loss` and
  `scales` too, if its signature has such arguments, and may return its scores of units by name.

  Args:
    name: key of `SCORES`, or 'module:name'.
    net: the network, with its gates if it has some.
    variables: its variables.
    image: shape of an image.
    calibration: batches and loss; None if no score needs them.
    count: number of batches.

  Raises:
    PartError: an own function cannot be found.
    ValueError: there are no such scores of this network.
  """

  def batches() -> list[Batch]:
    if calibration is None:
      raise ValueError(f'prune.score={name!r} needs batches')
    return calibration.batches(count)

  def loss(variables: PyTree, batch: Batch) -> jax.Array:
    if calibration is None:
      raise ValueError(f'prune.score={name!r} needs a loss')
    return jnp.mean(calibration.loss(net.predict(variables, batch['image']), batch)[0])

  if name in SCORES:
    found = SCORES[name](_Given(net, variables, image, batches, loss))
  else:
    score = parts.find(name, field='prune.score')
    more: dict[str, Any] = {'units': net.units, 'loss': loss, 'scales': net.scales}
    if parts.accepted(score, {'batches': None}):
      more['batches'] = batches()
    found = score(net.predict, variables, image, **parts.accepted(score, more))
  if net.units is not None and isinstance(found, dict) and found.keys() <= net.units.keys():
    found = tree.like(variables, {gated.path(unit): each for unit, each in found.items()})
  return found
