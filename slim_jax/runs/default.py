"""The default config: every field of a run, its default value and what it means.

An experiment changes what differs:

  from slim_jax.runs import default


  def get_config():
    config = default.get_config()
    config.dataset = 'cifar10'
    config.model.name = 'vgg19'
    return config.lock()

`dataset` and `model.name` have no useful default: each experiment sets its own. Every other
default is what the paper uses for CIFAR, and optional parts are off.

To add a field, add it here with its comment and read it. Its default must leave runs as they were:
configs and runs that were written before get it.
"""

import ml_collections

from slim_jax.runtime.config import Config


def get_config() -> Config:
  """Returns a new default config, to be changed and locked.

  Sections other than `config.model` take no new fields, so a misspelt one is an error at once.
  """
  config = _section()

  # Seeds everything random: initial weights, order of the images, augmentation, dropout.
  config.seed = 0

  _add_data(config)
  _add_devices(config)
  _add_model(config)
  _add_training(config)
  _add_pruning(config)
  _add_finetuning(config)
  _add_records(config)

  for name in ('augment', 'train', 'prune', 'finetune', 'scratch'):
    config[name].lock()
  return config


def _add_data(config: Config) -> None:
  # The data set: 'digits', 'mnist', 'fashion_mnist', 'cifar10', 'cifar100', 'svhn_cropped',
  # 'imagenet2012'; any data set of TFDS that is prepared in data_dir; 'folder:PATH'; or your own:
  # 'module:name' of a function, or an .npz file, see slim_jax/data/own.py.
  config.dataset = ''
  # The directory of TFDS. '' is its default: $TFDS_DATA_DIR, or ~/tensorflow_datasets.
  config.data_dir = ''

  # Side in pixels to which photographs are cropped when they are read. 0 is for images of one size,
  # which are kept in device memory.
  config.image_size = 0
  # Number of processes that read photographs; 0 reads them in threads.
  config.workers = 0

  # Splits for training and for evaluation, in the notation of TFDS ('train[6000:]+extra').
  config.train_split = 'train'
  config.test_split = 'test'
  # Split on which models are chosen: each stage without sparsity ends with the checkpoint that is
  # best on it. '' ends every stage with its last epoch.
  config.valid_split = ''

  config.augment = _section()
  # 'crop_flip' crops and flips; 'imagenet' also changes brightness, contrast, colours and lighting.
  config.augment.kind = 'crop_flip'
  # Zeros padded at each side, in pixels, before a random crop to the size of the image.
  config.augment.pad = 4
  # Whether half of the images are mirrored.
  config.augment.flip = True
  # RandAugment: number of operations, 0 for none (usually 2), and their strength, 0 to 10.
  config.augment.rand_layers = 0
  config.augment.rand_magnitude = 9


def _add_devices(config: Config) -> None:
  # Images of a training step and of an evaluation step, over all devices.
  config.batch_size = 64
  config.eval_batch_size = 1000
  # Number of devices of this machine to use; 0 is all.
  config.devices = 0
  # Number of parts in which a device computes its images of a step, one part after another, for
  # batches that do not fit in its memory.
  config.accumulate_steps = 1
  # Training steps in one call of the compiled program, for networks so small that the calls
  # take most of the time.
  config.steps_per_call = 1
  # Type of the computation: 'float32', 'bfloat16' or 'float16'. Parameters are float32.
  config.dtype = 'float32'
  # Whether BatchNorm takes its statistics over all devices instead of on each device.
  config.cross_replica_batch_norm = False


def _add_model(config: Config) -> None:
  # A name in slim_jax.models.MODELS, or 'module:name' of your own model of Linen or NNX. The
  # arguments of the model are further fields of this section, such as model.widths, model.depth and
  # model.dense_widths.
  config.model = _section()
  config.model.name = ''
  # Weights to start from: a safetensors file (names of slim_jax or of PyTorch), an Orbax checkpoint,
  # or a workdir in which nothing is pruned yet. '' draws new weights.
  config.init_from = ''


