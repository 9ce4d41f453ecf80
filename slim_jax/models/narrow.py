"""Thin networks as ordinary Linen modules: the same class with other widths.

    model = models.VGG(num_classes=10)
    ...
    narrow.module(model, plan)  # VGG(num_classes=10, widths=(38, 61, 'M', ...))

The module takes the thin variables and does not depend on plans. This works for chains, `VGG` and
`MLP`, where one layer reads the channels of each BatchNorm, so that a width describes what is left.
Use `slim_jax.thin` instead

  - for residual and dense networks (`PreResNet`, `ResNet`, `DenseNet`). Each of their BatchNorms and
    additions reads its own selection of a stream's channels, which widths do not describe;
  - if the biases of removed channels are kept (`bias='keep'`) and one channel, with a bias but no
    scale, carries them.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import numpy as np

from slim_jax import models
from slim_jax.channels.cuts import Cut
from slim_jax.channels.plan import Plan
from slim_jax.errors import SlimError

_NOT_DESCRIBED = ('dtype', 'axis_name', 'parent', 'name')

_USE_THIN = 'use slim_jax.thin(f, plan) for this network'


class NarrowError(SlimError, ValueError):
  """Widths do not describe the thin network; the message says why."""


def module(model: nn.Module, plan: Plan) -> nn.Module:
  """Returns a module with the widths that a plan leaves.

  `module(model, plan).apply(plan.slice(v), x)` equals `thin` of `model.apply`, also in training and
  for derivatives. Dropout between layers that became narrower draws other numbers.

  Args:
    model: a `VGG` or an `MLP`, unbound.
    plan: of `model`, over {'params': ..., 'batch_stats': ...}.

  Returns:
    A module of the same class, whose arguments differ in `widths` and `dense_widths`.

  Raises:
    NarrowError: the model is no chain, a layer has no channels left, or a layer does not read the
      channels that the layer before it keeps.
    ValueError: the plan belongs to another model.
  """
  chain = _chain(model)
  kept, widths = None, []
  for layer, norm in _layers(chain):
    kept = _kept(plan, layer, norm, kept)
    widths.append(int(kept.sum()))
  left = iter(widths)
  changes: dict[str, Any] = {
    'widths': tuple(width if width == 'M' else next(left) for width in chain.widths)
  }
  if isinstance(chain, models.VGG):
    changes['dense_widths'] = tuple(next(left) for _ in chain.dense_widths)
  return chain.clone(**changes)


def describe(model: nn.Module) -> dict[str, Any]:
  """Returns {'class': 'VGG', 'num_classes': 10, 'widths': (...), ...}, for JSON next to weights.

  It has all arguments of the class except those about the computation (dtype, axis_name).
  """
  return {
    'class': type(model).__name__,
    **{
      field.name: getattr(model, field.name)
      for field in dataclasses.fields(model)
      if field.name not in _NOT_DESCRIBED
    },
  }


def _chain(model: nn.Module) -> models.MLP | models.VGG:
  """Returns the model; raises if it is no chain."""
  if not isinstance(model, models.MLP | models.VGG):
    raise NarrowError(
      f'{type(model).__name__} is no chain of layers with one width each, as VGG and MLP are; '
      f'{_USE_THIN}'
    )
  return model


def _layers(model: models.MLP | models.VGG) -> list[tuple[str, str | None]]:
  """Returns the names of each layer with a kernel and of its BatchNorm, in order."""
  if isinstance(model, models.MLP):
    hidden = [(f'Dense_{i}', f'BatchNorm_{i}') for i in range(len(model.widths))]
    return [*hidden, (f'Dense_{len(hidden)}', None)]
  convs = sum(width != 'M' for width in model.widths)
  dense = len(model.dense_widths)
  return [
    *((f'Conv_{i}', f'BatchNorm_{i}') for i in range(convs)),
    *((f'Dense_{i}', f'BatchNorm_{convs + i}' if model.dense_norm else None) for i in range(dense)),
    (f'Dense_{dense}', None),
  ]


def _kept(plan: Plan, layer: str, norm: str | None, before: np.ndarray | None) -> np.ndarray:
  """Returns which outputs a layer keeps, the same in all of its variables: bool [outputs].

  Args:
    plan: see `module`.
    layer: its name.
    norm: name of its BatchNorm.
    before: bool [inputs], what the layer before it keeps; None for the first.
  """
  cuts = {path: cut for path, cut in plan.cuts.items() if path[1:-1] in ((layer,), (norm,))}
  kernel = cuts.get(('params', layer, 'kernel'))
  if kernel is None:
    raise ValueError(f'the plan has no params/{layer}/kernel, so it belongs to another model')
  inputs, outputs = (_mask(kernel, axis) for axis in (-2, -1))
  if not outputs.any():
    raise NarrowError(f'{layer} has no channels left, and no width can be 0; {_USE_THIN}')
  # A flattened image repeats the channels for each pixel.
  whole = np.ones(len(inputs), bool) if before is None else before
  if len(inputs) % len(whole):
    raise ValueError(
      f'params/{layer}/kernel has {len(inputs)} inputs, the layer before it has '
      f'{len(whole)} channels: the plan belongs to another model'
    )
  reads_all = np.array_equal(inputs, np.tile(whole, len(inputs) // len(whole)))
  agree = all(np.array_equal(_mask(cut, -1), outputs) for cut in cuts.values())
  if not (reads_all and agree and kernel.thin_shape[:-2] == kernel.shape[:-2]):
    raise NarrowError(f'no width describes {layer}: {_reason(plan)}; {_USE_THIN}')
  return outputs


def _reason(plan: Plan) -> str:
  """Returns why layers do not agree on their channels."""
  if any(fold.carrier >= 0 for folds in plan.folds.values() for fold in folds):
    return "a channel carries the biases of removed ones (bias='keep')"
  return 'it and the layers next to it keep different channels'


def _mask(cut: Cut, axis: int) -> np.ndarray:
  mask = np.zeros(cut.shape[axis], bool)
  mask[cut.indices[axis]] = True
  return mask
