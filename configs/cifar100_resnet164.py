"""ResNet-164 on CIFAR-100, 40 % of all channels removed, as in the paper.

  python -m slim_jax.main --config=configs/cifar100_resnet164.py --workdir=runs/cifar100_resnet164

Time: not yet run; meant for an accelerator.
Paper: test error 23.37 % -> 22.87 %, parameters 1.73M -> 1.46M (-15.5 %), FLOPs 5.00e8 -> 3.33e8
  (-33.3 %). With --config.prune.fraction=0.6: 23.91 %, 1.21M (-29.7 %), 2.47e8 (-50.6 %).
Result: not yet run.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'cifar100'
  config.model.name = 'preresnet'
  config.model.depth = 164
  config.model.width = 16
  config.train.strength = 1e-5
  config.prune.fraction = 0.4
  config.prune.strict = True
  return config.lock()
