"""The examples in docstrings run and give what they say."""

import doctest
import importlib
import pathlib

import jax
import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'slim_jax'
EXAMPLES = [path for path in sorted(PACKAGE.rglob('*.py')) if '>>>' in path.read_text()]


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_examples(path):
  name = '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts)
  with jax.numpy_rank_promotion('allow'):  # what JAX does unless told otherwise
    found = doctest.testmod(importlib.import_module(name))
  assert found.attempted and not found.failed


def test_there_are_some():
  assert len(EXAMPLES) >= 6
