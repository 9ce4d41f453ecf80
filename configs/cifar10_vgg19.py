"""VGG-19 on CIFAR-10, 70 % of all channels removed, as in the paper.

  python -m slim_jax.main --config=configs/cifar10_vgg19.py --workdir=runs/cifar10_vgg19

Time: not yet run; meant for an accelerator.
Paper: test error 6.34 % -> 6.20 %, parameters 20.04M -> 2.30M (-88.5 %), FLOPs 7.97e8 -> 3.91e8
  (-51.0 %).
Result: not yet run.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'cifar10'
  config.model.name = 'vgg'
  config.model.widths = (64, 64, 'M', 128, 128, 'M', *[256] * 4, 'M', *[512] * 4, 'M', *[512] * 4)
  config.prune.fraction = 0.7
  config.prune.min_channels = 1
  config.prune.strict = True
  return config.lock()
