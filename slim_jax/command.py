"""Flags that the commands share, and errors without a traceback."""

import ast
from collections.abc import Callable
import contextlib
import errno
import logging as std_logging
import os
import pathlib
import re
import sys
from typing import Any, NoReturn

from absl import app, flags, logging
import jax
from ml_collections import config_flags

from slim_jax.display import progress
from slim_jax.errors import SlimError
from slim_jax.runs import experiments, schema
from slim_jax.runtime import allocator, interrupt, processes

_ARGV: list[str] = []  # the command line, in which ml_collections looks for overrides
# Full or failing disks, and files that are too large or must not be written.
_OF_THE_MACHINE = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EIO,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.EMFILE,
  errno.ENFILE,
  errno.ENOMEM,
)
# Libraries have these words in errors of their own kinds.
_EXHAUSTED = {
  os.strerror(errno.EMFILE): 'too many files are open (ulimit -n)',
  os.strerror(errno.ENFILE): 'too many files are open on this machine',
  os.strerror(errno.ENOMEM): 'out of memory',
  'RESOURCE_EXHAUSTED': 'out of memory; --config.accumulate_steps=N computes a batch in N parts, and '
  '--config.batch_size, --config.eval_batch_size or --config.steps_per_call can be smaller',
  "can't start new thread": 'too many threads (ulimit -u)',
}


def define_flags() -> None:
  """Defines the flags that the commands share.

  Only a command does so, never an import, so that other programs may have flags of these names.
  """
  config_flags.DEFINE_config_file(
    'config',
    None,
    'A config: an experiment such as digits, or the path of a file.',
    lock_config=True,
    sys_argv=_ARGV,
  )
  flags.DEFINE_string(
    'workdir', None, 'Where the run lives: a directory, or gs://BUCKET/PATH.', required=True
  )
  flags.DEFINE_bool(
    'report', True, 'Whether to write the page WORKDIR/report after every stage and at the end.'
  )
  flags.DEFINE_enum(
    'allocator',
    'mimalloc',
    ['mimalloc', 'system'],
    'Allocator of memory on a CPU under Linux. mimalloc keeps its memory, so that training steps '
    'need not wait for the system; the command starts itself a second time with it. Other systems, '
    'and machines with an accelerator, use their own.',
  )
  flags.DEFINE_bool('quiet', False, 'Whether to show results, warnings and errors alone.')
  flags.DEFINE_bool(
    'verbose', False, 'Whether to log within epochs too, every few seconds, without a terminal.'
  )
  flags.DEFINE_bool(
    'multihost',
    False,
    'Train with the other hosts of this slice of Cloud TPUs. '
    'Processes of srun or launch/processes.sh need no flag.',
  )


def run(
  main: Callable[[], None], define: Callable[[], None] | None = None, *, needs_config: bool = True
) -> None:
  """Parses the flags and calls `main`; an error that a person can put right ends with one line.

  Args:
    main: the command; it reads its flags from `flags.FLAGS`.
    define: defines the flags that only this command has.
    needs_config: whether --config is required.
  """
  define_flags()
  if define is not None:
    define()
  shown = ['workdir']
  if needs_config:
    flags.mark_flag_as_required('config')
    shown += ['config', 'report', 'allocator', 'quiet', 'verbose', 'multihost']
  for name in shown:  # by --help
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])

  def checked(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f'not a flag: {argv[1]}')
    if flags.FLAGS.allocator == 'mimalloc':
      allocator.restart()
    logging.set_verbosity(logging.WARNING if flags.FLAGS.quiet else logging.INFO)
    logging.get_absl_handler().addFilter(_is_ours_or_serious)
    logging.get_absl_handler().setFormatter(_Lines())
    progress.speak(quiet=flags.FLAGS.quiet, verbose=flags.FLAGS.verbose)
    try:
      processes.join(multihost=flags.FLAGS.multihost)
      if not processes.is_first():  # its messages would repeat those of the first
        logging.set_verbosity(logging.WARNING)
      main()
    except interrupt.Preempted as error:
      with contextlib.suppress(OSError):  # the terminal may be closed
        print(error, file=sys.stderr, flush=True)
      sys.exit(error.exit_code)
    except SlimError as error:
      _fail(f'{type(error).__name__}: {error}')
    except Exception as error:  # pylint: disable=broad-except  (what is unknown is raised again)
      reason = _of_the_machine(error)
      if not reason:
        raise
      _fail(f'{reason}. Complete stages stay: when the cause is fixed, the same command continues')

  interrupt.end_at_signals()
  app.run(checked, flags_parser=_parse_flags)


