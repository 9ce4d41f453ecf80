"""ResNet-50 on ImageNet from the weights of torchvision, 40 % of all channels removed.

Once, where torchvision is installed:

  python -c "import safetensors.torch, torchvision; safetensors.torch.save_file(
    torchvision.models.resnet50(weights='IMAGENET1K_V1').state_dict(), 'resnet50.safetensors')"

Then, with ImageNet prepared as in launch/README.md:

  python -m slim_jax.main --config=configs/imagenet_resnet50_pretrained.py --workdir=runs/resnet50

Time: not yet run; meant for an accelerator.
Paper: has no such network. Torchvision reports an accuracy of 76.1 % for the weights.
Result: not yet run.
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
  config.batch_size = config.base_batch_size = 256
  config.eval_batch_size = 512
  config.model.name = 'resnet50'
  config.init_from = 'resnet50.safetensors'
  config.baseline_epochs = 0
  # A third of the epochs and a tenth of the learning rate of the paper, with about its pull (1.1).
  config.train.update(epochs=20, learning_rate=0.01, schedule='cosine', drops=(), warmup_epochs=1.0)
  config.train.update(strength=1e-5, pull=1.0)
  config.prune.update(fraction=0.4, min_channels=1)
  config.recalibrate_batches = 100
  config.finetune.update(epochs=20, learning_rate=0.01, schedule='cosine', drops=())
  config.checkpoint_every_epochs = 1
  return config.lock()
