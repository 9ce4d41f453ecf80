"""Thin Keras models: used like the full one, and equal to the masked one in float64."""

from helpers import laws
from helpers.zoo import keras as zoo
import jax
import jax.numpy as jnp
import keras
from keras import layers
import numpy as np
import pytest

import slim_jax
from slim_jax.errors import SlimError

# Keras 3.15 gives arrays to NumPy in the way of NumPy 1.
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')


@pytest.fixture(autouse=True)
def broadcasting():
  """Keras adds biases by broadcasting over rank."""
  with jax.numpy_rank_promotion('allow'):
    yield


def net():
  """Two inputs, dropout, a layer that is called twice, and all kinds of penalties."""
  x, y = keras.Input((4, 4, 2), name='x'), keras.Input((4, 4, 6), name='y')
  shared = layers.Conv2D(6, 1, kernel_regularizer=keras.regularizers.L2(0.01))
  z = layers.Conv2D(6, 3, padding='same')(x)
  for _ in range(2):
    z = layers.ReLU()(layers.BatchNormalization()(shared(z)))
  z = layers.Dropout(0.3, seed=1)(z)
  z = layers.Conv2D(6, 3, padding='same')(z) + y
  z = layers.BatchNormalization(gamma_regularizer=keras.regularizers.L2(0.01))(z)
  z = layers.ActivityRegularization(l2=0.01)(layers.ReLU()(z))
  return keras.Model({'x': x, 'y': y}, layers.Dense(3)(layers.GlobalAveragePooling2D()(z)))


def make(dtype, seed=0):
  keras.utils.set_random_seed(seed)
  model = zoo.in_dtype(net, dtype)
  rng = np.random.default_rng(seed)
  for variable in model.weights:
    if variable.name in ('gamma', 'beta', 'moving_variance', 'bias'):
      variable.assign(rng.uniform(0.3, 1.5, variable.shape))
  x = {'x': rng.normal(size=(4, 4, 4, 2)), 'y': rng.normal(size=(4, 4, 4, 6))}
  x = {name: value.astype(jnp.dtype(dtype)) for name, value in x.items()}
  return model, x, rng.normal(size=(4, 3)).astype(jnp.dtype(dtype))


def masked(model, dead):
  """A copy of the full model with zeros."""
  variables = slim_jax.mask(slim_jax.keras.functions(model).variables, dead)
  copy = zoo.in_dtype(lambda: keras.models.clone_model(model), model.dtype)
  for old, new in zip(model.variables, copy.variables, strict=True):
    new.assign(jnp.copy(old.value))
  for group in ('trainable', 'non_trainable'):
    for old, new in zip(*members_of(group, model, copy), strict=True):
      new.assign(jnp.copy(variables[group][old.path]))
  return copy


def members_of(group, *models):
  return [getattr(model, f'{group}_variables') for model in models]


