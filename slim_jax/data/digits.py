"""The handwritten digits of scikit-learn, as a TFDS builder."""

import numpy as np
import tensorflow_datasets as tfds

from slim_jax.data.builders import png

TEST_EXAMPLES = 360


def test_mask(label: np.ndarray) -> np.ndarray:
  """Selects the fixed test set: 360 examples, each class in proportion.

  Class by class, it takes the first examples of a permutation drawn from the frozen generator
  `numpy.random.RandomState(0)`. The class sizes are rounded by largest remainder, so that their
  sum is exact.

  Args:
    label: int [n].

  Returns:
    bool [n], True for examples of the test set.
  """
  random = np.random.RandomState(0)
  classes, counts = np.unique(label, return_counts=True)
  share = counts * TEST_EXAMPLES / len(label)
  sizes = np.floor(share).astype(int)
  largest = np.argsort(sizes - share, kind='stable')
  sizes[largest[: TEST_EXAMPLES - sizes.sum()]] += 1
  mask = np.zeros(len(label), bool)
  for value, size in zip(classes, sizes):
    mask[random.permutation(np.flatnonzero(label == value))[:size]] = True
  return mask


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """1,797 digits of 8x8 pixels: 1,437 to train on, 360 to test.

  Alpaydin and Kaynak, "Optical recognition of handwritten digits" (UCI, 1998), in the copy that
  comes with scikit-learn, so nothing is downloaded. Both splits hold digits of every writer. The
  original 17 grey levels are scaled to 0 .. 255.
  """

  name = 'digits'
  url_infos = None
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description='Handwritten digits of 8x8 pixels, from scikit-learn.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(8, 8, 1)),
          'label': tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://archive.ics.uci.edu/dataset/80',
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    # Imported here because it takes a second, which every worker process of a stream would need.
    from sklearn import datasets

    pixels, label = datasets.load_digits(return_X_y=True)
    image = np.round(np.reshape(pixels, (-1, 8, 8, 1)) * (255 / 16)).astype(np.uint8)
    test = test_mask(label)
    return {
      'train': self._generate_examples(image, label, ~test),
      'test': self._generate_examples(image, label, test),
    }

  def _generate_examples(self, image, label, mask):
    for index in np.flatnonzero(mask):
      yield int(index), {'image': png(image[index]), 'label': int(label[index])}
