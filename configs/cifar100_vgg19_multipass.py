"""VGG-19 on CIFAR-100 slimmed in six passes, as in the paper.

  python -m slim_jax.main --config=configs/cifar100_vgg19_multipass.py \\
    --workdir=runs/cifar100_vgg19_multipass

Time: not yet run; 13 times 160 epochs, meant for an accelerator.
Paper: test error 26.74 % -> 26.49 % for the network that two passes leave, after it was trained
  with sparsity again: 79.2 % fewer parameters. By network:

    passes that have cut it                    0      1      2      3      4      5     6
    parameters removed, %                      0   59.1   79.2   89.8   95.3   98.3  99.4
    error after training with sparsity, %  27.72  26.03  26.49  28.17  30.04  35.91
Result: not yet run.

Each pass trains with sparsity, removes 50 % of all channels but at most 50 % of a layer, and
fine-tunes. The paper prints the error after training with sparsity in the row of the next pass.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'cifar100'
  config.model.name = 'vgg'
  config.model.widths = (64, 64, 'M', 128, 128, 'M', *[256] * 4, 'M', *[512] * 4, 'M', *[512] * 4)
  config.passes = 6
  config.prune.min_channels = 1
  config.prune.max_fraction = 0.5
  config.prune.strict = True
  return config.lock()
