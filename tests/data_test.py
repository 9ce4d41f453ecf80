"""Tests of slim_jax.data."""

import gzip
import io
import json
import os
import pathlib
import shutil
import struct
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import requests
import scipy.io
import tensorflow_datasets as tfds

from slim_jax import data
from slim_jax.data import builders, prepare


@pytest.fixture(name='no_network', autouse=True)
def _no_network(monkeypatch):
  def get(self, url, **unused):
    raise requests.exceptions.ConnectionError(f'no network in tests: {url}')

  monkeypatch.setattr(requests.Session, 'get', get)


@pytest.fixture(name='real_data')
def _real_data():
  """TFDS directory with the real MNIST and CIFAR-10, if there is one."""
  root = pathlib.Path(__file__).resolve().parents[1]
  path = pathlib.Path(os.environ.get('SLIM_JAX_DATA', root.parent / 'shared' / 'data' / 'tfds'))
  if not path.is_dir():
    pytest.skip(f'no prepared data in {path}; set SLIM_JAX_DATA')
  return path


def _random_images(n, *shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


# Archives in the original formats, a few images long: {file name: bytes}.


def _idx(array):
  return gzip.compress(
    struct.pack(f'>HBB{array.ndim}i', 0, 8, array.ndim, *array.shape) + array.tobytes()
  )


def _write_mnist(train, test):
  return {
    'train-images-idx3-ubyte.gz': _idx(train[0][..., 0]),
    'train-labels-idx1-ubyte.gz': _idx(train[1]),
    't10k-images-idx3-ubyte.gz': _idx(test[0][..., 0]),
    't10k-labels-idx1-ubyte.gz': _idx(test[1]),
  }


def _tar(files):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


def _cifar_records(image, *labels):
  return np.concatenate(
    [np.stack(labels, 1), image.transpose(0, 3, 1, 2).reshape(len(image), -1)], axis=1
  ).tobytes()


def _write_cifar10(train, test):
  names = '\n'.join(f'class{i}' for i in range(10)) + '\n\n'
  files = {
    'cifar-10-batches-bin/test_batch.bin': _cifar_records(*test),
    'cifar-10-batches-bin/batches.meta.txt': names.encode(),
  }
  # Out of order, as in the original.
  for i, part in reversed(list(enumerate(np.array_split(np.arange(len(train[1])), 5)))):
    files[f'cifar-10-batches-bin/data_batch_{i + 1}.bin'] = _cifar_records(
      train[0][part], train[1][part]
    )
  return {'cifar-10-binary.tar.gz': _tar(files)}


def _write_cifar100(train, test):
  def names(n):
    return '\n'.join(f'class{i}' for i in range(n)).encode()

  return {
    'cifar-100-binary.tar.gz': _tar(
      {
        'cifar-100-binary/coarse_label_names.txt': names(20),
        'cifar-100-binary/fine_label_names.txt': names(100),
        'cifar-100-binary/train.bin': _cifar_records(train[0], train[1] % 20, train[1]),
        'cifar-100-binary/test.bin': _cifar_records(test[0], test[1] % 20, test[1]),
      }
    )
  }


def _write_svhn(train, test):
  files = {}
  for name, (image, label) in dict(train=train, test=test, extra=train).items():
    buffer = io.BytesIO()
    scipy.io.savemat(
      buffer,
      {
        'X': np.moveaxis(image, 0, -1),
        'y': np.where(label == 0, 10, label).astype(np.uint8)[:, None],
      },
      do_compression=True,
    )
    files[f'{name}_32x32.mat'] = buffer.getvalue()
  return files


# Name: (shape, classes, writer of archives, features besides image and label).
_STOCK = {
  'mnist': ((28, 28, 1), 10, _write_mnist, set()),
  'fashion_mnist': ((28, 28, 1), 10, _write_mnist, set()),
  'cifar10': ((32, 32, 3), 10, _write_cifar10, {'id'}),
  'cifar100': ((32, 32, 3), 100, _write_cifar100, {'id', 'coarse_label'}),
  'svhn_cropped': ((32, 32, 3), 10, _write_svhn, {'id'}),
}


def _tiny(name, n, seed):
  shape, num_classes = _STOCK[name][:2]
  label = np.random.default_rng(seed).integers(0, num_classes, n, np.uint8)
  label[0] = 0
  return _random_images(n, *shape, seed=seed), label


def _urls(name):
  """Addresses by file name."""
  return {info.filename: url for url, info in prepare.BUILDERS[name].url_infos.items()}


@pytest.fixture(name='archives')
def _archives(monkeypatch, tmp_path):
  """Returns a function that puts tiny archives where a user would put real ones."""

  def write(name, train, test):
    folder = tmp_path / 'downloads' / 'manual' / name
    folder.mkdir(parents=True)
    infos, urls = {}, _urls(name)
    for file, content in _STOCK[name][2](train, test).items():
      (folder / file).write_bytes(content)
      infos[urls[file]] = tfds.download.checksums.compute_url_info(folder / file)
    # TFDS adds what a builder knows to what it knows of all.
    monkeypatch.setattr(tfds.download.checksums, 'get_all_url_infos', lambda: infos)
    monkeypatch.setattr(prepare.BUILDERS[name], 'url_infos', infos)
    return folder

  return write


@pytest.mark.parametrize('name', _STOCK)
def test_archives_come_back_as_they_went_in(name, archives, tmp_path):
  train, test = _tiny(name, 23, seed=1), _tiny(name, 7, seed=2)
  archives(name, train, test)
  for split, (image, label) in {'train': train, 'test': test}.items():
    got = data.load(name, data_dir=str(tmp_path), split=split)
    assert (got.image.dtype, got.label.dtype) == (np.uint8, np.int32)
    assert got.num_classes == len(got.class_names) == _STOCK[name][1]

    def key(pair):
      return pair[0].tobytes()

    expected = sorted(zip(image, label, strict=True), key=key)
    actual = sorted(zip(got.image, got.label, strict=True), key=key)
    for (image_in, label_in), (image_out, label_out) in zip(expected, actual, strict=True):
      np.testing.assert_array_equal(image_in, image_out)
      assert label_in == label_out


@pytest.mark.parametrize('name', _STOCK)
def test_prepared_like_stock(name, archives, tmp_path):
  archives(name, _tiny(name, 6, seed=1), _tiny(name, 5, seed=2))
  data.load(name, data_dir=str(tmp_path), split='train')
  stock = tfds.builder(name, data_dir=tmp_path / 'elsewhere')
  ours = prepare.BUILDERS[name](data_dir=tmp_path)
  assert (ours.name, ours.version) == (stock.name, stock.version)
  assert ours.info.features.to_json() == stock.info.features.to_json()
  assert set(ours.info.features) == {'image', 'label'} | _STOCK[name][3]
  assert ours.info.supervised_keys == stock.info.supervised_keys
  assert set(ours.info.splits) == (
    {'train', 'test', 'extra'} if name == 'svhn_cropped' else {'train', 'test'}
  )
  # Any program that knows TFDS reads it under the stock name.
  source = tfds.data_source(name, split='test', data_dir=tmp_path, download=False)
  assert len(source) == 5


def test_cifar_records_have_their_other_features(archives, tmp_path):
  image, label = _tiny('cifar100', 9, seed=1)
  archives('cifar100', (image, label), (image, label))
  data.load('cifar100', data_dir=str(tmp_path), split='train')
  source = tfds.data_source('cifar100', split='train', data_dir=tmp_path, download=False)
  for record in source:
    index = int(record['id'].decode().removeprefix('train_'))
    np.testing.assert_array_equal(record['image'], image[index])
    assert record['coarse_label'] == label[index] % 20


def test_svhn_splits_add_up(archives, tmp_path):
  train, test = _tiny('svhn_cropped', 8, seed=1), _tiny('svhn_cropped', 3, seed=2)
  archives('svhn_cropped', train, test)
  got = data.load('svhn_cropped', data_dir=str(tmp_path), split='train+extra')
  np.testing.assert_array_equal(got.label, np.tile(train[1], 2))
  np.testing.assert_array_equal(got.image[:8], train[0])


@pytest.mark.parametrize('name', _STOCK)
def test_no_network_says_what_to_do(name, tmp_path):
  with pytest.raises(data.DataError, match='cannot download .*manual.*digits') as info:
    data.load(name, data_dir=str(tmp_path), split='train')
  assert str(tmp_path / 'downloads' / 'manual' / name) in str(info.value)
  assert all(url in str(info.value) for url in _urls(name).values())


@pytest.mark.parametrize('name', _STOCK)
def test_addresses_and_checksums_are_those_of_stock(name, tmp_path):
  asked = []

  class Recorder:
    def download(self, urls):
      asked.extend(urls.values() if isinstance(urls, dict) else [urls])
      raise InterruptedError

  builder = prepare.BUILDERS[name](data_dir=tmp_path)
  with pytest.raises(InterruptedError):
    builder._split_generators(Recorder())
  assert sorted(asked) == sorted(builder.url_infos)
  assert all(len(info.checksum) == 64 for info in builder.url_infos.values())


def test_damaged_download_is_refused(archives, tmp_path):
  folder = archives('mnist', _tiny('mnist', 5, 1), _tiny('mnist', 5, 2))
  (folder / 't10k-labels-idx1-ubyte.gz').write_bytes(b'another file')
  with pytest.raises(data.DataError, match='mnist.* are not the known ones.*checksum'):
    data.load('mnist', data_dir=str(tmp_path), split='train')


@pytest.mark.parametrize('name', ['fashion_mnist', 'cifar10', 'svhn_cropped'])
def test_downloaded_once(name, archives, monkeypatch, tmp_path):
  folder = archives(name, _tiny(name, 5, 1), _tiny(name, 4, 2))
  content = {
    url: (folder / file).read_bytes()
    for file, url in _urls(name).items()
    if (folder / file).exists()
  }
  shutil.rmtree(folder)
  asked = []

  def get(self, url, **unused):
    asked.append(url)
    response = requests.Response()
    response.status_code, response.url = 200, url
    response.raw = io.BytesIO(content[url])
    return response

  monkeypatch.setattr(requests.Session, 'get', get)
  for _ in range(2):
    assert len(data.load(name, data_dir=str(tmp_path), split='test')) == 4
  assert sorted(asked) == sorted(content)


def test_read_idx_refuses_other_files(tmp_path):
  (tmp_path / 'x.gz').write_bytes(gzip.compress(b'\0\0\x0d\x01\0\0\0\1\0\0\0\0'))
  with pytest.raises(ValueError, match='not an IDX file of unsigned bytes'):
    builders.read_idx(tmp_path / 'x.gz')


# The digits.


@pytest.fixture(name='digits_dir', scope='module')
def _digits_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('digits'))


