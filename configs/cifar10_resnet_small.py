"""ResNet-20 (pre-activation) on a tenth of CIFAR-10 for a CPU, 40 % of all channels removed.

  python -m slim_jax.main --config=configs/cifar10_resnet_small.py \\
    --workdir=runs/cifar10_resnet_small

Time: half an hour on one CPU core (200 images/s).
Result: test accuracy 54.6 % -> 57.4 % (seed 0; sparse 49.3 %, right after the cut 49.4 %),
  parameters -48.5 %, MACs -40.2 %. Images had gone through JPEG at quality 75.

As in the paper each stage, the baseline too, has the same number of epochs. That is short: a
baseline of 24 epochs, as many as the slimmed network has altogether, reaches about 61.6 %.
With --config.prune.bias=zero the accuracy right after the cut is 41.5 %.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'cifar10'
  config.train_split = 'train[:10%]'
  config.augment.pad = 0
  config.eval_batch_size = 500
  config.model.name = 'preresnet'
  config.model.depth = 20
  config.model.width = 8
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