def test_the_thin_model_is_the_masked_one(x64):
  model, x, y = make(jnp.float64)
  model.compile(keras.optimizers.Adam(0.01), 'mse')
  model.fit(x, y, batch_size=2, epochs=1, verbose=0, shuffle=False)  # moments that are not zero
  thin, info = slim_jax.keras.slim(model, x, fraction=0.5, opt_state=model.optimizer)
  assert isinstance(thin, keras.Model) and 0.4 < info.removed < 0.6
  assert info.after.macs < 0.8 * info.before.macs and info.after.params < info.before.params
  assert info.before.params == sum(v.value.size for v in model.trainable_variables)
  assert info.after.params == sum(v.value.size for v in thin.trainable_variables)
  full = masked(model, info.dead)
  assert laws.distance(thin(x), full(x)) < 1e-12
  predicted = thin.predict(x, verbose=0)  # it rounds the inputs to float32
  assert laws.distance(predicted, np.asarray(full(x))) < 1e-6

  thin.compile(info.opt_state, 'mse')
  full.compile(keras.optimizers.Adam(0.01), 'mse')
  full.optimizer.build(full.trainable_variables)
  for old, new in zip(model.optimizer.variables, full.optimizer.variables, strict=True):
    new.assign(jnp.copy(old.value))
  kernels = penalised(thin), penalised(full)
  callbacks = lambda: [slim_jax.keras.AddL1(1e-3)]
  runs = [
    m.fit(x, y, batch_size=4, epochs=1, verbose=0, shuffle=False, callbacks=callbacks())
    for m in (thin, full)
  ]
  assert thin.optimizer.iterations.value == full.optimizer.iterations.value == 3
  wanted = {
    group: {old.path: new.value for old, new in zip(*members_of(group, model, full), strict=True)}
    for group in ('trainable', 'non_trainable')
  }
  got = slim_jax.keras.functions(thin).variables
  assert laws.distance(got, info.plan.slice(wanted)) < 1e-10
  slots = full.optimizer.variables[2:], thin.optimizer.variables[2:]
  assert sum(a.shape != b.shape for a, b in zip(*slots, strict=True)) > 10
  assert all(np.isfinite(v.value).all() for v in model.variables)  # it is not touched
  # The full model also penalises the kernels of removed channels.
  difference = runs[1].history['loss'][0] - runs[0].history['loss'][0]
  assert difference == pytest.approx(0.01 * (kernels[1] - kernels[0]), rel=1e-4)
  assert all(v.regularizer is None for v in thin.weights if 'beta' in v.path)


def penalised(model):
  return sum(
    float(jnp.sum(v.value**2))
    for v in model.trainable_variables
    if v.regularizer is not None and 'kernel' in v.path
  )


def test_it_is_an_ordinary_model(tmp_path):
  model, x, y = make(jnp.float32)
  thin, info = slim_jax.keras.slim(model, x, fraction=0.5)
  want = thin.predict(x, verbose=0)
  thin.save_weights(tmp_path / 'thin.weights.h5')
  thin.save(tmp_path / 'thin.keras')
  loaded = keras.models.load_model(tmp_path / 'thin.keras')
  assert laws.distance(loaded.predict(x, verbose=0), want) < 1e-6
  info.plan.save(tmp_path / 'plan.npz')
  other = slim_jax.keras.thin(make(jnp.float32, 1)[0], slim_jax.Plan.load(tmp_path / 'plan.npz'))
  assert laws.distance(other.predict(x, verbose=0), want) > 1e-2
  other.load_weights(tmp_path / 'thin.weights.h5')
  assert laws.distance(other.predict(x, verbose=0), want) < 1e-6

  # Sparse training inside `fit`: scales shrink by lr * strength a step; then all is as before.
  other.trainable = True
  other.compile(keras.optimizers.SGD(0.1), 'mse')
  before = [v.regularizer for v in other.weights]
  stopping = keras.callbacks.EarlyStopping('loss', patience=5)
  thresholds = (1e-3, 1e9)
  run = other.fit(
    x,
    y,
    epochs=2,
    verbose=0,
    callbacks=[slim_jax.keras.AddL1(1.0), slim_jax.keras.ScaleShares(thresholds), stopping],
  )
  assert run.history['scales_below_1e+09'] == [1.0, 1.0]
  assert set(run.history) == {'loss', 'scales_below_0.001', 'scales_below_1e+09'}
  assert [v.regularizer for v in other.weights] == before
  assert np.isfinite(other.evaluate(x, y, verbose=0))


def test_the_penalty_is_that_of_add_l1():
  x = keras.Input((3,))
  model = keras.Model(x, layers.Dense(2)(layers.BatchNormalization(name='norm')(x)))
  gamma = model.get_layer('norm').gamma
  gamma.assign([0.5, -0.25, 0.0])
  model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss=lambda y, out: 0.0 * out[:, 0])
  data = np.zeros((2, 3), 'float32'), np.zeros((2, 2), 'float32')
  model.fit(*data, epochs=1, verbose=0)  # compiled before the callback comes
  first = model.fit(*data, epochs=1, verbose=0, callbacks=[slim_jax.keras.AddL1(0.1)])
  np.testing.assert_allclose(gamma.value, [0.49, -0.24, 0.0], rtol=1e-6)
  assert first.history['loss'][0] == pytest.approx(0.075)
  assert model.fit(*data, epochs=1, verbose=0).history['loss'][0] == 0
  with pytest.raises(SlimError, match='strength'):
    slim_jax.keras.AddL1(-1.0)


