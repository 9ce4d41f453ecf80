"""Folders and image files as people have them."""

import dataclasses
import io
import itertools
import os
import shutil
import zlib

from helpers.pictures import encode, make_folder, photo, write
import numpy as np
import PIL.Image
import pytest

from slim_jax import data
from slim_jax.data import photos

# Folders.


@pytest.mark.parametrize(
  'train, val', [('Train', 'VAL'), ('training', 'validation'), ('TRAINING', 'valid')]
)
def test_splits_have_several_names(tmp_path, train, val):
  name = make_folder(tmp_path, splits=(train, val))
  for split, n in (('train', 13), ('training[:50%]', 6), ('val', 7), ('validation', 7), (val, 7)):
    assert len(data.load(name, split=split, image_size=16)) == n


def test_a_class_may_be_absent_from_validation(tmp_path):
  name = make_folder(tmp_path)
  write(tmp_path / 'train' / 'ape' / '0.jpg', encode(photo(20, 20)))
  (tmp_path / 'val' / 'ape').mkdir()
  shutil.rmtree(tmp_path / 'val' / 'dog')
  val = data.load(name, split='val', image_size=16)
  assert val.class_names == ('ape', 'cat', 'dog')
  assert {val.records[index].label for index in range(len(val))} == {1}


def test_other_files_are_counted_and_named(tmp_path, caplog):
  name = make_folder(tmp_path)
  for path in ('cat/1.heic', 'dog/2.heic', 'dog/notes.txt', 'dog/.hidden'):
    write(tmp_path / 'train' / path, b'')
  os.mkfifo(tmp_path / 'train' / 'dog' / 'pipe.jpg')
  (tmp_path / 'train' / 'dog' / 'zero.png').symlink_to('/dev/zero')
  with caplog.at_level('WARNING', 'absl'):
    assert len(data.load(name, split='train', image_size=16)) == 13
  (message,) = [record.getMessage() for record in caplog.records]
  assert '5 files of train are left out' in message
  for part in ('2 .heic (', '1 .txt (', '1 .jpg (', '1 .png ('):
    assert part in message


# What was read.


def test_what_was_read_is_said_in_a_line(tmp_path, caplog):
  name = make_folder(tmp_path)
  for index in range(3):
    write(
      tmp_path / 'small' / 'ab'[index % 2] / f'{index}.png',
      encode(np.full((5, 4), 8, np.uint8), 'png'),
    )
  with caplog.at_level('INFO', 'absl'):
    data.load(name, split='train', image_size=16)
    data.load(f'folder:{tmp_path}/small', split='train')
  large, small = [record.getMessage() for record in caplog.records]
  assert large == f'train of {name}: 13 images, 16x16x3, 2 classes (cat 8, dog 5)'
  assert small.endswith('3 images, 5x4x1, 2 classes (a 2, b 1), mean 8, std 1')


@pytest.mark.parametrize(
  'where, message', [('tdfs/cifar', 'below a directory that is missing'), ('file', 'a file')]
)
def test_a_wrong_directory_of_data_sets_is_not_made(tmp_path, where, message):
  (tmp_path / 'file').touch()
  with pytest.raises(data.DataError, match=f'{where} is {message}. .*create the directory first'):
    data.load('cifar10', data_dir=str(tmp_path / where), split='train')
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_a_digest_is_of_names_and_labels(tmp_path):
  """It does not depend on where the folder is, and changes with a name, a class and an image."""
  make_folder(tmp_path / 'one')
  make_folder(tmp_path / 'two')

  def digest(where, **options):
    return data.load(
      f'folder:{tmp_path / where}', **{'split': 'train', 'image_size': 16, **options}
    ).digest

  before = digest('one')
  assert before == digest('two') != digest('two', split='val')
  (tmp_path / 'two' / 'train' / 'cat' / '1.jpg').rename(
    tmp_path / 'two' / 'train' / 'dog' / '1.jpg'
  )
  assert digest('two') != before
  image, label = np.zeros((4, 2, 2, 1), np.uint8), np.arange(4, dtype=np.int32)
  split = data.ArrayData(image, label, 4, tuple('abcd'), np.zeros(1), np.ones(1))
  others = [
    dataclasses.replace(split, image=image + 1),
    dataclasses.replace(split, label=label[::-1]),
  ]
  assert len({each.digest for each in (split, *others)}) == 3
  assert dataclasses.replace(split).digest == split.digest


# Images that are no ordinary ones.


def whole(width, height):
  return 0, 0, width, height


