"""Small VGG on CIFAR-10 for a CPU, 50 % of all channels removed after one epoch with sparsity.

  python -m slim_jax.main --config=configs/cifar10_vgg_small.py --workdir=runs/cifar10_vgg_small

Time: three quarters of an hour on one CPU core (370 images/s).
Result: test accuracy 81.7 % -> 81.0 % (seed 0; sparse 70.3 %, right after the cut 31.8 %),
  parameters -72.3 %, MACs -22.5 %. Images had gone through JPEG at quality 75.

The cut is early, as in "Drawing early-bird tickets" (You et al., ICLR 2020). A gentle pull leaves
few scales near zero, which the program warns of; fine-tuning restores what the cut takes. The
baseline has the same schedule and as many epochs as the slimmed network altogether.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'cifar10'
  config.augment.pad = 0
  config.eval_batch_size = 500
  config.model.name = 'vgg'
  config.model.widths = (32, 'M', 64, 'M', 128, 'M', 256, 'M')
  config.model.dense_widths = (1024,)
  config.baseline_epochs = 10
  config.train.epochs = 1
  config.train.schedule = 'cosine'
  config.train.strength = 0.0
  config.train.pull = 0.4
  # 755 of 1,504 channels, none of them in the three narrow convolutions.
  config.prune.fraction = 0.59
  config.prune.keep = ('*/BatchNorm_0/*', '*/BatchNorm_1/*', '*/BatchNorm_2/*')
  config.prune.bias = 'keep'
  config.finetune.epochs = 9
  config.finetune.schedule = 'cosine'
  config.log_every_steps = 50
  config.checkpoint_every_epochs = 1
  return config.lock()
