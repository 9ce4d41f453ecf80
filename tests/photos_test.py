"""Tests of photographs: decoding, crops, colours, folders, TFRecord, ImageNet, streams."""

import functools
import gc
import io
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import struct
import tarfile

from array_record.python import array_record_module
from helpers.pictures import encode, make_folder, photo, write
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from slim_jax import data
from slim_jax.data import colors, imagenet, photos
from slim_jax.data.stream import StreamData, prefetch


def take(iterator, n):
  found = list(itertools.islice(iterator, n))
  iterator.close()
  return found


def assert_same(a, b):
  assert len(a) == len(b)
  for one, other in zip(a, b):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


# Crops.


def whole(width, height):
  return 0, 0, width, height


def test_random_boxes_are_inside_and_as_asked():
  rng = np.random.default_rng(0)
  area, aspect, edges = [], [], []
  for _ in range(3000):
    left, top, right, bottom = photos.random_box(rng, 500, 375)
    assert 0 <= left < right <= 500 and 0 <= top < bottom <= 375
    area.append((right - left) * (bottom - top) / (500 * 375))
    aspect.append((right - left) / (bottom - top))
    edges.append((left == 0, top == 0, right == 500, bottom == 375))
  assert 0.078 < min(area) < 0.09 and 0.95 < max(area) <= 1
  assert 0.74 < min(aspect) < 0.76 and 1.32 < max(aspect) < 1.35
  # Large boxes fit less often; among the small ones areas and ratios are uniform.
  small = [(a, np.log(r)) for a, r in zip(area, aspect) if a < 0.5]
  np.testing.assert_allclose(np.mean([a for a, _ in small]), (0.08 + 0.5) / 2, atol=0.01)
  np.testing.assert_allclose(np.mean([r for _, r in small]), 0, atol=0.02)
  assert np.mean(edges, axis=0).max() < 0.1


@pytest.mark.parametrize(
  'size, box',
  [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((1, 1), (0, 0, 1, 1))],
)
def test_images_that_no_box_fits_get_a_central_one(size, box):
  assert photos.random_box(np.random.default_rng(0), *size, area=(0.9, 1.0)) == box


def scale_and_cut(image, shorter, size):
  """Resize and CenterCrop of torchvision, in two steps."""
  height, width = image.shape[:2]
  scaled = PIL.Image.fromarray(image).resize(
    [int(shorter * side / min(width, height)) for side in (width, height)],
    PIL.Image.Resampling.BILINEAR,
  )
  left, top = round((scaled.width - size) / 2), round((scaled.height - size) / 2)
  return np.asarray(scaled.crop((left, top, left + size, top + size)))


def evaluated(encoded, size, **options):
  return photos.decode(
    encoded, functools.partial(photos.central_box, size=size), size, where='it', **options
  )


@pytest.mark.parametrize(
  'shape', [(512, 512), (768, 512), (512, 1024), (500, 375), (333, 251), (225, 999), (60, 40)]
)
@pytest.mark.parametrize('shorter, size', [(256, 224), (128, 112), (37, 32)])
def test_central_crop_is_that_of_scaling_and_cutting(shape, shorter, size):
  image = photo(*shape)
  got = evaluated(encode(image, 'png'), size).astype(int)
  assert abs(got - scale_and_cut(image, shorter, size)).max() <= 1


@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'subsampling': 0}])
@pytest.mark.parametrize(
  'box', [(0, 0, 400, 300), (37, 21, 37 + 170, 21 + 161), (161, 101, 401, 301), (10, 10, 60, 60)]
)
def test_reduced_decoding_shows_the_same(box, options):
  encoded = encode(photo(401, 301), quality=95, **options)
  got, full = (
    photos.decode(encoded, lambda *_: box, 40, where='it', reduce=reduce).astype(int)
    for reduce in (True, False)
  )
  assert got.shape == (40, 40, 3)
  assert abs(got - full).mean() < 6
  for shift in (1, -1):  # were it off by a pixel of the result, it would be worse
    for axis in (0, 1):
      assert abs(got - full).mean() < abs(got - np.roll(full, shift, axis)).mean()


