"""Network slimming from the command line.

  python -m slim_jax.main --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]
    [--until=STAGE] [--budget=TIME]

Trains with sparsity, removes channels, fine-tunes and evaluates, as the config says. The same
command continues a run that was stopped, and says so if the run is complete.
"""

from collections.abc import Callable
import functools

from absl import flags
import jax

from slim_jax import command
from slim_jax.display import tables
from slim_jax.runs import pipeline, schema, stages
from slim_jax.runtime import interrupt, processes


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_enum(
    'until',
    None,
    ['baseline', *stages.LATER],
    'Stop after this stage of the first pass; the same command without the flag continues.',
  )
  flags.DEFINE_string(
    'budget',
    None,
    'How long this call may take, such as 530s, 20m or 1h30m, where the time on a machine is '
    'limited. Then the run saves its state and ends with exit code 142; the same command continues '
    'it, here or elsewhere. Leave time for saving.',
  )
  flags.register_validator(
    'budget',
    lambda text: text is None or interrupt.seconds_of(text) > 0,
    'must be a time such as 530s, 20m or 1h30m',
  )


def main() -> None:
  """Runs the method and shows its results."""
  if flags.FLAGS.budget:
    interrupt.end_after(interrupt.seconds_of(flags.FLAGS.budget))
  config, workdir = schema.complete(flags.FLAGS.config), flags.FLAGS.workdir
  last = stages.named(config, flags.FLAGS.until) if flags.FLAGS.until else None
  write_page = _page() if flags.FLAGS.report else None
  after_stage = None
  # Several processes read checkpoints together; one that failed to would hold up the others' run.
  if write_page and jax.process_count() == 1:
    after_stage = functools.partial(write_page, workdir)
  records = pipeline.run(config, workdir, last=last, after_stage=after_stage)
  if processes.is_first():
    tables.show(records)
  if write_page:
    write_page(workdir, timed=last is None)


def _page() -> Callable[..., None]:
  """Returns what writes the page; its imports take half a second."""
  from slim_jax.report import page

  return page.at_end


if __name__ == '__main__':
  command.run(main, define_flags)
