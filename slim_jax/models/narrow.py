"""The thin network as an ordinary Linen module: the same class with other widths.

    model = models.VGG(num_classes=10)
    ...
    narrow.module(model, plan)  # VGG(num_classes=10, widths=(38, 61, 'M', ...))

It reads the thin variables as they are, and nothing in it knows of plans. That works for chains,
where every BatchNorm hands its channels to one layer and what is left of them is a width: `VGG`
and `MLP`. `slim_jax.thin` is the only way

  - in residual and dense networks (`PreResNet`, `ResNet`, `DenseNet`), where each BatchNorm and
    each addition selects its own channels of a stream: no width says which, and models with lists
    of indices at every step would not be plain any more;
  - where the biases of removed channels stay (`bias='keep'`) and one channel carries them, which
    has a bias and no scale.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import numpy as np

from slim_jax import models
from slim_jax.channels.plan import Cut, Plan
from slim_jax.errors import SlimError

_NOT_DESCRIBED = ('dtype', 'axis_name', 'parent', 'name')

_THE_WAY = 'slim_jax.thin(f, plan) is the way to run this network'


class NarrowError(SlimError, ValueError):
  """No widths say what the thin network is; the message says why."""


def module(model: nn.Module, plan: Plan) -> nn.Module:
  """The module whose widths are what a plan leaves.

  `module(model, plan).apply(plan.slice(v), x)` is what `thin` of `model.apply` gives, in training
  too and for derivatives. Dropout between layers that got narrow draws other numbers.

  Args:
    model: a `VGG` or an `MLP`, unbound.
    plan: of `model`, over {'params': ..., 'batch_stats': ...}.

  Returns:
    A module of the same class and arguments, but for `widths` and `dense_widths`.

  Raises:
    NarrowError: the model is no chain, or a layer reads other channels than the one before it
      leaves.
    ValueError: the plan is of another model.
  """
  before, widths = None, []
  for layer, norm in _layers(model):
    before = _left(plan, layer, norm, before)
    widths.append(int(before.sum()))
  kept = iter(widths)
  changes: dict[str, Any] = {
    'widths': tuple(width if width == 'M' else next(kept) for width in model.widths)
  }
  if isinstance(model, models.VGG):
    changes['dense_widths'] = tuple(next(kept) for _ in model.dense_widths)
  return model.clone(**changes)


def describe(model: nn.Module) -> dict[str, Any]:
  """{'class': 'VGG', 'num_classes': 10, 'widths': (...), ...}, for a JSON beside the weights.

  All arguments of the class but for those that only say how it computes (dtype, axis_name).
  """
  return {
    'class': type(model).__name__,
    **{
      field.name: getattr(model, field.name)
      for field in dataclasses.fields(model)
      if field.name not in _NOT_DESCRIBED
    },
  }


def _layers(model: nn.Module) -> list[tuple[str, str | None]]:
  """Names of each layer with a kernel and of the BatchNorm behind it, in order."""
  if isinstance(model, models.MLP):
    hidden = [(f'Dense_{i}', f'BatchNorm_{i}') for i in range(len(model.widths))]
    return [*hidden, (f'Dense_{len(hidden)}', None)]
  if not isinstance(model, models.VGG):
    raise NarrowError(
      f'{type(model).__name__} is no chain of layers with a width each, as VGG and '
      f'MLP are: {_THE_WAY}'
    )
  convs = sum(width != 'M' for width in model.widths)
  dense = len(model.dense_widths)
  return [
    *((f'Conv_{i}', f'BatchNorm_{i}') for i in range(convs)),
    *((f'Dense_{i}', f'BatchNorm_{convs + i}' if model.dense_norm else None) for i in range(dense)),
    (f'Dense_{dense}', None),
  ]


def _left(plan: Plan, layer: str, norm: str | None, before: np.ndarray | None) -> np.ndarray:
  """bool [outputs]: what is left of a layer, the same in all of its variables.

  Args:
    plan: see `module`.
    layer: its name.
    norm: name of its BatchNorm.
    before: bool [inputs], what is left of the layer before it; None for the first.
  """
  cuts = {path: cut for path, cut in plan.cuts.items() if path[1:-1] in ((layer,), (norm,))}
  kernel = cuts.get(('params', layer, 'kernel'))
  if kernel is None:
    raise ValueError(f'the plan has no params/{layer}/kernel: it is of another model')
  inputs, outputs = (_mask(kernel, axis) for axis in (-2, -1))
  # Flattened images are channels, channels, ..., once for each place.
  whole = np.ones(len(inputs), bool) if before is None else before
  if len(inputs) % len(whole):
    raise ValueError(
      f'params/{layer}/kernel takes {len(inputs)} values, the layer before it has '
      f'{len(whole)} channels: the plan is of another model'
    )
  read = np.array_equal(inputs, np.tile(whole, len(inputs) // len(whole)))
  same = all(np.array_equal(_mask(cut, -1), outputs) for cut in cuts.values())
  if not (read and same and outputs.any() and kernel.thin_shape[:-2] == kernel.shape[:-2]):
    carried = any(fold.carrier >= 0 for folds in plan.folds.values() for fold in folds)
    why = (
      "a channel carries the biases of removed ones (bias='keep')"
      if carried
      else 'they keep different channels'
    )
    raise NarrowError(f'{layer} and the layers beside it have no common width, {why}: {_THE_WAY}')
  return outputs


def _mask(cut: Cut, axis: int) -> np.ndarray:
  mask = np.zeros(cut.shape[axis], bool)
  mask[cut.indices[axis]] = True
  return mask
