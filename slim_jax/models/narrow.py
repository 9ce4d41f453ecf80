"""Thin networks as ordinary Linen modules.

    model = models.VGG(num_classes=10)
    ...
    narrow.module(model, plan)  # VGG(num_classes=10, widths=(38, 61, 'M', ...))

The module takes the thin variables and does not depend on plans. For chains, `VGG` and `MLP`, where
one layer reads the channels of each BatchNorm, it is the same class with other widths. Otherwise it
is a class of `narrow_networks`, whose layers have lists of the channels that they read and write:

  - for residual and dense networks (`PreResNet`, `ResNet`, `DenseNet`). Each of their BatchNorms and
    additions reads its own selection of a stream's channels, which widths do not describe;
  - if the biases of removed channels are kept (`bias='keep'`) and one channel, with a bias but no
    scale, carries them.

A `ViT` or a `ConvNeXt` that lost heads and neurons is the same class with other `heads` and
`neurons`. If it lost channels of its stream, there is no such module: its LayerNorms divide by the
number of channels of the full network.
"""

import contextlib
import dataclasses
from typing import Any

from flax import linen as nn
import numpy as np

from slim_jax import models, tree
from slim_jax.channels.cuts import Cut
from slim_jax.channels.plan import Plan
from slim_jax.errors import SlimError
from slim_jax.models import narrow_networks

_CLASSES = (
  models.MLP,
  models.VGG,
  models.PreResNet,
  models.ResNet,
  models.DenseNet,
  models.ViT,
  models.ConvNeXt,
)
_NOT_DESCRIBED = ('dtype', 'axis_name', 'parent', 'name')

_USE_THIN = 'use slim_jax.thin(f, plan) for this network'


class NarrowError(SlimError, ValueError):
  """The thin network has no narrow definition; the message says why."""


class _WidthsError(Exception):
  """Widths do not describe what is left of a chain."""


def module(model: nn.Module, plan: Plan) -> nn.Module:
  """Returns the thin network as an ordinary module.

  `module(model, plan).apply(plan.slice(v), x)` equals `thin` of `model.apply`, also in training and
  for derivatives. Dropout between layers that became narrower draws other numbers.

  Args:
    model: a `VGG`, `MLP`, `PreResNet`, `ResNet`, `DenseNet`, `ViT` or `ConvNeXt`, unbound.
    plan: of `model`, over {'params': ..., 'batch_stats': ...}.

  Returns:
    A module of the same class, whose arguments differ in `widths` and `dense_widths`, or in `heads`
    and `neurons`, if these describe what is left; else one of `narrow_networks`.

  Raises:
    NarrowError: the model is of another class, a chain has a layer without channels, or a `ViT` or a
      `ConvNeXt` has lost something else than heads and neurons.
    ValueError: the plan belongs to another model.
  """
  if isinstance(model, models.ViT | models.ConvNeXt):
    return _of_units(model, plan)
  if isinstance(model, models.MLP | models.VGG):
    with contextlib.suppress(_WidthsError):
      return _chain(model, plan)
  return with_indices(model, plan)


def with_indices(model: nn.Module, plan: Plan) -> nn.Module:
  """Returns the thin network as a module of `narrow_networks`, whatever widths describe.

  Args, Raises: see `module`.
  """
  about = describe(model)
  name = about.pop('class')
  if isinstance(model, models.ViT | models.ConvNeXt):
    _of_units(model, plan)  # raises if there is no such module
  for path, cut in plan.cuts.items():
    if path[-1] == 'kernel' and cut.thin_shape[:-2] != cut.shape[:-2] and not cut.live.empty:
      raise NarrowError(f'{tree.show(path)} lost a part of its height or width; {_USE_THIN}')
  kept = {tree.show(path): [axis.tolist() for axis in c.indices] for path, c in plan.cuts.items()}
  return narrow_networks.create(
    name,
    narrow_networks.layers_of(kept, plan.only_bias),
    dtype=getattr(model, 'dtype', None),
    axis_name=getattr(model, 'axis_name', None),
    **about,
  )


