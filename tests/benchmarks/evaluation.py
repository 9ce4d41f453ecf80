"""Evaluation and calibration beside PyTorch, in images a second.

    python tests/benchmarks/evaluation.py [--network vgg19 ...] [--images 256]

Evaluation is that of a split: ours `loop.make_evaluate`, which normalises and masks in the compiled
step, PyTorch's the test loop of the authors' code over the same batches. Calibration estimates the
statistics of BatchNorm anew: ours `loop.make_recalibrate`, which also augments, PyTorch's forward
passes in training mode that average cumulatively. Same weights; accuracies must be equal.
"""

import jax
import ml_collections
import networks
import numpy as np
import optax
import side_by_side

import slim_jax
from slim_jax import data
from slim_jax.training import evaluation, recalibration, train_state

COLUMNS = ('network', 'batch', 'what', 'slim_jax, images/s', 'PyTorch, images/s', 'ratio of times')
CIFAR = tuple(name for name, size in networks.NETWORKS.items() if size == 32)


def random_split(count: int) -> data.ArrayData:
  """Random images of 32x32 with labels."""
  rng = np.random.default_rng(0)
  return data.ArrayData(
    rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
    rng.integers(0, 10, count, np.int32),
    10,
    tuple('0123456789'),
    np.full(3, 127.5, np.float32),
    np.full(3, 64, np.float32),
  )


def ours(name: str, variables, split: data.ArrayData, batch: int):
  """(evaluation, calibration): calls."""
  module = networks.create(name)
  predict, apply = (slim_jax.for_cpu(f(module)) for f in (networks.predicting, networks.training))
  evaluate = evaluation.make_evaluate(predict, mean=split.mean, std=split.std, batch_size=batch)
  config = ml_collections.ConfigDict(
    {
      'recalibrate_batches': len(split) // batch,
      'batch_size': batch,
      'devices': 1,
      'augment': {'kind': 'crop_flip', 'pad': 4, 'flip': True},
    }
  )
  recalibrate = recalibration.make_recalibrate(split, config=config, key=jax.random.key(0))
  state = train_state.create_state(apply, jax.device_put(variables), optax.identity())
  return (
    lambda: evaluate(variables, split).metrics['accuracy'],
    lambda: jax.block_until_ready(recalibrate(state).batch_stats),
  )


def theirs(peers, model, split: data.ArrayData, batch: int):
  """The same of PyTorch."""
  torch = peers.torch
  norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
  kept = [{key: value.clone() for key, value in norm.state_dict().items()} for norm in norms]

  def batches():
    for start in range(0, len(split), batch):
      image = torch.from_numpy(split.image[start : start + batch]).permute(0, 3, 1, 2).float()
      yield (
        (image - float(split.mean[0])) / float(split.std[0]),
        torch.from_numpy(split.label[start : start + batch].astype(np.int64)),
      )

  def evaluate() -> float:
    for norm, state in zip(norms, kept):
      norm.load_state_dict(state)
    model.eval()
    with torch.inference_mode():
      return sum(float((model(x).argmax(1) == label).sum()) for x, label in batches()) / len(split)

  def recalibrate() -> None:
    model.train()
    for norm in norms:
      norm.reset_running_stats()
      norm.momentum = None  # the mean of all batches
    with torch.no_grad():
      for x, _ in batches():
        model(x)

  return evaluate, recalibrate


def main() -> None:
  parser = side_by_side.options(__doc__, rounds=3)
  parser.add_argument('--network', nargs='+', default=list(CIFAR), choices=CIFAR)
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--images', type=int, default=256, help='images of the split (%(default)s)')
  options = side_by_side.parse(parser)
  if options.images < options.batch:
    parser.error(f'--images must be at least --batch, got {options.images} and {options.batch}')
  table = side_by_side.Table(COLUMNS, options)
  split = random_split(options.images)
  for name in options.network:
    if options.alone:
      variables = networks.filled(networks.network(name)[1])
      sides = [ours(name, variables, split, options.batch)]
    else:
      import peers  # pylint: disable=import-outside-toplevel  (it needs PyTorch)

      model = peers.create(name, select=False)
      sides = [
        ours(name, peers.variables(name, model), split, options.batch),
        theirs(peers, model, split, options.batch),
      ]
      found = [evaluate() for evaluate, _ in sides]
      if not abs(found[0] - found[1]) <= 1.5 / len(split):  # a tie may fall either way
        raise AssertionError(f'{name}: accuracies of {found[0]} and {found[1]}')
    for what, calls in zip(('evaluation', 'calibration'), zip(*sides)):
      seconds = side_by_side.medians(
        side_by_side.take_turns(dict(zip(('ours', 'theirs'), calls)), options)
      )
      table.add(
        name,
        options.batch,
        what,
        *(side_by_side.ratio(len(split), seconds.get(side)) for side in ('ours', 'theirs')),
        side_by_side.ratio(seconds['ours'], seconds.get('theirs')),
      )
    jax.clear_caches()


if __name__ == '__main__':
  main()