def _of_the_machine(error: BaseException | None) -> str:
  """Returns what the machine lacks, if that is the cause of an error; else ''."""
  while error is not None:
    text = str(error).partition('\n')[0]
    if isinstance(error, MemoryError):
      return f'MemoryError: out of memory {text}'.strip()
    for words, meaning in _EXHAUSTED.items():
      if words in text:
        return f'{type(error).__name__}: {meaning} ({text[:200]})'
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
      return text
    error = error.__cause__ or error.__context__
  return ''


def _fail(message: str) -> NoReturn:
  """Ends the process, and with it all processes of the run."""
  if jax.process_count() == 1:
    sys.exit(message)
  print(
    f'process {jax.process_index()} of {jax.process_count()}: {message}',
    file=sys.stderr,
    flush=True,
  )
  # An orderly exit would wait for the others, which may be waiting for this process.
  os._exit(1)


def _parse_flags(args: list[str]) -> list[str]:
  """Parses flags; an error in the config or its fields ends without a traceback."""
  try:
    _ARGV[:] = args = with_whole_sections(with_found_config(args))
  except SlimError as error:
    sys.exit(f'{type(error).__name__}: {error}')
  try:
    left = app.parse_flags_with_usage(args)
    getattr(flags.FLAGS.config, 'to_dict', None)  # a missing file raises only when it is read
    return left
  except Exception as error:  # pylint: disable=broad-except  (a config is a program)
    # For an unknown field, ml_collections wraps a KeyError whose message names the nearest one.
    wrapped = bool(error.args) and isinstance(error.args[0], KeyError)
    cause = error.args[0] if wrapped else error
    how = _how_to_add(args, cause) if isinstance(cause, KeyError) else ''
    if (wrapped or how) and 'NoneType' not in str(cause):
      sys.exit(f'ConfigError: the config has no field {cause.args[0]}'.replace('\n', '. ') + how)
    path = next((arg for arg in args if arg.startswith('--config=')), '--config')
    sys.exit(f'ConfigError: {path} cannot be used: {type(error).__name__}: {error}')


def with_found_config(args: list[str]) -> list[str]:
  """Puts the path of the config in the place of its name, see `experiments.find`.

  Raises:
    ConfigError: there is no such config.
  """
  result = list(args)
  for i, arg in enumerate(args):
    if match := re.fullmatch(r'(--?config=)(.+)', arg):
      result[i] = match[1] + experiments.find(match[2])
    elif i and re.fullmatch(r'--?config', args[i - 1]):
      result[i] = experiments.find(arg)
  return result


def with_whole_sections(args: list[str]) -> list[str]:
  """Joins the flags that replace the model or the optimiser of a config: name, then arguments.

  `--config.model=NAME` drops all arguments that the config file gives to its own model. Each
  `--config.model.ARGUMENT=VALUE` after it is an argument of the new one, also one that the model
  of the file does not take; ml_collections alone would refuse it. The same with
  `--config.optimizer=NAME`.

  Args:
    args: a command line.

  Returns:
    The command line with `--config.model={'name': NAME, ...}` in place of these flags.
  """
  for section in ('model', 'optimizer'):
    whole: dict[str, Any] = {}
    others = []
    for arg in args:
      if name := re.fullmatch(rf'--?config\.{section}=(?!\s*\{{)(.*)', arg):
        whole = {'name': name[1]}
      elif whole and (argument := re.fullmatch(rf'--?config\.{section}\.(\w+)=(.*)', arg)):
        whole[argument[1]] = _literal(argument[2])
      else:
        others.append(arg)
    if whole:
      args = [*others, f'--config.{section}={whole!r}']
  return args


def _literal(text: str) -> Any:
  """Returns the Python value that a text says, or the text itself."""
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def _how_to_add(args: list[str], error: KeyError) -> str:
  """Says what to do about an override of a field that only the config file lacks, else ''."""
  key = str(error.args[0]).splitlines()[0].strip('\'"')
  for arg in args:
    override = re.match(r'--?(?:no)?config\.([\w.]+)', arg)
    if override and schema.has(override[1]) and key in override[1].split('.'):
      return (
        f'. --config.{override[1]} can override it once the config file sets it: start the file '
        'from slim_jax.runs.default.get_config(), or add the field'
      )
  return ''


class _Lines(std_logging.Formatter):
  """Formats a message as the time and the text, and says so where it is a warning or an error."""

  def format(self, record: std_logging.LogRecord) -> str:
    """Returns the line of a message, with a traceback if it has one."""
    level = f'{record.levelname}: ' if record.levelno >= std_logging.WARNING else ''
    when = self.formatTime(record, '%m-%d %H:%M:%S')
    return f'{when} {level}{super().format(record)}'


def _is_ours_or_serious(record: std_logging.LogRecord) -> bool:
  """Filters out the information that other libraries log."""
  ours = pathlib.Path(__file__).parent in pathlib.Path(record.pathname).parents
  return ours or record.levelno >= std_logging.WARNING
