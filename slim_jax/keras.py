"""Keras on its JAX backend: a thin model for `fit`, and callbacks for sparse training.

    model.fit(x, y, callbacks=[slim_jax.keras.AddL1(1e-4)])
    thin, info = slim_jax.keras.slim(model, x[:2], fraction=0.5, opt_state=model.optimizer)
    thin.compile(info.opt_state, loss)
    thin.fit(x, y)

The variables are {'trainable': {...}, 'non_trainable': {...}}, arrays by the path that Keras gives
them. Set the environment variable KERAS_BACKEND=jax before Keras is imported.
"""

import base64
import collections
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import inspect
import io
import os
import re
from typing import Any, Unpack
import warnings

import jax
import jax.numpy as jnp
import keras

from slim_jax import batch_norms, tree
from slim_jax.adapters import calls
from slim_jax.adapters.cut import CutKeywords, Info, cut
from slim_jax.adapters.functions import AdapterError, Functions, mode_of, modes
from slim_jax.channels.plan import Plan
from slim_jax.sparsity.observe import THRESHOLDS, scale_shares

if keras.config.backend() != 'jax':
  raise AdapterError(
    f'Keras runs on {keras.config.backend()}, slim_jax needs its JAX backend: set the environment '
    'variable KERAS_BACKEND=jax before Keras is imported'
  )


def functions(
  model: keras.Model,
  *,
  infer: Mapping[str, Any] | None = None,
  train: Mapping[str, Any] | None = None,
) -> Functions:
  """Returns a model as pure functions.

  Args:
    model: any built model.
    infer: keyword arguments that a call in inference has. Default: see `train`.
    train: those in training. Default: the argument `training`, or another customary name, if the
      model's `call` has one.

  Returns:
    `Functions`. `train` returns (results, {'non_trainable': {...}}). The model keeps its random
    streams: `key` is ignored.

  Raises:
    AdapterError: the model has no variables yet.
  """
  return _functions(_Full(model, _named(model), None), infer, train, losses=False)


def slim(
  model: keras.Model,
  *args: Any,
  kwargs: Mapping[str, Any] | None = None,
  infer: Mapping[str, Any] | None = None,
  train: Mapping[str, Any] | bool | None = None,
  **options: Unpack[CutKeywords],
) -> 'tuple[ThinModel, Info]':
  """Removes channels: selects, plans inference and training, slices.

  Args:
    model: any built model; thin ones too. It is not changed.
    *args: what it is called with: usually a few images, or a list or dict of several inputs.
    kwargs: its keyword arguments.
    infer: as in `functions`.
    train: as in `functions`; False plans inference alone.
    **options: `fraction`, `threshold`, `budget` or `dead`; `bias`, and the options of selection: see
      `slim_jax.adapters.cut.CutKeywords`. `opt_state` is a Keras optimiser.

  Returns:
    The thin model, not compiled; and an `Info` with its `variables`, the `plan`, costs, and as
    `opt_state` a new optimiser of the thin model with the state of the one that was given.

  Raises:
    ValueError: as `select_global`, `select_budget` and `plan` raise it, and if the options
      contradict each other.
  """
  full = _full(model)
  optimizer = options.pop('opt_state', None)
  if 'tx' in options or not isinstance(optimizer, keras.optimizers.Optimizer | None):
    raise AdapterError('opt_state must be a Keras optimiser, and needs no tx')
  found = _functions(full, infer, mode_of(train), losses=train is not False)
  info = cut(
    found._replace(variables=_values(_named(model))),
    args,
    kwargs or {},
    trained=lambda variables: variables['trainable'],
    path='trainable',
    training=train is not False,
    earlier=full.plan,
    **options,
  )
  made = thin(model, info.further)
  if optimizer is not None:
    info = dataclasses.replace(
      info, opt_state=_thin_optimizer(optimizer, model, made, info.further['trainable'])
    )
  return made, info


def thin(model: keras.Model, plan: Plan) -> 'ThinModel':
  """Returns the thin model of a plan, with the sliced weights of the model.

  Args:
    model: any built model, which is not changed. If it is thin, the plan is of its thin variables.
    plan: of {'trainable': ..., 'non_trainable': ...}, such as from `functions(model)`. It may be of
      another instance of the model, whose layers Keras numbered differently.
  """
  full = _full(model)
  plan = _for_names(plan, list(_named(model)))
  variables = plan.slice(_values(_named(model)))
  composed = plan if full.plan is None else full.plan.then(plan)
  made = ThinModel(dataclasses.replace(full, plan=composed), name=f'thin_{full.model.name}')
  for (group, name), variable in _named(made).items():
    # A copy: `fit` gives away the memory of weights.
    variable.assign(jnp.copy(variables[group][name]))
  return made