def test_digits(digits_dir):
  train = data.load('digits', data_dir=digits_dir, split='train')
  test = data.load('digits', data_dir=digits_dir, split='test')
  assert train.image.shape == (1437, 8, 8, 1)
  assert test.image.shape == (360, 8, 8, 1)
  assert train.class_names == tuple('0123456789')
  assert (train.image.min(), train.image.max()) == (0, 255)
  assert len(np.unique(train.image)) == 17
  share = np.bincount(test.label) / np.bincount(np.append(train.label, test.label))
  np.testing.assert_allclose(share, 360 / 1797, atol=0.003)
  both = {image.tobytes() for image in train.image}
  assert not both & {image.tobytes() for image in test.image}


def test_digits_split_is_fixed(digits_dir):
  test = data.load('digits', data_dir=digits_dir, split='test')
  assert np.bincount(test.label).tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
  assert int(test.image.astype(np.int64).sum()) == 1_780_794


def test_default_data_dir(monkeypatch, tmp_path):
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  monkeypatch.setenv('HOME', str(tmp_path))
  assert len(data.load('digits', split='test')) == 360
  assert (tmp_path / 'tensorflow_datasets' / 'digits' / '1.0.0').is_dir()
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'elsewhere'))
  assert len(data.load('digits', split='test')) == 360
  assert (tmp_path / 'elsewhere' / 'digits' / '1.0.0').is_dir()