@pytest.mark.parametrize(
  'box, scale',
  [
    ((0, 0, 800, 600), 8),
    ((0, 0, 800, 320), 8),
    ((0, 0, 800, 319), 4),
    ((0, 0, 90, 80), 2),
    ((0, 0, 79, 600), 1),
    ((0, 0, 10, 10), 1),
  ],
)
def test_decoded_no_larger_than_needed(box, scale, monkeypatch):
  sizes = []
  resize = PIL.Image.Image.resize

  def record(self, *args, **kwargs):
    sizes.append(self.size)
    return resize(self, *args, **kwargs)

  monkeypatch.setattr(PIL.Image.Image, 'resize', record)
  encoded = encode(np.zeros((601, 803, 3), np.uint8))
  photos.decode(encoded, lambda *_: box, 40, where='it')
  assert sizes == [(-(-803 // scale), -(-601 // scale))]


@pytest.mark.parametrize(
  'mode, kind',
  [('L', 'jpeg'), ('CMYK', 'jpeg'), ('RGBA', 'png'), ('L', 'png'), ('P', 'png'), ('1', 'png')],
)
def test_any_colours_become_rgb(mode, kind):
  buffer = io.BytesIO()
  picture = PIL.Image.fromarray(photo(90, 80)).convert(mode)
  picture.save(buffer, kind)
  got = photos.decode(buffer.getvalue(), whole, 30, where='it')
  assert (got.shape, got.dtype) == ((30, 30, 3), np.uint8)
  expected = np.asarray(picture.convert('RGB').resize((30, 30), PIL.Image.Resampling.BILINEAR), int)
  assert abs(got - expected).mean() < 4


@pytest.mark.parametrize(
  'content',
  [b'', b'not an image', encode(photo(60, 50))[:-300], encode(photo(60, 50), 'png')[:-60]],
)
def test_damaged_images_are_named(content):
  with pytest.raises(data.DataError, match='cat/7.jpg is not an image that can be decoded'):
    photos.decode(content, whole, 30, where='cat/7.jpg')


# Colours.


def grey_of(image):
  return 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]


def change(image, kind, weight):
  """Brightness, contrast and saturation, as one would write them for one image."""
  if kind == 0:
    return weight * image
  grey = grey_of(image)
  if kind == 1:
    return weight * image + (1 - weight) * grey.mean()
  return weight * image + (1 - weight) * grey[..., None]


def test_color_jitter_is_three_changes_in_some_order():
  key, n = jax.random.key(5), 24
  image = np.random.default_rng(0).uniform(0, 255, (n, 6, 5, 3)).astype(np.float32)
  got = np.asarray(jax.jit(lambda key, x: colors.color_jitter(key, x, strength=0.4))(key, image))
  weight_key, order_key = jax.random.split(key)
  weights = np.asarray(jax.random.uniform(weight_key, (3, n, 1, 1, 1), jnp.float32, 0.6, 1.4))
  orders = [np.asarray(jax.random.permutation(one, 3)) for one in jax.random.split(order_key, n)]
  assert weights.min() < 0.65 and weights.max() > 1.35
  assert {tuple(order) for order in orders} == set(itertools.permutations(range(3)))
  for index in range(n):
    expected = image[index]
    for place, kind in enumerate(orders[index]):
      expected = change(expected, kind, weights[place, index].item())
    np.testing.assert_allclose(got[index], expected, rtol=1e-4, atol=1e-3)


def test_no_jitter_is_no_change():
  image = np.random.default_rng(0).uniform(0, 255, (4, 3, 3, 3)).astype(np.float32)
  key = jax.random.key(0)
  np.testing.assert_allclose(colors.color_jitter(key, image, strength=0.0), image, rtol=1e-5)
  np.testing.assert_array_equal(colors.lighting(key, image, std=0.0), image)


def test_lighting_adds_colours_of_the_right_covariance():
  got = np.asarray(colors.lighting(jax.random.key(0), jnp.zeros((20000, 2, 1, 3)), std=0.1))
  np.testing.assert_array_equal(got[:, 0], got[:, 1])
  vectors, values = np.array(colors.VECTORS), np.array(colors.VALUES)
  np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-3)
  expected = vectors @ np.diag((0.1 * 255 * values) ** 2) @ vectors.T
  np.testing.assert_allclose(np.cov(got[:, 0, 0].T), expected, atol=0.03 * expected.max())


def test_augment_for_imagenet():
  image = np.random.default_rng(0).integers(0, 256, (16, 6, 5, 3), np.uint8)
  run = jax.jit(lambda key, x: data.augment(key, x, kind='imagenet', pad=0, flip=True))
  got = run(jax.random.key(1), image)
  assert (got.shape, got.dtype) == (image.shape, jnp.float32)
  np.testing.assert_array_equal(got, run(jax.random.key(1), image))
  assert not np.array_equal(got, run(jax.random.key(2), image))
  # A change of colours is affine in the pixels: mirrored or not, they stay in place.
  flipped = []
  for before, after in zip(grey_of(image), grey_of(np.asarray(got))):
    fit = [
      abs(np.corrcoef(side.ravel(), after.ravel())[0, 1]) for side in (before, before[:, ::-1])
    ]
    assert max(fit) > 0.98
    flipped.append(fit[1] > fit[0])
  assert {*flipped} == {False, True}
  with pytest.raises(ValueError, match='images of 3 channels, not 1'):
    data.augment(jax.random.key(0), image[..., :1], kind='imagenet', pad=0, flip=False)
  with pytest.raises(ValueError, match="'blur' is not one of crop_flip, imagenet"):
    data.augment(jax.random.key(0), image, kind='blur', pad=0, flip=False)


# Folders.


def test_folder_with_splits(tmp_path):
  name = make_folder(tmp_path)
  write(tmp_path / 'train' / 'cat' / '.DS_Store', b'')
  write(tmp_path / 'train' / 'cat' / 'notes.txt', b'')
  write(tmp_path / 'train' / 'cat' / 'more' / 'x.PNG', encode(photo(9, 9), 'png'))
  train = data.load(name, split='train', image_size=16)
  val = data.load(name, split='val', image_size=16)
  assert (len(train), len(val)) == (14, 7)
  assert (train.num_classes, train.class_names) == (2, ('cat', 'dog'))
  assert train.shape == (16, 16, 3)
  labels = [train.records[index].label for index in range(14)]
  assert sum(labels) == 5 and labels not in (sorted(labels), sorted(labels)[::-1])
  for index in range(14):
    record = train.records[index]
    assert f'/{train.class_names[record.label]}/' in record.where
  assert len(data.load(name, split='train[:50%]+val', image_size=16)) == 14


def test_folder_split_by_fractions(tmp_path):
  name = make_folder(tmp_path, splits=('',), n=(100,))
  train = data.load(name, split='train[:80%]', image_size=16).records
  test = data.load(name, split='train[80%:]', image_size=16).records
  everything = data.load(name, split='train', image_size=16).records
  names = [
    [part[i].where.split('(')[1] for i in range(len(part))] for part in (train, test, everything)
  ]
  assert (len(train), len(test)) == (80, 20)
  assert names[0] + names[1] == names[2] and len({*names[2]}) == 100
  assert {test[i].label for i in range(20)} == {0, 1}
  # The order does not depend on where the folder is.
  (tmp_path / 'moved').mkdir()
  for path in ('cat', 'dog'):
    (tmp_path / path).rename(tmp_path / 'moved' / path)
  moved = data.load(f'{name}/moved', split='train', image_size=16).records
  assert [moved[i].where.split('(')[1] for i in range(100)] == names[2]


def test_a_split_without_classes_is_no_split(tmp_path):
  name = make_folder(tmp_path)
  write(tmp_path / 'test' / '1.jpg', encode(photo(20, 20)))
  assert len(data.load(name, split='all', image_size=16)) == 20
  with pytest.raises(data.DataError, match="no split 'test'. It has train, val,"):
    data.load(name, split='test', image_size=16)


def test_folder_of_small_images_fits_in_memory(tmp_path):
  for index, label in enumerate('ccdd'):
    image = np.full((5, 4, 3), index, np.uint8)
    write(tmp_path / label / f'{index}.png', encode(image, 'png'))
  got = data.load(f'folder:{tmp_path}', split='train')
  assert got.shape == (5, 4, 3)
  np.testing.assert_array_equal(got.image[:, 0, 0, 0] // 2, got.label)


@pytest.mark.parametrize('grey, channels', [((), 3), ((0,), 3), ((2,), 3), ((0, 1, 2, 3), 1)])
def test_the_whole_split_decides_the_channels(tmp_path, grey, channels):
  for index in range(4):
    image = np.full((5, 4) if index in grey else (5, 4, 3), index, np.uint8)
    write(tmp_path / 'ab'[index % 2] / f'{index}.png', encode(image, 'png'))
  got = data.load(f'folder:{tmp_path}', split='train')
  assert got.image.shape == (4, 5, 4, channels)
  assert sorted(got.image[:, 0, 0, 0]) == [0, 1, 2, 3]


@pytest.mark.parametrize('names', [('bus', 'train'), ('invalid', 'valid'), ('control', 'test')])
def test_a_class_may_have_the_name_of_a_split(tmp_path, names):
  for index, name in enumerate(names):
    write(tmp_path / name / f'{index}.png', encode(np.zeros((5, 4, 3), np.uint8), 'png'))
  assert data.load(f'folder:{tmp_path}', split='train').class_names == names
  (tmp_path / names[0] / '0.png').unlink()
  (tmp_path / names[0]).rmdir()
  with pytest.raises(data.DataError, match='no directories of classes'):
    data.load(f'folder:{tmp_path}', split=names[1])


def test_photographs_of_many_sizes_need_an_image_size(tmp_path):
  with pytest.raises(data.DataError, match='not all of one size: .*Give image_size'):
    data.load(make_folder(tmp_path), split='train')


@pytest.mark.parametrize(
  'spoil, split, message',
  [
    (lambda root: None, 'test', "no split 'test'. It has train, val.*'train\\[:90%\\]'"),
    (lambda root: None, 'train[', "no split 'train\\['"),
    (lambda root: None, 'train[99:]', "no split 'train\\[99"),
    (lambda root: None, 'train[:0]', 'no split|is empty'),
    (
      lambda root: (root / 'val' / 'bird').mkdir(),
      'train',
      'val has classes that train lacks: bird. Add them to train',
    ),
    (
      lambda root: (root / 'train' / 'bird').mkdir(),
      'train',
      'train/bird is the directory of a class and holds no images .*fill it or remove it',
    ),
    (
      lambda root: [shutil.rmtree(root / split / 'dog') for split in ('train', 'val')],
      'train',
      "train has one class, 'cat'; a classifier needs two",
    ),
  ],
)
def test_wrong_folders(spoil, split, message, tmp_path):
  name = make_folder(tmp_path)
  spoil(tmp_path)
  with pytest.raises(data.DataError, match=message):
    data.load(name, split=split, image_size=16)


def test_no_folder_and_empty_folder(tmp_path):
  with pytest.raises(data.DataError, match='no folder .*/nothing; .*SPLIT/CLASS/IMAGE'):
    data.load(f'folder:{tmp_path}/nothing', split='train', image_size=16)
  with pytest.raises(data.DataError, match='no directories of classes. Lay it out as'):
    data.load(f'folder:{tmp_path}', split='train', image_size=16)


def test_an_image_that_vanished_is_named(tmp_path):
  train = data.load(make_folder(tmp_path), split='train', image_size=16)
  (tmp_path / 'train' / 'dog' / '0.jpg').unlink()
  with pytest.raises(data.DataError, match='train/dog/0.jpg cannot be read'):
    list(itertools.islice(train.train_batches(13, seed=0), 1))


# TFDS.


def prepare_photos(root, n=9):
  """A TFDS data set of JPEGs with names, as imagenet2012 is one."""

  class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = 'photos'
    url_infos = None
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            'image': tfds.features.Image(encoding_format='jpeg'),
            'label': tfds.features.ClassLabel(num_classes=3),
            'file_name': tfds.features.Text(),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {'train': self._examples(n), 'test': self._examples(4)}

    def _examples(self, count):
      for index in range(count):
        yield (
          index,
          {'image': encode(photo(40 + index, 60)), 'label': index % 3, 'file_name': f'{index}.jpg'},
        )

    def _generate_examples(self):
      raise NotImplementedError

  Photos(data_dir=root).download_and_prepare(
    file_format='array_record', download_config=tfds.download.DownloadConfig(try_download_gcs=False)
  )
  return root / 'photos' / '1.0.0'


def to_tfrecord(path):
  """Turns a data set prepared as array_record into one prepared as tfrecord."""
  for file in path.glob('*array_record*'):
    reader = array_record_module.ArrayRecordReader(str(file))
    content = b''
    for record in reader.read_all():
      content += struct.pack('<Q', len(record)) + bytes(4) + record + bytes(4)
    reader.close()
    file.with_name(file.name.replace('array_record', 'tfrecord')).write_bytes(content)
    file.unlink()
  info = json.loads((path / 'dataset_info.json').read_text())
  (path / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))


def test_stream_from_tfds(tmp_path):
  prepare_photos(tmp_path)
  train = data.load('photos', data_dir=str(tmp_path), split='train', image_size=24)
  assert (len(train), train.num_classes, train.class_names) == (9, 3, ('0', '1', '2'))
  (batch,) = take(train.train_batches(9, seed=0), 1)
  assert sorted(batch['label']) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
  assert '.jpg)' in train.records[0].where
  assert len(pickle.dumps(train.records)) < 20_000


def test_tfrecord_is_array_record_in_other_files(tmp_path):
  splits = ('train', 'train[2:5]', 'test+train[50%:]')
  path = prepare_photos(tmp_path)

  def read(split):
    records = data.load('photos', data_dir=str(tmp_path), split=split, image_size=8).records
    return [
      (one.image, one.label, one.where.split(' of ')[1])
      for one in records.read(range(len(records)))
    ]

  before = [read(split) for split in splits]
  to_tfrecord(path)
  assert [read(split) for split in splits] == before
  with pytest.raises(data.DataError, match="no split 'validation'. It has train, test"):
    read('validation')
  (records,) = path.glob('*train*tfrecord*')
  content = records.read_bytes()
  for damaged in (content[:-5], content + b'x', content[:1000], b''):
    records.write_bytes(damaged)
    with pytest.raises(data.DataError, match='does not hold 9 records.*prepare the data set'):
      read('train')
  records.unlink()
  with pytest.raises(data.DataError, match='damaged or missing .*No such file'):
    read('train')


def tar(files):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


def jpegs(names):
  return {name: encode(photo(30 + i, 40), quality=90) for i, name in enumerate(names)}


@pytest.mark.parametrize('where', ['downloads/manual', 'downloads/manual/imagenet2012'])
def test_imagenet_is_prepared_from_its_archives(where, tmp_path, monkeypatch):
  cats = jpegs(['n02123045_1.JPEG', 'n02123045_2.JPEG'])
  dogs = jpegs(['n02105855_7.JPEG', 'n02105855_2933.JPEG'])
  dogs['n02105855_2933.JPEG'] = encode(photo(20, 20), 'png')  # as in the original
  val = jpegs(['ILSVRC2012_val_00000002.JPEG', 'ILSVRC2012_val_00000001.JPEG'])
  folder = tmp_path / where
  write(folder / imagenet.TRAIN, tar({'n02123045.tar': tar(cats), 'n02105855.tar': tar(dogs)}))
  write(folder / imagenet.VALIDATION, tar(val))
  monkeypatch.setattr(imagenet.Imagenet2012, 'COUNTS', {imagenet.TRAIN: 4, imagenet.VALIDATION: 2})
  train, test = (
    data.load('imagenet2012', data_dir=str(tmp_path), split=split, image_size=8)
    for split in ('train', 'validation')
  )
  assert train.num_classes == 1000 and train.class_names[281] == 'n02123045'
  found = {one.where.split('(')[1][:-1]: one for one in train.records.read(range(4))}
  assert {name: one.label for name, one in found.items()} == {
    **dict.fromkeys(cats, 281),
    **dict.fromkeys(dogs, 230),
  }
  for name, image in (cats | dogs).items():
    assert (found[name].image == image) == (name != 'n02105855_2933.JPEG')
  assert PIL.Image.open(io.BytesIO(found['n02105855_2933.JPEG'].image)).format == 'JPEG'
  # The first two labels of the real list.
  found = {one.where.split('(')[1][:-1]: one for one in test.records.read(range(2))}
  assert [test.class_names[found[name].label] for name in sorted(val)] == ['n01751748', 'n09193705']
  assert all(found[name].image == val[name] for name in val)


def test_imagenet_is_like_stock(tmp_path):
  stock = tfds.builder('imagenet2012', data_dir=tmp_path)
  ours = imagenet.Imagenet2012(data_dir=tmp_path)
  assert (ours.name, ours.version) == (stock.name, stock.version)
  assert ours.info.features.to_json() == stock.info.features.to_json()


def test_imagenet_says_what_to_fetch(tmp_path):
  with pytest.raises(
    data.DataError,
    match='Register at .*img_train.tar and ILSVRC2012_img_val'
    f'.tar .*{tmp_path}/downloads/manual/imagenet2012',
  ):
    data.load('imagenet2012', data_dir=str(tmp_path), split='train', image_size=224)


@pytest.mark.parametrize(
  'content, message',
  [(tar({}), 'holds 0 images, not 1281167; fetch it again'), (b'a page of HTML', 'is damaged')],
)
def test_imagenet_archives_that_are_not_whole(content, message, tmp_path):
  for file in imagenet.ARCHIVES:
    write(tmp_path / 'downloads' / 'manual' / file, content)
  with pytest.raises(data.DataError, match=message):
    data.load('imagenet2012', data_dir=str(tmp_path), split='train', image_size=224)


# Streams.


@pytest.fixture(autouse=True)
def without_garbage():
  """Releases what earlier worker processes shared.

  Where the garbage collector does it while Python 3.12.1 registers something new, that complains.
  """
  gc.collect()


@pytest.fixture(name='stream', scope='module')
def _stream(tmp_path_factory):
  return data.load(make_folder(tmp_path_factory.mktemp('stream')), split='train', image_size=12)


def test_batches_are_what_they_say(stream):
  (batch,) = take(stream.train_batches(4, seed=0), 1)
  assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
    'image': ((4, 12, 12, 3), np.uint8),
    'label': ((4,), np.int32),
  }
  bright = batch['image'].mean((1, 2, 3)) > 110
  np.testing.assert_array_equal(bright, batch['label'] == 1)


