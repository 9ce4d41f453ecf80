"""What `print(plan)` says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax.channels.rule import RULES
from slim_jax.jaxprs import primitives as p


def halved(x):
  """x / 2, by an operation that has no rule."""
  return jax.pure_callback(lambda x: x / 2, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def f(variables, x):
  """A stem, a stream that two layers add to and one reads, a head; a layer without a rule."""
  v = variables
  with jax.named_scope('stem'):
    x = x @ v['stem']['kernel']
  with jax.named_scope('branch'):
    y = x * v['BatchNorm_0']['scale'][None]
    x = x + jax.nn.relu(y) @ v['branch']['kernel']
  with jax.named_scope('strange'):
    z = halved(x @ v['strange']['kernel'])
  with jax.named_scope('last'):
    y = x @ v['last']['kernel']
  with jax.named_scope('head'):
    return jnp.tanh(y) @ v['head']['kernel'] + jnp.sum(z)


@pytest.fixture
def plan():
  variables = {
    name: {'kernel': jnp.ones(shape)}
    for name, shape in {
      'stem': (3, 8),
      'branch': (8, 8),
      'strange': (8, 6),
      'last': (8, 7),
      'head': (7, 2),
    }.items()
  }
  variables['BatchNorm_0'] = {'scale': jnp.ones(8)}
  dead = jax.tree.map(lambda _: None, variables)
  dead['BatchNorm_0']['scale'] = np.arange(8) < 3
  return slim_jax.plan(f, variables, jnp.ones((4, 3)), dead=dead)


def test_reasons(plan):
  reasons = {path[0]: why for path, why in plan.reasons.items()}
  assert reasons['stem'] == reasons['branch'] == 'tied to the stream that last reads'
  assert reasons['strange'].startswith('read by pure_callback(') and reasons['strange'].endswith(
    'at strange, which has no rule'
  )
  assert reasons['last'] == 'head reads it'
  assert reasons['head'] == 'reaches the output'
  assert 'BatchNorm_0' not in reasons


def test_table(plan):
  lines = str(plan).splitlines()
  rows = {line.split()[0]: line for line in lines}
  assert lines[0].split() == [
    'module',
    'variables',
    'before',
    'after',
    'why',
    'an',
    'axis',
    'stayed',
    'whole',
  ]
  assert rows['BatchNorm_0'].split()[1:] == ['scale', '[8]', '[5]']
  assert rows['branch'].split(maxsplit=5)[1:] == [
    'kernel',
    '[8,',
    '8]',
    '[5,',
    '8]  tied to the stream that last reads',
  ]
  assert 'whole' in rows['stem']
  assert lines[-1].startswith('full width, no rule: pure_callback(')


def test_reasons_survive_the_disk_and_the_parts(plan, tmp_path):
  plan.save(tmp_path / 'plan')
  assert str(slim_jax.Plan.load(tmp_path / 'plan')) == str(plan)
  assert plan['head'].reasons == {('kernel',): 'reaches the output'}


def test_operations_without_a_rule_are_found_inside_loops():
  def looped(v, x):
    def step(x, _):
      with jax.named_scope('inner'):
        return halved(x * v['BatchNorm_0']['scale'][None]), None

    with jax.named_scope('outer'):
      return jax.lax.scan(step, x, length=2)[0]

  v = {'BatchNorm_0': {'scale': jnp.ones(4)}}
  dead = {'BatchNorm_0': {'scale': np.arange(4) < 2}}
  plan = slim_jax.plan(looped, v, jnp.ones((2, 4)), dead=dead)
  (operation,) = plan.unknown
  assert operation.startswith('pure_callback(') and operation.endswith('at outer/inner')


def test_errors_name_the_equation():
  """An error in a rule names the operation and its module path."""

  def f(v, x):
    with jax.named_scope('outer'):
      return jnp.tanh(x * v['BatchNorm_0']['scale'][None])

  def broken(*_):
    raise RuntimeError('no')

  v = {'BatchNorm_0': {'scale': jnp.ones(4)}}
  dead = {'BatchNorm_0': {'scale': np.arange(4) < 2}}
  plan = slim_jax.plan(f, v, jnp.ones((2, 4)), dead=dead)
  for what in ('reads', 'evaluate', 'support'):
    rules = {**RULES, p.tanh_p: RULES[p.tanh_p]._replace(**{what: broken})}
    with pytest.raises(RuntimeError) as error:
      slim_jax.thin(f, plan, rules=rules)(plan.slice(v), jnp.ones((2, 4)))
    (note,) = error.value.__notes__
    assert note == 'In the thin form of tanh(float32[2,4]) -> float32[2,4] at outer'


def test_a_cut_network_names_where_it_ends():
  def f(v, x):
    with jax.named_scope('norm'):
      x = x * v['BatchNorm_0']['scale'][None]
    return x @ v['kernel']

  v = {'BatchNorm_0': {'scale': jnp.ones(4)}, 'kernel': jnp.ones((4, 2))}
  dead = {'BatchNorm_0': {'scale': np.ones(4, bool)}, 'kernel': None}
  with pytest.raises(ValueError, match=r'ends in: mul\(float32\[2,4\], float32\[.,4\]\).* at norm'):
    slim_jax.plan(f, v, jnp.ones((2, 4)), dead=dead)