# Data of one's own.


def _png(image):
  return builders.png(image)


def _prepare_own(root, image, label, features=None, file_format='array_record'):
  """Prepares a data set `own` of encoded images and labels."""

  class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = 'own'
    url_infos = None
    VERSION = tfds.core.Version('2.1.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          features
          or {
            'image': tfds.features.Image(),
            'label': tfds.features.ClassLabel(names=['cat', 'dog']),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for index, (one, value) in enumerate(zip(image, label)):
        record = {'image': one, 'label': value}
        yield index, {key: record.get(key, 0) for key in self.info.features}

  Own(data_dir=root).download_and_prepare(
    file_format=file_format, download_config=tfds.download.DownloadConfig(try_download_gcs=False)
  )
  return root / 'own' / '2.1.0'


def test_own_data_by_name_and_by_directory(tmp_path):
  image = _random_images(12, 9, 7, 3)
  path = _prepare_own(tmp_path, [_png(one) for one in image], [0, 1] * 6)
  for name, where in (('own', tmp_path), ('own:2.1.0', tmp_path), ('own', path)):
    got = data.load(name, data_dir=str(where), split='train')
    assert got.image.shape == (12, 9, 7, 3)
    assert (got.num_classes, got.class_names) == (2, ('cat', 'dog'))
  assert len(data.load('own', data_dir=str(path), split='train[:25%]')) == 3


def test_highest_version_is_read(tmp_path):
  image = _random_images(4, 5, 5, 1)
  path = _prepare_own(tmp_path, [_png(one) for one in image], [0, 1] * 2)
  for version in ('10.0.0', '9.0.0', '11.0.0.incomplete123'):
    path.rename(path.with_name(version))
    path = path.with_name(version)
    if version == '10.0.0':
      path = _prepare_own(tmp_path, [_png(one) for one in image[:2]], [0, 1])
    elif version == '9.0.0':
      path = _prepare_own(tmp_path, [_png(one) for one in image[:1]], [0])
  assert prepare.directory('own', data_dir=str(tmp_path)).name == '10.0.0'
  assert prepare.directory('own:9.0.0', data_dir=str(tmp_path)).name == '9.0.0'


def test_configurations_must_be_chosen(tmp_path):
  path = _prepare_own(tmp_path, [_png(_random_images(1, 5, 5, 1)[0])], [0])
  for config in ('small', 'large'):
    (tmp_path / 'own' / config / '1.0.0').mkdir(parents=True)
    (tmp_path / 'own' / config / '1.0.0' / 'dataset_info.json').write_text('{}')
  with pytest.raises(data.DataError, match='several configurations.*own/large'):
    data.load('own', data_dir=str(tmp_path), split='train')
  found = prepare.directory('own/small', data_dir=str(tmp_path))
  assert found == path.parent / 'small' / '1.0.0'


def test_channels_follow_the_features(tmp_path):
  grey = _random_images(3, 5, 5, 1)
  _prepare_own(
    tmp_path,
    [_png(one) for one in grey],
    [0, 1, 0],
    {
      'image': tfds.features.Image(shape=(5, 5, 3)),
      'label': tfds.features.ClassLabel(num_classes=2),
    },
  )
  got = data.load('own', data_dir=str(tmp_path), split='train')
  assert got.image.shape == (3, 5, 5, 3)
  np.testing.assert_array_equal(got.image[..., 0], got.image[..., 2])


def test_unknown_name_lists_what_there_is(tmp_path):
  _prepare_own(tmp_path, [_png(_random_images(1, 5, 5, 1)[0])], [0])
  with pytest.raises(
    data.DataError,
    match="no data set 'imagenet'.* holds own.*digits.*svhn_cropped.*To use your own data",
  ):
    data.load('imagenet', data_dir=str(tmp_path), split='train')
  with pytest.raises(data.DataError, match='is the data set .own., not .mnist.'):
    data.load('mnist', data_dir=str(tmp_path / 'own' / '2.1.0'), split='train')


@pytest.mark.parametrize(
  'split, message',
  [
    ('validation', 'no split .validation.. It has train, test'),
    ('train[:0]', 'no split|empty'),
    ('train[', 'no split .train'),
    ('train[5000:]', 'no split .train'),
  ],
)
def test_missing_split(split, message, digits_dir):
  with pytest.raises(data.DataError, match=message):
    data.load('digits', data_dir=digits_dir, split=split)


def test_format_that_cannot_be_read_is_named(tmp_path):
  path = _prepare_own(tmp_path, [_png(_random_images(1, 5, 5, 1)[0])], [0])
  info = json.loads((path / 'dataset_info.json').read_text())
  (path / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'riegeli'}))
  with pytest.raises(data.DataError, match='in the format riegeli.*convert_format'):
    data.load('own', data_dir=str(tmp_path), split='train')


