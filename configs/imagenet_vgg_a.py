"""VGG-A with BatchNorm on ImageNet, 50 % of all channels removed, as in the paper.

  python -m slim_jax.main --config=configs/imagenet_vgg_a.py --workdir=runs/imagenet_vgg_a

Time: not yet run; meant for accelerators.
Paper: parameters 132.9M -> 23.2M (-82.5 %), FLOPs -30.4 %; the authors have withdrawn the errors.
  Liu et al. (ICLR 2019): accuracy 68.62 % fine-tuned, 70.00 % Scratch-E, 71.18 % Scratch-B.
Result: not yet run.

launch/README.md says how to prepare ImageNet.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'imagenet2012'
  config.image_size = 224
  config.workers = 16
  config.test_split = 'validation'
  config.augment.update(kind='imagenet', pad=0)  # photographs are cropped when they are read
  config.batch_size = 256
  config.eval_batch_size = 512
  config.model.name = 'vgg_a'
  config.baseline_epochs = 60
  config.train.epochs = 60
  config.train.drops = (1 / 3, 2 / 3)
  config.train.strength = 1e-5
  config.prune.min_channels = 1
  config.prune.strict = True
  config.finetune.epochs = 5
  config.finetune.learning_rate = 1e-3
  config.finetune.drops = ()
  config.checkpoint_every_epochs = 1
  return config.lock()
