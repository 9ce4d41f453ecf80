"""Stock TFDS data sets, prepared without TensorFlow.

TensorFlow Datasets describes, downloads and verifies these data sets without TensorFlow, but needs
it to open their archives and to encode their images. The subclasses below replace only those two
steps. Name, version, features, addresses, checksums and record keys are those of the stock
builder, so the result is the same data set and can be shared with other programs.
"""

import functools
import gzip
import io
import os
import posixpath
import struct
import tarfile
import types
from typing import Any

import numpy as np
import PIL.Image
import scipy.io
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.datasets.svhn_cropped import svhn_cropped_dataset_builder
from tensorflow_datasets.image_classification import cifar, mnist


def png(image: np.ndarray) -> bytes:
  """Encodes uint8 [height, width, 1 or 3] as PNG, which is lossless."""
  buffer = io.BytesIO()
  if image.shape[-1] == 1:
    image = image[..., 0]
  PIL.Image.fromarray(np.ascontiguousarray(image)).save(buffer, format='png')
  return buffer.getvalue()


def read_idx(path: os.PathLike[str] | str) -> np.ndarray:
  """Reads a gzipped IDX file of bytes, the format of MNIST.

  The format is two zero bytes, 8 for unsigned bytes, the number of dimensions, each dimension as a
  big-endian int32, and the values (http://yann.lecun.com/exdb/mnist).
  """
  with gzip.open(path, 'rb') as file:
    data = file.read()
  zeros, kind, ndim = struct.unpack_from('>HBB', data)
  if zeros != 0 or kind != 8:
    raise ValueError(f'{path} is not an IDX file of unsigned bytes')
  shape = struct.unpack_from(f'>{ndim}i', data, offset=4)
  return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _checksums(file: str) -> dict[str, Any]:
  """Returns sizes and SHA-256 sums by address, from the files of TFDS."""
  return checksums.load_url_infos(tfds.core.tfds_path(file))


class _Idx:
  """Reads the IDX files of MNIST and its successors."""

  def _split_generators(self, dl_manager):
    # The files stay gzipped: `_generate_examples` opens them.
    stock: Any = super()
    return stock._split_generators(types.SimpleNamespace(download_and_extract=dl_manager.download))

  def _generate_examples(self, num_examples, data_path, label_path):
    del num_examples  # the files hold their own number
    images, labels = read_idx(data_path), read_idx(label_path)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield index, {'image': png(image[..., None]), 'label': int(label)}


class Mnist(_Idx, mnist.MNIST, skip_registration=True):
  """`mnist` of TFDS."""

  name = 'mnist'
  url_infos = _checksums('url_checksums/mnist.txt')


class FashionMnist(_Idx, mnist.FashionMNIST, skip_registration=True):
  """`fashion_mnist` of TFDS."""

  name = 'fashion_mnist'
  url_infos = _checksums('url_checksums/fashion_mnist.txt')


class _CifarBinary:
  """Reads the tar of binary batches of CIFAR-10 and CIFAR-100.

  A record has one byte for each label, then 3x32x32 bytes, channels first.
  """

  info: Any  # both belong to the stock builder
  _cifar_info: Any

  def _split_generators(self, dl_manager):
    info = self._cifar_info
    path = dl_manager.download(info.url)
    for key, file in zip(info.label_keys, info.label_files):
      (text,) = self._read(path, [file])
      self.info.features[key].names = text.decode().split()
    return {
      'train': self._generate_examples('train_', path, info.train_files),
      'test': self._generate_examples('test_', path, info.test_files),
    }

  def _read(self, path, files):
    with tarfile.open(path, 'r:gz') as archive:
      members = {posixpath.normpath(member.name): member for member in archive}
      for file in files:
        content = archive.extractfile(members[self._cifar_info.prefix + file])
        if content is None:
          raise ValueError(f'{file} in {path} is no file')
        yield content.read()

  def _generate_examples(self, split_prefix, path, files):
    keys = self._cifar_info.label_keys
    index = 0
    for data in self._read(path, files):
      records = np.frombuffer(data, np.uint8).reshape(-1, len(keys) + 3 * 32 * 32)
      for record in records:
        image = record[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
        labels = {key: int(value) for key, value in zip(keys, record)}
        yield index, {'id': f'{split_prefix}{index:05d}', 'image': png(image), **labels}
        index += 1


class Cifar10(_CifarBinary, cifar.Cifar10, skip_registration=True):
  """`cifar10` of TFDS."""

  name = 'cifar10'
  url_infos = _checksums('url_checksums/cifar10.txt')


class Cifar100(_CifarBinary, cifar.Cifar100, skip_registration=True):
  """`cifar100` of TFDS; `label` is the fine label."""

  name = 'cifar100'
  url_infos = _checksums('url_checksums/cifar100.txt')


# Written shard by shard, because the shuffle of the stock builder needs TensorFlow for splits over
# 1000 MiB such as `extra`. The records are in the order of the original files.
class SvhnCropped(
  tfds.core.ShardBasedBuilder, svhn_cropped_dataset_builder.Builder, skip_registration=True
):
  """`svhn_cropped` of TFDS, with the splits `train`, `test` and `extra`."""

  name = 'svhn_cropped'
  pkg_dir_path = tfds.core.tfds_path('datasets/svhn_cropped')
  url_infos = _checksums('datasets/svhn_cropped/checksums.tsv')

  def _shard_iterators_per_split(self, dl_manager):
    return {
      split.name: [functools.partial(self._generate_examples, **split.gen_kwargs)]
      for split in self._split_generators(dl_manager)
    }

  def _generate_examples(self, split_prefix, filepath):
    data = scipy.io.loadmat(os.fspath(filepath))
    images, labels = np.moveaxis(data['X'], -1, 0), data['y'][:, 0]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
      # The digit 0 has the label 10 in the files.
      yield (
        index,
        {'id': f'{split_prefix}{index:06d}', 'image': png(image), 'label': int(label) % 10},
      )
