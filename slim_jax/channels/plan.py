"""`Plan`: what is left of every variable."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import os
from typing import Any, BinaryIO

import jax
import numpy as np
import optax

from slim_jax import shardings as shardings_module
from slim_jax import tree
from slim_jax.channels import opt_state as opt_state_module
from slim_jax.channels import plan_file, regions
from slim_jax.channels.cuts import Cut, Fold
from slim_jax.channels.dead import bias_of_each, zeros_of
from slim_jax.channels.regions import Region
from slim_jax.shardings import Change
from slim_jax.tree import Path


@dataclasses.dataclass(frozen=True)
class Plan:
  """Live indices of every axis of every variable, by path; see `plan`.

  A plan always refers to the original network's indices, so the function, the plan and the thin
  arrays are a complete model. `plan['params']` is the plan of a part of the tree. Printing a plan
  shows, by module, the shapes before and after, and why an axis stayed whole.

  Attributes:
    cuts: the live part of each leaf, by path.
    unknown: operations that run at full width because there is no rule for their primitive, each
      as 'primitive(operands) -> results at module path'.
    reasons: why an axis of a leaf stayed whole: it reaches the output, is read by an operation
      without a rule, is tied to a residual stream, or a later layer reads all of it.
    folds: kernels that take over the biases of removed channels (`plan` with `bias='keep'`), by
      path, in order of application.
  """

  cuts: Mapping[Path, Cut]
  unknown: tuple[str, ...] = ()
  reasons: Mapping[Path, str] = dataclasses.field(default_factory=dict)
  folds: Mapping[Path, tuple[Fold, ...]] = dataclasses.field(default_factory=dict)

  def __getitem__(self, path: str) -> 'Plan':
    """Returns the plan of the part of the tree at `path` ('params/Conv_0')."""
    root = tree.parse(path)

    def inside(of: Mapping[Path, Any]) -> dict[Path, Any]:
      return {p[len(root) :]: v for p, v in of.items() if p[: len(root)] == root}

    cuts = inside(self.cuts)
    if not cuts:
      raise KeyError(
        f'the plan has no {path!r}; it has ' + ', '.join(sorted({p[0] for p in self.cuts if p}))
      )
    return Plan(cuts, self.unknown, inside(self.reasons), inside(self.folds))

  @property
  def only_bias(self) -> dict[str, list[int]]:
    """By path of a BatchNorm's scale, the channels of which only the bias stays (`bias='keep'`)."""
    result = {}
    for path, cut in self.cuts.items():
      if not regions.same(cut.filled, cut.live):
        live, filled = cut.indices[-1], regions.indices(cut.filled, cut.shape)[-1]
        result[tree.show(path)] = np.setdiff1d(live, filled).tolist()
    return result

  def slice(self, variables: Any, *, shardings: Any = None) -> Any:
    """Returns the thin variables: same tree, smaller arrays (NumPy in, NumPy out; else JAX arrays).

    Arrays that are spread over several devices, also of several processes, are cut where they are.

    Args:
      variables: tree of arrays or `jax.ShapeDtypeStruct`s of the original shapes.
      shardings: prefix tree of the variables: the sharding that thin arrays are to have, or None
        (default) where they keep their `NamedSharding`.

    Raises:
      ValueError: if leaves are missing, unexpected or of the wrong shape; it lists them.
      ShardingError: if the devices of a mesh axis do not divide a thin axis.
    """
    self._check(variables, lambda cut: cut.shape, 'slice')

    def change(path: Path) -> Change | None:
      cut, folds = self.cuts[path], self.folds.get(path, ())
      if cut.filled.is_whole and not folds:
        return None
      return Change(lambda leaf: cut.slice(_folded(leaf, folds)), cut.thin_shape)

    return _changed(variables, change, shardings)

  def expand(self, thin: Any, *, shardings: Any = None) -> Any:
    """Returns the thin variables at their original shapes, zeros where channels were removed.

    Args:
      thin: tree of arrays or `jax.ShapeDtypeStruct`s of the thin shapes.
      shardings: as for `slice`: those of the full arrays.

    Raises:
      ValueError: if leaves are missing, unexpected or of the wrong shape; it lists them.
      ShardingError: if the devices of a mesh axis do not divide an axis.
    """
    self._check(thin, lambda cut: cut.thin_shape, 'expand')

    def change(path: Path) -> Change | None:
      cut = self.cuts[path]
      return None if cut.filled.is_whole else Change(cut.expand, cut.shape)

    return _changed(thin, change, shardings)

  def slice_opt_state(
    self, tx: optax.GradientTransformation, opt_state: Any, params: Any, *, shardings: Any = None
  ) -> Any:
    """Returns the optimiser state of the thin parameters.

    Momentum, factored moments and histories are sliced like their parameter; counts, rates and norms
    of layers stay. Folds of kernels do not apply: momentum is not linear in the kernels.

    Args:
      tx: the transformation that `opt_state` belongs to.
      opt_state: its state over parameters of the original shapes; of NNX, `opt_state` of an
        `nnx.Optimizer`.
      params: those parameters (arrays or shapes), the tree that this plan describes. Of NNX, all
        of `nnx.split(net)` or the `nnx.Param`s that the optimiser was made for.
      shardings: as for `slice`: a prefix tree of `opt_state`.

    Raises:
      ValueError: if leaves of `params` are missing, unexpected or of the wrong shape; it lists them.
      OptStateError: if `opt_state` is not of `tx` and `params`, or a leaf of it cannot be sliced.
      ShardingError: if the devices of a mesh axis do not divide a thin axis.
    """
    params = opt_state_module.optimised(opt_state, params)
    paths = tree.flatten(params).keys()
    cuts = {path: cut for path, cut in self.cuts.items() if path in paths}
    Plan(cuts)._check(params, lambda cut: cut.shape, 'slice the optimiser state of')
    cuts = {path: cuts[path] for path in paths}  # in the order of the leaves
    leaves = tree.flatten(opt_state)
    shapes = [np.shape(leaf) for leaf in leaves.values()]

    def left(cuts: Mapping[Path, Cut]) -> list[Region]:
      return list(map(_region, shapes, opt_state_module.live_indices(tx, opt_state, params, cuts)))

    live = filled = left(cuts)
    if not all(regions.same(cut.filled, cut.live) for cut in cuts.values()):
      filled = left({path: Cut.of(cut.shape, cut.filled) for path, cut in cuts.items()})
    cuts = {
      path: Cut.of(shape, held, filled=inside)
      for path, shape, held, inside in zip(leaves, shapes, live, filled, strict=True)
    }

    def change(path: Path) -> Change | None:
      cut = cuts[path]
      return None if cut.filled.is_whole else Change(cut.slice, cut.thin_shape)

    return _changed(opt_state, change, shardings)

  def then(self, other: 'Plan') -> 'Plan':
    """Returns the plan equal to this plan followed by `other`.

    Args:
      other: a plan of the thin variables of this plan.

    Raises:
      ValueError: if `other` expects other leaves or shapes than this plan leaves.
    """
    left = {path: cut.thin_shape for path, cut in self.cuts.items()}
    expected = {path: cut.shape for path, cut in other.cuts.items()}
    if wrong := [p for p in {**left, **expected} if left.get(p) != expected.get(p)]:
      raise ValueError(
        'the second plan does not continue the first: they differ at '
        + ', '.join(map(tree.show, wrong))
      )
    cuts = {path: cut.then(other.cuts[path]) for path, cut in self.cuts.items()}
    folds = dict(self.folds)
    for path, more in other.folds.items():
      original = self.cuts[path].indices
      folds[path] = folds.get(path, ()) + tuple(
        fold.renumbered(original[fold.axis]) for fold in more
      )
    return Plan(cuts, other.unknown, other.reasons, folds)

  def relative_to(self, earlier: 'Plan') -> 'Plan':
    """Returns the plan that takes the thin variables of `earlier` to those of this plan.

    Raises:
      ValueError: if this plan keeps something that `earlier` removed.
    """
    cuts = {}
    for path, cut in self.cuts.items():
      before = earlier.cuts[path]
      if not regions.contains(before.live, cut.live):
        raise ValueError(f'{tree.show(path)}: the plan keeps what the earlier plan removed')
      cuts[path] = cut.relative_to(before)
    folds = {
      path: tuple(fold.renumbered(_positions(earlier.cuts[path], fold.axis)) for fold in folds)
      for path, folds in self.folds.items()
    }
    return Plan(cuts, self.unknown, self.reasons, folds)

  def lift(self, dead: Any) -> Any:
    """Returns `dead` of the thin variables in the indices of the original network.

    What this plan removed from a leaf with a dead vector is dead too, so the result describes all
    passes so far: `plan(f, original_shapes, x, dead=earlier.lift(dead))`. Where only the bias of a
    channel was left (`bias='keep'`), the scale is dead, and a vector at the bias says which biases
    are.

    Args:
      dead: tree like the thin variables: bool [channels] at each scale leaf, None elsewhere.
    """
    shapes = {path: jax.ShapeDtypeStruct(cut.thin_shape, bool) for path, cut in self.cuts.items()}
    biases = bias_of_each(shapes)
    lifted: dict[Path, Any] = {}
    for path, vector in tree.flatten(dead).items():
      axis, channels = zeros_of(path, np.asarray(vector), shapes[path])
      cut, bias = self.cuts[path], biases.get(path)
      size = cut.shape[axis]
      held = regions.vector(cut.filled.axes[axis], size)
      all_dead = np.ones(size, bool)
      all_dead[cut.indices[axis]] = channels
      lifted[path] = all_dead | ~held
      if bias is not None and not regions.same(cut.filled, cut.live):
        lifted.setdefault(bias, all_dead)
    return jax.tree_util.tree_map_with_path(
      lambda key_path, _: lifted.get(tree.path_of(key_path)),
      dead,
      is_leaf=lambda leaf: leaf is None,
    )

  def save(self, path: str | os.PathLike[str] | BinaryIO) -> None:
    """Writes the plan to an .npz file, given by name or open (NumPy's format, no pickles)."""
    with contextlib.ExitStack() as stack:
      is_name = isinstance(path, (str, os.PathLike))
      file = stack.enter_context(open(path, 'wb')) if is_name else path
      plan_file.write(file, self.cuts, self.unknown, self.reasons, self.folds)

  @staticmethod
  def load(path: str | os.PathLike[str] | BinaryIO) -> 'Plan':
    """Reads a plan that `save` wrote, from a file given by name or open.

    Raises:
      FileNotFoundError: if there is no such file.
      PlanError: if it is not a plan, is damaged, or a newer version wrote it.
    """
    return Plan(*plan_file.read(path))

  def _check(self, variables: Any, shape: Callable[[Cut], tuple[int, ...]], verb: str) -> None:
    leaves = tree.flatten(variables)
    wrong = tree.differences(self.cuts, leaves)
    for path, leaf in leaves.items():
      if path in self.cuts and tuple(leaf.shape) != shape(self.cuts[path]):
        wrong += (
          f'\n{tree.show(path)} has shape {tuple(leaf.shape)}, '
          f'the plan expects {shape(self.cuts[path])}'
        )
    if wrong:
      raise ValueError(f'cannot {verb} this tree with this plan:\n{wrong.strip()}')

  def __str__(self) -> str:
    """Returns a table by module: leaves, shapes before and after, and why an axis stayed whole."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for path, cut in self.cuts.items():
      left = 'whole' if cut.live.is_whole else str(list(cut.thin_shape))
      row = (
        tree.show(path[:-1]) if path[:-1] else '',
        str(list(cut.shape)),
        left,
        self.reasons.get(path, ''),
      )
      groups.setdefault(row, []).append(path[-1] if path else tree.show(path))
    rows = [('module', 'variables', 'before', 'after', 'why an axis stayed whole')]
    rows += [(module, ' '.join(names), *rest) for (module, *rest), names in groups.items()]
    sizes = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
      '  '.join([*(text.ljust(size) for text, size in zip(row, sizes)), row[-1]]).rstrip()
      for row in rows
    ]
    lines += [f'full width, no rule: {text}' for text in self.unknown]
    return '\n'.join(lines)


def _folded(leaf: Any, folds: Sequence[Fold]) -> Any:
  for fold in folds:
    leaf = fold.apply(leaf)
  return leaf


def _changed(arrays: Any, change: Callable[[Path], Change | None], shardings: Any) -> Any:
  """The tree with every array changed where it is."""
  leaves = tree.flatten(arrays)
  given = [sharding for sharding, _ in tree.spread(shardings, arrays, name='shardings')]
  results = shardings_module.apply(
    {path: change(path) for path in leaves}, leaves, dict(zip(leaves, given, strict=True))
  )
  return jax.tree.unflatten(jax.tree.structure(arrays), results)


def _region(shape: tuple[int, ...], indices: Sequence[np.ndarray] | None) -> Region:
  """The region of these indices of every axis; None: of all."""
  if indices is None:
    return regions.whole(len(shape))
  return regions.normal(np.isin(np.arange(n), i) for n, i in zip(shape, indices, strict=True))


def _positions(cut: Cut, axis: int) -> np.ndarray:
  """Returns int [size]: the position of each index of an axis among the live ones; -1 if dead."""
  position = np.full(cut.shape[axis], -1)
  position[cut.indices[axis]] = np.arange(len(cut.indices[axis]))
  return position
