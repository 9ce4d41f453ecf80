"""Scores: what ranks channels instead of |scale|.

A score is a tree like the variables with a float [channels] (or an array of the scale's shape) at
each BatchNorm scale and None elsewhere. Channels with larger scores stay. Kernels that are marked as
scales have a score for each output, or for each index of the axis that `scales` names.
`select_global(..., scores=...)` and `select_budget(..., scores=...)` take any score. Your own needs
a few lines. Here it is the variance of a channel after its BatchNorm and ReLU, which follows from
its scale and bias:

    def spread(variables):
      leaves = slim_jax.tree.flatten(variables)
      scores = {}
      for norm in slim_jax.batch_norms.find(variables):
        scale, bias = leaves[norm.scale], leaves[norm.bias]
        samples = jax.random.normal(jax.random.key(0), (1000, *scale.shape))
        scores[norm.scale] = jax.nn.relu(samples * scale[None] + bias[None]).var(0)
      return slim_jax.tree.like(variables, scores)

    dead = slim_jax.select_global(variables, fraction=0.5, scores=spread(variables))
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import batch_norms, shardings, tree
from slim_jax.channels import dead
from slim_jax.channels.ties import streams
from slim_jax.selection import ranking
from slim_jax.selection.unit_scores import unit_activation, unit_norm
from slim_jax.tree import Path

__all__ = [
  'kernel_norm',
  'mean_taylor',
  'random',
  'scale_magnitude',
  'taylor',
  'unit_activation',
  'unit_norm',
]


def scale_magnitude(variables: Any, *, scales: Any = None) -> Any:
  """Returns |scale|, the paper's score and the default of `select_global`.

  Args:
    variables: tree with the scales (arrays).
    scales: which leaves are scales, as in `select_global`.

  Returns:
    A tree of scores of the scales' shapes.

  References:
    Liu et al., ICCV 2017.
  """
  leaves = tree.flatten(variables)
  return tree.like(
    variables,
    {
      path: np.abs(shardings.on_host(leaves[path], np.float64))
      for path in batch_norms.chosen(variables, scales)
    },
  )


def random(variables: Any, key: jax.Array, *, scales: Any = None) -> Any:
  """Returns scores that are uniform in [0, 1), the control experiment for other scores.

  Args:
    variables: tree with the scales (arrays or shapes).
    key: a `jax.random.key`.
    scales: which leaves are scales, as in `select_global`.

  Returns:
    A tree of scores, float32 of the scales' shapes; of kernels, one for each output.
  """
  leaves, kernels = tree.flatten(variables), _kernels(variables)
  scored = {}
  for n, (path, axis) in enumerate(dead.chosen(variables, scales).items()):
    shape, own = tuple(leaves[path].shape), jax.random.fold_in(key, n)
    if path in kernels:
      scored[path] = dead.along(leaves[path], axis, jax.random.uniform(own, (shape[axis],)))
    else:
      scored[path] = jax.random.uniform(own, shape)
  return tree.like(variables, scored)


def taylor(variables: Any, grads: Any, *, bias: bool = False, scales: Any = None) -> Any:
  """Returns |scale * dL/dscale|: to first order, how much zeroing the scale changes the loss.

  Of a kernel, the products are summed over all elements that an output has, before the modulus.

  Args:
    variables: tree with the scales (arrays).
    grads: gradients of a loss, averaged over one or more batches: a tree like `variables`, or a
      part of it from the root on, such as `{'params': grads}`.
    bias: whether the bias is zeroed too: |scale * dL/dscale + bias * dL/dbias|.
    scales: which leaves are scales, as in `select_global`.

  Returns:
    A tree of scores of the scales' shapes; of kernels, one for each output.

  Raises:
    ValueError: `grads` lacks a leaf that is needed, or a leaf has the wrong shape.

  References:
    Molchanov et al., CVPR 2019, equation 8 with a gate after each BatchNorm.
  """
  leaves, slopes = tree.flatten(variables), tree.flatten(grads)
  kernels, biases = _kernels(variables), dead.bias_of_each(leaves) if bias else {}

  def change(path: Path) -> np.ndarray:
    shape = np.shape(slopes[path]) if path in slopes else 'nothing'
    if shape != tuple(leaves[path].shape):
      raise ValueError(
        f'grads must have {list(leaves[path].shape)} at {tree.show(path)}, it has {shape}'
      )
    return shardings.on_host(leaves[path], np.float64) * shardings.on_host(slopes[path], np.float64)

  def by_output(path: Path, axis: int) -> np.ndarray:
    """The changes of all elements of an output, along the axis of outputs."""
    changes = change(path)
    if path in kernels:
      changes = changes.sum(axis=tuple(i for i in range(changes.ndim) if i != axis))
    return changes

  scored = {}
  for path, axis in dead.chosen(variables, scales).items():
    total, beside = by_output(path, axis), biases.get(path)
    if beside is not None:
      bias_axis = dead.matching_axis(path, leaves[path], axis, leaves[beside])
      if bias_axis is not None:
        change_of_bias = change(beside)
        others = tuple(i for i in range(change_of_bias.ndim) if i != bias_axis)
        total = total + (change_of_bias.sum(axis=others) if path in kernels else change_of_bias)
    scored[path] = np.abs(dead.along(leaves[path], axis, total) if path in kernels else total)
  return tree.like(variables, scored)


def mean_taylor(
  loss: Callable[..., jax.Array], variables: Any, batches: Iterable[Any], *, scales: Any = None
) -> Any:
  """Returns the mean over batches of (scale * dL/dscale)^2: what zeroing the scale changes.

  At the end of a training the gradients of single batches do not vanish, while their mean, which
  `taylor` takes, nearly does. Gates score their units:

      gated, gates = slim_jax.gate(apply, variables, units)
      loss = lambda both, batch: cross_entropy(gated(both, batch['image']), batch['label']).mean()
      _, scores = slim_jax.scores.mean_taylor(
        loss, (variables, gates), batches, scales=(False, True))
      dead = slim_jax.select_global(gates, fraction=0.5, scales=True, scores=scores)

  Args:
    loss: `loss(variables, batch)`, float [], which is differentiated in its scales only.
    variables: tree with the scales (arrays).
    batches: batches for calibration, of one shape if the loss is to be compiled once.
    scales: which leaves are scales, as in `select_global`.

  Returns:
    A tree of scores, float64 of the scales' shapes.

  Raises:
    ValueError: there is no batch.

  References:
    Molchanov et al., CVPR 2019, equation 8. With batches of one example, it is the diagonal of the
    Fisher information: Theis et al., 2018.
  """
  leaves = tree.flatten(variables)
  chosen = batch_norms.chosen(variables, scales)

  def change(at: dict[Path, jax.Array], others: Any, batch: Any) -> dict[Path, jax.Array]:
    grads = jax.grad(lambda at: loss(tree.like(variables, {**others, **at}), batch))(at)
    return {path: (at[path] * grads[path]) ** 2 for path in at}

  at = {path: jnp.asarray(leaves[path]) for path in chosen}
  others = {path: leaf for path, leaf in leaves.items() if path not in at}
  compiled = jax.jit(change)
  sums, count = {path: np.zeros(np.shape(leaves[path])) for path in chosen}, 0
  for batch in batches:
    count += 1
    squares = compiled(at, others, batch)
    sums = {
      path: total + shardings.on_host(squares[path], np.float64) for path, total in sums.items()
    }
  if not count:
    raise ValueError('mean_taylor needs at least one batch')
  return tree.like(variables, {path: total / count for path, total in sums.items()})


def kernel_norm(
  f: Callable[..., Any], variables: Any, *args: Any, ord: float = 1, scales: Any = None
) -> Any:  # pylint: disable=redefined-builtin
  """Returns the norm of the kernel slices that produce a channel: (sum |k|^ord)^(1/ord).

  The kernels are found from the jaxpr, as `streams` finds ties: a variable with two or more axes, one
  of which is tied to the channels index by index, contributes its elements at the channel's index.
  For a BatchNorm after a convolution this is the convolution's kernel. For BatchNorms on the stream
  of a residual network it is the kernels of all layers that write to the stream, so these
  BatchNorms rank its channels alike. After a concatenation it is the kernel of the layer that
  computed the channel. Kernels that read the channel do not contribute. A kernel that is itself
  marked as a scale produces its own outputs.

  Args:
    f: `f(variables, *args)`, as for `plan`.
    variables: tree of arrays.
    *args: further arguments (arrays or shapes).
    ord: order of the norm, positive: 1, 2, ...
    scales: which leaves are scales, as in `select_global`.

  Returns:
    A tree of scores, float64 [channels] at each scale leaf, or of its rank where `scales` names an
    axis; stacked layers share them.

  Raises:
    ValueError: no kernel produces a channel, or `ord` is not positive.

  References:
    Li et al., ICLR 2017 (ord=1); summed over a group of layers: Fang et al., CVPR 2023.
  """
  if not ord > 0:
    raise ValueError(f'ord must be positive, got {ord}')
  leaves = tree.flatten(variables)
  axes = dead.chosen(variables, scales)
  views = _views(variables, set(axes))
  labels, labels_of_views = _labels(f, variables, args, axes, views)
  count = 1 + max(int(label.max(initial=-1)) for label in (*labels, *labels_of_views))
  total, makers, own = np.zeros(count), np.zeros(count, int), dict(zip(axes, labels, strict=True))
  for (path, axis), label in zip(views, labels_of_views, strict=True):
    label = own[path] if axes.get(path) == axis else label  # a single output is tied to nothing
    powers = np.abs(shardings.on_host(leaves[path], np.float64)) ** ord
    np.add.at(total, label, powers.sum(axis=tuple(i for i in range(powers.ndim) if i != axis)))
    np.add.at(makers, label, 1)
  constant = ranking.carriers(variables)
  for path, label in zip(axes, labels, strict=True):
    without = (makers[label] == 0) & np.logical_not(constant.get(path, False))
    if without.any():
      raise ValueError(
        f'{tree.show(path)}: no kernel produces channels '
        f'{np.flatnonzero(without)[:10].tolist()}, so they have no score'
      )
  scored = zip(axes.items(), labels, strict=True)
  return tree.like(
    variables,
    {
      path: dead.along(leaves[path], axis, total[label] ** (1 / ord))
      for (path, axis), label in scored
    },
  )


def _kernels(variables: Any) -> set[Path]:
  """Returns the paths of the leaves that are no scales, whose outputs are ranked once."""
  leaves = tree.flatten(variables)
  biases = dead.bias_of_each(leaves)
  return {
    path
    for path, leaf in leaves.items()
    if not dead.is_scale(path, leaf, leaves.get(biases.get(path, ())))
  }


def _views(variables: Any, chosen: set[Path]) -> list[tuple[Path, int]]:
  """Returns (path of a kernel, axis) for every axis that may be that of its channels."""
  norms = {
    path
    for norm in batch_norms.find(variables)
    for path in (norm.scale, norm.bias, *norm.statistics)
  } | (chosen - _kernels(variables))
  return [
    (path, axis)
    for path, leaf in tree.flatten(variables).items()
    if path not in norms and len(leaf.shape) > 1
    for axis, size in enumerate(leaf.shape)
    if size > 1 or path in chosen
  ]


def _labels(
  f: Callable[..., Any],
  variables: Any,
  args: tuple[Any, ...],
  axes: dict[Path, int],
  views: list[tuple[Path, int]],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Returns labels of the channels of each scale, and of the indices of each view.

  `streams` labels one axis per leaf. A vector that is added along an axis is tied to this axis, so
  one vector per view is added to the kernels, and labelled in their place.
  """
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
  leaves = tree.flatten(shapes)
  added = [
    jax.ShapeDtypeStruct((leaves[path].shape[axis],), leaves[path].dtype) for path, axis in views
  ]

  def with_added(both: tuple[Any, list[jax.Array]], *args: Any) -> Any:
    arrays = tree.flatten(both[0])
    for (path, axis), vector in zip(views, both[1], strict=True):
      rank = arrays[path].ndim
      arrays[path] += jnp.expand_dims(vector, [i for i in range(rank) if i != axis])
    return f(tree.like(shapes, arrays), *args)

  marks = {path: dead.mark(leaves[path], axis) for path, axis in axes.items()}
  ranked = tree.map_with_path(lambda path, _: marks.get(path, False), shapes)
  labels, of_views = streams(
    with_added, (shapes, added), *args, scales=(ranked, [True] * len(views))
  )
  by_path = tree.flatten(labels)
  return [np.ravel(by_path[path]) for path in axes], of_views
