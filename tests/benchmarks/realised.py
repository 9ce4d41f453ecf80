"""What thin networks gain in time of what they gain in arithmetic.

    python tests/benchmarks/realised.py [--network vgg19 ...] [--fraction 0.5 ...] [--train]

A network with random scales, uniform in [0, 1), is cut by the rule of the paper. The full one, the
thin one and one built natively with the layers of the thin one, which slices streams where that
gathers (native.py), take turns; medians count. `realised` is the ratio of times, thin to full, over
that of MACs: 1 where all that is saved in arithmetic is saved in time. With --train it is training
steps (forward, backward, SGD, L1 term), else inference.
"""

import jax
import native
import networks
import side_by_side

import slim_jax

COLUMNS = (
  'network',
  'batch',
  'what',
  'fraction',
  'MACs, thin/full',
  'full, s',
  'thin, s',
  'native, s',
  'time, thin/full',
  'realised',
  'realised, native',
  'thin/native',
)


def natively(name: str, thin_variables, x):
  """The native network of a thin one, after a look whether it has the same layers."""
  module = native.create(name, thin_variables['params'])
  shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
  want, have = (jax.tree.map(lambda leaf: leaf.shape, t) for t in (thin_variables, shapes))
  if want != have:
    raise AssertionError(f'the native {name} has other layers than the thin one')
  return module


def calls(name: str, batch: int, fraction: float, train: bool):
  """What takes turns, by name; and the MACs of the thin network over those of the full one."""
  apply, shapes, image = networks.network(name, batch)
  variables, data = networks.filled(shapes), networks.batch_of(name, batch)
  dead = slim_jax.select_global(variables, fraction=fraction, min_channels=1)
  plan = slim_jax.plan(apply, variables, image, dead=dead)
  thin, cut = slim_jax.thin(apply, plan), plan.slice(variables)
  module, narrow = networks.create(name), natively(name, cut, image)
  macs = [
    slim_jax.count(f, v, image).macs
    for f, v in ((apply, variables), (thin, cut), (networks.predicting(narrow), cut))
  ]
  if macs[1] != macs[2]:
    raise AssertionError(f'{name}: {macs[1]} MACs thin and {macs[2]} native')
  if train:
    found = {
      'full': networks.stepper(networks.training(module), variables, data),
      'thin': networks.stepper(networks.thin_training(module, plan), cut, data),
      'native': networks.stepper(networks.training(narrow), cut, data),
    }
  else:
    x = data['image']
    found = {
      'full': networks.predictor(apply, variables, x),
      'thin': networks.predictor(slim_jax.thin(apply, plan, widen=True), cut, x),
      'native': networks.predictor(networks.predicting(narrow), cut, x),
    }
  return found, macs[1] / macs[0]


def main() -> None:
  parser = side_by_side.options(__doc__, rounds=5, peer=False)
  parser.add_argument(
    '--network', nargs='+', default=list(networks.NETWORKS), choices=list(networks.NETWORKS)
  )
  parser.add_argument('--fraction', nargs='+', type=float, default=[0.3, 0.5, 0.7])
  parser.add_argument('--batch', type=int, help='images of a batch (64, for ResNet-50 16)')
  parser.add_argument('--train', action='store_true', help='training steps, not inference')
  options = side_by_side.parse(parser)
  table = side_by_side.Table(COLUMNS, options)
  for name in options.network:
    batch = options.batch or networks.BATCH[name]
    for fraction in options.fraction:
      found, macs = calls(name, batch, fraction, options.train)
      seconds = side_by_side.medians(side_by_side.take_turns(found, options))
      full, thin, narrow = (seconds[what] for what in ('full', 'thin', 'native'))
      table.add(
        name,
        batch,
        'training step' if options.train else 'inference',
        fraction,
        macs,
        full,
        thin,
        narrow,
        thin / full,
        thin / full / macs,
        narrow / full / macs,
        thin / narrow,
      )
      del found
      jax.clear_caches()


if __name__ == '__main__':
  main()
