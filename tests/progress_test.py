"""Progress: live rows on a terminal, log lines elsewhere."""

import io
import logging
import re
import sys
import time

from absl import logging as absl_logging
import pytest
import rich.console

from slim_jax.display import progress


@pytest.fixture(autouse=True)
def absl_logs(caplog):
  """absl's logger says what it is asked to, whatever tests before have set."""
  caplog.set_level('INFO', logger='absl')


class Terminal(io.StringIO):
  def isatty(self):
    return True


def on_terminal(width=100):
  """A display on a terminal, and what is written there."""
  terminal = Terminal()
  console = rich.console.Console(
    file=terminal, width=width, color_system=None, _environ={'TERM': 'xterm'}
  )
  return progress.Display(console), terminal


def in_a_log(seconds_between_lines):
  console = rich.console.Console(file=io.StringIO())
  return progress.Display(console, seconds_between_lines=seconds_between_lines)


def text(terminal):
  """What was written, without the codes that move the cursor."""
  return re.sub(r'\x1b\[[\d;?]*\w', '', terminal.getvalue())


def test_a_phase_says_that_it_begins_and_what_it_took(caplog):
  caplog.set_level('INFO')
  with progress.phase('compiling', display=in_a_log(10)):
    assert caplog.messages == ['compiling ...']
  assert caplog.messages == ['compiling ...']  # it was short
  with progress.phase('compiling', display=in_a_log(-1)):
    pass
  assert caplog.messages[1:] == ['compiling ...', 'compiling took 0:00']


def test_a_phase_has_a_clock_on_a_terminal(caplog):
  caplog.set_level('INFO')
  display, terminal = on_terminal()
  with pytest.raises(ZeroDivisionError):
    with progress.phase('compiling', display=display):
      raise ZeroDivisionError
  assert re.search(r'compiling \.\.\. .* 0:00', text(terminal)) and not caplog.messages


def test_elements_are_passed_on_and_counted(caplog):
  caplog.set_level('INFO')
  elements = progress.each(iter('abc'), 'evaluating', total=3, display=in_a_log(10))
  assert list(elements) == ['a', 'b', 'c']
  assert not caplog.messages
  list(progress.each('ab', 'evaluating', total=2, display=in_a_log(-1)))
  assert caplog.messages == ['evaluating: 1 of 2', 'evaluating: 2 of 2']


def test_elements_move_a_row_on_a_terminal(caplog):
  caplog.set_level('INFO')
  display, terminal = on_terminal()
  assert list(progress.each('ab', 'evaluating', total=2, display=display)) == ['a', 'b']
  assert 'evaluating' in text(terminal) and '0%' in text(terminal)
  assert not caplog.messages


def train(display):
  with progress.Progress(
    'sparse', step=2, steps=6, epoch_steps=3, batch_size=8, display=display
  ) as shown:
    for step in (4, 6):
      shown.update(step, note='5% of scales', loss=1 / step, accuracy=0.5)


def test_lines_within_epochs_are_for_those_who_ask(caplog):
  display = in_a_log(-1)
  train(display)
  assert not caplog.messages
  display.verbose = True
  train(display)
  (line,) = caplog.messages  # the last step ends an epoch
  assert re.fullmatch(
    r'sparse: step 4 of 6, loss 0\.2500, accuracy 50\.00%, [\d,]+ images/s, 0:00 left', line
  )


@pytest.mark.parametrize('seconds, count', [(100, 1), (-1, 3)])
def test_an_epoch_is_a_line_at_most(caplog, seconds, count):
  lines = progress.Lines(in_a_log(seconds))
  for number in (1, 2, 3):
    lines.add(f'epoch {number}', is_last=number == 3)
  assert caplog.messages == [f'epoch {number}' for number in (1, 2, 3)][-count:]


def test_training_is_a_row_on_a_terminal_and_leaves_one_line(caplog):
  display, terminal = on_terminal(140)
  lines = progress.Lines(display)
  display.seconds_between_lines = -1
  with progress.Progress(
    'sparse', step=2, steps=6, epoch_steps=3, batch_size=8, display=display
  ) as shown:
    shown.update(4, note='5% of scales', loss=0.25, accuracy=0.5)
    time.sleep(0.3)  # until it is drawn
    lines.add('epoch 1', is_last=False)
    shown.update(6, loss=0.25)
    time.sleep(0.3)
    lines.add('epoch 2', is_last=True)
  for part in ('sparse: epoch 1 of 2', 'sparse: epoch 2 of 2', '33%', '5% of scales'):
    assert part in text(terminal)
  assert caplog.messages == ['epoch 2']


def test_nothing_is_shown_to_those_who_ask_for_it(caplog):
  display, terminal = on_terminal()
  display.quiet = True
  train(display)
  assert not text(terminal) and not caplog.messages


def test_rows_within_a_row_and_log_lines_above_them(monkeypatch):
  """An evaluation inside a training; the handler of absl writes to the standard error."""
  display, terminal = on_terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  handler = absl_logging.get_absl_handler().python_handler
  monkeypatch.setattr(handler, 'stream', terminal)
  with progress.Progress(
    'sparse', step=0, steps=2, epoch_steps=2, batch_size=8, display=display
  ) as shown:
    shown.update(1, loss=0.5, accuracy=0.25)
    for _ in progress.each('ab', 'evaluating', total=2, display=display):
      handler.emit(logging.makeLogRecord({'msg': 'a line', 'levelno': logging.INFO}))
    shown.update(1, loss=0.5, accuracy=0.25)
  assert sys.stderr is terminal and handler.stream is terminal
  lines = text(terminal).replace('\r', '\n').splitlines()
  assert sum(line.rstrip().endswith('a line') for line in lines) == 2  # not behind a row
  rows = [line for line in lines if 'sparse' in line]
  assert any('50%' in row for row in rows)
  # Values have a line of their own: rows of a narrow terminal have no room for them.
  assert any(line.startswith('  loss 0.5000, accuracy 25.00%') for line in lines)
  # A second display after the first has ended.
  before = len(text(terminal))
  list(progress.each('a', 'counting', total=1, display=display))
  assert 'counting' in text(terminal)[before:]


def test_no_rows_in_a_file_that_is_forced_to_have_colors():
  file = io.StringIO()
  console = rich.console.Console(file=file, _environ={'FORCE_COLOR': '1', 'TERM': 'xterm'})
  list(progress.each('ab', 'evaluating', total=2, display=progress.Display(console)))
  assert not file.getvalue()


@pytest.mark.parametrize('seconds, expected', [(0, '0:00'), (59.6, '1:00'), (3723, '1:02:03')])
def test_clock(seconds, expected):
  assert progress.clock(seconds) == expected
