"""Photographs, decoded and cropped on the host: PIL, one image at a time.

A crop is a box (left, top, right, bottom) in pixels of the whole image, chosen before
decoding. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where that still has a
pixel for each one of the result, which a large photograph reaches in a fraction of the
time: the scaling is part of the inverse transform. The box is resampled in one step.
"""

from collections.abc import Callable
import io
import math

import numpy as np
import PIL.Image

from slim_jax.data.errors import DataError

Box = tuple[float, float, float, float]

# Of the crop that is trained on: its part of the area, and width to height (Szegedy et
# al., CVPR 2015, section 6).
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)

# Of the crop that is evaluated: 224 pixels of a shorter side of 256.
CENTRAL = 224 / 256

_ATTEMPTS = 10


def random_box(
  rng: np.random.Generator,
  width: int,
  height: int,
  *,
  area: tuple[float, float] = AREA,
  ratio: tuple[float, float] = RATIO,
) -> Box:
  """Draws the box of a random sized crop.

  The part of the area is uniform, the ratio of width to height uniform in its
  logarithm, the place uniform among those inside the image. Where ten draws do not fit,
  the largest central box of an allowed ratio.

  Args:
    rng: generator to draw from.
    width: of the image, in pixels.
    height: likewise.
    area: least and greatest part of the area, above 0 and at most 1.
    ratio: least and greatest width / height.

  Returns:
    The box, of whole pixels.
  """
  for _ in range(_ATTEMPTS):
    target = width * height * rng.uniform(*area)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    wide = round(math.sqrt(target * aspect))
    high = round(math.sqrt(target / aspect))
    if 0 < wide <= width and 0 < high <= height:
      left = int(rng.integers(width - wide + 1))
      top = int(rng.integers(height - high + 1))
      return left, top, left + wide, top + high
  wide = max(1, min(width, round(height * ratio[1])))
  high = max(1, min(height, round(width / ratio[0])))
  left, top = (width - wide) // 2, (height - high) // 2
  return left, top, left + wide, top + high


def central_box(width: int, height: int, *, size: int) -> Box:
  """The box of the square crop that is evaluated.

  What is left of the image when its shorter side is scaled to size * 256 / 224, the
  other in proportion, and the central size x size pixels are taken; with lengths and
  margins rounded as torchvision's Resize and CenterCrop do.

  Args:
    width: of the image, in pixels.
    height: likewise.
    size: side of the result, in pixels.

  Returns:
    The box; its edges need not be at whole pixels.
  """
  shorter = round(size / CENTRAL)
  across, down = (int(shorter * side / min(width, height)) for side in (width, height))
  left, top = round((across - size) / 2), round((down - size) / 2)
  return (
    left * width / across,
    top * height / down,
    (left + size) * width / across,
    (top + size) * height / down,
  )


def decode(
  encoded: bytes, choose: Callable[[int, int], Box], size: int, *, where: str, reduce: bool = True
) -> np.ndarray:
  """Decodes the part of an image inside a box, scaled to a square.

  Args:
    encoded: PNG, JPEG or whatever else PIL reads.
    choose: (width, height) -> the box to take.
    size: side of the result, in pixels.
    where: names the image in messages.
    reduce: decode a JPEG at the scale that is needed, see above; False for always the
      whole, to compare with.

  Returns:
    uint8 [size, size, 3]: bilinear, and averaged over the pixels that fall together.

  Raises:
    DataError: it is not an image, or only a part of one.
  """
  try:
    with PIL.Image.open(io.BytesIO(encoded)) as picture:
      width, height = picture.size
      box = choose(width, height)
      scale = _scale(box, size) if reduce else 1
      # Without effect on anything but a JPEG.
      picture.draft(None, (width // scale, height // scale))
      if picture.size != (width, height):
        box = tuple(edge / scale for edge in box)
      rgb = picture if picture.mode == 'RGB' else picture.convert('RGB')
      pixels = rgb.resize((size, size), PIL.Image.Resampling.BILINEAR, box=box)
      return np.asarray(pixels)
  except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
    raise DataError(
      f'{where} is not an image that can be decoded ({error}); mend or remove it'
    ) from error


def _scale(box: Box, size: int) -> int:
  """The greatest of 8, 4, 2, 1 by which a box divided has size pixels each way."""
  side = min(box[2] - box[0], box[3] - box[1])
  return next((scale for scale in (8, 4, 2) if side >= scale * size), 1)
