"""A network traced once, to be planned, counted and timed with many selections."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from slim_jax import cpu, jaxprs
from slim_jax.channels import analysis, regions
from slim_jax.channels.plan import Plan
from slim_jax.channels.planning import Traced, plan
from slim_jax.channels.rule import Fact
from slim_jax.channels.thin import thin
from slim_jax.costs import counting, timing


class Network(NamedTuple):
  """`f(variables, *args)`, and its trace."""

  traced: Traced
  f: Callable[..., Any]
  variables: Any
  args: tuple[Any, ...]


def trace(f: Callable[..., Any], variables: Any, *args: Any) -> Network:
  """Traces a function once.

  Args:
    f: `f(variables, *args)`.
    variables: arrays or `jax.ShapeDtypeStruct`s; `seconds` needs arrays.
    *args: likewise.
  """
  return Network(Traced(f, variables, *args), f, variables, args)


def planned(network: Network, dead: Any, **options: Any) -> Plan:
  """`slim_jax.plan` of the network."""
  return plan(network.traced, network.variables, *network.args, dead=dead, **options)


def counted(network: Network, found: Plan | None) -> counting.Cost:
  """`slim_jax.count` of the network, full (None) or thin, without tracing it anew."""
  program, _ = network.traced.trace
  shapes, args = jax.tree.map(jaxprs.struct, (network.variables, network.args))
  if found is None:
    return counting.of_program(program, shapes)
  shapes = found.slice(shapes)
  leaves = jax.tree.leaves((shapes, args))
  have = [cut.live for cut in found.cuts.values()]
  have += [regions.whole(len(leaf.shape)) for leaf in leaves[len(have) :]]
  demands = [regions.whole(len(program.avals[i].shape)) for i in program.outputs]
  facts = analysis.forward(program, [Fact(region) for region in have])
  needed = analysis.backward(program, facts, demands)
  thin_program, _ = jaxprs.trace(
    lambda *arrays: analysis.run(program, needed, list(arrays), have, demands), *leaves
  )
  return counting.of_program(thin_program, shapes)


def seconds(network: Network, found: Plan | None) -> float:
  """Median time of the jitted function: of 5 to 50 runs, about a second of them."""
  f, variables, args = network.f, network.variables, network.args
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((variables, args))):
    raise ValueError(
      'latency is measured: it needs arrays for all variables and arguments, not shapes'
    )
  if found is not None:
    f, variables = thin(f, found, widen=cpu.is_default()), found.slice(variables)
  run = jax.jit(cpu.for_cpu(f), compiler_options=cpu.cpu_options())
  variables, args = jax.device_put((variables, args))
  return timing.medians({'': lambda: run(variables, *args)})['']