def test_batches_follow_from_the_seed(stream):
  a, b, c = (take(stream.train_batches(4, seed=seed), 7) for seed in (3, 3, 4))
  assert_same(a, b)
  assert any((x['image'] != y['image']).any() for x, y in zip(a, c))


@pytest.mark.parametrize('start', [1, 3, 5])
def test_batches_continue_from_any_step(stream, start):
  assert_same(
    take(stream.train_batches(4, seed=3), 7)[start:],
    take(stream.train_batches(4, seed=3, start=start), 7 - start),
  )


def seen(monkeypatch, stream, **options):
  """Names of the images of 9 steps of 4, in order."""
  names = []
  decode = photos.decode

  def record(encoded, choose, size, *, where):
    image = decode(encoded, choose, size, where=where)
    # The mark of the image, in place of its pixels.
    names.append(where)
    return np.full_like(image, len(names) - 1)

  monkeypatch.setattr(photos, 'decode', record)
  batches = take(stream.train_batches(4, **options), 9)
  return [[names[image.max()] for image in batch['image']] for batch in batches]


def test_every_epoch_takes_each_image_at_most_once_in_a_new_order(stream, monkeypatch):
  steps = seen(monkeypatch, stream, seed=0)
  epochs = [sum(steps[i : i + 3], []) for i in (0, 3, 6)]  # 13 images: 3 steps of 4
  assert all(len({*epoch}) == 12 for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3
  assert len({*sum(epochs, [])}) == 13


@pytest.mark.parametrize('start', [0, 2])
def test_parts_of_processes_make_the_batch(stream, start):
  one = take(stream.train_batches(4, seed=5, start=start), 5)
  parts = [
    take(stream.train_batches(4, seed=5, start=start, process_index=index, process_count=2), 5)
    for index in range(2)
  ]
  assert parts[0][0]['label'].shape == (2,)
  assert_same(
    one, [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts)]
  )