@dataclasses.dataclass(frozen=True, eq=False)
class _Full:
  """A full model and what is left of it; None if it is whole. Keras does not look inside."""

  model: keras.Model
  members: 'Mapping[_Name, Any]'
  plan: Plan | None


@keras.saving.register_keras_serializable('slim_jax')
class ThinModel(keras.Model):
  """A model with thin weights; see `thin`.

  It is called like the full model, and trained, evaluated and saved like any model. It refers to the
  full model, whose weights it does not use.
  """

  def __init__(self, full: _Full, **kwargs: Any):
    super().__init__(dtype=full.model.dtype_policy, autocast=False, **kwargs)
    assert full.plan is not None
    self.full = full
    own = {}
    for (group, name), variable in full.members.items():
      *layers, leaf = name.split('/')
      with contextlib.ExitStack() as stack:
        for layer in layers:  # names tell what a variable is, also inside another model
          stack.enter_context(keras.name_scope(layer))
        own[group, name] = self.add_weight(
          shape=full.plan.cuts[group, name].thin_shape,
          dtype=variable.dtype,
          initializer='zeros',
          trainable=group == 'trainable',
          autocast=False,
          regularizer=variable.regularizer,
          constraint=variable.constraint,
          name=leaf,
        )
    self.own = _Full(self, own, None)
    self.built = True

  @property
  def plan(self) -> Plan:
    """What is left of each variable of the full model."""
    assert self.full.plan is not None
    return self.full.plan

  def call(
    self, inputs: Any, *args: Any, training: Any = None, mask: Any = None, **kwargs: Any
  ) -> Any:
    """Calls the full model on thin weights, and updates them."""
    parameters = inspect.signature(self.full.model.call).parameters
    kwargs |= {'training': bool(training)} if 'training' in parameters else {}
    kwargs |= {} if mask is None else {'mask': mask}

    def f(variables: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
      results, state, losses = _call(self.full, variables, args, kwargs)
      new = {n: leaf for n, leaf in state.items() if leaf is not variables[n[0]][n[1]]}
      return (results, losses), tree.nested(new)

    own = _named(self)
    (results, losses), new = calls.run(f, self.plan, _values(own), inputs, *args, **kwargs)
    for (group, name), value in tree.flatten(new).items():
      own[group, name].assign(value)
    for loss in losses:
      self.add_loss(loss)
    return results

  def get_config(self) -> dict[str, Any]:
    """Returns the full model and the plan, for `save`."""
    file = io.BytesIO()
    self.plan.save(file)
    model = keras.saving.serialize_keras_object(self.full.model)
    model.pop('compile_config', None)
    return {
      'model': model,
      'names': [list(name) for name in self.full.members],
      'plan': base64.b64encode(file.getvalue()).decode(),
      'name': self.name,
    }

  @classmethod
  def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> 'ThinModel':
    """Returns the model of `get_config`, with new weights."""
    model = keras.saving.deserialize_keras_object(config['model'], custom_objects=custom_objects)
    plan = Plan.load(io.BytesIO(base64.b64decode(config['plan'])))
    # Keras may give a loaded model other names. The order is the same.
    names = [(group, name) for group, name in config['names']]
    members = dict(zip(names, _named(model).values(), strict=True))
    return cls(_Full(model, members, plan), name=config['name'])


class AddL1(keras.callbacks.Callback):
  """Adds an L1 penalty on BatchNorm scales to the loss while `fit` runs.

  The gradient of a scale gets `strength * sign(scale)`, before momentum, as from `slim_jax.add_l1`.
  The loss that Keras reports includes the penalty.

  Args:
    strength: lambda.
    scales: which of the variables are scales, as in `slim_jax.add_l1`; see `functions` for the tree.
  """

  def __init__(self, strength: float, scales: Any = batch_norms.scales):
    super().__init__()
    if not strength >= 0:
      raise AdapterError(f'strength must be a number >= 0, got {strength!r}')
    self.strength = strength
    self.scales = scales

  def on_train_begin(self, logs: Any = None) -> None:
    """Gives every scale the penalty."""
    del logs
    variables = _named(self.model)
    for group, name in batch_norms.chosen(_values(variables), self.scales):
      scale = variables[group, name]
      scale.regularizer = _Penalty(self.strength, _without(scale.regularizer))
    _retrace(self.model)

  def on_train_end(self, logs: Any = None) -> None:
    """Takes the penalty away."""
    del logs
    for variable in _named(self.model).values():
      variable.regularizer = _without(variable.regularizer)
    _retrace(self.model)


class _Penalty(keras.regularizers.Regularizer):
  """L1 beside the regulariser that a scale has already."""

  def __init__(self, strength: float, beside: Any = None):
    self.strength = strength
    self.beside = beside

  def __call__(self, x: Any) -> Any:
    # |x| with the gradient sign(x), which is 0 at 0; that of `abs` is 1 there.
    penalty = self.strength * jnp.sum(x * jax.lax.stop_gradient(jnp.sign(x)))
    return penalty if self.beside is None else penalty + self.beside(x)


def _retrace(model: Any) -> None:
  """Makes `fit` trace its step again, with the penalties that there are now."""
  model.make_train_function(force=True)


def _without(regularizer: Any) -> Any:
  return regularizer.beside if isinstance(regularizer, _Penalty) else regularizer


class ScaleShares(keras.callbacks.Callback):
  """Adds the shares of small scales to the logs of every epoch: `scales_below_0.01` and the like.

  They appear in the history and the progress bar. They show early whether sparsity appears.

  Args:
    thresholds: as in `slim_jax.scale_shares`.
    scales: as in `AddL1`.
  """

  def __init__(self, thresholds: Sequence[float] = THRESHOLDS, scales: Any = batch_norms.scales):
    super().__init__()
    self.thresholds = thresholds
    self.scales = scales

  def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
    """Adds the shares."""
    del epoch
    shares = scale_shares(_values(_named(self.model)), self.thresholds, self.scales)
    if logs is not None:
      logs |= {f'scales_below_{threshold:g}': float(share) for threshold, share in shares.items()}


# Group ('trainable' or 'non_trainable') and path of a variable.
_Name = tuple[str, str]


def _full(model: keras.Model) -> _Full:
  """Returns the full model behind a model, which may be itself."""
  return model.full if isinstance(model, ThinModel) else _Full(model, _named(model), None)


def _named(model: Any) -> dict[_Name, Any]:
  """Returns the variables of a model by name; those of a thin model have the full one's names.

  Where layers have the same path, the second one's variables are at 'path#1/kernel' and so on.
  """
  if isinstance(model, ThinModel):
    return dict(model.own.members)
  if not isinstance(model, keras.Model):
    raise AdapterError(
      f'slim_jax.keras needs a keras.Model, got {type(model).__name__}; slim_jax.linen, .nnx, '
      '.equinox and .haiku are for the other libraries'
    )
  groups = {'trainable': model.trainable_variables, 'non_trainable': model.non_trainable_variables}
  if not model.built or not any(groups.values()):
    raise AdapterError(f'{model.name} has no variables yet: call it on a batch, or build it')
  named: dict[_Name, Any] = {}
  seen: dict[str, int] = collections.defaultdict(int)
  for group, members in groups.items():
    for variable in members:
      layer, slash, name = variable.path.rpartition('/')
      number = f'#{seen[variable.path]}' if seen[variable.path] else ''
      seen[variable.path] += 1
      named[group, f'{layer}{number}{slash}{name}'] = variable
  return named


def _for_names(plan: Plan, names: Sequence[tree.Path]) -> Plan:
  """Returns a plan for the variables of another instance of the model.

  Keras numbers layers without a name in the order in which a process makes them: conv2d_7. So the
  names of two instances agree once the numbers after each word are counted from 0. The name of a
  `Sequential` itself comes first until the model is saved and loaded.
  """
  if set(names) == set(plan.cuts):
    return plan
  counted = dict(zip(_counted(names), names, strict=True))
  renamed = dict(zip(plan.cuts, _counted(list(plan.cuts)), strict=True))
  if wrong := tree.differences(dict.fromkeys(renamed.values()), counted):
    raise AdapterError(f'the plan belongs to another model:\n{wrong}')
  new = lambda of: {counted[renamed[path]]: value for path, value in of.items()}
  return Plan(new(plan.cuts), plan.unknown, new(plan.reasons), new(plan.folds))


_SEED = 'seed_generator_state'
_NUMBERED = re.compile(r'(.+?)(?:_(\d+))?((?:#\d+)?)')


def _counted(names: Sequence[tree.Path]) -> list[tree.Path]:
  """Returns names whose parts are numbered from 0, in the order of their own numbers."""
  numbers = collections.defaultdict(set)
  own = os.path.commonprefix([p.split('/')[:-2] for _, p in names if not p.endswith(_SEED)])

  def parts(path: str) -> list[tuple[str, int, str]]:
    inner = path.split('/')
    inner = inner[len(own) :] if inner[: len(own)] == own else inner
    matches = map(_NUMBERED.fullmatch, inner)
    return [(m[1], int(m[2] or 0), m[3]) for m in matches if m]

  for _, path in names:
    for word, number, _ in parts(path):
      numbers[word].add(number)
  rank = {word: sorted(found).index for word, found in numbers.items()}
  return [
    (group, '/'.join(f'{word}_{rank[word](n)}{twin}' for word, n, twin in parts(path)))
    for group, path in names
  ]


def _values(named: Mapping[_Name, Any]) -> dict[str, dict[str, Any]]:
  """Returns the values of variables as a tree."""
  values: dict[str, dict[str, Any]] = {'trainable': {}, 'non_trainable': {}}
  for (group, name), variable in named.items():
    values[group][name] = variable.value
  return values


def _functions(full: _Full, infer: Any, train: Any, *, losses: bool) -> Functions:
  """Returns `functions`; with `losses`, the results of `train` are (results, losses)."""
  found = modes(inspect.signature(full.model.call), infer, train)

  def infer_f(variables: Any, *args: Any, **kwargs: Any) -> Any:
    call = lambda *args, **kwargs: _call(full, variables, args, kwargs)
    return found.call(call, False, args, kwargs)[0]

  def train_f(variables: Any, *args: Any, key: Any = None, **kwargs: Any) -> Any:
    del key
    call = lambda *args, **kwargs: _call(full, variables, args, kwargs)
    results, state, own_losses = found.call(call, True, args, kwargs)
    new = {name: value for (_, name), value in state.items()}
    return (results, own_losses) if losses else results, {'non_trainable': new}

  return Functions(
    _values(full.members), infer_f, train_f, (None, {'non_trainable': 'non_trainable'})
  )


def _call(
  full: _Full, variables: Any, args: Any, kwargs: Any
) -> tuple[Any, dict[_Name, Any], list[Any]]:
  """Returns the results, the new state by name, and losses that are not penalties of weights."""
  model, names = full.model, {id(v): name for name, v in full.members.items()}

  def of(members: list[Any]) -> list[Any]:
    return [variables[group][name] for group, name in (names[id(v)] for v in members)]

  results, state, losses = model.stateless_call(
    of(model.trainable_variables),
    of(model.non_trainable_variables),
    *args,
    return_losses=True,
    **kwargs,
  )
  new = {names[id(v)]: value for v, value in zip(model.non_trainable_variables, state)}
  # Keras lists the penalties of weights last. The thin weights have their own.
  penalties = sum(v.regularizer is not None for v in model.trainable_variables)
  return results, new, losses[: len(losses) - penalties]


def _thin_optimizer(
  optimizer: keras.optimizers.Optimizer, model: keras.Model, made: ThinModel, plan: Plan
) -> keras.optimizers.Optimizer:
  """Returns an optimiser of the thin model with the sliced state of that of the model."""
  with warnings.catch_warnings():  # Keras 3.15 reads the learning rate as NumPy 1 did
    warnings.simplefilter('ignore', DeprecationWarning)
    new = type(optimizer).from_config(optimizer.get_config())
  if not optimizer.built:
    return new
  new.build(made.trainable_variables)
  cuts = {
    variable.path.replace('/', '_'): plan.cuts[(name,)]
    for (group, name), variable in _named(model).items()
    if group == 'trainable'
  }
  for old, fresh in zip(optimizer.variables, new.variables, strict=True):
    value = old.value
    if tuple(old.shape) != tuple(fresh.shape):
      shapes = tuple(old.shape), tuple(fresh.shape)
      fitting = [
        name
        for name, cut in cuts.items()
        if old.name.startswith(f'{name}_') and (cut.shape, cut.thin_shape) == shapes
      ]
      if not fitting:
        raise AdapterError(
          f'{old.path} of the optimiser cannot be cut from {shapes[0]} to {shapes[1]}; begin with '
          'a new optimiser'
        )
      value = cuts[max(fitting, key=len)].slice(value)
    fresh.assign(jnp.copy(value))
  return new