def both_ways(encoded, tmp_path):
  """Pixels of an image, whole, as the stream and as the reader into memory give them."""
  for name in 'ab':
    write(tmp_path / name / 'it.png', encoded)
  small = data.load(f'folder:{tmp_path}', split='train').image[0]
  large = photos.decode(encoded, whole, 8, where='it')
  return small, large


def stored(picture, kind='png', **options):
  buffer = io.BytesIO()
  picture.save(buffer, kind, **options)
  return buffer.getvalue()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_are_turned_upright(tmp_path, orientation):
  pixels = np.zeros((8, 8, 3), np.uint8)
  pixels[:4, :4], pixels[4:, :4] = (255, 0, 0), (0, 255, 0)
  upright = PIL.Image.fromarray(pixels)
  exif = PIL.Image.Exif()
  exif[0x0112] = orientation
  as_stored = {  # inverse of what turns it upright
    1: [],
    2: [PIL.Image.Transpose.FLIP_LEFT_RIGHT],
    3: [PIL.Image.Transpose.ROTATE_180],
    4: [PIL.Image.Transpose.FLIP_TOP_BOTTOM],
    5: [PIL.Image.Transpose.TRANSPOSE],
    6: [PIL.Image.Transpose.ROTATE_90],
    7: [PIL.Image.Transpose.TRANSVERSE],
    8: [PIL.Image.Transpose.ROTATE_270],
  }
  picture = upright
  for turn in as_stored[orientation]:
    picture = picture.transpose(turn)
  for got in both_ways(stored(picture, exif=exif), tmp_path):
    np.testing.assert_array_equal(got, pixels)


def test_a_turned_photograph_is_cropped_in_its_own_shape():
  """The box is chosen in the upright image, also where a JPEG is decoded at a reduced scale."""
  pixels = photo(600, 200)
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  sideways = PIL.Image.fromarray(pixels).transpose(PIL.Image.Transpose.ROTATE_90)
  shapes = []

  def choose(width, height):
    shapes.append((width, height))
    return 0, 0, width, height // 3

  turned = photos.decode(stored(sideways, 'jpeg', exif=exif, quality=95), choose, 40, where='it')
  straight = photos.decode(
    stored(PIL.Image.fromarray(pixels), 'jpeg', quality=95), choose, 40, where='it'
  )
  assert shapes[0] == shapes[1]
  assert abs(turned.astype(int) - straight).mean() < 3


def test_sixteen_bits_become_eight(tmp_path):
  wide = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
  small, large = both_ways(stored(PIL.Image.fromarray(wide)), tmp_path)
  expected = np.round(wide / 257).astype(int)
  assert small.shape == (8, 8, 1) and abs(small[..., 0] - expected).max() <= 1
  assert abs(large - expected[..., None]).max() <= 1


@pytest.mark.parametrize('dtype, kind', [(np.float32, 'floats'), (np.int32, '32-bit integers')])
def test_images_of_unknown_range_are_refused(tmp_path, dtype, kind):
  encoded = stored(PIL.Image.fromarray(np.ones((8, 8), dtype)), 'tiff')
  with pytest.raises(data.DataError, match=f'it is not .*its pixels are {kind}'):
    photos.decode(encoded, whole, 8, where='it')
  with pytest.raises(data.DataError, match=f'it.png.* is not .*its pixels are {kind}'):
    both_ways(encoded, tmp_path)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_transparency_is_ignored(tmp_path, mode):
  opaque = PIL.Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
  opaque.putalpha(0)
  picture = opaque.convert(mode)
  options = {'transparency': bytes(256)} if mode == 'P' else {}
  small, large = both_ways(stored(picture, **options), tmp_path)
  assert small.shape[-1] == (1 if mode == 'LA' else 3)
  assert {*small.flat, *large.flat} == {200}


def test_files_that_would_fill_the_memory_are_refused(tmp_path):
  name = make_folder(tmp_path)
  with open(tmp_path / 'train' / 'cat' / '0.jpg', 'ab') as file:
    file.truncate(2**40)  # of holes
  train = data.load(name, split='train', image_size=16)
  with pytest.raises(data.DataError, match='cat/0.jpg has 1,048,576 MiB, more than the 256'):
    list(itertools.islice(train.train_batches(13, seed=0), 1))
  header = encode(np.zeros((1, 1, 3), np.uint8), 'png')
  length, kind, rest = header[8:12], header[12:16], header[24:29]
  chunk = kind + (2**20).to_bytes(4, 'big') * 2 + rest
  bomb = header[:8] + length + chunk + zlib.crc32(chunk).to_bytes(4, 'big') + header[33:]
  with pytest.raises(
    data.DataError, match='it is not an image that can be decoded .*exceeds limit'
  ):
    photos.decode(bomb, whole, 8, where='it')