def _add_training(config: Config) -> None:
  # Loss and metrics: 'classification', 'multi_label', 'regression', 'segmentation' (see
  # slim_jax/training/losses.py), or 'module:name' of your own (outputs, batch) -> (loss [n],
  # {name: [n]}).
  config.loss = 'classification'
  # The figure that says which checkpoint is best and what a cut costs: a metric of the loss, with a
  # minus where smaller is better, or 'loss'. '' is that of the loss: 'accuracy' for classification,
  # 'loss' for your own.
  config.judge = ''

  # The optimiser: 'sgd'; another one of optax, such as 'adamw' or 'lamb'; or 'module:name' of your
  # own. Its arguments are further fields of this section, such as optimizer.b2.
  config.optimizer = _section()
  config.optimizer.name = 'sgd'
  # Momentum of SGD.
  config.momentum = 0.9
  config.nesterov = True
  # Weight decay applies to all parameters. It is coupled, as in the paper, unless the optimiser has
  # an argument weight_decay.
  config.weight_decay = 1e-4
  # Largest norm of the gradient of all parameters together; 0 for any.
  config.clip_norm = 0.0
  # Decay of moving averages of weights and statistics, such as 0.999; the averages are what is
  # evaluated, pruned and exported. 0 averages nothing.
  config.ema_decay = 0.0
  # Share of a label that is spread over all classes, such as 0.1.
  config.label_smoothing = 0.0
  # Mixup and cutmix: alpha of the beta distribution of the shares, such as 0.2 and 1.0; 0 for none.
  config.mixup = 0.0
  config.cutmix = 0.0
  # Epochs without improvement on valid_split after which a stage without sparsity ends, looked at
  # whenever a checkpoint is saved; 0 trains all epochs.
  config.patience = 0
  # Batch size that the learning rates are meant for: they are scaled by batch_size /
  # base_batch_size. 0 uses them as they are.
  config.base_batch_size = 0

  # Epochs of a baseline: the same network and schedule without sparsity. 0 trains none.
  config.baseline_epochs = 160
  # How often to train with sparsity, prune and fine-tune. Each pass starts from the thin network
  # that the previous pass left.
  config.passes = 1

  # Training with sparsity; the baseline has the same schedule.
  config.train = _section()
  config.train.epochs = 160
  _add_schedule(config.train)
  # lambda of the paper, the weight of the L1 norm of the BatchNorm scales: 1e-4 for VGG, 1e-5 for
  # ResNet-164 and DenseNet-40. It pulls on a scale by strength / (1 - momentum) * sum of the
  # learning rates in total, which must exceed the 0.5 that scales start at. So a shorter training
  # needs a larger strength.
  config.train.strength = 1e-4
  # The total pull itself, whatever the schedule, instead of the strength. 0 uses the strength.
  config.train.pull = 0.0
  # Source of the sparsity. 'l1': the subgradient of the L1 norm, as in the paper. 'proximal': a
  # proximal step with the same pull, which gives scales of exactly 0. 'polarization': draws small
  # scales to 0 and keeps the others large. Or 'module:name' of your own, see `own` in
  # slim_jax/sparsity/terms.py.
  config.train.term = 'l1'
  # t of the polarization, from 0 (half of the scales go to zero) to 2 (all of them do).
  config.train.polarization_t = 1.2
  # Epochs over which the strength rises linearly from 0; may be a fraction.
  config.train.strength_warmup_epochs = 0.0
  # Whether the strength is larger where a channel costs more MACs, with the same mean.
  config.train.weigh_macs = False


def _add_schedule(section: Config) -> None:
  section.learning_rate = 0.1
  # 'piecewise' multiplies the learning rate by drop_factor at each of `drops`, which are fractions
  # of the training. 'cosine' lets it fall to 0 along half a cosine.
  section.schedule = 'piecewise'
  section.drops = (0.5, 0.75)
  section.drop_factor = 0.1
  # Epochs over which the learning rate rises linearly from 0; may be a fraction.
  section.warmup_epochs = 0.0


