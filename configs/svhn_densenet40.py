"""DenseNet-40 on SVHN, 40 % of all channels removed, as in the paper.

  python -m slim_jax.main --config=configs/svhn_densenet40.py --workdir=runs/svhn_densenet40

Time: not yet run; meant for an accelerator.
Paper: test error 1.89 % -> 1.79 %, parameters 1.02M -> 0.65M (-36.3 %), FLOPs 5.33e8 -> 3.69e8
  (-30.8 %). With --config.prune.fraction=0.6: 1.81 %, 0.44M (-56.6 %), 2.67e8 (-49.8 %).
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
  config.model.name = 'densenet'
  config.model.depth = 40
  config.model.growth = 12
  # By the number of parameters in the paper. The PyTorch code of its authors has 24.
  config.model.stem = 16
  config.baseline_epochs = 20
  config.train.epochs = 20
  config.train.strength = 1e-5
  config.prune.fraction = 0.4
  config.prune.strict = True
  config.finetune.epochs = 20
  config.checkpoint_every_epochs = 1
  return config.lock()
