"""Bars on a terminal, lines elsewhere."""

import io
import sys

import pytest

from slim_jax.display import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


def terminal(monkeypatch):
  monkeypatch.setattr(sys, 'stderr', Terminal())
  return sys.stderr


def test_a_phase_says_that_it_begins_and_what_it_took(caplog, monkeypatch):
  caplog.set_level('INFO')
  with progress.phase('compiling'):
    assert caplog.messages == ['compiling ...']
  assert caplog.messages == ['compiling ...']  # it was short
  monkeypatch.setattr(progress, '_SECONDS_BETWEEN_LINES', -1)
  with progress.phase('compiling'):
    pass
  assert caplog.messages[-1] == 'compiling took 0:00'


def test_a_phase_has_a_clock_on_a_terminal(monkeypatch, caplog):
  caplog.set_level('INFO')
  shown = terminal(monkeypatch)
  with pytest.raises(ZeroDivisionError):
    with progress.phase('compiling'):
      raise ZeroDivisionError
  assert 'compiling ... 00:00' in shown.getvalue() and not caplog.messages


def test_elements_are_passed_on_and_counted(caplog, monkeypatch):
  caplog.set_level('INFO')
  assert list(progress.each(iter('abc'), 'evaluating', total=3)) == ['a', 'b', 'c']
  assert not caplog.messages
  monkeypatch.setattr(progress, '_SECONDS_BETWEEN_LINES', -1)
  list(progress.each('ab', 'evaluating', total=2))
  assert caplog.messages == ['evaluating: 1 of 2', 'evaluating: 2 of 2']


def test_elements_move_a_bar_on_a_terminal(monkeypatch):
  shown = terminal(monkeypatch)
  assert list(progress.each('ab', 'evaluating', total=2)) == ['a', 'b']
  assert 'evaluating   0%|' in shown.getvalue()
