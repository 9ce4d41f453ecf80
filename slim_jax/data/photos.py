"""Decodes and crops photographs on the host with PIL, one image at a time.

A crop is a box (left, top, right, bottom) in pixels of the whole image, chosen before decoding. A
JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that leaves at least one pixel for each pixel of
the result. This takes a fraction of the time for a large photograph, because the scaling is part
of the inverse transform. The box is resampled in one step.
"""

from collections.abc import Callable
import math

import numpy as np
import PIL.Image

from slim_jax.data import images

Box = tuple[float, float, float, float]

# Random crops for training: fraction of the area, and ratio of width to height (Szegedy et al., CVPR
# 2015, section 6).
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)

# Central crop for evaluation: 224 pixels of a shorter side of 256.
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

  The fraction of the area is uniform, the ratio of width to height is log-uniform, and the position
  is uniform among those inside the image. If ten draws do not fit, the result is the largest
  central box of an allowed ratio.

  Args:
    rng: generator to draw from.
    width: width of the image, in pixels.
    height: height of the image, in pixels.
    area: least and greatest fraction of the area, above 0 and at most 1.
    ratio: least and greatest width / height.

  Returns:
    The box, in whole pixels.
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
  """Returns the box of the square crop for evaluation.

  The image is scaled so that its shorter side is size * 256 / 224, and the central size x size
  pixels are taken. Lengths and margins are rounded as in torchvision's Resize and CenterCrop.

  Args:
    width: width of the image, in pixels.
    height: height of the image, in pixels.
    size: side of the result, in pixels.

  Returns:
    The box in pixels of the original image; its edges are not always whole pixels.
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
    encoded: PNG, JPEG or another format that PIL reads.
    choose: (width, height) -> the box to take.
    size: side of the result, in pixels.
    where: name of the image in messages.
    reduce: whether to decode a JPEG at a reduced scale, see above; False decodes the whole image,
      for comparison.

  Returns:
    uint8 [size, size, 3], resampled bilinearly with averaging over the pixels of each result pixel.

  Raises:
    DataError: the bytes are not an image, or an incomplete one.
  """
  with images.opened(encoded, where) as picture:
    width, height = picture.size
    turned = images.is_turned(picture)
    box = choose(height, width) if turned else choose(width, height)
    scale = _scale(box, size) if reduce else 1
    # Has an effect on JPEG only.
    picture.draft(None, (width // scale, height // scale))
    if picture.size != (width, height):
      left, top, right, bottom = box
      box = left / scale, top / scale, right / scale, bottom / scale
    rgb = images.convert(images.upright(picture), 'RGB')
    return np.asarray(rgb.resize((size, size), PIL.Image.Resampling.BILINEAR, box=box))


def _scale(box: Box, size: int) -> int:
  """Returns the greatest of 8, 4, 2, 1 that leaves size pixels of a box each way."""
  side = min(box[2] - box[0], box[3] - box[1])
  return next((scale for scale in (8, 4, 2) if side >= scale * size), 1)
