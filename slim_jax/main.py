"""Network slimming from the command line.

  python -m slim_jax.main --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]
    [--until=STAGE]

Trains with sparsity, removes channels, fine-tunes and evaluates, as the config says. The same
command continues a run that was stopped, and says so if the run is complete.
"""

from absl import flags

from slim_jax import command
from slim_jax.display import tables
from slim_jax.report import page
from slim_jax.runs import pipeline, schema, stages
from slim_jax.runtime import processes

_UNTIL = flags.DEFINE_enum(
  'until',
  None,
  ['baseline', *stages.LATER],
  'Stop after this stage of the first pass; the same command without the flag continues.',
)


def main() -> None:
  """Runs the method and shows its results."""
  config = schema.complete(command.CONFIG.value)
  last = stages.named(config, _UNTIL.value) if _UNTIL.value else None
  records = pipeline.run(config, command.WORKDIR.value, last=last)
  if processes.is_first():
    tables.show(records)
  if command.REPORT.value:
    page.at_end(command.WORKDIR.value, timed=last is None)


if __name__ == '__main__':
  command.run(main)
