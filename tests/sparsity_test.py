"""Each penalty changes the scales as its formula says, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import slim_jax

PARAMS = {
  'BatchNorm_0': {'scale': jnp.array([0.5, -0.5, 0.0]), 'bias': jnp.ones(3)},
  'Dense_0': {'kernel': jnp.ones((2, 3))},
}


def test_adds_the_subgradient_to_scales_alone():
  tx = slim_jax.add_l1(0.1)
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
  np.testing.assert_allclose(updates['BatchNorm_0']['scale'], [0.1, -0.1, 0.0], rtol=1e-6)
  assert not updates['BatchNorm_0']['bias'].any() and not updates['Dense_0']['kernel'].any()


def test_is_the_gradient_of_the_penalty():
  """SGD with the transformation is SGD on the loss plus lambda * sum |scale|."""

  def loss(params):
    return jnp.sum(jnp.sin(params['BatchNorm_0']['scale'] * params['BatchNorm_0']['bias']))

  def penalised(params):
    scale = params['BatchNorm_0']['scale']
    return loss(params) + 0.01 * (scale * jnp.sign(scale)).sum()  # |x|, with slope 0 at 0

  sgd = optax.sgd(0.1, momentum=0.9, nesterov=True)
  ours, theirs = optax.chain(slim_jax.add_l1(0.01), sgd), sgd
  a = b = PARAMS
  state_a, state_b = ours.init(a), theirs.init(b)
  for _ in range(5):
    updates, state_a = ours.update(jax.grad(loss)(a), state_a, a)
    a = optax.apply_updates(a, updates)
    updates, state_b = theirs.update(jax.grad(penalised)(b), state_b, b)
    b = optax.apply_updates(b, updates)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)


def test_pull_on_an_idle_scale():
  """The pull is lambda / (1 - momentum) * sum(lr)."""
  lr, strength, steps = 0.01, 0.05, 400
  tx = optax.chain(slim_jax.add_l1(strength), optax.sgd(lr, momentum=0.9))
  params = {'bn': {'scale': jnp.array([100.0]), 'bias': jnp.zeros(1)}}
  state, step = tx.init(params), jax.jit(tx.update)
  zeros = jax.tree.map(jnp.zeros_like, params)
  for _ in range(steps):
    updates, state = step(zeros, state, params)
    params = optax.apply_updates(params, updates)
  moved = 100.0 - float(params['bn']['scale'][0])
  assert abs(moved / (strength / 0.1 * lr * steps) - 1) < 0.05


def test_schedule_counts_its_own_steps():
  tx = slim_jax.add_l1(lambda step: jnp.where(step < 2, 0.0, 1.0))
  state, zeros = tx.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
  seen = []
  for _ in range(4):
    updates, state = tx.update(zeros, state, PARAMS)
    seen.append(float(updates['BatchNorm_0']['scale'][0]))
  assert seen == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
  'mask',
  [
    {'BatchNorm_0': {'scale': True, 'bias': False}, 'Dense_0': False},  # a prefix tree
    lambda params: (
      jax.tree.map(lambda _: False, params) | {'BatchNorm_0': {'scale': True, 'bias': False}}
    ),
  ],
)
def test_mask(mask):
  tx = slim_jax.add_l1(1.0, mask=mask)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
  assert updates['BatchNorm_0']['scale'].tolist() == [1.0, -1.0, 0.0]
  assert not updates['Dense_0']['kernel'].any()


def test_keeps_the_dtype_of_updates():
  params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)
  tx = slim_jax.add_l1(optax.constant_schedule(0.5))
  updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
  assert updates['BatchNorm_0']['scale'].dtype == jnp.bfloat16


# Laws of every penalty. With these arguments each changes every scale that is not 0.
TERMS = {
  'add_l1': lambda **options: slim_jax.add_l1(0.1, **options),
  'soft_threshold': lambda **options: slim_jax.soft_threshold(0.1, 0.5, **options),
  'add_polarization': lambda **options: slim_jax.add_polarization(0.1, 1.2, **options),
  'clip_scales': lambda **options: slim_jax.clip_scales(-0.1, 0.1, **options),
}
every_term = pytest.mark.parametrize('name', TERMS)
TWO = {
  'BatchNorm_0': {'scale': jnp.array([0.5, -0.5, 0.0]), 'bias': jnp.ones(3)},
  'BatchNorm_1': {'scale': jnp.array([0.9, 0.2]), 'bias': jnp.ones(2)},
  'Dense_0': {'kernel': jnp.ones((2, 3))},
}


@every_term
def test_changes_the_chosen_scales_alone(name):
  tx = TERMS[name](
    mask={'BatchNorm_0': False, 'BatchNorm_1': {'scale': True, 'bias': False}, 'Dense_0': False}
  )
  zeros = jax.tree.map(jnp.zeros_like, TWO)
  updates, _ = jax.jit(tx.update)(zeros, tx.init(TWO), TWO)
  assert np.all(np.asarray(updates['BatchNorm_1'].pop('scale')) != 0)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))


@every_term
def test_errors(name):
  with pytest.raises(ValueError, match='no BatchNorm scale'):
    TERMS[name]().init({'Dense_0': {'kernel': jnp.ones((2, 2))}})
  with pytest.raises(ValueError, match='no BatchNorm scale'):
    TERMS[name](mask=False).init(TWO)
  with pytest.raises(ValueError, match='must be a prefix'):
    TERMS[name](mask={'BatchNorm_0': True}).init(TWO)
  with pytest.raises(ValueError, match=f'{name} needs the parameters'):
    tx = TERMS[name]()
    tx.update(TWO, tx.init(TWO))


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: slim_jax.add_l1(-1.0), 'add_l1: strength must be'),
    (lambda: slim_jax.add_l1(float('nan')), 'add_l1: strength must be'),
    (lambda: slim_jax.add_l1(1.0, weights={'scale': -1.0}), 'add_l1: weights must be'),
    (lambda: slim_jax.soft_threshold(-1.0, 0.1), 'soft_threshold: strength must be'),
    (lambda: slim_jax.soft_threshold(1.0, -0.1), 'soft_threshold: learning_rate must be'),
    (lambda: slim_jax.soft_threshold(1.0, 0.1, weights=-1.0), 'soft_threshold: weights must be'),
    (lambda: slim_jax.add_polarization(-1.0, 1.0), 'add_polarization: strength must be'),
    (lambda: slim_jax.add_polarization(1.0, float('nan')), 'add_polarization: t must be'),
    (lambda: slim_jax.clip_scales(1.0, 0.0), 'clip_scales: low must be'),
    (lambda: slim_jax.scale_shares(TWO, thresholds=(0.1, 0.0)), 'thresholds must be positive'),
    (lambda: slim_jax.scale_shares(TWO, mask=False), 'no BatchNorm scale'),
  ],
)
def test_errors_of_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@every_term
def test_state_is_sliced_by_a_plan(name):
  """After pruning the count continues, momentum is sliced, and the thin step equals the full one."""

  def apply(variables, x):
    norm = variables['bn']
    y = (x @ variables['in']) * norm['scale'][None] + norm['bias'][None]
    return jax.nn.relu(y) @ variables['out']

  rng = np.random.default_rng(0)
  params = {
    'in': jnp.asarray(rng.normal(size=(3, 4))),
    'out': jnp.asarray(rng.normal(size=(4, 2))),
    'bn': {'scale': jnp.array([0.5, -0.4, 0.3, 0.2]), 'bias': jnp.ones(4)},
  }
  dead = {
    'in': None,
    'out': None,
    'bn': {'scale': np.array([False, True, False, False]), 'bias': None},
  }
  params = slim_jax.mask(params, dead)
  plan = slim_jax.plan(apply, params, jnp.ones((1, 3)), dead=dead)
  tx = optax.chain(TERMS[name](), optax.trace(0.9))
  grads = slim_jax.mask(jax.tree.map(jnp.cos, params), dead)
  _, state = tx.update(grads, tx.init(params), params)
  thin_state = plan.slice_opt_state(tx, state, params)
  assert [leaf.shape for leaf in jax.tree.leaves(tx.init(plan.slice(params)))] == [
    leaf.shape for leaf in jax.tree.leaves(thin_state)
  ]
  assert int(thin_state[0].count) == 1
  thin_updates, _ = tx.update(plan.slice(grads), thin_state, plan.slice(params))
  updates, _ = tx.update(grads, state, params)
  if name != 'add_polarization':  # its mean depends on which scales are left
    jax.tree.map(np.testing.assert_array_equal, thin_updates, plan.slice(updates))


@pytest.mark.parametrize('name', ['add_l1', 'soft_threshold', 'add_polarization'])
def test_strengths_by_optax_inject_hyperparams(name):
  """Traced numbers are accepted and used."""
  arguments = {
    'add_l1': {},
    'soft_threshold': {'learning_rate': 0.5},
    'add_polarization': {'t': 1.2},
  }
  make = getattr(slim_jax, name)
  injected = optax.inject_hyperparams(make, static_args=('mask', 'weights'))(
    strength=0.1, **arguments[name]
  )
  plain = make(0.1, **arguments[name])
  zeros = jax.tree.map(jnp.zeros_like, TWO)
  got, _ = jax.jit(injected.update)(zeros, injected.init(TWO), TWO)
  want, _ = plain.update(zeros, plain.init(TWO), TWO)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def test_warm_up_of_the_strength():
  tx = slim_jax.add_l1(optax.linear_schedule(0.0, 1.0, transition_steps=4))
  state, zeros = tx.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
  seen = []
  for _ in range(6):
    updates, state = jax.jit(tx.update)(zeros, state, PARAMS)
    seen.append(float(updates['BatchNorm_0']['scale'][0]))
  assert seen == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


WEIGHTS = [
  {
    'BatchNorm_0': {'scale': 2.0, 'bias': None},
    'BatchNorm_1': {'scale': None, 'bias': None},
    'Dense_0': {'kernel': None},
  },
  {'BatchNorm_0': 2.0, 'BatchNorm_1': None, 'Dense_0': None},
  {
    'BatchNorm_0': {'scale': np.array([2.0, 2.0, 2.0]), 'bias': None},
    'BatchNorm_1': 1,
    'Dense_0': 7.0,
  },  # the bias is no scale
]


@pytest.mark.parametrize('weights', WEIGHTS)
def test_weights_multiply_the_strength(weights):
  """2 at the first BatchNorm, 1 at the second."""
  zeros = jax.tree.map(jnp.zeros_like, TWO)
  tx = slim_jax.add_l1(0.1, weights=weights)
  updates, _ = tx.update(zeros, tx.init(TWO), TWO)
  np.testing.assert_allclose(updates['BatchNorm_0']['scale'], [0.2, -0.2, 0.0], rtol=1e-6)
  np.testing.assert_allclose(updates['BatchNorm_1']['scale'], [0.1, 0.1], rtol=1e-6)
  assert not updates['Dense_0']['kernel'].any()
  tx = slim_jax.soft_threshold(0.1, 0.5, weights=weights)
  updates, _ = tx.update(zeros, tx.init(TWO), TWO)
  np.testing.assert_allclose(updates['BatchNorm_0']['scale'], [-0.1, 0.1, 0.0], rtol=1e-6)
  np.testing.assert_allclose(updates['BatchNorm_1']['scale'], [-0.05, -0.05], rtol=1e-5)


def test_weights_that_do_not_fit():
  with pytest.raises(ValueError, match='weights must be a prefix'):
    slim_jax.add_l1(0.1, weights={'BatchNorm_0': 2.0}).init(TWO)
  wrong = {'BatchNorm_0': {'scale': np.ones(2), 'bias': None}, 'BatchNorm_1': None, 'Dense_0': None}
  with pytest.raises(ValueError, match='BatchNorm_0/scale must be a number or have shape'):
    slim_jax.add_l1(0.1, weights=wrong).init(TWO)


def bn(scale):
  return {'bn': {'scale': jnp.asarray(scale), 'bias': jnp.zeros(len(scale))}}


def descend(tx, params, gradient, steps):
  """Returns the scales after `steps` steps from `params` with the `gradient` of a task."""

  @jax.jit
  def step(params, state):
    grads = bn(gradient(params['bn']['scale']))
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return np.asarray(params['bn']['scale'])


def test_soft_threshold_is_the_proximal_step(x64):
  """It solves min_z (z - (s + u))^2 / 2 + lr * lambda * |z|, compared on a fine grid of z."""
  rng = np.random.default_rng(0)
  scale, update = rng.normal(size=50), 0.3 * rng.normal(size=50)
  tx = slim_jax.soft_threshold(0.4, 0.5)
  updates, _ = tx.update(bn(update), tx.init(bn(scale)), bn(scale))
  got = scale + np.asarray(updates['bn']['scale'])
  z = np.linspace(-4, 4, 80_001)[:, None]
  best = z[np.argmin((z - scale - update) ** 2 / 2 + 0.5 * 0.4 * np.abs(z), axis=0), 0]
  np.testing.assert_allclose(got, best, atol=1e-4)
  assert 0 < np.sum(got == 0) < 50


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_soft_threshold_gives_exact_zeros(dtype):
  """Scales reach zero exactly and stay there, for any dtype of updates and with momentum."""
  params = bn(jax.random.normal(jax.random.key(0), (1000,)))
  updates = jax.tree.map(lambda a: (0.3 * jnp.sin(7 * a)).astype(dtype), params)
  tx = slim_jax.soft_threshold(1.0, 0.5)
  updates, _ = jax.jit(tx.update)(updates, tx.init(params), params)
  moved = optax.apply_updates(params, updates)['bn']['scale']
  assert moved.dtype == jnp.float32 and 0.1 < np.mean(moved == 0) < 0.9
  assert np.abs(moved).min(where=moved != 0, initial=1) > 0

  tx = optax.chain(optax.sgd(0.1, momentum=0.9), slim_jax.soft_threshold(1.0, 0.1))
  small, large = 0.05, 0.2  # below and above lambda * (1 - momentum) = 0.1
  left = descend(
    tx,
    bn(jnp.array([0.5, -0.5, 0.0, 0.0])),
    lambda s: -jnp.array([small, small, small, large]),
    400,
  )
  assert left[:3].tolist() == [0.0, 0.0, 0.0] and left[3] > 0


def test_soft_threshold_solves_the_lasso(x64):
  """The minimum of (s - b)^2 / 2 + lambda |s|; momentum amplifies the task, not the penalty."""
  target = np.array([2.0, -1.0, 0.3, -0.2, 0.05])
  for momentum in (0.0, 0.9):
    strength = 0.25 / (1 - momentum)
    tx = optax.chain(optax.sgd(0.05, momentum=momentum), slim_jax.soft_threshold(strength, 0.05))
    left = descend(tx, bn(np.ones(5)), lambda s: s - target, 1000)
    want = np.sign(target) * np.maximum(np.abs(target) - 0.25, 0)
    np.testing.assert_allclose(left, want, atol=1e-8)
    assert (left == 0).tolist() == [False, False, False, True, True]


def test_soft_threshold_reads_both_schedules_at_its_step(x64):
  lr, strength = optax.cosine_decay_schedule(0.1, 20), optax.linear_schedule(0.0, 2.0, 10)
  tx = optax.chain(optax.sgd(lr), slim_jax.soft_threshold(strength, lr))
  start, slope = np.array([3.0, -2.0, 0.5]), np.array([0.3, 0.3, -0.1])
  got = descend(tx, bn(start), lambda s: jnp.asarray(slope), 20)
  for t in range(20):
    start = start - float(lr(t)) * slope
    start = np.sign(start) * np.maximum(np.abs(start) - float(lr(t)) * float(strength(t)), 0)
  np.testing.assert_allclose(got, start, rtol=1e-6)


def test_pull_of_the_proximal_step_and_of_the_subgradient(x64):
  """lambda * sum(lr) and lambda / (1 - momentum) * sum(lr), as in the docstring."""
  lr, steps, momentum = optax.cosine_decay_schedule(0.1, 500), 500, 0.9
  rates = np.array([float(lr(t)) for t in range(steps)])

  def pulled(tx):
    return 100 - descend(tx, bn(np.array([100.0])), jnp.zeros_like, steps)[0]

  sgd = optax.sgd(lr, momentum=momentum)
  proximal = pulled(optax.chain(sgd, slim_jax.soft_threshold(0.05, lr)))
  assert abs(proximal / slim_jax.l1_pull(rates, strength=0.05) - 1) < 1e-6
  translated = pulled(optax.chain(sgd, slim_jax.soft_threshold(0.05 / (1 - momentum), lr)))
  before = pulled(optax.chain(slim_jax.add_l1(0.05), sgd))
  assert abs(translated / before - 1) < 0.05


def polarization(params, t, weights=(1.0, 1.0)):
  """The penalty of eq. (2), over all scales of the network."""
  scales = [params['BatchNorm_0']['scale'], params['BatchNorm_1']['scale']]
  mean = jnp.mean(jnp.concatenate(scales))
  return sum(w * jnp.sum(t * jnp.abs(s) - jnp.abs(s - mean)) for s, w in zip(scales, weights))


@pytest.mark.parametrize('t', [-1.0, 0.0, 1.2, 2.5])
@pytest.mark.parametrize('weights', [(1.0, 1.0), (0.5, 3.0)])
def test_polarization_is_the_gradient_of_the_penalty(t, weights, x64):
  rng = np.random.default_rng(0)
  params = {
    'BatchNorm_0': {'scale': rng.normal(size=7)},
    'BatchNorm_1': {'scale': rng.random(4)},
    'Dense_0': {'kernel': rng.normal(size=(2, 3))},
  }
  params = jax.tree.map(jnp.asarray, params)
  want = jax.grad(lambda p: 0.3 * polarization(p, t, weights))(params)
  tx = slim_jax.add_polarization(
    0.3, t, weights={'BatchNorm_0': weights[0], 'BatchNorm_1': weights[1], 'Dense_0': None}
  )
  zeros = jax.tree.map(jnp.zeros_like, params)
  got, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), got, want)


def test_polarization_at_kinks():
  """If all scales are 0.5, only the L1 part has a gradient, however the mean is rounded."""
  params = {f'BatchNorm_{i}': {'scale': jnp.full(n, 0.5)} for i, n in enumerate((7, 300))}
  tx = slim_jax.add_polarization(1.0, 1.5)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  for leaf in jax.tree.leaves(updates):
    np.testing.assert_allclose(leaf, 1.5, rtol=1e-6)
  params = {'BatchNorm_0': {'scale': jnp.array([0.0, 0.5, 1.0])}}  # one at 0, one at the mean
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  assert updates['BatchNorm_0']['scale'].tolist() == [1.0, 1.5, 0.5]


def test_polarization_takes_its_mean_in_float32():
  """In bfloat16 the mean would be 0.25, equal to 4,096 of the scales."""
  params = {
    'BatchNorm_0': {
      'scale': jnp.concatenate([jnp.full(4096, 0.25), jnp.full(4, 0.22)]).astype(jnp.bfloat16)
    }
  }
  tx = slim_jax.add_polarization(1.0, 0.0)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  got = updates['BatchNorm_0']['scale']
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(got[:-4], np.float32), -1 + 4092 / 4100, rtol=0.01)
  np.testing.assert_allclose(np.asarray(got[-4:], np.float32), 1 + 4092 / 4100, rtol=0.01)


@pytest.mark.parametrize('t, zeros', [(0.0, (0.3, 0.7)), (2.5, (1.0, 1.0))])
def test_polarization_with_its_constraint_parts_the_scales(t, zeros):
  """Every scale ends at 0 or at the bound; with t above 2 all at 0 (Theorem 3.2)."""
  tx = optax.chain(
    slim_jax.add_polarization(1.0, t), optax.sgd(0.01, momentum=0.9), slim_jax.clip_scales(0.0, 1.0)
  )
  left = descend(tx, bn(jax.random.uniform(jax.random.key(0), (100,))), jnp.zeros_like, 300)
  assert np.all((left == 0) | (np.abs(left - 1) < 1e-6))
  assert zeros[0] <= np.mean(left == 0) <= zeros[1]


def test_least_polarization_by_trying_all():
  """The share of zeros is 1/2 + t/4, as in the docstring."""
  for t in (-1.0, 0.0, 1.0):
    scales = [(np.arange(40) >= k).astype(np.float32) for k in range(41)]
    values = [
      polarization({'BatchNorm_0': {'scale': s[:10]}, 'BatchNorm_1': {'scale': s[10:]}}, t)
      for s in scales
    ]
    assert np.argmin(values) == 40 * (0.5 + t / 4)


def test_shares_of_small_scales():
  rng = np.random.default_rng(0)
  params = {}
  for i, n in enumerate((400, 7)):
    scale = 10 ** rng.uniform(-5, 0, n) * rng.choice([-1, 1], n)
    params[f'BatchNorm_{i}'] = {'scale': jnp.asarray(scale, jnp.float32), 'bias': jnp.zeros(n)}
  shares = jax.jit(slim_jax.scale_shares)(params)
  everything = np.concatenate([np.asarray(p['scale']) for p in params.values()])
  assert list(shares) == [1e-4, 1e-3, 1e-2, 1e-1]
  for threshold, share in shares.items():
    assert share.dtype == jnp.float32 and share.shape == ()
    assert abs(float(share) - np.mean(np.abs(everything) < threshold)) < 1e-6
    assert 0 < share < 1
  # The threshold itself is not below it.
  assert float(slim_jax.scale_shares(bn([0.5, 0.25]), (0.25, 0.5))[0.5]) == 0.5
  second = {'BatchNorm_0': False, 'BatchNorm_1': {'scale': True, 'bias': False}}
  assert float(slim_jax.scale_shares(params, (1e-2,), mask=second)[1e-2]) == np.float32(
    np.mean(np.abs(np.asarray(params['BatchNorm_1']['scale'])) < 1e-2)
  )