@pytest.mark.parametrize(
  'features, message',
  [
    ({'label': tfds.features.ClassLabel(num_classes=2)}, 'image is None'),
    ({'image': tfds.features.Image()}, 'label is None.*features are image'),
    (
      {'image': tfds.features.Image(), 'label': tfds.features.Scalar(np.int64)},
      'label is .*not tfds.features.ClassLabel',
    ),
    (
      {
        'image': tfds.features.Image(shape=(None, None, 1), dtype=np.uint16),
        'label': tfds.features.ClassLabel(num_classes=2),
      },
      'of uint8',
    ),
  ],
)
def test_wrong_features(features, message, tmp_path):
  _prepare_own(tmp_path, [_png(_random_images(1, 5, 5, 1)[0])], [0], features)
  with pytest.raises(data.DataError, match=message):
    data.load('own', data_dir=str(tmp_path), split='train')


def test_images_of_many_sizes_are_refused(tmp_path):
  image = [_png(_random_images(1, size, 5, 3)[0]) for size in (5, 5, 6)]
  _prepare_own(tmp_path, image, [0, 1, 0])
  with pytest.raises(
    data.DataError, match='not all of one size.*example 0 is .x5x3.*Give image_size'
  ):
    data.load('own', data_dir=str(tmp_path), split='train')


