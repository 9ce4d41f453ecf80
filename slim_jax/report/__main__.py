"""The page of a run or a study, made again: DIR/report/index.html, with its figures beside it.

  python -m slim_jax.report --workdir=DIR [--layer=PATTERN] [--nomeasure]

Also while the run is at work, or with what there is of an old one. `slim_jax.main`,
`slim_jax.look` and `slim_jax.sweep` end with it.
"""

from absl import flags, logging

from slim_jax import command
from slim_jax.report import page

_LAYER = flags.DEFINE_string(
  'layer', '', "Whose scales to show epoch by epoch: a pattern such as '*/BatchNorm_10/*'."
)
_MEASURE = flags.DEFINE_bool(
  'measure',
  True,
  'Whether to time the full and the thin network on this machine; otherwise '
  'the page shows what was measured before.',
)


def main() -> None:
  """Writes the page of the directory of the command line."""
  path = page.write(command.WORKDIR.value, timed=_MEASURE.value, layers=_LAYER.value)
  logging.info('report: %s', path)


if __name__ == '__main__':
  command.run(main, needs_config=False)
