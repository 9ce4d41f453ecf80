"""ResNet-164 on CIFAR-10, 40 % of all channels removed, as in the paper.

  python -m slim_jax.main --config=configs/cifar10_resnet164.py --workdir=runs/cifar10_resnet164

Time: not yet run; meant for an accelerator.
Paper: test error 5.42 % -> 5.08 %, parameters 1.70M -> 1.44M (-14.9 %), FLOPs 4.99e8 -> 3.81e8
  (-23.7 %). With --config.prune.fraction=0.6: 5.27 %, 1.10M (-35.2 %), 2.75e8 (-44.9 %).
Result: not yet run.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'cifar10'
  config.model.name = 'preresnet'
  config.model.depth = 164
  config.model.width = 16
  config.train.strength = 1e-5
  config.prune.fraction = 0.4
  config.prune.strict = True
  return config.lock()
