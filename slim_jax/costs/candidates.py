"""One call of a function, traced once, whose thin candidates are planned, counted and timed."""

from collections.abc import Callable
import time
from typing import Any, NamedTuple

import jax

from slim_jax import cpu, jaxprs
from slim_jax.channels import analysis, planning, regions
from slim_jax.channels.plan import Plan
from slim_jax.channels.rule import Fact
from slim_jax.channels.thin import thin
from slim_jax.costs import counting, timing


class TracedCall(NamedTuple):
  """The call `f(variables, *args)` and its trace.

  Attributes:
    traced: the trace, which `planning.plan` takes in place of `f`.
    f: the function.
    variables: arrays or `jax.ShapeDtypeStruct`s.
    args: arrays or `jax.ShapeDtypeStruct`s.
  """

  traced: planning.Traced
  f: Callable[..., Any]
  variables: Any
  args: tuple[Any, ...]


def trace(f: Callable[..., Any], variables: Any, *args: Any) -> TracedCall:
  """Traces the call `f(variables, *args)`.

  Args:
    f: the function.
    variables: arrays or `jax.ShapeDtypeStruct`s; `seconds` needs arrays.
    *args: arrays or `jax.ShapeDtypeStruct`s; `seconds` needs arrays.
  """
  return TracedCall(planning.Traced(f, variables, *args), f, variables, args)


def planned(call: TracedCall, dead: Any, **options: Any) -> Plan:
  """Returns `slim_jax.plan` of the call without these dead channels."""
  return planning.plan(call.traced, call.variables, *call.args, dead=dead, **options)


def counted(call: TracedCall, plan: Plan | None) -> counting.Cost:
  """Returns `slim_jax.count` of the call, full (None) or thin, without tracing `f` again."""
  program, _ = call.traced.trace
  shapes, args = jax.tree.map(jaxprs.struct, (call.variables, call.args))
  if plan is None:
    return counting.of_program(program, shapes)
  shapes = plan.slice(shapes)
  leaves = jax.tree.leaves((shapes, args))
  cuts = list(plan.cuts.values())
  whole = [regions.whole(len(leaf.shape)) for leaf in leaves[len(cuts) :]]
  have, support = [cut.live for cut in cuts] + whole, [cut.support for cut in cuts] + whole
  demands = [regions.whole(len(program.avals[i].shape)) for i in program.outputs]
  needed = analysis.analyse(program, list(map(Fact, support)), demands)
  thin_program, _ = jaxprs.trace(
    lambda *arrays: analysis.run(program, needed, list(arrays), have, demands), *leaves
  )
  return counting.of_program(thin_program, shapes)


def _compiled(f: Callable[..., Any]) -> Callable[..., Any]:
  """Jits a function for the default device."""
  return jax.jit(cpu.for_cpu(f), compiler_options=cpu.cpu_options())


def seconds(
  call: TracedCall,
  plan: Plan | None,
  *,
  compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = _compiled,
  clock: Callable[[], float] = time.perf_counter,
) -> float:
  """Returns the median seconds of the call, full (None) or thin: of 5 to 50 runs, about a second.

  Args:
    call: with arrays for all variables and arguments.
    plan: of the thin function, None for the full one.
    compiled: makes the function that is timed.
    clock: returns the time in seconds.

  Raises:
    ValueError: a variable or argument is a shape.
  """
  f, variables, args = call.f, call.variables, call.args
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((variables, args))):
    raise ValueError(
      'latency is measured: it needs arrays for all variables and arguments, not shapes'
    )
  if plan is not None:
    f, variables = thin(f, plan, widen=cpu.is_default()), plan.slice(variables)
  run = compiled(f)
  variables, args = jax.device_put((variables, args))
  return timing.medians({'': lambda: run(variables, *args)}, clock=clock)['']
