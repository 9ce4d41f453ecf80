"""The command `slim-jax`: its programs, each of which is a module as well.

  slim-jax train   --config=NAME --workdir=DIR     python -m slim_jax.main
  slim-jax look    --config=NAME --workdir=DIR     python -m slim_jax.look
  slim-jax sweep   --config=NAME --workdir=DIR     python -m slim_jax.sweep
  slim-jax report  --workdir=DIR                   python -m slim_jax.report
  slim-jax export  --workdir=DIR                   python -m slim_jax.export
  slim-jax latency --workdir=DIR                   python -m slim_jax.latency

`slim-jax PROGRAM --help` lists the flags of a program.
"""

from collections.abc import Sequence
import os
import runpy
import sys

MODULES = {
  'train': 'slim_jax.main',
  'look': 'slim_jax.look',
  'sweep': 'slim_jax.sweep',
  'report': 'slim_jax.report.__main__',
  'export': 'slim_jax.export.__main__',
  'latency': 'slim_jax.latency',
}


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the program that the first argument names, with the others as its flags."""
  arguments = sys.argv[1:] if arguments is None else arguments
  name = arguments[0] if arguments else ''
  if name in ('', '-h', '--help', 'help'):
    print((__doc__ or '').rstrip())
    sys.exit(0 if name else 2)
  if name not in MODULES:
    sys.exit(f'slim-jax has no program {name!r}, only {", ".join(MODULES)}')
  # As for `python -m`, a person's own modules are found where they stand.
  if '' not in sys.path and os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  sys.argv = [f'slim-jax {name}', *arguments[1:]]
  try:
    runpy.run_module(MODULES[name], run_name='__main__', alter_sys=True)
  except ModuleNotFoundError as error:
    package = (error.name or '').partition('.')[0]
    if package in ('', 'slim_jax'):
      raise
    sys.exit(
      f'slim-jax {name} needs {package}, which is not installed: install slim_jax with its extra '
      "train, as in pip install 'slim_jax[train]'"
    )
