"""Training and inference beside the authors' PyTorch code, and what the sparsity term costs.

    python tests/benchmarks/training.py [--network vgg19 ...] [--batch 64] [--rounds 5]

Both sides have the same weights, batch and threads; that outputs and the loss of the first steps
are equal is looked at before anything is timed. A training step is forward, backward, L1 term and
SGD with momentum: ours compiled, mapped and donated as the loop does it, PyTorch's eager as in the
authors' code (peers.py). An epoch is of 50,000 images, of which a few batches are timed: ours
through the step of the loop, augmentation included, PyTorch's through a DataLoader that pads,
crops and mirrors with Pillow. The second table: seconds of the optimiser with and without the
term, and their difference as a share of the training step; that of two whole steps drowns in
noise.
"""

import jax
import jax.numpy as jnp
import ml_collections
import networks
import numpy as np
import optax
import PIL.Image
import PIL.ImageOps
import side_by_side

import slim_jax
from slim_jax import data
from slim_jax.runtime import devices
from slim_jax.training import feed, loop, train_state

COLUMNS = ('network', 'batch', 'what', 'slim_jax, s', 'PyTorch, s', 'ratio')
TERM = ('network', 'side', 'optimiser without term, s', 'with, s', 'share of a step, %')
IMAGES = 50_000
MEAN = STD = np.full(3, 127.5, np.float32)


def images(count: int) -> data.ArrayData:
  """Random images of 32x32 with labels."""
  rng = np.random.default_rng(0)
  return data.ArrayData(
    rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
    rng.integers(0, 10, count, np.int32),
    10,
    tuple('0123456789'),
    MEAN,
    STD,
  )


def epoch(apply, variables, batch: int, batches: int):
  """So many steps of the loop, as a call."""
  split = images(batch * batches)
  config = ml_collections.ConfigDict(
    {
      'batch_size': batch,
      'devices': 1,
      'accumulate_steps': 1,
      'steps_per_call': 1,
      'augment': {'kind': 'crop_flip', 'pad': 4, 'flip': True},
    }
  )
  source = feed.create(split, config, key=jax.random.key(0))
  run = loop.make_step(source, split, config, key=jax.random.key(1))
  places = devices.local(1)
  state = devices.replicate(
    train_state.create_state(
      slim_jax.for_cpu(apply), jax.device_put(variables), networks.make_tx()
    ),
    places,
  )

  def call() -> float:
    nonlocal state
    totals = devices.replicate(
      {name: np.float32(0) for name in ('loss', 'accuracy', 'steps')}, places
    )
    steps = source.steps(int(state.step))
    for _ in range(batches):
      state, totals = run(state, totals, next(steps), 1)
    return float(totals['loss'])

  return call


def peer_epoch(peers, model, batch: int, batches: int):
  """The same in PyTorch."""
  loader = peers.torch.utils.data.DataLoader(
    Augmented(images(batch * batches)),
    batch,
    shuffle=True,
    collate_fn=lambda parts: (
      peers.torch.from_numpy(np.stack([image for image, _ in parts])),
      peers.torch.tensor([int(label) for _, label in parts]),
    ),
  )
  step = peers.step_function(model)
  return lambda: [step(image, label) for image, label in loader]


class Augmented:
  """A map-style data set: padded, cropped, mirrored and normalised, [channels, height, width]."""

  def __init__(self, split: data.ArrayData):
    self.split, self.rng = split, np.random.default_rng(0)

  def __len__(self) -> int:
    return len(self.split)

  def __getitem__(self, index: int):
    image = PIL.ImageOps.expand(PIL.Image.fromarray(self.split.image[index]), 4)
    x, y = self.rng.integers(0, 9, 2)
    image = image.crop((x, y, x + 32, y + 32))
    if self.rng.random() < 0.5:
      image = PIL.ImageOps.mirror(image)
    array = (np.asarray(image, np.float32) - MEAN) / STD
    return array.transpose(2, 0, 1), self.split.label[index]


def agree(what: str, ours, theirs, tolerance: float) -> None:
  """Raises where the two sides do not compute the same."""
  error = np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(np.asarray(theirs)).max()
  if not error < tolerance:
    raise AssertionError(f'{what}: slim_jax and PyTorch differ by {error:.1e}')