@pytest.mark.parametrize('batch_size, count', [(4, 1), (4, 2), (13, 1), (20, 2), (26, 1), (30, 3)])
def test_evaluation_counts_everything_once(stream, batch_size, count):
  parts = [
    list(stream.eval_batches(batch_size, process_index=index, process_count=count))
    for index in range(count)
  ]
  assert {len(part) for part in parts} == {-(-13 // batch_size)}
  batches = [
    {name: np.concatenate([part[name] for part in step]) for name in step[0]}
    for step in zip(*parts)
  ]
  assert all(len(batch['label']) == batch_size for batch in batches)
  whole_ = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
  assert {name: value.dtype for name, value in whole_.items()} == {
    'image': np.uint8,
    'label': np.int32,
    'mask': np.float32,
  }
  np.testing.assert_array_equal(whole_['mask'], np.arange(len(whole_['mask'])) < 13)
  for index, record in enumerate(stream.records.read(range(13))):
    assert whole_['label'][index] == record.label
    np.testing.assert_array_equal(whole_['image'][index], evaluated(record.image, 12))
  assert not whole_['image'][13:].any()


def test_evaluation_of_arrays_splits_over_processes():
  n = 11
  arrays = data.ArrayData(
    image=np.arange(n * 12, dtype=np.uint8).reshape(n, 2, 2, 3),
    label=np.arange(n, dtype=np.int32),
    num_classes=n,
    class_names=(),
    mean=np.zeros(3, np.float32),
    std=np.ones(3, np.float32),
  )
  one = list(arrays.eval_batches(6))
  parts = [list(arrays.eval_batches(6, process_index=index, process_count=3)) for index in range(3)]
  assert_same(
    one,
    [
      {name: np.concatenate([part[name] for part in step]) for name in step[0]}
      for step in zip(*parts)
    ],
  )


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda stream: stream.train_batches(14, seed=0), 'batch of 14 is larger than .* 13'),
    (lambda stream: stream.train_batches(0, seed=0), 'batch of 0'),
    (lambda stream: stream.train_batches(9, seed=0, process_count=2), 'divided among 2'),
    (lambda stream: stream.eval_batches(9, process_count=2), 'divided among 2 processes'),
  ],
)
def test_batches_that_cannot_be(stream, call, message):
  with pytest.raises(ValueError, match=message):
    call(stream)


