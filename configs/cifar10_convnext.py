"""Small ConvNeXt on a tenth of CIFAR-10 for a CPU, half of its MACs removed.

  python -m slim_jax.main --config=configs/cifar10_convnext.py --workdir=runs/cifar10_convnext

Time: not yet run; some hours on one CPU core.
Paper: no figures of so small a network.
Result: not yet run.

The baseline has as many epochs as the slimmed network altogether.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'cifar10'
  config.train_split = 'train[:10%]'
  config.eval_batch_size = 500
  config.model.name = 'convnext'
  config.model.patch = 2
  config.model.widths = (24, 48, 96)
  config.model.neurons = ((96, 96), (192, 192), (384, 384))
  config.model.kernel = 5
  config.model.layer_scale = 0.1
  config.optimizer.name = 'adamw'
  config.weight_decay = 0.05
  config.baseline_epochs = 24
  config.train.epochs = 12
  config.train.learning_rate = 2e-3
  config.train.schedule = 'cosine'
  config.train.warmup_epochs = 1.0
  config.train.strength = 0.0
  config.train.pull = 0.7
  config.prune.update(units='neurons', target='macs:0.5', reconstruct_batches=8)
  config.finetune.update(epochs=12, learning_rate=1e-3, schedule='cosine')
  config.log_every_steps = 50
  config.checkpoint_every_epochs = 4
  return config.lock()
