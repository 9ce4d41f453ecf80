"""Writes the page of a run or a study: DIR/report/index.html, with its figures beside it.

  python -m slim_jax.report --workdir=DIR [--layer=PATTERN] [--nomeasure]

Works on a run in progress, and on a directory from which files are missing: their sections say
so. `slim_jax.main` writes the page after every stage (several processes: at the end),
`slim_jax.look` and `slim_jax.sweep` at the end.
"""

from absl import flags, logging

from slim_jax import command
from slim_jax.report import page


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_string(
    'layer',
    '',
    "Pattern of the paths of the scales that are shown epoch by epoch, such as '*/BatchNorm_10/*'; "
    'without it, three layers are shown.',
  )
  flags.DEFINE_bool(
    'measure',
    True,
    'Whether to time the full and the thin network on this machine; otherwise the page shows the '
    'last measurement.',
  )


def main() -> None:
  """Writes the page of the directory given on the command line."""
  path = page.write(flags.FLAGS.workdir, timed=flags.FLAGS.measure, layers=flags.FLAGS.layer)
  logging.info('report: %s', path)


if __name__ == '__main__':
  command.run(main, define_flags, needs_config=False)