def optimiser(params, strength: float | None):
  """One update of the parameters as a call; None for an optimiser without the term."""
  tx = (
    networks.make_tx(strength)
    if strength is not None
    else optax.chain(
      optax.add_decayed_weights(networks.WEIGHT_DECAY),
      optax.sgd(networks.LEARNING_RATE, momentum=networks.MOMENTUM),
    )
  )

  def update(params, state):
    updates, state = tx.update(jax.tree.map(lambda p: 0.5 * p, params), state, params)
    return optax.apply_updates(params, updates), state

  run = jax.jit(update, donate_argnums=(0, 1))
  held = jax.tree.map(jnp.array, params), tx.init(params)

  def call() -> None:
    nonlocal held
    held = jax.block_until_ready(run(*held))

  return call


def term_of_peer(peers, model):
  """The optimiser of PyTorch without and with the term, on the gradients of the last step."""
  sgd = peers.torch.optim.SGD(
    model.parameters(),
    networks.LEARNING_RATE,
    networks.MOMENTUM,
    weight_decay=networks.WEIGHT_DECAY,
  )
  return {'without': sgd.step, 'with': lambda: (peers.add_l1(model), sgd.step())}


def measure(name: str, options, table, term_table) -> None:
  """The rows of a network."""
  batch = options.batch or networks.BATCH[name]
  data_batch = networks.batch_of(name, batch)
  module = networks.create(name)
  predict, apply = networks.predicting(module), networks.training(module)
  peers = model = None
  if options.alone:
    variables = networks.filled(networks.network(name)[1])
  else:
    import peers  # pylint: disable=import-outside-toplevel  (it needs PyTorch)

    model = peers.create(name, select=not options.without_selection)
    variables = peers.variables(name, model)

  calls = {}
  calls['inference'] = [networks.predictor(predict, variables, data_batch['image'])]
  calls['training step'] = [networks.stepper(apply, variables, data_batch)]
  if networks.NETWORKS[name] == 32 and options.epoch_batches:
    calls['epoch'] = [epoch(apply, variables, batch, options.epoch_batches)]
  if peers:
    calls['inference'].append(peers.predictor(model, data_batch['image']))
    agree('logits', calls['inference'][0](), calls['inference'][1](), 1e-3)
    calls['training step'].append(peers.stepper(model, data_batch))
    losses = np.array([[call() for call in calls['training step']] for _ in range(2)])
    agree('losses', losses[:, 0], losses[:, 1], 1e-3)
    if 'epoch' in calls:
      calls['epoch'].append(peer_epoch(peers, model, batch, options.epoch_batches))

  found = {}
  for what, sides in calls.items():
    rounds = options.rounds if what != 'epoch' else max(1, options.rounds // 2)
    times = side_by_side.take_turns(dict(zip(('ours', 'theirs'), sides)), options, rounds=rounds)
    found[what] = side_by_side.medians(times)
    scale = IMAGES / batch / options.epoch_batches if what == 'epoch' else 1
    ours, theirs = found[what]['ours'] * scale, found[what].get('theirs')
    theirs = theirs and theirs * scale
    table.add(name, batch, what, ours, theirs, side_by_side.ratio(ours, theirs))
  sides = {
    'slim_jax': {
      'without': optimiser(variables['params'], None),
      'with': optimiser(variables['params'], networks.STRENGTH),
    }
  }
  if peers:
    sides['PyTorch'] = term_of_peer(peers, model)
  for (side, pair), key in zip(sides.items(), ('ours', 'theirs')):
    seconds = side_by_side.medians(
      side_by_side.take_turns(pair, options, rounds=6 * options.rounds + 1)
    )
    share = (seconds['with'] - seconds['without']) / found['training step'][key]
    term_table.append((name, side, seconds['without'], seconds['with'], 100 * share))


def main() -> None:
  parser = side_by_side.options(__doc__, rounds=5)
  parser.add_argument(
    '--network', nargs='+', default=list(networks.NETWORKS), choices=list(networks.NETWORKS)
  )
  parser.add_argument('--batch', type=int, help='images of a batch (64, for ResNet-50 16)')
  parser.add_argument(
    '--epoch-batches',
    type=int,
    default=3,
    help='batches that stand for an epoch, 0 for none (%(default)s)',
  )
  parser.add_argument(
    '--without-selection',
    action='store_true',
    help='a faster peer, without the channel selection of the authors',
  )
  options = side_by_side.parse(parser)
  table, terms = side_by_side.Table(COLUMNS, options), []
  for name in options.network:
    measure(name, options, table, terms)
    jax.clear_caches()
  print()
  term_table = side_by_side.Table(TERM, options, title='term')
  for row in terms:
    term_table.add(*row)


if __name__ == '__main__':
  main()