def test_a_damaged_image_ends_training_with_its_name(tmp_path):
  name = make_folder(tmp_path)
  path = tmp_path / 'train' / 'cat' / '4.jpg'
  path.write_bytes(path.read_bytes()[:300])
  for workers in (0, 1):
    train = data.load(name, split='train', image_size=12, workers=workers)
    with pytest.raises(data.DataError, match='cat/4.jpg.* not an image that can be decoded'):
      take(train.train_batches(13, seed=0), 1)


def test_worker_processes_give_the_same_batches_and_their_end_is_told(stream):
  workers = StreamData(stream.records, stream.image_size, workers=2)
  iterator = workers.train_batches(4, seed=1, start=1)
  got = list(itertools.islice(iterator, 6))
  assert_same(got, take(stream.train_batches(4, seed=1, start=1), 6))
  for child in multiprocessing.active_children():
    os.kill(child.pid, signal.SIGKILL)
  with pytest.raises(data.DataError, match='a worker process .* has ended .*__main__'):
    take(iterator, 40)


def test_workers_evaluate_the_same(stream):
  workers = StreamData(stream.records, stream.image_size, workers=1)
  assert_same(list(workers.eval_batches(5)), list(stream.eval_batches(5)))
  assert not multiprocessing.active_children()


def test_prefetch_keeps_order_and_looks_ahead():
  events = []

  def batches():
    try:
      yield from range(4)
    finally:
      events.append('closed')

  def put(index):
    events.append(f'put {index}')
    return 10 * index

  ahead = prefetch(batches(), put, depth=2)
  for value in ahead:
    events.append(f'use {value}')
  assert (
    events == ['put 0', 'put 1', 'use 0', 'put 2', 'use 10', 'put 3', 'use 20', 'closed', 'use 30']
    or events[-1] == 'closed'
  )
  assert [event for event in events if 'use' in event] == ['use 0', 'use 10', 'use 20', 'use 30']
  assert events.index('put 2') < events.index('use 10')
  events.clear()
  ahead = prefetch(batches(), put)
  next(ahead)
  ahead.close()
  assert events == ['put 0', 'put 1', 'closed']
