"""Finds a prepared TFDS data set on disk, or prepares it."""

import contextlib
import io
import json
import os
import pathlib
import sys

from absl import logging
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import download_manager

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

_DEFAULT_DATA_DIR = '~/tensorflow_datasets'

_OWN_DATA = (
  'To use your own data, give a folder of images with a directory for each class, as '
  "'folder:/PATH'; or write a TFDS builder with the features `image` and `label`, prepare it once "
  "with `MyBuilder(data_dir=...).download_and_prepare(file_format='array_record')`, "
  'and give its name and the same data_dir'
)


def default_data_dir() -> str:
  """Returns the directory of TFDS: $TFDS_DATA_DIR, or `~/tensorflow_datasets`."""
  return os.environ.get('TFDS_DATA_DIR') or _DEFAULT_DATA_DIR


def directory(name: str, *, data_dir: str = '') -> pathlib.Path:
  """Returns the directory of a prepared data set. Prepares it first if necessary.

  Args:
    name: a key of `BUILDERS`, or a data set in `data_dir`: 'name', 'name/config' or
      'name:version'. Without a version, the highest one is used.
    data_dir: TFDS directory, that of `default_data_dir` if empty; or the directory of one prepared
      data set, which must have that name.

  Returns:
    The directory that holds the records and `dataset_info.json`.

  Raises:
    DataError: there is no such data set, or it cannot be prepared.
  """
  root = pathlib.Path(data_dir or default_data_dir()).expanduser()
  if not root.is_dir() and (root.exists() or (data_dir and not root.parent.is_dir())):
    raise DataError(
      f'the data_dir {root} is {"a file" if root.exists() else "below a directory that is missing"}. '
      f'To prepare data sets there, create the directory first; without a data_dir they are in '
      f'{default_data_dir()}'
    )
  prepared = _find(name, root)
  if prepared is None and name in BUILDERS:
    _prepare(name, root)
    prepared = _find(name, root)
  if prepared is not None:
    return prepared
  here = sorted(path.name for path in root.glob('*') if _versions(path))
  raise DataError(
    f'no data set {name!r} in {root}, which holds {", ".join(here) or "no data set"}. '
    f'slim_jax prepares {", ".join(BUILDERS)} on first use. {_OWN_DATA}.'
  )


def _versions(path: pathlib.Path) -> list[pathlib.Path]:
  """Returns the prepared directories `[config/]version` of the data set at path."""
  infos = [*path.glob('*/dataset_info.json'), *path.glob('*/*/dataset_info.json')]
  return [each.parent for each in infos if tfds.core.Version.is_valid(each.parent.name)]


def _find(name: str, root: pathlib.Path) -> pathlib.Path | None:
  """Returns the directory of a data set that is prepared in `root`, None if there is none."""
  if (root / 'dataset_info.json').exists():
    try:
      actual = json.loads((root / 'dataset_info.json').read_text())['name']
    except (ValueError, KeyError) as error:
      raise DataError(
        f'{root}: dataset_info.json is damaged; prepare the data set again'
      ) from error
    if actual != name:
      raise DataError(f'{root} is the data set {actual!r}, not {name!r}')
    return root
  path, _, version = name.partition(':')
  versions = [each for each in _versions(root / path) if version in ('', each.name)]
  if not versions:
    return None
  configs = sorted({str(each.parent.relative_to(root)) for each in versions})
  if len(configs) > 1:
    raise DataError(
      f'the data set {name!r} in {root} has several configurations; '
      f'give one of them: {", ".join(configs)}'
    )
  return max(versions, key=lambda each: tfds.core.Version(each.name))


def _prepare(name: str, root: pathlib.Path) -> None:
  """Downloads, verifies and writes one of the data sets in `BUILDERS`."""
  manual = root / 'downloads' / 'manual' / name
  if name == 'imagenet2012':
    manual = _imagenet_archives(manual)
  (tfds.enable_progress_bar if sys.stderr.isatty() else tfds.disable_progress_bar)()
  size = sum(info.size for info in (BUILDERS[name].url_infos or {}).values())
  logging.info(
    'preparing the data set %s in %s%s',
    name,
    root,
    f' from a download of {size / 1e6:,.0f} MB, unless its files are there' if size else '',
  )
  try:
    builder = BUILDERS[name](data_dir=root)
    # TFDS prints that it downloads even if there is nothing to download.
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
      f'fetch its files elsewhere ({", ".join(BUILDERS[name].url_infos or ())}) and put '
      f'them, under their original names, into {manual}; or give a data_dir in which '
      f"the data set is prepared; or use 'digits', which needs no download"
    ) from error
  except download_manager.NonMatchingChecksumError as error:
    raise DataError(
      f'the files of the data set {name!r} are not the known ones. Remove the damaged '
      f'files below {root / "downloads"} and try again. {error}'
    ) from error
  except OSError as error:
    raise DataError(f'cannot write the data set {name!r} to {root}: {error}') from error
  if _find(name, root) is None:
    raise DataError(f'{builder.data_dir} holds no complete data set; remove it and try again')


def _imagenet_archives(manual: pathlib.Path) -> pathlib.Path:
  """Returns the directory of the archives that the user has fetched: manual or its parent."""
  for path in (manual, manual.parent):  # TFDS itself expects them in the parent.
    if all((path / file).exists() for file in imagenet.ARCHIVES):
      return path
  raise DataError(
    f"the data set 'imagenet2012' is not prepared, and cannot be downloaded without "
    f'an account. Register at {imagenet.SITE}, put {" and ".join(imagenet.ARCHIVES)} '
    f'(148 and 6.7 GB) into {manual}, and run the same command again: it prepares the '
    f'data set once, which needs another 155 GB and no TensorFlow. Or give the data_dir '
    f"in which it is prepared; or 'folder:/PATH' if the images are files in directories"
  )
