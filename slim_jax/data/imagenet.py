"""ImageNet (ILSVRC 2012), prepared without TensorFlow from the two archives of its site.

A user has to fetch those, after registration. The archives stay as they are: each
image is read where it lies and written to its shard as it is, but for the 23 that TFDS
re-encodes too.
"""

from collections.abc import Iterator
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

# Files of each split, as many as those of TFDS.
_SHARDS = {TRAIN: 1024, VALIDATION: 64}


class _Place(NamedTuple):
  """Where an image lies in an archive."""

  name: str
  label: str
  offset: int
  size: int


# Written shard by shard, because the shuffle of the stock builder needs TensorFlow. The
# order of the images follows from their names, and is as good as random: a part of a
# split holds images of all classes.
class Imagenet2012(tfds.core.ShardBasedBuilder, stock.Builder, skip_registration=True):
  """`imagenet2012` of TFDS, with the splits `train` and `validation`."""

  name = 'imagenet2012'
  pkg_dir_path = tfds.core.tfds_path('datasets/imagenet2012')
  url_infos = None
  # Images of each archive, to find one that was not copied to its end.
  COUNTS = {TRAIN: 1_281_167, VALIDATION: 50_000}

  def _shard_iterators_per_split(self, dl_manager):
    return {
      'train': self._shards(dl_manager.manual_dir / TRAIN, _train_places),
      'validation': self._shards(dl_manager.manual_dir / VALIDATION, _validation_places),
    }

  def _shards(self, path, read_places):
    logging.info('reading the index of %s', path)
    try:
      places = list(read_places(path))
    except (tarfile.TarError, OSError) as error:
      raise DataError(f'{path} is damaged ({error}); fetch it again from {SITE}') from error
    if len(places) != self.COUNTS[path.name]:
      raise DataError(
        f'{path} holds {len(places)} images, not '
        f'{self.COUNTS[path.name]}; fetch it again from {SITE}'
      )
    places.sort(key=lambda place: hashlib.blake2b(place.name.encode()).digest())
    number = min(_SHARDS[path.name], len(places))
    edges = [shard * len(places) // number for shard in range(number + 1)]
    logging.info('writing %d images, which takes as long as copying them', len(places))
    return [
      functools.partial(_examples, path, places[start:stop])
      for start, stop in zip(edges, edges[1:])
    ]


def _examples(path: os.PathLike[str], places: list[_Place]) -> Iterator[tuple[str, dict[str, Any]]]:
  with open(path, 'rb') as file:
    for place in places:
      file.seek(place.offset)
      image = file.read(place.size)
      # Some of the files called JPEG are in other colours, and one is a PNG.
      if place.name in stock.CMYK_IMAGES or place.name in stock.PNG_IMAGES:
        image = _jpeg(image)
      yield place.name, {'file_name': place.name, 'image': image, 'label': place.label}


def _train_places(path: os.PathLike[str]) -> Iterator[_Place]:
  """The archive of training holds one archive for each class, named after it."""
  with tarfile.open(path, 'r:') as archive:
    for part in archive:
      with tarfile.open(fileobj=archive.extractfile(part), mode='r:') as inner:
        for one in inner:
          yield _Place(
            one.name, part.name.removesuffix('.tar'), part.offset_data + one.offset_data, one.size
          )


def _validation_places(path: os.PathLike[str]) -> Iterator[_Place]:
  """The labels of validation come with TFDS, in the order of the names of the images."""
  labels = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt')
  with tarfile.open(path, 'r:') as archive:
    found = sorted(archive, key=lambda one: one.name)
  for one, label in zip(found, labels.read_text().split()):
    yield _Place(one.name, label, one.offset_data, one.size)


def _jpeg(image: bytes) -> bytes:
  buffer = io.BytesIO()
  with PIL.Image.open(io.BytesIO(image)) as picture:
    picture.convert('RGB').save(buffer, 'jpeg', quality=100)
  return buffer.getvalue()
