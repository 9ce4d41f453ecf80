"""The law on random programs of every primitive, in training mode with state and gradients.

`--programs=N` sets how many the long test draws, 5,000 if it is not given.
"""

import collections

from helpers import mixed_programs, programs, rule_cases
import pytest

from slim_jax.channels.rule import RULES

pytestmark = [pytest.mark.usefixtures('x64'), pytest.mark.filterwarnings('ignore')]

BLOCK = 50


def hold(seeds):
  """Checks programs; shortens and reports the first that fails. Returns how many held, by verdict."""
  verdicts = collections.Counter()
  for seed in seeds:
    mixed = mixed_programs.draw(seed)
    try:
      verdicts[mixed_programs.check(mixed).verdict] += 1
    except Exception as error:
      error.add_note(f'Shortened: {mixed_programs.shortened(mixed, fails)}')
      raise
  return verdicts


def fails(mixed):
  try:
    mixed_programs.check(mixed)
  except Exception:  # pylint: disable=broad-exception-caught  # whatever it is, it is what is sought
    return True
  return False


def test_programs_hold():
  assert hold(range(4))['held'] >= 3


def test_a_fault_is_found_and_shortened(monkeypatch):
  """With a rule that takes cosines of zeros for zero, a program fails and is cut down to one."""
  (cos,) = [c for c in rule_cases.CASES if c.name == 'cos']
  (primitive,) = {eqn.primitive for eqn in programs.program_of(cos).equations}
  wrong = RULES[primitive]._replace(support=lambda ctx: ctx.supports)
  kinds = 'layer', 'cos', 'layer', 'layer'
  mixed = mixed_programs.Mixed(0, tuple(mixed_programs.Step(k, n) for n, k in enumerate(kinds)))
  monkeypatch.setitem(RULES, primitive, wrong)
  short = mixed_programs.shortened(mixed, fails)
  assert fails(short) and len(short.steps) < len(mixed.steps)
  assert 'cos' in [step.kind for step in short.steps]


@pytest.mark.slow
@pytest.mark.parametrize('block', range(10, 5010, BLOCK))
def test_programs_hold_at_length(block, pytestconfig):
  seeds = range(block, min(block + BLOCK, 10 + pytestconfig.getoption('--programs')))
  if not seeds:
    pytest.skip('more than --programs')
  assert hold(seeds)['held'] >= len(seeds) // 2
