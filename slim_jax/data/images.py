"""Opens encoded images with PIL, by the same rules wherever an image is read.

- An image is turned upright, as its EXIF orientation says.
- Transparency is ignored, as in torchvision and Keras.
- Grey images of 16 bits are scaled to 8. Images of 32 bits and of floats are refused, because their
  range is unknown and PIL would clip them to white.
"""

from collections.abc import Iterator
import contextlib
import io

import numpy as np
import PIL.Image
import PIL.ImageOps

from slim_jax.data.errors import DataError

_ORIENTATION = 0x0112  # tag of EXIF and TIFF
_GREY = ('1', 'L', 'LA', 'La', 'I;16', 'I;16L', 'I;16B', 'I;16N')


@contextlib.contextmanager
def opened(encoded: bytes, where: str) -> Iterator[PIL.Image.Image]:
  """Opens an image, to be decoded within the block.

  Args:
    encoded: PNG, JPEG or another format that PIL reads.
    where: name of the image in messages.

  Yields:
    The image as it is stored. Nothing is decoded yet.

  Raises:
    DataError: the bytes are not an image, an incomplete one, or far too large to be one.
  """
  try:
    with PIL.Image.open(io.BytesIO(encoded)) as picture:
      yield picture
  except (DataError, MemoryError):
    raise
  except Exception as error:  # pylint: disable=broad-except  (decoders raise whatever damage leads to)
    raise DataError(
      f'{where} is not an image that can be decoded ({error or type(error).__name__}); '
      'repair or remove it'
    ) from error


def is_turned(picture: PIL.Image.Image) -> bool:
  """Returns whether width and height of an image change places when it is turned upright."""
  return picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)


def upright(picture: PIL.Image.Image) -> PIL.Image.Image:
  """Returns an image turned as its orientation says, the image itself if there is nothing to do."""
  if picture.getexif().get(_ORIENTATION, 1) in range(2, 9):
    return PIL.ImageOps.exif_transpose(picture)
  return picture


def is_grey(picture: PIL.Image.Image) -> bool:
  """Returns whether an image has one channel, without its transparency."""
  return picture.mode in _GREY or _is_wide_png(picture)


def convert(picture: PIL.Image.Image, mode: str) -> PIL.Image.Image:
  """Returns an image with 8 bits a channel.

  Args:
    picture: image of any mode.
    mode: 'L', 'RGB' or 'RGBA'.

  Raises:
    ValueError: the pixels are floats or 32-bit integers.
  """
  if picture.mode == mode:
    return picture
  if picture.mode.startswith('I;16') or _is_wide_png(picture):
    wide = np.asarray(picture).astype(np.int64)
    picture = PIL.Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
  elif picture.mode in ('I', 'F'):
    kind = '32-bit integers' if picture.mode == 'I' else 'floats'
    raise ValueError(
      f'its pixels are {kind}, whose range is unknown; convert it to 8 or 16 bits a channel'
    )
  elif 'transparency' in picture.info and mode != 'RGBA':
    picture = picture.convert('RGBA')
  return picture if picture.mode == mode else picture.convert(mode)


def _is_wide_png(picture: PIL.Image.Image) -> bool:
  """Returns whether an image is a grey PNG of 16 bits, which some versions of PIL call 'I'."""
  return picture.mode == 'I' and picture.format == 'PNG'
