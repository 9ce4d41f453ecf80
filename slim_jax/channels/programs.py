"""Programs as rules see them: those of `jaxprs`, with every channel shuffle as one equation."""

from collections.abc import Callable
from typing import Any

from slim_jax import jaxprs
from slim_jax.channels.shuffle import merged
from slim_jax.jaxprs import Equation, Program

__all__ = ['bodies', 'body', 'merged', 'trace']


def trace(f: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Program, Any]:
  """Returns the program of `f` and the tree of its results' shapes, as `jaxprs.trace` does."""
  program, results = jaxprs.trace(f, *args, **kwargs)
  return merged(program), results


def bodies(eqn: Equation) -> list[Program]:
  """The programs inside an equation (branches, loop bodies, custom rules), if any."""
  return jaxprs.once(eqn, _bodies)


def _bodies(eqn: Equation) -> list[Program]:
  return list(map(merged, jaxprs.bodies(eqn)))


def body(eqn: Equation, name: str) -> Program:
  """The program that the equation holds under the parameter `name`."""
  return jaxprs.once(eqn, _body, name=name)


def _body(eqn: Equation, name: str) -> Program:
  return merged(jaxprs.body(eqn, name))
