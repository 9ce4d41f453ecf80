"""ImageNet (ILSVRC 2012), prepared without TensorFlow from the two archives of its site.

Users fetch the archives themselves, after registration. The archives are not unpacked: each image
is read from its offset and written to its shard unchanged, except for the 23 images that TFDS
re-encodes too.
"""

from collections.abc import Callable, Iterator
import functools
import hashlib
import io
import os
import tarfile
from typing import Any, NamedTuple

from absl import logging
import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as stock

from slim_jax.data.errors import DataError

TRAIN, VALIDATION = ARCHIVES = ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar')
SITE = 'https://image-net.org/download-images'

# Files of each split, the same number as in TFDS.
_SHARDS = {TRAIN: 1024, VALIDATION: 64}


class _Member(NamedTuple):
  """The position of an image in an archive."""

  name: str
  label: str
  offset: int
  size: int


# Written shard by shard, because the shuffle of the stock builder needs TensorFlow. The order of
# the images depends only on their names and is as good as random, so a part of a split holds
# images of all classes.
class Imagenet2012(tfds.core.ShardBasedBuilder, stock.Builder, skip_registration=True):
  """`imagenet2012` of TFDS, with the splits `train` and `validation`."""

  name = 'imagenet2012'
  pkg_dir_path = tfds.core.tfds_path('datasets/imagenet2012')
  url_infos = None
  # Number of images in each archive, to recognise an incomplete copy.
  COUNTS = {TRAIN: 1_281_167, VALIDATION: 50_000}

  def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, Any]:
    return {
      'train': self._shards(dl_manager.manual_dir / TRAIN, _train_members),
      'validation': self._shards(dl_manager.manual_dir / VALIDATION, _validation_members),
    }

  def _shards(self, path: Any, read_members: Callable[..., Iterator[_Member]]) -> list[Any]:
    logging.info('reading the index of %s', path)
    try:
      members = list(read_members(path))
    except (tarfile.TarError, OSError) as error:
      raise DataError(f'{path} is damaged ({error}); fetch it again from {SITE}') from error
    if len(members) != self.COUNTS[path.name]:
      raise DataError(
        f'{path} holds {len(members)} images, not '
        f'{self.COUNTS[path.name]}; fetch it again from {SITE}'
      )
    members.sort(key=lambda member: hashlib.blake2b(member.name.encode()).digest())
    number = min(_SHARDS[path.name], len(members))
    edges = [shard * len(members) // number for shard in range(number + 1)]
    logging.info('writing %d images; this takes as long as copying the archive', len(members))
    return [
      functools.partial(_examples, path, members[start:stop])
      for start, stop in zip(edges, edges[1:])
    ]


def _examples(
  path: os.PathLike[str], members: list[_Member]
) -> Iterator[tuple[str, dict[str, Any]]]:
  with open(path, 'rb') as file:
    for member in members:
      file.seek(member.offset)
      image = file.read(member.size)
      # Some of the files named JPEG have another colour space, and one is a PNG.
      if member.name in stock.CMYK_IMAGES or member.name in stock.PNG_IMAGES:
        image = _jpeg(image)
      yield member.name, {'file_name': member.name, 'image': image, 'label': member.label}


def _train_members(path: os.PathLike[str]) -> Iterator[_Member]:
  """Reads the training archive, which holds one archive per class, named after the class."""
  with tarfile.open(path, 'r:') as archive:
    for part in archive:
      with tarfile.open(fileobj=archive.extractfile(part), mode='r:') as inner:
        for file in inner:
          yield _Member(
            file.name,
            part.name.removesuffix('.tar'),
            part.offset_data + file.offset_data,
            file.size,
          )


def _validation_members(path: os.PathLike[str]) -> Iterator[_Member]:
  """Reads the validation archive; TFDS has the labels, in the order of the names of the images."""
  labels = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt')
  with tarfile.open(path, 'r:') as archive:
    files = sorted(archive, key=lambda file: file.name)
  for file, label in zip(files, labels.read_text().split()):
    yield _Member(file.name, label, file.offset_data, file.size)


def _jpeg(image: bytes) -> bytes:
  buffer = io.BytesIO()
  with PIL.Image.open(io.BytesIO(image)) as picture:
    picture.convert('RGB').save(buffer, 'jpeg', quality=100)
  return buffer.getvalue()
