"""Compiler options on a CPU: known or not, compiled once per kind of arguments, same results."""

from helpers import zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax.cpu import options as cpu
from slim_jax.runtime import devices


@pytest.mark.parametrize('training', [False, True])
def test_options_are_known_to_this_version(training):
  ((name, value),) = slim_jax.cpu_options(training=training).items()
  assert 'REDUCE' in value if training else not value
  compiled = jax.jit(lambda x: 2 * x, compiler_options={name: value})
  np.testing.assert_array_equal(compiled(jnp.arange(3)), [0, 2, 4])


def test_xla_flags_of_the_user_come_first(monkeypatch):
  (name,) = slim_jax.cpu_options()
  monkeypatch.setenv('XLA_FLAGS', f'--{name}=LIBRARY_FUSION_TYPE_DOT')
  assert slim_jax.cpu_options() == {}


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
  monkeypatch.setattr(cpu, '_LIBRARY', 'xla_cpu_of_another_version')
  assert slim_jax.cpu_options() == {}


def test_no_options_on_other_devices(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert slim_jax.cpu_options() == {}


def test_compiled_once_for_each_kind_of_arguments():
  traced = []

  def f(x, scale):
    traced.append(x.shape)
    return x * scale

  run = cpu.with_options(jax.jit(f), slim_jax.cpu_options())
  for n in (3, 4, 3, 4):
    np.testing.assert_array_equal(run(jnp.arange(n), np.int32(2)), 2 * np.arange(n))
  np.testing.assert_array_equal(run(jnp.arange(3.0), np.int32(2)), 2 * np.arange(3))
  assert traced == [(3,), (4,), (3,)]


@pytest.mark.parametrize('count', [1, 4])
def test_mapped_functions_donate_and_reduce_as_before(count):
  places = devices.local(count)
  step = devices.mapped(
    lambda total, x: total + jax.lax.pmean(x.sum(), 'batch'),
    places,
    in_axes=(None, 0),
    out_axes=None,
    donate_argnums=(0,),
    training=True,
  )
  first = total = devices.replicate(jnp.zeros([]), places)
  x = np.arange(8.0, dtype=np.float32).reshape(count, -1)
  for _ in range(3):
    total = step(total, devices.split(x, places))
  assert float(total) == 3 * x.sum() / count
  assert first.is_deleted()


def test_a_network_gives_the_same_with_the_options():
  model = zoo.build(zoo.case('inverted_residual'), jnp.float32)
  want = jax.jit(model.infer)(model.variables, model.x)
  options = slim_jax.cpu_options()
  found = jax.jit(slim_jax.for_cpu(model.infer), compiler_options=options)(model.variables, model.x)
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
