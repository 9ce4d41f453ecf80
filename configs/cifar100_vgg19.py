"""VGG-19 on CIFAR-100, 50 % of all channels removed, as in the paper.

  python -m slim_jax.main --config=configs/cifar100_vgg19.py --workdir=runs/cifar100_vgg19

Time: not yet run; meant for an accelerator.
Paper: test error 26.74 % -> 26.52 %, parameters 20.08M -> 5.00M (-75.1 %), FLOPs 7.97e8 -> 5.01e8
  (-37.1 %).
Result: not yet run.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'cifar100'
  config.model.name = 'vgg'
  config.model.widths = (64, 64, 'M', 128, 128, 'M', *[256] * 4, 'M', *[512] * 4, 'M', *[512] * 4)
  config.prune.min_channels = 1
  config.prune.strict = True
  return config.lock()