def describe(model: nn.Module) -> dict[str, Any]:
  """Returns {'class': 'VGG', 'num_classes': 10, 'widths': (...), ...}, for JSON next to weights.

  It has all arguments of the class except those about the computation (dtype, axis_name).

  Raises:
    NarrowError: the model is none of `models`, or a module with lists of channels.
  """
  if not isinstance(model, _CLASSES):
    names = ', '.join(known.__name__ for known in _CLASSES)
    raise NarrowError(
      f'{type(model).__name__} has no narrow definition, only {names} have; {_USE_THIN}'
    )
  return {
    'class': type(model).__name__,
    **{
      field.name: getattr(model, field.name)
      for field in dataclasses.fields(model)
      if field.name not in _NOT_DESCRIBED
    },
  }


def _chain(chain: models.MLP | models.VGG, plan: Plan) -> nn.Module:
  """Returns the chain with the widths that are left; raises _WidthsError if there are none."""
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

  Raises:
    _WidthsError: it does not read just what the layer before it keeps, or its variables differ.
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
    raise _WidthsError
  return outputs


def _of_units(model: models.ViT | models.ConvNeXt, plan: Plan) -> nn.Module:
  """Returns the network with the heads and neurons that are left."""
  count = len(model.heads) if isinstance(model, models.ViT) else sum(map(len, model.neurons))
  neurons = [_Units(plan, f'Block_{i}/Dense_0', 'Dense_1') for i in range(count)]
  heads = []
  if isinstance(model, models.ViT):
    inputs = 'query', 'key', 'value'
    attention = [f'Block_{i}/Attention_0' for i in range(count)]
    heads = [
      [_Units(plan, f'{name}/{each}', 'out', model.head_dim) for each in inputs]
      for name in attention
    ]
    for name, (first, *others) in zip(attention, heads, strict=True):
      if any(not np.array_equal(first.left, other.left) for other in others):
        raise NarrowError(
          f'{name}: queries, keys and values have lost different heads; {_USE_THIN}'
        )
  explained = {key for each in [*neurons, *sum(heads, [])] for key in each.explained}
  for path, cut in plan.cuts.items():
    for axis, size in enumerate(cut.shape):
      if cut.thin_shape[axis] != size and (tree.show(path), axis) not in explained:
        raise NarrowError(
          f'{tree.show(path)} has lost more than heads and neurons, {list(cut.shape)} -> '
          f'{list(cut.thin_shape)}; {_USE_THIN}'
        )
  left = iter([each.count for each in neurons])
  if isinstance(model, models.ViT):
    return model.clone(heads=tuple(first.count for first, *_ in heads), neurons=tuple(left))
  return model.clone(neurons=tuple(tuple(next(left) for _ in stage) for stage in model.neurons))


class _Units:
  """Heads or neurons of two layers: outputs of the first one are inputs of the second.

  Attributes:
    left: bool [units].
    explained: path and axis of each variable that loses them.
  """

  def __init__(self, plan: Plan, maker: str, reader: str, size: int = 1):
    """Finds the units that are left.

    Args:
      plan: see `module`.
      maker: path of the layer that makes them.
      reader: name of the layer beside it that reads them.
      size: outputs of each.

    Raises:
      NarrowError: not whole units are left, not the same in all variables, or none.
    """
    reader = f'{maker.rpartition("/")[0]}/{reader}'
    places = [(f'params/{maker}/kernel', 1), (f'params/{maker}/bias', 0)]
    places.append((f'params/{reader}/kernel', 0))
    if missing := [name for name, _ in places if tree.parse(name) not in plan.cuts]:
      raise ValueError(f'the plan has no {missing[0]}, so it belongs to another model')
    outputs, *others = (_mask(plan.cuts[tree.parse(name)], axis) for name, axis in places)
    self.left = outputs.reshape(-1, size).all(1)
    alike = [outputs, np.repeat(self.left, size), *others]
    if not outputs.any():
      raise NarrowError(f'{maker} has lost all of its units, and no size can be 0; {_USE_THIN}')
    if any(not np.array_equal(outputs, other) for other in alike):
      raise NarrowError(
        f'{maker} and {reader} have not lost the same whole units in all variables; {_USE_THIN}'
      )
    self.explained = places

  @property
  def count(self) -> int:
    return int(self.left.sum())


def _mask(cut: Cut, axis: int) -> np.ndarray:
  mask = np.zeros(cut.shape[axis], bool)
  mask[cut.indices[axis]] = True
  return mask
