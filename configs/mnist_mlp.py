"""MLP 784-500-300-10 on MNIST, 80 % of each hidden layer removed, as in the paper.

  python -m slim_jax.main --config=configs/mnist_mlp.py --workdir=runs/mnist_mlp

Time: a minute and a half on two CPU cores.
Paper: test error 1.43 % -> 1.49 %, parameters -84.4 %.
Result: test error 1.64 % -> 1.65 % (seed 0), parameters and MACs -84.4 %.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'mnist'
  config.augment.pad = 0
  config.augment.flip = False
  config.batch_size = 256
  config.model.name = 'mlp'
  config.model.widths = (500, 300)
  config.baseline_epochs = 30
  config.train.epochs = 30
  config.train.drops = (1 / 3, 2 / 3)
  config.train.strength = 5e-4
  # Removes exactly 400 and 240 units, which leaves 784-100-60-10.
  config.prune.fraction = 0.799
  config.prune.per_layer = True
  config.prune.strict = True
  config.finetune.epochs = 30
  config.finetune.drops = (1 / 3, 2 / 3)
  config.log_every_steps = 50
  return config.lock()
