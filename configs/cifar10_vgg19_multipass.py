"""VGG-19 on CIFAR-10 slimmed in six passes, as in the paper.

  python -m slim_jax.main --config=configs/cifar10_vgg19_multipass.py \\
    --workdir=runs/cifar10_vgg19_multipass

Time: not yet run; 13 times 160 epochs, meant for an accelerator.
Paper: test error 6.34 % -> 5.96 % for the network that four passes leave, after it was trained with
  sparsity again: 95.6 % fewer parameters, 77.2 % fewer FLOPs. By network:

    passes that have cut it                   0     1     2     3     4     5     6
    parameters removed, %                     0  66.7  84.7  91.4  95.6  98.3  99.4
    FLOPs removed, %                          0  38.6  52.7  63.1  77.2  88.7  95.7
    error after fine-tuning, %                   6.51  6.11  6.10  6.59  7.73  9.70
    error after training with sparsity, %  6.38  6.23  5.87  6.19  5.96  7.79
Result: not yet run.

Each pass trains with sparsity, removes 50 % of all channels but at most 50 % of a layer, and
fine-tunes. The paper prints the error after training with sparsity in the row of the next pass.
"""

from slim_jax.runs import default


def get_config():
  """Returns the locked config."""
  config = default.get_config()
  config.dataset = 'cifar10'
  config.model.name = 'vgg'
  config.model.widths = (64, 64, 'M', 128, 128, 'M', *[256] * 4, 'M', *[512] * 4, 'M', *[512] * 4)
  config.passes = 6
  config.prune.min_channels = 1
  config.prune.max_fraction = 0.5
  config.prune.strict = True
  return config.lock()
