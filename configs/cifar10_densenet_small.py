"""DenseNet-13 on a tenth of CIFAR-10 for a CPU, 40 % of all channels removed.

  python -m slim_jax.main --config=configs/cifar10_densenet_small.py \\
    --workdir=runs/cifar10_densenet_small

Time: three quarters of an hour on half a CPU core (55 to 80 images/s).
Result: test accuracy 60.9 % -> 65.0 % (seed 0; sparse 59.7 %, right after the cut and after
  recalibration 59.8 %), parameters -46.3 %, MACs -38.3 %. Images had gone through JPEG at quality
  75.

As in the paper each stage, the baseline too, has the same number of epochs.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'cifar10'
  config.train_split = 'train[:10%]'
  config.augment.pad = 0
  config.eval_batch_size = 500
  config.model.name = 'densenet'
  config.model.depth = 13
  config.model.growth = 12
  config.model.stem = 16
  config.baseline_epochs = 12
  config.train.epochs = 12
  config.train.schedule = 'cosine'
  config.train.strength = 0.0
  config.train.pull = 0.7
  config.prune.fraction = 0.4
  config.prune.bias = 'keep'
  config.recalibrate_batches = 40
  config.finetune.epochs = 12
  config.finetune.schedule = 'cosine'
  config.log_every_steps = 50
  config.checkpoint_every_epochs = 4
  return config.lock()
