"""VGG-19 on SVHN, 60 % of all channels removed, as in the paper.

  python -m slim_jax.main --config=configs/svhn_vgg19.py --workdir=runs/svhn_vgg19

Time: not yet run; meant for an accelerator.
Paper: test error 2.17 % -> 2.06 %, parameters 20.04M -> 3.04M (-84.8 %), FLOPs 7.97e8 -> 3.98e8
  (-50.1 %).
Result: not yet run.

As in the paper, 6,000 of the 604,388 training images are held out, and each stage but the one with
sparsity ends with the epoch that is best on them. The images take 1.9 GB of device memory.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'svhn_cropped'
  config.train_split = 'train[6000:]+extra'
  config.valid_split = 'train[:6000]'
  config.augment.pad = 0
  config.augment.flip = False
  config.model.name = 'vgg'
  config.model.widths = (64, 64, 'M', 128, 128, 'M', *[256] * 4, 'M', *[512] * 4, 'M', *[512] * 4)
  config.baseline_epochs = 20
  config.train.epochs = 20
  config.prune.fraction = 0.6
  config.prune.min_channels = 1
  config.prune.strict = True
  config.finetune.epochs = 20
  config.checkpoint_every_epochs = 1
  return config.lock()
