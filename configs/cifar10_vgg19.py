"""VGG-19 on CIFAR-10 as in the paper: 70 % of all channels removed.

The paper has 6.34 % error before and 6.20 % after, with 88.5 % fewer parameters and
51.0 % fewer operations. Meant for an accelerator.

  python -m slim_jax.main --config=configs/cifar10_vgg19.py --workdir=runs/cifar10_vgg19

Time and results: not yet run.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the locked config; any field can be set as --config.FIELD=VALUE."""
  config = ml_collections.ConfigDict()

  # Everything random follows from it: weights, order, augmentation.
  config.seed = 0

  # Name of a data set, and the TFDS directory it is in ('' for the default of TFDS).
  config.dataset = 'cifar10'
  config.data_dir = ''
  # Side in pixels to which photographs are cropped as they are read; 0 for images of one
  # size, which then lie in device memory. Processes that read them, 0 for threads.
  config.image_size = 0
  config.workers = 0
  # What to train on and what to evaluate on, in the notation of TFDS.
  config.train_split = 'train'
  config.test_split = 'test'
  # What to choose the model on: a stage without L1 ends with the best of its checkpoints
  # ('best' in the table). '' for none: every stage ends with its last epoch.
  config.valid_split = ''

  # Images of a training step, over all devices, and of an evaluation step.
  config.batch_size = 64
  config.eval_batch_size = 1000
  # Devices of this machine to use; 0 for all.
  config.devices = 0
  # In how many parts, one after the other, a device computes its images of a step, for batches
  # that do not fit; and steps in one call of the compiled program, for networks so small that
  # calls take the time.
  config.accumulate_steps = 1
  config.steps_per_call = 1
  # The batch size that learning rates are meant for: with another one they change in
  # proportion. 0 to use them as they are.
  config.base_batch_size = 0

  # Shift by up to so many pixels (zeros come in), and mirror half of the images; of the
  # kind 'imagenet', change the colours too ('crop_flip' does not).
  config.augment = ml_collections.ConfigDict()
  config.augment.kind = 'crop_flip'
  config.augment.pad = 4
  config.augment.flip = True

  # A model of slim_jax.models and its arguments: here the output channels of every
  # convolution, 'M' for a 2x2 max-pool.
  config.model = ml_collections.ConfigDict()
  config.model.name = 'vgg'
  config.model.widths = (
    64,
    64,
    'M',
    128,
    128,
    'M',
    256,
    256,
    256,
    256,
    'M',
    512,
    512,
    512,
    512,
    'M',
    512,
    512,
    512,
    512,
  )
  # Weights to start from instead of new ones: a safetensors file (by our names, or PyTorch's), an
  # Orbax checkpoint, or a run of slim_jax; see the README. A head for other classes is new. '' for
  # new weights.
  config.init_from = ''
  # Of the computation: 'float32', 'bfloat16' or 'float16'. Parameters are float32.
  config.dtype = 'float32'
  # Whether BatchNorm normalises by the images of all devices, not of each its own.
  config.cross_replica_batch_norm = False

  # SGD. The weight decay is coupled and applies to all parameters, as in the paper.
  config.momentum = 0.9
  config.nesterov = True
  config.weight_decay = 1e-4

  # Epochs of the same network with the schedule of `train` and no L1, to compare
  # with; 0 for none.
  config.baseline_epochs = 160
  # How often to train with sparsity, prune and fine-tune, each time from the thin
  # network of the time before.
  config.passes = 1

  # Training with sparsity.
  config.train = ml_collections.ConfigDict()
  config.train.epochs = 160
  config.train.learning_rate = 0.1
  # 'piecewise': times drop_factor at each of `drops`, fractions of the training.
  # 'cosine': half a cosine down to 0; `drops` and `drop_factor` are not used.
  config.train.schedule = 'piecewise'
  config.train.drops = (0.5, 0.75)
  config.train.drop_factor = 0.1
  # Epochs over which the learning rate first rises from 0; may be a fraction.
  config.train.warmup_epochs = 0.0
  # lambda of the paper: weight of the L1 norm of the BatchNorm scales. Its total pull
  # on a scale, strength / (1 - momentum) * sum of the learning rates, must exceed the
  # 0.5 that scales start at, so shorter training needs more of it.
  config.train.strength = 1e-4
  # Instead, the total pull itself, whatever the schedule; 0 to use the strength.
  config.train.pull = 0.0
  # What sparsity comes from: 'l1', the subgradient of the paper; 'proximal', the same pull as a
  # step of its own, with scales that are exactly zero; 'polarization', which draws small scales
  # to zero and pushes the others up: the larger polarization_t, the more go to zero.
  config.train.term = 'l1'
  config.train.polarization_t = 1.2
  # Epochs over which the strength first rises from 0; may be a fraction. And whether it is
  # larger where a channel costs more MACs (the mean over channels stays).
  config.train.strength_warmup_epochs = 0.0
  config.train.weigh_macs = False

  # Which channels go: those with the smallest scales.
  config.prune = ml_collections.ConfigDict()
  # Of all channels; with per_layer, of each layer by itself.
  config.prune.fraction = 0.7
  # Instead, a budget for what is left: 'macs:0.5', 'params:0.3', 'memory:0.5' or 'latency:0.6'
  # (measured, with one image), as shares of the network before the cut; or 'threshold:0.01',
  # all scales up to that, or 'gap', those below the widest gap; '' to use the fraction.
  config.prune.target = ''
  config.prune.per_layer = False
  # Every layer keeps so many channels, and loses at most such a fraction.
  config.prune.min_channels = 1
  config.prune.max_fraction = 1.0
  # Layers left alone, as patterns of the path of their scale ('*/BatchNorm_0/*'), and what
  # widths are rounded up to a multiple of.
  config.prune.keep = ()
  config.prune.multiple_of = 1
  # Channels of one residual stream go or stay together, ranked by the 'sum', 'mean' or 'max'
  # of their scales; '' for each BatchNorm by itself.
  config.prune.tied = ''
  # What the biases of removed channels go on to contribute: 'zero', nothing, as in the paper;
  # 'keep', all of it, through one channel in each layer that takes the others over.
  config.prune.bias = 'zero'

  # Training batches to estimate the BatchNorm statistics of the thin network from, before it is
  # judged and fine-tuned; 0 for none.
  config.recalibrate_batches = 0

  # Fine-tuning of the thin network, without L1; the fields are those of `train`.
  # 0 epochs for none.
  config.finetune = ml_collections.ConfigDict()
  config.finetune.epochs = 160
  config.finetune.learning_rate = 0.1
  config.finetune.schedule = 'piecewise'
  config.finetune.drops = (0.5, 0.75)
  config.finetune.drop_factor = 0.1
  config.finetune.warmup_epochs = 0.0

  # Also train the thin network of the last pass from new weights, with the schedule of
  # `train` and no L1: e, for as many epochs; b, for as much arithmetic, so for more of
  # them. (Scratch-E and Scratch-B of Liu et al., ICLR 2019.)
  config.scratch = ml_collections.ConfigDict()
  config.scratch.e = False
  config.scratch.b = False

  # Evaluate within a stage, too; 0 for at the end of each stage only.
  config.eval_every_epochs = 0
  # How often the loss is looked at, for the display and to stop if it is not finite.
  config.log_every_steps = 100
  # How often a checkpoint is saved, besides at the end of a stage, and how many of a
  # stage are kept.
  config.checkpoint_every_epochs = 10
  config.keep_checkpoints = 2

  return config.lock()
