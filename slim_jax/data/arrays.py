"""A split of a data set in host memory."""

from collections.abc import Iterator
import dataclasses
import functools
import hashlib

import numpy as np

from slim_jax.data.batches import part_size

# Images whose pixel values are counted at once, so that the counts need little memory.
_COUNTED = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayData:
  """A split of a data set of images, in host memory.

  Attributes:
    image: uint8 [n, height, width, channels]; float32 for own data that is not uint8.
    label: int32 [n], each in 0 .. num_classes - 1; for other losses than classification, int32 or
      float32 [n, ...].
    num_classes: number of classes of the data set; the number of outputs of the network.
    class_names: their names; '0', '1', ... if the data set has none.
    mean: float32 [channels], mean pixel value (0 to 255) of this split. Normalise every split
      with the mean of the training split.
    std: float32 [channels], standard deviation of the pixel values, 1 where it is zero.
  """

  image: np.ndarray
  label: np.ndarray
  num_classes: int
  class_names: tuple[str, ...]
  mean: np.ndarray
  std: np.ndarray

  def __len__(self) -> int:
    return len(self.label)

  @property
  def shape(self) -> tuple[int, int, int]:
    """Height, width and channels of an image."""
    _, height, width, channels = self.image.shape
    return height, width, channels

  @property
  def dtype(self) -> np.dtype:
    """Dtype of the images."""
    return self.image.dtype

  @property
  def label_shape(self) -> tuple[int, ...]:
    """Shape of the label of one example: () for the number of a class."""
    return self.label.shape[1:]

  @property
  def label_dtype(self) -> np.dtype:
    """Dtype of the labels, int32 or float32."""
    return self.label.dtype

  @functools.cached_property
  def digest(self) -> str:
    """Hash of images and labels, and of their order."""
    state = hashlib.blake2b(digest_size=8)
    for array in self.arrays().values():
      state.update(f'{array.dtype} {array.shape}'.encode())
      state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns `{'image': image, 'label': label}`, to be put on a device."""
    return {'image': self.image, 'label': self.label}

  def eval_batches(
    self, batch_size: int, *, process_index: int = 0, process_count: int = 1
  ) -> Iterator[dict[str, np.ndarray]]:
    """Yields the split once, in order, in batches of one shape.

    The last batch is padded with zeros. `mask` marks the padding, so that sums weighted by
    `mask` are exact over the whole split.

    Args:
      batch_size: number of examples in each batch, over all processes.
      process_index: which part of each batch to take.
      process_count: number of parts.

    Yields:
      `image` uint8 [batch_size / process_count, height, width, channels], `label` int32
      [batch_size / process_count] and `mask` float32 of the same shape, 1 for examples and 0 for
      padding.

    Raises:
      ValueError: the batch cannot be divided among the processes.
    """
    part = part_size(batch_size, process_count)
    for start in range(0, len(self), batch_size):
      begin = start + process_index * part
      batch = {name: value[begin : begin + part] for name, value in self.arrays().items()}
      batch['mask'] = np.ones(len(batch['label']), np.float32)
      missing = part - len(batch['label'])
      if missing:
        batch = {
          name: np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)])
          for name, value in batch.items()
        }
      yield batch


def channel_statistics(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean and the standard deviation of each channel, exact before rounding.

  Args:
    image: uint8 or floating [n, height, width, channels].

  Returns:
    Two float32 [channels], in pixel values (0 to 255 for uint8). The deviation is 1 where a channel
    is constant, so that one can divide by it.
  """
  if image.dtype != np.uint8:
    mean = image.mean((0, 1, 2), dtype=np.float64)
    std = image.std((0, 1, 2), dtype=np.float64)
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)
  values = np.arange(256)
  mean, std = [], []
  for channel in np.moveaxis(image, -1, 0):
    counts = np.zeros(256, np.int64)
    for part in np.array_split(channel, 1 + len(channel) // _COUNTED):
      counts += np.bincount(part.ravel(), minlength=256)
    average = counts @ values / counts.sum()
    mean.append(average)
    std.append(np.sqrt(counts @ (values - average) ** 2 / counts.sum()) or 1)
  return np.array(mean, np.float32), np.array(std, np.float32)
