"""Parts and sums of splits in the notation of TFDS, for data sets that TFDS does not know."""

from collections.abc import Mapping
import types

import tensorflow_datasets as tfds

from slim_jax.data.errors import DataError


def names(split: str) -> list[str]:
  """Returns the splits that a text such as 'train[:90%]+extra' is made of."""
  return list(dict.fromkeys(part.partition('[')[0].strip() for part in split.split('+')))


def resolve(
  split: str, sizes: Mapping[str, int], *, source: str, known: tuple[str, ...] = ()
) -> list[tuple[str, slice]]:
  """Returns the splits and their examples that a text such as 'train[:90%]+extra' names.

  Args:
    split: the text.
    sizes: number of examples by split.
    source: what errors call the data set.
    known: all splits of the data set, for errors; those of `sizes` if there are none.

  Raises:
    DataError: there is no such split.
  """
  known = known or tuple(sizes)
  infos = {name: types.SimpleNamespace(num_examples=size) for name, size in sizes.items()}
  try:
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except (ValueError, KeyError, AssertionError) as error:
    raise DataError(
      f'{source} has no split {split!r}. It has {", ".join(known)}, and '
      f"parts and sums of them such as '{known[0]}[:90%]' ({error})"
    ) from error
  return [(part.splitname, slice(part.from_, part.to)) for part in parts]
