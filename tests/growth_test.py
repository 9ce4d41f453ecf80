"""Planning costs time by the equation and memory by the channel, not by the weight."""

import collections
import subprocess
import sys

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import jaxprs, models
from slim_jax.channels.rule import RULES, Rule


def counting_rules():
  """The table of rules, and a counter of how often each kind of question is asked."""
  asked = collections.Counter()

  def counted(what, f):
    def call(*args):
      asked[what] += 1
      return f(*args)

    return call

  rules = {
    primitive: Rule(*(counted(what, f) for what, f in zip(rule._fields, rule, strict=True)))
    for primitive, rule in RULES.items()
  }
  return rules, asked


def rules_asked(depth):
  """How often rules are asked to plan a network and to trace it thin; and its equations."""
  module = models.create('preresnet', num_classes=4, depth=depth, width=2)
  x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(x.shape), train=False))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda a: rng.uniform(size=a.shape).astype(a.dtype), shapes)
  apply = lambda v, x: module.apply(v, x, train=False)
  dead = slim_jax.select_global(variables, fraction=0.5, min_channels=1)
  rules, asked = counting_rules()
  plan = slim_jax.plan(apply, shapes, x, dead=dead, rules=rules)
  jax.eval_shape(slim_jax.thin(apply, plan, rules=rules), plan.slice(shapes), x)
  return asked, len(jaxprs.trace(apply, shapes, x)[0].equations)


def test_work_grows_linearly_with_equations():
  """Four times as many equations ask no rule more than four times as often."""
  few, short = rules_asked(20)
  many, long = rules_asked(74)
  assert long > 3.5 * short
  for what, n in many.items():
    assert n < 1.1 * long / short * few[what], what
    assert n < 8 * long, what


def scanned(step):
  return lambda x, v: lax.scan(lambda carry, _: (step(carry, v), None), x, None, length=2)[0]


def looped(step):
  return lambda x, v: lax.while_loop(lambda x: x[0, 0] < 1, lambda x: step(x, v), x)


def branched(step):
  return lambda x, v: lax.cond(x[0, 0] > 0, lambda x: step(x, v), lambda x: x * 2, x)


def recomputed(step):
  return lambda x, v: jax.checkpoint(step)(x, v)


@jax.custom_jvp
def tripled(x):
  return 3 * x


tripled.defjvp(lambda primals, tangents: (tripled(*primals), 3 * tangents[0]))


def asked_of_nested(nest, depth):
  """How often rules are asked about a BatchNorm under `depth` loops, branches or calls."""

  def step(x, v):
    return jax.nn.relu(tripled(x) * v['scale'][None] + v['bias'][None])

  for _ in range(depth):
    step = nest(step)
  variables = {
    'BatchNorm_0': {'scale': jnp.ones(8), 'bias': jnp.ones(8)},
    'kernel': jnp.ones((8, 3)),
  }
  dead = {'BatchNorm_0': {'scale': np.arange(8) < 4, 'bias': None}, 'kernel': None}
  x = jax.ShapeDtypeStruct((2, 8), jnp.float32)

  def f(v, x):
    return step(x * v['BatchNorm_0']['scale'][None], v['BatchNorm_0']) @ v['kernel']

  rules, asked = counting_rules()
  plan = slim_jax.plan(f, variables, x, dead=dead, rules=rules)
  thin_variables = plan.slice(variables)
  assert thin_variables['kernel'].shape == (4, 3)
  jax.eval_shape(slim_jax.thin(f, plan, rules=rules), thin_variables, x)
  return asked


@pytest.mark.parametrize('nest', [scanned, looped, branched, recomputed], ids=lambda f: f.__name__)
def test_work_grows_linearly_with_nesting(nest):
  """Each level of loops, branches or calls adds the same number of questions, not a factor."""
  one, two, six = (asked_of_nested(nest, depth) for depth in (1, 2, 6))
  for what, n in six.items():
    assert n <= two[what] + 4 * (two[what] - one[what]), what
    assert n > two[what], what


BILLION = """
import re, jax, jax.numpy as jnp, numpy as np, slim_jax

width = 16384
layers = {f'Dense_{i}': {'kernel': jax.ShapeDtypeStruct((width, width), jnp.float32)}
          for i in range(4)}
norms = {f'BatchNorm_{i}': {'scale': jax.ShapeDtypeStruct((width,), jnp.float32),
                            'bias': jax.ShapeDtypeStruct((width,), jnp.float32)} for i in range(4)}
variables = {**layers, **norms}

def apply(v, x):
  for i in range(4):
    norm = v[f'BatchNorm_{i}']
    x = jax.nn.relu(x @ v[f'Dense_{i}']['kernel'] * norm['scale'] + norm['bias'])
  return x.sum(-1)

rng = np.random.default_rng(0)
dead = jax.tree.map(lambda _: None, variables)
for i in range(4):
  dead[f'BatchNorm_{i}']['scale'] = rng.random(width) < 0.5
x = jax.ShapeDtypeStruct((8, width), jnp.float32)
plan = slim_jax.plan(apply, variables, x, dead=dead)
thin = plan.slice(variables)
jax.eval_shape(slim_jax.thin(apply, plan), thin, x)
assert sum(leaf.size for leaf in jax.tree.leaves(variables)) > 1e9
assert sum(leaf.size for leaf in jax.tree.leaves(thin)) < 0.4e9
# Not getrusage, whose peak a process inherits from the one that started it.
print(re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1])
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='peak memory is read from /proc')
def test_a_billion_parameters_are_planned_from_shapes():
  """In less than 1 GiB, most of which is JAX itself."""
  ran = subprocess.run([sys.executable, '-c', BILLION], capture_output=True, text=True, check=False)
  assert ran.returncode == 0, ran.stderr
  assert int(ran.stdout) < 1 << 20  # KiB
