"""DenseNet-40 on CIFAR-10, 40 % of all channels removed, as in the paper.

  python -m slim_jax.main --config=configs/cifar10_densenet40.py --workdir=runs/cifar10_densenet40

Time: not yet run; meant for an accelerator.
Paper: test error 6.11 % -> 5.19 %, parameters 1.02M -> 0.66M (-35.7 %), FLOPs 5.33e8 -> 3.81e8
  (-28.4 %). With --config.prune.fraction=0.7: 5.65 %, 0.35M (-65.2 %), 2.40e8 (-55.0 %).
Result: not yet run.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'cifar10'
  config.model.name = 'densenet'
  config.model.depth = 40
  config.model.growth = 12
  # By the number of parameters in the paper. The PyTorch code of its authors has 24.
  config.model.stem = 16
  config.train.strength = 1e-5
  config.prune.fraction = 0.4
  config.prune.strict = True
  return config.lock()
