"""Small VGG on the 1,797 digits of scikit-learn, 50 % of all channels removed: the demo.

  bash launch/demo.sh

or, where slim_jax is installed (nothing is downloaded):

  python -m slim_jax.main --config=configs/digits.py --workdir=runs/digits

Time: half a minute on two CPU cores.
Result: test accuracy 99.2, 99.2, 98.9 % -> 98.9, 99.4, 98.6 % (seeds 0, 1, 2; right after the cut
  99.4, 99.2, 98.6 %), parameters -75 to -77 %, MACs -70 %.

One image is 0.3 %. Another number of cores rounds differently, which changes single images.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'digits'
  config.augment.pad = 1
  config.augment.flip = False
  config.eval_batch_size = 360
  config.model.name = 'vgg'
  config.model.widths = (32, 32, 'M', 64, 64)
  config.baseline_epochs = 40
  config.train.epochs = 40
  config.train.strength = 5e-3
  config.prune.bias = 'keep'
  config.finetune.epochs = 20
  config.finetune.learning_rate = 0.02
  config.log_every_steps = 20
  return config.lock()