def _add_pruning(config: Config) -> None:
  # The channels with the smallest scales are removed.
  config.prune = _section()
  # Networks without BatchNorm: what can be removed, as kinds and patterns of names ('heads,neurons',
  # '*Block_0*', or '*' for all), see `slim_jax.units`. These units get gates, scales of 1 that the
  # sparsity term acts on; with a strength of 0 they stay 1, and prune.score has to rank. The cut
  # multiplies them into the weights. '' is for networks whose BatchNorms have scales.
  config.prune.units = ''
  # Fraction of the channels to remove: of all layers together or, with per_layer, of each layer.
  config.prune.fraction = 0.5
  config.prune.per_layer = False
  # Whether all channels are removed whose scale equals the largest that is removed, as in the paper
  # and its configs, even if they are many more than the fraction: scales of exactly 0, after proximal
  # steps. False removes as many of them as the fraction takes, the first of each layer.
  config.prune.strict = False
  # What to prune to, instead of the fraction. A budget, as a share of the network before the cut:
  # 'macs:0.5', 'params:0.3', 'memory:0.5' or 'latency:0.6' (measured, for one image). Or a
  # threshold: 'threshold:0.01' removes scales up to it, 'gap' those below the widest gap between
  # scales. '' uses the fraction.
  config.prune.target = ''
  # What ranks channels: '' is |scale|. 'norm' of the weights, 'taylor' (the change of the loss),
  # 'activation' (what units carry) or 'random'. Or 'module:name' of a function (f, variables, image)
  # -> tree of scores, such as 'slim_jax.selection.scores:kernel_norm', see slim_jax/runs/scoring.py.
  config.prune.score = ''
  # Training batches for 'taylor', 'activation' and own functions with an argument `batches`.
  config.prune.calibration_batches = 8
  # Each layer keeps at least min_channels channels and loses at most max_fraction of its channels.
  config.prune.min_channels = 0
  config.prune.max_fraction = 1.0
  # Layers that lose no channel, as patterns of the path of their scale, such as '*/BatchNorm_0/*'.
  config.prune.keep = ()
  # Widths are rounded up to a multiple of it.
  config.prune.multiple_of = 1
  # How the channels of a residual stream are ranked that are kept or removed together: by the
  # 'sum', 'mean' or 'max' of their scales. '' selects for each BatchNorm by itself.
  config.prune.tied = ''
  # What removed channels still contribute through their biases: 'zero', nothing, as in the paper;
  # 'keep', all of it: one channel in each layer takes over the biases, so removing scales of 0
  # changes nothing.
  config.prune.bias = 'zero'
  # Training batches on which kernels that lose inputs are fitted, at the cut, to the outputs that
  # they had: by least squares, without labels. 0 leaves them as they are.
  config.prune.reconstruct_batches = 0
  # Training batches from which the BatchNorm statistics of the thin network are estimated before it
  # is evaluated and fine-tuned. 0 keeps the statistics it has.
  config.recalibrate_batches = 0


def _add_finetuning(config: Config) -> None:
  # Fine-tuning of the thin network, without sparsity. 0 epochs do none.
  config.finetune = _section()
  config.finetune.epochs = 160
  _add_schedule(config.finetune)
  # Distillation: share of the loss that is the difference from the baseline's outputs, 0 for none,
  # and the temperature that divides the logits of both.
  config.finetune.distill = 0.0
  config.finetune.temperature = 2.0

  # Networks to compare with: the thin network of the last pass trained from new weights, with the
  # schedule of `train` and no sparsity (Liu et al., ICLR 2019).
  config.scratch = _section()
  # Scratch-E: for as many epochs.
  config.scratch.e = False
  # Scratch-B: for as many MACs, so for more epochs.
  config.scratch.b = False


def _add_records(config: Config) -> None:
  # Epochs between two evaluations on test_split within a stage. 0 evaluates at its end only.
  config.eval_every_epochs = 1
  # Steps between two looks at the loss, to show it and to stop if it is not finite.
  config.log_every_steps = 100
  # Epochs between two checkpoints; the end of a stage is saved, too.
  config.checkpoint_every_epochs = 10
  # Sends the metrics to 'wandb' (Weights & Biases) or 'mlflow' as well, if it is installed.
  config.track = ''
  # Number of checkpoints that are kept of each stage.
  config.keep_checkpoints = 2


def _section() -> Config:
  return ml_collections.ConfigDict()
