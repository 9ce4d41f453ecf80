"""Planning, slicing and the first thin call beside Torch-Pruning.

    python tests/benchmarks/planning.py [--network ResNet50 ...] [--depth 20 56 110 164]

Half of the channels of every layer go, by the BatchNorm scales. Ours: `select_global` with
per_layer, `plan` (which traces), `slice`. Torch-Pruning's `BNScalePruner`: its graph, for which the
network runs once, and `step`, which cuts. `ratio` is ours to theirs so far; both start afresh in
every round, and medians count. Then, once, the first call of the thin network: ours traces and
compiles, PyTorch's just runs. Networks for photographs: ours are those of Keras Applications,
PyTorch's are peers_imagenet.py, one 224x224 image. With --depth also pre-activation ResNets of so
many layers at 32x32, those of PyTorch without channel selection.
"""

import os

os.environ.setdefault('KERAS_BACKEND', 'jax')

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import networks
import numpy as np
import side_by_side

import slim_jax
from slim_jax import models

NETWORKS = ('ResNet50', 'DenseNet121', 'MobileNetV2', 'EfficientNetB0')
COLUMNS = (
  'network',
  'select, s',
  'plan, s',
  'slice, s',
  'slim_jax, s',
  'graph, s',
  'step, s',
  'Torch-Pruning, s',
  'ratio',
  'params left',
  'of theirs',
  'thin trace, s',
  'first thin call, s',
  'first call of PyTorch, s',
)


def keras_network(name: str) -> tuple[Any, Any, jax.Array]:
  """(apply, variables, image) of Keras Applications."""
  import keras  # pylint: disable=import-outside-toplevel  (it takes seconds)

  net = vars(keras.applications)[name](weights=None, classifier_activation=None)
  parts = {'trainable': net.trainable_variables, 'non_trainable': net.non_trainable_variables}
  paths = {part: [v.path for v in found] for part, found in parts.items()}

  def apply(variables: Any, x: jax.Array) -> jax.Array:
    values = ([variables[part][path] for path in paths[part]] for part in parts)
    return net.stateless_call(*values, x, training=False)[0]

  variables = {part: {v.path: np.asarray(v.value) for v in found} for part, found in parts.items()}
  return apply, with_random_scales(variables), jnp.zeros((1, *net.input_shape[1:]))


def preresnet(depth: int) -> tuple[Any, Any, jax.Array]:
  """(apply, variables, image) of a pre-activation ResNet."""
  module = models.create('preresnet', num_classes=10, depth=depth)
  x = jnp.zeros((1, 32, 32, 3))
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
  variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
  return networks.predicting(module), with_random_scales(variables), x


def with_random_scales(variables: Any) -> Any:
  """Uniform in [0, 1), so that the channels of a layer differ."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf, is_scale: rng.uniform(size=leaf.shape).astype('float32') if is_scale else leaf,
    variables,
    slim_jax.batch_norm_scales(variables),
  )


def ours(case: Any, options: argparse.Namespace) -> tuple[dict[str, float], Any]:
  """Seconds to the cut, and what it leaves: (thin function, thin variables, image)."""
  known, variables, x = case

  def apply(variables: Any, x: jax.Array) -> jax.Array:
    return known(variables, x)  # a function that JAX has not traced yet

  seconds, lap = side_by_side.stopwatch(options)
  dead = slim_jax.select_global(variables, fraction=0.5, per_layer=True)
  lap('select')
  plan = slim_jax.plan(apply, variables, x, dead=dead)
  lap('plan')
  thin_variables = plan.slice(variables)
  lap('slice')
  return seconds, (slim_jax.thin(apply, plan), thin_variables, x)


def theirs(make: Any, x: jax.Array, options: argparse.Namespace) -> tuple[dict[str, float], Any]:
  """Seconds to the cut of what `make` makes, and what it leaves: (call, share of parameters)."""
  import torch  # pylint: disable=import-outside-toplevel  (it is not needed with --alone)
  import torch_pruning  # pylint: disable=import-outside-toplevel

  torch.set_num_threads(side_by_side.cores())
  model, image = make(), torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))
  for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      torch.nn.init.uniform_(module.weight)
  params = sum(p.numel() for p in model.parameters())
  head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
  seconds, lap = side_by_side.stopwatch(options)
  pruner = torch_pruning.pruner.BNScalePruner(
    model,
    image,
    torch_pruning.importance.BNScaleImportance(),
    pruning_ratio=0.5,
    ignored_layers=[head],
  )
  lap('graph')
  pruner.step()
  lap('step')

  def call() -> None:
    with torch.inference_mode():
      model(image)

  return seconds, (call, sum(p.numel() for p in model.parameters()) / params)


def first_call(left: Any, options: argparse.Namespace) -> dict[str, float]:
  """Seconds of tracing the thin function, and of the first call, which compiles."""
  thin, thin_variables, x = left
  seconds, lap = side_by_side.stopwatch(options)
  traced = jax.jit(thin).trace(thin_variables, x)
  lap('trace')
  jax.block_until_ready(traced.lower().compile()(thin_variables, x))
  lap('call')
  return seconds


def params(case: Any) -> int:
  """Parameters of (apply, variables, image), without running statistics."""
  return slim_jax.count(*case).params


def middle(rounds: list[dict[str, float]]) -> dict[str, float]:
  """Medians over rounds, by stage, and of their sums."""
  rounds = [{**found, 'together': sum(found.values())} for found in rounds]
  return side_by_side.medians({name: [one[name] for one in rounds] for name in rounds[0]})


def row(name: str, case: Any, make: Any, options: argparse.Namespace) -> list[Any]:
  """The cells of a network; `make` makes the peer, None for none."""
  mine, other, share = [], [], None
  for _ in range(options.rounds + 1):  # the first fills caches
    seconds, left = ours(case, options)
    mine.append(seconds)
    if make:
      seconds, (call, share) = theirs(make, case[2], options)
      other.append(seconds)
  mine = middle(mine[1:])
  other = middle(other[1:]) if make else {}
  first = {} if options.no_call else first_call(left, options)
  seconds, lap = side_by_side.stopwatch(options)
  if make and not options.no_call:
    call()
    lap('call')
  return [
    name,
    *(mine[stage] for stage in ('select', 'plan', 'slice', 'together')),
    *(other.get(stage) for stage in ('graph', 'step', 'together')),
    side_by_side.ratio(mine['together'], other.get('together')),
    params(left) / params(case),
    share,
    first.get('trace'),
    first.get('call'),
    seconds.get('call'),
  ]


def main() -> None:
  parser = side_by_side.options(__doc__, rounds=3)
  parser.add_argument('--network', nargs='*', default=list(NETWORKS), choices=NETWORKS)
  parser.add_argument('--depth', nargs='*', type=int, default=[20, 56, 110, 164])
  parser.add_argument('--no-call', action='store_true', help='without the first thin call')
  options = side_by_side.parse(parser)
  peers = peers_imagenet = None
  if not options.alone:
    import peers  # pylint: disable=import-outside-toplevel  (they need PyTorch)
    import peers_imagenet  # pylint: disable=import-outside-toplevel
  table = side_by_side.Table(COLUMNS, options)
  for name in options.network:
    make = peers_imagenet and (lambda name=name: peers_imagenet.create(name))
    table.add(*row(name, keras_network(name), make, options))
  for depth in options.depth:
    make = peers and (lambda depth=depth: peers.PreResNet(depth, select=False).eval())
    table.add(*row(f'PreResNet-{depth}', preresnet(depth), make, options))


if __name__ == '__main__':
  main()