def test_cuts_compose(x64):
  model, x, _ = make(jnp.float64)
  once, first = slim_jax.keras.slim(model, x, fraction=0.3)
  twice, second = slim_jax.keras.slim(once, x, fraction=0.3)
  full = masked(masked(model, first.dead), first.plan.lift(second.dead))
  assert laws.distance(twice(x), full(x)) < 1e-12
  assert second.before == first.after and second.after.params < second.before.params
  assert twice.full.model is model


class Twins(keras.Model):
  """A subclass whose layers have the same names, with an input and a keyword more."""

  def __init__(self):
    super().__init__()
    self.first = [layers.Dense(6, name='dense'), layers.BatchNormalization(name='norm')]
    self.second = [layers.Dense(6, name='dense'), layers.BatchNormalization(name='norm')]

  def call(self, x, shift, training=None, gain=1.0):
    for dense, norm in (self.first, self.second):
      x = keras.ops.relu(norm(dense(x), training=training)) + 0 * shift
    return gain * keras.ops.mean(x[:, None] + shift, axis=-1)


def test_subclasses_and_equal_names():
  model, x, shift = Twins(), np.ones((2, 3), 'float32'), np.ones((2, 1), 'float32')
  with pytest.raises(SlimError, match='no variables yet'):
    slim_jax.keras.slim(model, x, shift, fraction=0.5)
  model(x, shift)
  variables = slim_jax.keras.functions(model).variables
  assert len(jax.tree.leaves(variables)) == len(model.variables) == 12
  dead = slim_jax.select_global(variables, fraction=0.4)
  thin, info = slim_jax.keras.slim(model, x, shift, kwargs={'gain': 2.0}, dead=dead)
  want = masked_call(model, slim_jax.mask(variables, dead), x, shift, gain=2.0)
  assert laws.distance(thin(x, shift, gain=2.0), want) < 1e-6
  assert 0.4 < info.removed < 0.6
  with pytest.raises(SlimError, match='must be a Keras optimiser'):
    slim_jax.keras.slim(model, x, shift, fraction=0.5, opt_state={})
  with pytest.raises(SlimError, match='needs a keras.Model'):
    slim_jax.keras.thin(len, info.plan)
  with pytest.raises(SlimError, match='belongs to another model'):
    slim_jax.keras.thin(make(jnp.float32)[0], info.plan)
  factors = keras.optimizers.Adafactor()
  factors.build(model.trainable_variables)
  with pytest.raises(SlimError, match='cannot be cut'):
    slim_jax.keras.slim(model, x, shift, dead=dead, opt_state=factors)


def masked_call(model, variables, *args, **kwargs):
  functions = slim_jax.keras.functions(model)
  return functions.infer(variables, *args, **kwargs)


class Copying(layers.Layer):
  """State that becomes what another state was: the means of the last batch and of the one before."""

  def build(self, shape):
    self.last, self.before = (
      self.add_weight(shape=shape[-1:], initializer=kind, trainable=False, name=name)
      for name, kind in (('last', 'ones'), ('before', 'zeros'))
    )

  def call(self, x, training=False):
    out = x + self.last.value[None] + self.before.value[None]
    if training:
      self.before.assign(self.last.value)
      self.last.assign(jnp.mean(x, 0))
    return out


def test_state_that_becomes_what_other_state_was(x64):
  def with_copies():
    x = keras.Input((3,))
    z = layers.BatchNormalization()(layers.Dense(4)(x))
    return keras.Model(x, layers.Dense(2)(Copying()(z)))

  keras.utils.set_random_seed(0)
  model = zoo.in_dtype(with_copies, jnp.float64)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))
  thin, info = slim_jax.keras.slim(model, x, fraction=0.3)
  full = masked(model, info.dead)
  for _ in range(3):
    assert laws.distance(thin(x, training=True), full(x, training=True)) < 1e-12
  assert laws.distance(thin(x), full(x)) < 1e-12