def test_unlabelled_examples_are_refused(tmp_path):
  _prepare_own(tmp_path, [_png(one) for one in _random_images(3, 5, 5, 3)], [0, -1, 1])
  with pytest.raises(data.DataError, match='has the label -1, outside 0..1'):
    data.load('own', data_dir=str(tmp_path), split='train')


def test_damaged_image(tmp_path):
  _prepare_own(tmp_path, [_png(_random_images(1, 5, 5, 1)[0])[:-30]], [0])
  with pytest.raises(data.DataError, match='example 0 of own train is not an image'):
    data.load('own', data_dir=str(tmp_path), split='train')


@pytest.mark.parametrize('damage', ['cut', 'missing', 'info', 'features', 'zeros'])
def test_damaged_files(damage, tmp_path):
  path = _prepare_own(tmp_path, [_png(one) for one in _random_images(64, 32, 32, 3)], [0, 1] * 32)
  (records,) = path.glob('*array_record*')
  content = records.read_bytes()
  if damage == 'cut':
    records.write_bytes(content[: len(content) // 2])
  elif damage == 'zeros':
    records.write_bytes(content[:1000] + bytes(3000) + content[4000:])
  elif damage == 'missing':
    records.unlink()
  elif damage == 'info':
    (path / 'dataset_info.json').write_text('{"na')
  else:
    (path / 'features.json').unlink()
  with pytest.raises(data.DataError, match='damaged|missing'):
    data.load('own', data_dir=str(tmp_path), split='train')
  if damage == 'info':
    with pytest.raises(data.DataError, match='dataset_info.json is damaged'):
      data.load('own', data_dir=str(path), split='train')


# Real data, if there is any.


@pytest.mark.parametrize(
  'name, size, num_classes', [('mnist', (28, 28, 1), 10), ('cifar10', (32, 32, 3), 10)]
)
def test_prepared_data_is_read_in_place(name, size, num_classes, real_data):
  got = data.load(name, data_dir=str(real_data), split='test[:600]')
  assert got.image.shape == (600, *size)
  assert got.num_classes == num_classes
  source = tfds.data_source(name, split='test', data_dir=real_data, download=False)
  for index in (0, 599):
    assert source[index]['label'] == got.label[index]
    np.testing.assert_array_equal(source[index]['image'], got.image[index])


# Arrays and batches.


def _array_data(n, *shape):
  image = _random_images(n, *shape)
  mean, std = data.channel_statistics(image)
  return data.ArrayData(
    image=image,
    label=np.arange(n, dtype=np.int32) % 3,
    num_classes=3,
    class_names=('a', 'b', 'c'),
    mean=mean,
    std=std,
  )


def test_channel_statistics():
  image = _random_images(5000, 3, 4, 2) // np.array([1, 3], np.uint8)
  mean, std = data.channel_statistics(image)
  assert (mean.dtype, std.dtype) == (np.float32, np.float32)
  np.testing.assert_allclose(mean, image.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(std, image.std((0, 1, 2)), rtol=1e-6)
  mean, std = data.channel_statistics(np.full((3, 2, 2, 1), 7, np.uint8))
  assert (mean.tolist(), std.tolist()) == ([7], [1])


def test_epoch_order_is_a_permutation():
  orders = [np.asarray(data.epoch_order(jax.random.key(seed), 50)) for seed in (0, 0, 1)]
  assert orders[0].dtype == np.int32
  np.testing.assert_array_equal(orders[0], orders[1])
  assert not np.array_equal(orders[0], orders[2])
  np.testing.assert_array_equal(np.sort(orders[0]), np.arange(50))


def test_an_epoch_of_batches_takes_everything_once():
  arrays = _array_data(24, 4, 4, 1)
  on_device = jax.device_put(arrays.arrays())
  order = data.epoch_order(jax.random.key(0), 24)
  take = jax.jit(lambda data_, order, start: data.take_batch(data_, order, start, 8))
  taken = [take(on_device, order, start) for start in (0, 8, 16)]
  assert taken[0]['image'].dtype == jnp.uint8
  assert taken[0]['label'].dtype == jnp.int32
  np.testing.assert_array_equal(
    np.concatenate([batch['image'] for batch in taken]), arrays.image[order]
  )
  np.testing.assert_array_equal(
    np.concatenate([batch['label'] for batch in taken]), arrays.label[order]
  )
  with pytest.raises(ValueError, match='batch of 25 is larger than .* 24 examples'):
    data.take_batch(on_device, order, 0, 25)


def _shift(image, down, right):
  """The image seen through a window moved by some pixels, zero outside."""
  padded = np.pad(image, ((8, 8), (8, 8), (0, 0)))
  height, width = image.shape[:2]
  return padded[8 + down : 8 + down + height, 8 + right : 8 + right + width]


@pytest.mark.parametrize('pad, flip', [(2, True), (2, False), (0, True), (0, False)])
def test_augment_is_a_crop_and_a_mirror(pad, flip):
  image = 1 + _random_images(60, 6, 5, 3) // 2
  out = np.asarray(
    jax.jit(lambda key, x: data.augment(key, x, pad=pad, flip=flip))(jax.random.key(3), image)
  )
  assert (out.shape, out.dtype) == (image.shape, image.dtype)
  moves = [
    (down, right, mirror)
    for down in range(-pad, pad + 1)
    for right in range(-pad, pad + 1)
    for mirror in {False, flip}
  ]
  drawn = set()
  for before, after in zip(image, out):
    matches = []
    for down, right, mirror in moves:
      shifted = _shift(before, down, right)
      if np.array_equal(shifted[:, ::-1] if mirror else shifted, after):
        matches.append((down, right, mirror))
    assert len(matches) == 1
    drawn.add(matches[0])
  assert {move[0] for move in drawn} == set(range(-pad, pad + 1))
  assert {move[1] for move in drawn} == set(range(-pad, pad + 1))
  assert {move[2] for move in drawn} == {False, flip}


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_normalize(dtype):
  arrays = _array_data(40, 5, 5, 3)
  out = jax.jit(lambda x: data.normalize(x, arrays.mean, arrays.std, dtype=dtype))(arrays.image)
  assert out.dtype == dtype
  out = np.asarray(out, np.float64)
  np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=0.01)
  np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=0.01)


@pytest.mark.parametrize('n, batch_size', [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_eval_batches_are_exact(n, batch_size):
  arrays = _array_data(n, 4, 3, 1)
  got = list(arrays.eval_batches(batch_size))
  assert len(got) == -(-n // batch_size)
  for batch in got:
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
      'image': ((batch_size, 4, 3, 1), np.uint8),
      'label': ((batch_size,), np.int32),
      'mask': ((batch_size,), np.float32),
    }
  mask = np.concatenate([batch['mask'] for batch in got])
  np.testing.assert_array_equal(mask, np.arange(len(mask)) < n)
  for name, value in arrays.arrays().items():
    whole = np.concatenate([batch[name] for batch in got])
    np.testing.assert_array_equal(whole[:n], value)
    assert not whole[n:].any()
