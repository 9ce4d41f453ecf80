"""ResNet-164 on SVHN, 40 % of all channels removed, as in the paper.

  python -m slim_jax.main --config=configs/svhn_resnet164.py --workdir=runs/svhn_resnet164

Time: not yet run; meant for an accelerator.
Paper: test error 1.78 % -> 1.85 %, parameters 1.70M -> 1.46M (-14.5 %), FLOPs 4.99e8 -> 3.44e8
  (-31.1 %).
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
  config.model.name = 'preresnet'
  config.model.depth = 164
  config.model.width = 16
  config.baseline_epochs = 20
  config.train.epochs = 20
  config.train.strength = 1e-5
  config.prune.fraction = 0.4
  config.prune.strict = True
  config.finetune.epochs = 20
  config.checkpoint_every_epochs = 1
  return config.lock()
