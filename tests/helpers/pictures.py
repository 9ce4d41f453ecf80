"""Photographs, and folders of them."""

import io
import itertools

import numpy as np
import PIL.Image


def photo(width, height, seed=0):
  """A smooth random image, uint8 [height, width, 3]."""
  random = np.random.default_rng(seed)
  coarse = random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
  return np.asarray(
    PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)
  )


def encode(image, kind='jpeg', **options):
  buffer = io.BytesIO()
  PIL.Image.fromarray(image).save(buffer, kind, **options)
  return buffer.getvalue()


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)


def make_folder(root, splits=('train', 'val'), n=(13, 7)):
  """Photographs of two classes, dark cats and bright dogs, of many sizes."""
  seed = itertools.count()
  for split, count in zip(splits, n):
    for index in range(count):
      name = ('cat', 'dog')[index % 3 == 0]
      image = photo(40 + 3 * index % 17, 60 - 2 * index % 13, next(seed)) // 2
      write(
        root / split / name / f'{index}.jpg',
        encode(image + (100 if name == 'dog' else 0), quality=95),
      )
  return f'folder:{root}'
