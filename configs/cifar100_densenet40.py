"""DenseNet-40 on CIFAR-100, 40 % of all channels removed, as in the paper.

  python -m slim_jax.main --config=configs/cifar100_densenet40.py --workdir=runs/cifar100_densenet40

Time: not yet run; meant for an accelerator.
Paper: test error 25.36 % -> 25.28 %, parameters 1.06M -> 0.66M (-37.5 %), FLOPs 5.33e8 -> 3.71e8
  (-30.3 %). With --config.prune.fraction=0.6: 25.72 %, 0.46M, 2.81e8 (-47.1 %).
Result: not yet run.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'cifar100'
  config.model.name = 'densenet'
  config.model.depth = 40
  config.model.growth = 12
  # By the number of parameters in the paper. The PyTorch code of its authors has 24.
  config.model.stem = 16
  config.train.strength = 1e-5
  config.prune.fraction = 0.4
  config.prune.strict = True
  return config.lock()
