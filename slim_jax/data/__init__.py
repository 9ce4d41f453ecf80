"""Data sets of images: prepared, loaded, streamed, batched and augmented.

  __init__   `load`, and what needs NumPy and JAX alone
  arrays     a split in memory, `ArrayData`
  memory     reads a split into memory
  stream     a split that is read from disk as it is needed, `StreamData` (Grain)
  batches    batches of images, augmentation, normalisation: pure functions
  colors     random changes of colour, for `batches`;  rand_augment: RandAugment
  images     opening of one image;  photos: decoding and cropping of one photograph
  records    encoded images by index, from any of the sources below
  prepare    data sets prepared on first use (TFDS): `builders`, `digits`, `imagenet`
  folder     a folder of images;  tfrecord: TFRecord files without TensorFlow
  own        a person's own function or .npz file;  splits: parts and sums of splits

To add a data set that is prepared on first use, write a TFDS builder and add it to
`prepare.BUILDERS`.
"""

from typing import TYPE_CHECKING

from absl import logging

from slim_jax.data.arrays import ArrayData, channel_statistics
from slim_jax.data.batches import (
  AUGMENTATIONS,
  augment,
  augment_pixels,
  epoch_order,
  is_of_pixels,
  normalize,
  take_batch,
)
from slim_jax.data.description import describe
from slim_jax.data.errors import DataError

if TYPE_CHECKING:
  from slim_jax.data.stream import Data

__all__ = [
  'AUGMENTATIONS',
  'ArrayData',
  'DataError',
  'augment',
  'augment_pixels',
  'channel_statistics',
  'epoch_order',
  'is_of_pixels',
  'load',
  'normalize',
  'take_batch',
]


def load(
  name: str, *, data_dir: str = '', split: str, image_size: int = 0, workers: int = 0
) -> 'Data':
  """Loads one split. Downloads and prepares the data set first if necessary.

  Args:
    name: 'digits', 'mnist', 'fashion_mnist', 'cifar10', 'cifar100', 'svhn_cropped' or
      'imagenet2012'; or any data set in `data_dir` that was prepared as array_record or
      tfrecord and has an `image` and a class `label`: 'name', 'name/config' or
      'name:version'; or 'folder:/path', a folder of images with a directory for each class; or
      'module:name', an own function, or the path of an .npz file, see `own`.
    data_dir: TFDS directory, `~/tensorflow_datasets` if empty; or the directory of one
      prepared data set.
    split: in the notation of TFDS, such as 'train', 'test[:1000]' or 'train+extra'. The splits
      of a folder are its directories called train, val and test, or training, valid, validation
      and testing; without any of these, the whole folder is the split 'train'.
    image_size: 0 reads the split into memory; all images must have one size. Otherwise the side
      in pixels to which photographs of any size are cropped and scaled while they are read.
    workers: number of processes that decode photographs; 0 uses threads of this process.

  Returns:
    `ArrayData`, the whole split in memory; or `stream.StreamData` if `image_size` is given.
    Examples are in the order of the files, which TFDS has shuffled.

  Raises:
    DataError: the data set, the split or a feature is missing, or cannot be downloaded or read.
      The message says what to do.
    PartError: an own function cannot be found.
  """
  # Imported here because TFDS and Grain take a second, and a finished run is opened without them.
  from slim_jax.data import memory, own, records, stream

  if own.is_own(name):
    if image_size:
      raise DataError(f'config.dataset={name} has images of one size: image_size must be 0')
    loaded = own.load(name, split=split)
  else:
    opened = records.open_records(name, data_dir=data_dir, split=split)
    loaded = stream.StreamData(opened, image_size, workers) if image_size else memory.read(opened)
  logging.info('%s of %s: %s', split, name, describe(loaded))
  return loaded
