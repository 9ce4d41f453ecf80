"""Network slimming from the command line.

  python -m slim_jax.main --config=configs/NAME.py --workdir=DIR [--config.FIELD=VALUE ...]

Trains with sparsity, removes channels, fine-tunes and evaluates, as the config says;
the same command again continues where it stopped, or says that it is done.
"""

from slim_jax import command
from slim_jax import pipeline
from slim_jax import report


def main() -> None:
  """Runs the method and shows what came of it."""
  report.show(pipeline.run(command.CONFIG.value, command.WORKDIR.value))


if __name__ == '__main__':
  command.run(main)
