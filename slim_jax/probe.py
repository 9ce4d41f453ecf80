"""A network traced once, to be planned, counted and timed with many selections."""

from collections.abc import Callable, Mapping
import statistics
import time
from typing import Any, NamedTuple

import jax

from slim_jax import cost, cpu, jaxprs
from slim_jax.channels import Plan, analysis, blocks, interface, plan, thin
from slim_jax.channels.planning import Traced
from slim_jax.channels.rule import Fact


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


def counted(network: Network, found: Plan | None) -> cost.Cost:
  """`slim_jax.count` of the network, full (None) or thin, without tracing it anew."""
  program, _ = network.traced.trace
  shapes, args = jax.tree.map(interface.struct, (network.variables, network.args))
  if found is None:
    return cost.of_program(program, shapes)
  shapes = found.slice(shapes)
  leaves = jax.tree.leaves((shapes, args))
  have = [cut.live for cut in found.cuts.values()]
  have += [blocks.whole(len(leaf.shape)) for leaf in leaves[len(have):]]
  demands = [blocks.whole(len(program.avals[i].shape)) for i in program.outputs]
  facts = analysis.forward(program, [Fact(block) for block in have])
  needed = analysis.backward(program, facts, demands)
  thin_program, _ = jaxprs.trace(
      lambda *arrays: analysis.run(program, needed, list(arrays), have, demands), *leaves)
  return cost.of_program(thin_program, shapes)


def seconds(network: Network, found: Plan | None) -> float:
  """Median time of the jitted function: of 5 to 50 runs, about a second of them."""
  f, variables, args = network.f, network.variables, network.args
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((variables, args))):
    raise ValueError('latency is measured: it needs arrays for all variables and arguments, not '
                     'shapes')
  if found is not None:
    f, variables = thin(f, found, widen=cpu.is_default()), found.slice(variables)
  run = jax.jit(cpu.for_cpu(f), compiler_options=cpu.cpu_options())
  variables, args = jax.device_put((variables, args))
  return medians({'': lambda: run(variables, *args)})['']


def medians(runs: Mapping[str, Callable[[], Any]], *, least: int = 5,
            enough: float = 1.0) -> dict[str, float]:
  """Median seconds of functions that take turns, so that a busy machine is busy for all alike.

  Args:
    runs: by name; each returns arrays. A first call of each, which may compile, does not count.
    least: how many calls of each there are, however long they take; at most 50.
    enough: seconds of each, after which there are no more.
  """
  times: dict[str, list[float]] = {name: [] for name in runs}
  for run in runs.values():
    jax.block_until_ready(run())
  rounds, spent = 0, 0.0
  while rounds < least or (rounds < 50 and spent < enough * len(runs)):
    for name, run in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      times[name].append(time.perf_counter() - start)
      spent += times[name][-1]
    rounds += 1
  return {name: statistics.median(found) for name, found in times.items()}
