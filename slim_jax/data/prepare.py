"""Finds a prepared TFDS data set on disk, or prepares it."""

import contextlib
import io
import json
import pathlib
import sys

from absl import logging
import requests
import tensorflow_datasets as tfds

from slim_jax.data import builders, digits, imagenet
from slim_jax.data.errors import DataError

# Data sets that are prepared on first use.
BUILDERS = {
  'digits': digits.Digits,
  'mnist': builders.Mnist,
  'fashion_mnist': builders.FashionMnist,
  'cifar10': builders.Cifar10,
  'cifar100': builders.Cifar100,
  'svhn_cropped': builders.SvhnCropped,
  'imagenet2012': imagenet.Imagenet2012,
}

DEFAULT_DATA_DIR = '~/tensorflow_datasets'

_OWN_DATA = (
  'To use data of your own, write a TFDS builder with the features `image` and '
  '`label`, prepare it once with '
  "`MyBuilder(data_dir=...).download_and_prepare(file_format='array_record')`, "
  'and give its name and the same data_dir; or give a folder of images, a directory '
  "for each class, as 'folder:/PATH'"
)


def directory(name: str, *, data_dir: str = '') -> pathlib.Path:
  """Returns the directory of a prepared data set, prepared now if it must be.

  Args:
    name: a key of `BUILDERS`, or a data set in `data_dir`: 'name', 'name/config'
      or 'name:version'. Without a version, the highest there.
    data_dir: TFDS directory, `~/tensorflow_datasets` if empty; or the directory
      of one prepared data set, which must have that name.

  Returns:
    The directory that holds the records and `dataset_info.json`.

  Raises:
    DataError: no such data set, or it could not be prepared.
  """
  root = pathlib.Path(data_dir or DEFAULT_DATA_DIR).expanduser()
  found = _find(name, root)
  if found is None and name in BUILDERS:
    _prepare(name, root)
    found = _find(name, root)
  if found is not None:
    return found
  here = sorted(path.name for path in root.glob('*') if _versions(path))
  raise DataError(
    f'no data set {name!r} in {root}, which holds '
    f'{", ".join(here) or "no data set"}. Prepared on first use are '
    f'{", ".join(BUILDERS)}. {_OWN_DATA}.'
  )


def _versions(path: pathlib.Path) -> list[pathlib.Path]:
  """Prepared directories `[config/]version` of the data set at path."""
  found = [*path.glob('*/dataset_info.json'), *path.glob('*/*/dataset_info.json')]
  return [each.parent for each in found if tfds.core.Version.is_valid(each.parent.name)]


def _find(name: str, root: pathlib.Path) -> pathlib.Path | None:
  if (root / 'dataset_info.json').exists():
    try:
      held = json.loads((root / 'dataset_info.json').read_text())['name']
    except (ValueError, KeyError) as error:
      raise DataError(
        f'{root}: dataset_info.json is damaged; prepare the data set again'
      ) from error
    if held != name:
      raise DataError(f'{root} is the data set {held!r}, not {name!r}')
    return root
  path, _, version = name.partition(':')
  found = [each for each in _versions(root / path) if version in ('', each.name)]
  if not found:
    return None
  configs = sorted({str(each.parent.relative_to(root)) for each in found})
  if len(configs) > 1:
    raise DataError(
      f'the data set {name!r} in {root} has several configurations, '
      f'give one of them: {", ".join(configs)}'
    )
  return max(found, key=lambda each: tfds.core.Version(each.name))


def _prepare(name: str, root: pathlib.Path) -> None:
  """Downloads, verifies and writes a data set of `BUILDERS`."""
  manual = root / 'downloads' / 'manual' / name
  if name == 'imagenet2012':
    manual = _imagenet_archives(manual)
  (tfds.enable_progress_bar if sys.stderr.isatty() else tfds.disable_progress_bar)()
  logging.info('preparing the data set %s in %s', name, root)
  try:
    builder = BUILDERS[name](data_dir=root)
    # TFDS prints that it downloads, even where there is nothing to download.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(
        file_format='array_record',
        download_config=tfds.download.DownloadConfig(
          manual_dir=manual,
          force_checksums_validation=True,
          # The copies on Google Cloud are in another format.
          try_download_gcs=False,
        ),
      )
  except (requests.exceptions.RequestException, tfds.download.DownloadError) as error:
    raise DataError(
      f'cannot download the data set {name!r}: {error}. Without a network, '
      f'fetch its files elsewhere ({", ".join(BUILDERS[name].url_infos)}) and put '
      f'them, under their own names, into {manual}; or give a data_dir where '
      f"the data set is prepared; or use 'digits', which needs no download"
    ) from error
  except tfds.download.download_manager.NonMatchingChecksumError as error:
    raise DataError(
      f'the files of the data set {name!r} are not the known ones. Remove what '
      f'is damaged below {root / "downloads"} and try again. {error}'
    ) from error
  except OSError as error:
    raise DataError(f'cannot write the data set {name!r} to {root}: {error}') from error
  if _find(name, root) is None:
    raise DataError(f'{builder.data_dir} holds no complete data set; remove it and try again')


def _imagenet_archives(manual: pathlib.Path) -> pathlib.Path:
  """The directory of the archives that a user has fetched: manual, or above it."""
  for path in (manual, manual.parent):  # TFDS asks for them in the one above.
    if all((path / file).exists() for file in imagenet.ARCHIVES):
      return path
  raise DataError(
    f"the data set 'imagenet2012' is not prepared, and cannot be downloaded without "
    f'an account. Register at {imagenet.SITE}, put {" and ".join(imagenet.ARCHIVES)} '
    f'(148 and 6.7 GB) into {manual}, and run the same command again: it prepares the '
    f'data set once, which needs 155 GB more and no TensorFlow. Or give the data_dir '
    f"in which it is prepared, or, for the images in directories, 'folder:/PATH'"
  )
