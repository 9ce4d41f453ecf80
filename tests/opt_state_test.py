"""The state of every optimiser in optax survives a cut, or says which leaf cannot."""

import inspect

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
import pytest

import slim_jax
from slim_jax.channels.opt_state import OptStateError

WIDTH = 160  # Adafactor factors axes of 128 and more, before and after the cut


def net(params, x):
  """Two layers; the kernel between them is square."""
  hidden = x @ params['in']['kernel']
  hidden = jax.nn.relu(hidden * params['bn']['scale'][None] + params['bn']['bias'][None])
  hidden = hidden @ params['square']['kernel']
  hidden = jax.nn.relu(hidden * params['bn2']['scale'][None] + params['bn2']['bias'][None])
  return hidden @ params['out']['kernel']


def draw(key, shape):
  return jax.random.normal(jax.random.key(key), shape)


@pytest.fixture(scope='module')
def params():
  rising = jnp.arange(1.0, WIDTH + 1)
  return {
    'in': {'kernel': draw(0, (5, WIDTH))},
    'bn': {'scale': rising, 'bias': jnp.ones(WIDTH)},
    'square': {'kernel': draw(1, (WIDTH, WIDTH))},
    'bn2': {'scale': rising[::-1], 'bias': jnp.ones(WIDTH)},
    'out': {'kernel': draw(2, (WIDTH, 3))},
  }


@pytest.fixture(scope='module')
def plan(params):
  """As many channels go on both sides of the square kernel, but other ones."""
  dead = slim_jax.select_global(params, fraction=0.1, min_channels=1, strict=True)
  return slim_jax.plan(net, params, jnp.ones((2, 5)), dead=dead)


def labels(params):
  return {name: 'norm' if 'bn' in name else 'rest' for name in params}


def of_norms(params):
  return {name: 'bn' in name for name in params}


KEY = jax.random.key(0)
WITH_RATE = (
  'adabelief adadelta adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion nadam '
  'nadamw novograd optimistic_adam optimistic_adam_v2 optimistic_gradient_descent radam rmsprop '
  'rprop sgd sign_sgd signum sm3 yogi'
).split()
PLAIN = (
  'adafactor lbfgs polyak_sgd centralize identity scale_by_adadelta scale_by_adam scale_by_adamax '
  'scale_by_adan scale_by_amsgrad scale_by_belief scale_by_distance_over_gradients scale_by_lbfgs '
  'scale_by_lion scale_by_optimistic_gradient scale_by_param_block_norm '
  'scale_by_param_block_rms scale_by_radam scale_by_rms scale_by_rss scale_by_sign scale_by_sm3 '
  'scale_by_stddev scale_by_trust_ratio scale_by_yogi '
  'normalize_by_update_norm set_to_zero zero_nans keep_params_nonnegative add_decayed_weights'
).split()
OTHERS = {
  'adaptive_grad_clip': lambda: optax.adaptive_grad_clip(0.1),
  'add_noise': lambda: optax.add_noise(0.1, 0.5, key=KEY),
  'apply_every': lambda: optax.apply_every(4),
  'apply_if_finite': lambda: optax.apply_if_finite(optax.adam(1e-3), 3),
  'chain': lambda: optax.chain(optax.ema(0.9), optax.trace(0.9), optax.scale(-1.0)),
  'clip': lambda: optax.clip(1.0),
  'clip_by_block_rms': lambda: optax.clip_by_block_rms(1.0),
  'clip_by_global_norm': lambda: optax.clip_by_global_norm(1.0),
  'conditionally_mask': lambda: optax.conditionally_mask(optax.adam(1e-3), lambda step: step < 3),
  'conditionally_transform': lambda: optax.conditionally_transform(
    optax.adam(1e-3), lambda step: step < 3
  ),
  'ema': lambda: optax.ema(0.9),
  'flatten': lambda: optax.flatten(optax.adam(1e-3)),
  'freeze': lambda: optax.freeze(of_norms),
  'inject_hyperparams': lambda: optax.inject_hyperparams(optax.adam)(1e-3),
  'inject_stateful_hyperparams': lambda: optax.inject_hyperparams(optax.adam)(
    optax.linear_schedule(1e-3, 0.0, 10)
  ),
  'masked': lambda: optax.masked(optax.adam(1e-3), of_norms),
  'measure_with_ema': lambda: optax.measure_with_ema(
    lambda updates, *_, **__: optax.tree.norm(updates), 0.9
  ),
  'multi_transform': lambda: optax.multi_transform(
    {'norm': optax.sgd(0.1, momentum=0.9), 'rest': optax.adamw(1e-3)}, labels
  ),
  'named_chain': lambda: optax.named_chain(('one', optax.adam(1e-3)), ('two', optax.scale(2.0))),
  'noisy_sgd': lambda: optax.noisy_sgd(1e-3, key=KEY),
  'partition': lambda: optax.partition({'norm': optax.adam(1e-3), 'rest': optax.sgd(0.1)}, labels),
  'scale': lambda: optax.scale(0.1),
  'scale_by_backtracking_linesearch': lambda: optax.scale_by_backtracking_linesearch(5),
  'scale_by_zoom_linesearch': lambda: optax.scale_by_zoom_linesearch(5),
  'scale_by_learning_rate': lambda: optax.scale_by_learning_rate(0.1),
  'scale_by_novograd': lambda: optax.scale_by_novograd(),
  'scale_by_polyak': lambda: optax.scale_by_polyak(),
  'scale_by_rprop': lambda: optax.scale_by_rprop(0.1),
  'scale_by_schedule': lambda: optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, 10)),
  'selective_transform': lambda: optax.selective_transform(optax.adam(1e-3), freeze_mask=of_norms),
  'stateless': lambda: optax.stateless(lambda updates, params: updates),
  'stateless_with_tree_map': lambda: optax.stateless_with_tree_map(lambda update, param: update),
  'snapshot': lambda: optax.snapshot('grads', lambda updates, *_, **__: updates),
  'trace': lambda: optax.trace(0.9),
  'with_extra_args_support': lambda: optax.with_extra_args_support(optax.adam(1e-3)),
  'MultiSteps': lambda: optax.MultiSteps(optax.adam(1e-3), 4).gradient_transformation(),
  'acprop': lambda: contrib.acprop(1e-3),
  'ademamix': lambda: contrib.ademamix(1e-3),
  'adopt': lambda: contrib.adopt(1e-3),
  'cocob': lambda: contrib.cocob(),
  'dadapt_adamw': lambda: contrib.dadapt_adamw(),
  'differentially_private_aggregate': lambda: contrib.differentially_private_aggregate(
    1.0, 0.1, key=KEY
  ),
  'dog': lambda: contrib.dog(),
  'dowg': lambda: contrib.dowg(),
  'dpsgd': lambda: contrib.dpsgd(1e-3, 1.0, 0.1, seed=0),
  'hutchinson_estimator_diag_hessian': lambda: contrib.hutchinson_estimator_diag_hessian(KEY),
  'madgrad': lambda: contrib.madgrad(1e-3),
  'mechanize': lambda: contrib.mechanize(optax.adam(1e-3)),
  'momo': lambda: contrib.momo(1e-3),
  'momo_adam': lambda: contrib.momo_adam(1e-3),
  'muon': lambda: contrib.muon(1e-3),
  'normalize': lambda: contrib.normalize(),
  'prodigy': lambda: contrib.prodigy(),
  'reduce_on_plateau': lambda: contrib.reduce_on_plateau(),
  'sam': lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.1)),
  'scale_by_acprop': lambda: contrib.scale_by_acprop(),
  'scale_by_ademamix': lambda: contrib.scale_by_ademamix(),
  'scale_by_adopt': lambda: contrib.scale_by_adopt(),
  'scale_by_cocob': lambda: contrib.scale_by_cocob(),
  'scale_by_madgrad': lambda: contrib.scale_by_madgrad(0.9, 1e-6),
  'scale_by_muon': lambda: contrib.scale_by_muon(),
  'scale_by_simplified_ademamix': lambda: contrib.scale_by_simplified_ademamix(),
  'schedule_free': lambda: contrib.schedule_free(optax.sgd(0.1), 1e-3),
  'schedule_free_adamw': lambda: contrib.schedule_free_adamw(1e-3),
  'schedule_free_sgd': lambda: contrib.schedule_free_sgd(1e-3),
  'simplified_ademamix': lambda: contrib.simplified_ademamix(1e-3),
  'sophia': lambda: contrib.sophia(1e-3),
  'split_real_and_imaginary': lambda: contrib.split_real_and_imaginary(optax.adam(1e-3)),
}
NOT_CUT = {
  'galore': 'projects the gradients of a whole kernel: its subspace has no channels',
  'scale_by_galore': 'likewise',
  'lookahead': 'its parameters are pairs of trees',
}
MAKERS = {
  **{
    name: lambda name=name: getattr(optax, name)(1e-3) for name in WITH_RATE if hasattr(optax, name)
  },
  **{name: lambda name=name: getattr(optax, name)() for name in PLAIN if name in vars(optax)},
  **{name: make for name, make in OTHERS.items() if name in {**vars(optax), **vars(contrib)}},
}

# Each element of their updates depends on that element alone.
ELEMENTWISE = [
  'adabelief', 'adadelta', 'adagrad', 'adam', 'adamax', 'adamw', 'adan', 'amsgrad', 'chain', 'ema',
  'flatten', 'lion', 'masked', 'multi_transform', 'MultiSteps', 'nadam', 'optimistic_adam_v2',
  'radam', 'rmsprop', 'sgd', 'trace', 'yogi', 'acprop', 'ademamix', 'adopt', 'inject_hyperparams',
]  # fmt: skip


def transformations(module):
  """Public functions of optax that return a transformation."""
  for name, value in vars(module).items():
    if not name.startswith('_') and inspect.isfunction(value):
      if 'GradientTransformation' in str(inspect.signature(value).return_annotation):
        yield name


@pytest.mark.parametrize('module', [optax, contrib], ids=lambda module: module.__name__)
def test_no_transformation_is_left_out(module):
  assert set(transformations(module)) <= {*MAKERS, *NOT_CUT}


def random_state(state):
  """A state in the middle of training."""
  leaves, structure = jax.tree.flatten(state)
  return structure.unflatten(
    draw(i, leaf.shape).astype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim
    else leaf
    for i, leaf in enumerate(leaves)
  )


@pytest.mark.filterwarnings(
  'ignore:Specifying a key', 'ignore:.*optimistic_adam', 'ignore:"seed" is deprecated'
)
@pytest.mark.parametrize('name', MAKERS)
def test_thin_state_fits(name, params, plan):
  tx = MAKERS[name]()
  thin = plan.slice_opt_state(tx, random_state(tx.init(params)), params)
  want = tx.init(plan.slice(params))
  assert jax.tree.structure(thin) == jax.tree.structure(want)
  assert jax.tree.map(jnp.shape, thin) == jax.tree.map(jnp.shape, want)


@pytest.mark.parametrize('name', ELEMENTWISE)
def test_a_step_before_the_cut_is_the_step_after_it(name, params, plan):
  tx = MAKERS[name]()
  state = jax.tree.map(lambda x: abs(x), random_state(tx.init(params)))
  grads = jax.tree.map(lambda leaf: draw(leaf.size, leaf.shape), params)
  updates, after = tx.update(grads, state, params)
  thin_params, thin_state = plan.slice(params), plan.slice_opt_state(tx, state, params)
  thin_updates, thin_after = tx.update(plan.slice(grads), thin_state, thin_params)
  for got, want in [
    (thin_updates, plan.slice(updates)),
    (thin_after, plan.slice_opt_state(tx, after, params)),
  ]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), got, want)


def test_factors_of_a_square_kernel_follow_their_own_axis(params, plan):
  tx = optax.scale_by_factored_rms()
  grads = jax.tree.map(lambda leaf: draw(leaf.size, leaf.shape), params)
  _, state = tx.update(grads, tx.init(params), params)
  rows, columns = plan.cuts['square', 'kernel'].indices
  assert len(rows) == len(columns) and not np.array_equal(rows, columns)
  thin = plan.slice_opt_state(tx, state, params)
  square = np.square(grads['square']['kernel'])
  for got, axis, kept in [(thin.v_row, 1, rows), (thin.v_col, 0, columns)]:
    mean = square.mean(axis)[kept]
    ratio = np.asarray(got['square']['kernel']) / mean
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_histories_keep_their_first_axis(params, plan):
  tx = optax.scale_by_lbfgs(memory_size=4)
  state = random_state(tx.init(params))
  thin = plan.slice_opt_state(tx, state, params)
  got = thin.diff_params_memory['square']['kernel']
  want = state.diff_params_memory['square']['kernel']
  rows, columns = plan.cuts['square', 'kernel'].indices
  np.testing.assert_array_equal(got, np.asarray(want)[:, rows][:, :, columns])


def test_what_cannot_be_cut_is_named(params, plan):
  tx = contrib.galore(1e-3)
  with pytest.raises(OptStateError, match=r'mu/.*cannot be cut .*tx\.init\(thin_params\)'):
    plan.slice_opt_state(tx, tx.init(params), params)


def test_factors_that_change_place_are_named():
  """The longer axis becomes the shorter one: Adafactor would sum along the other."""
  params = {'scale': jnp.arange(200.0), 'out': {'kernel': jnp.ones((200, 180))}}
  plan = slim_jax.plan(
    lambda v, x: (x * v['scale'][None]) @ v['out']['kernel'],
    params,
    jnp.ones((2, 200)),
    dead={'scale': np.arange(200) < 50, 'out': {'kernel': None}},
  )
  tx = optax.adafactor(1e-3)
  with pytest.raises(OptStateError, match=r'v_\w+/out/kernel .*tx\.init\(thin_params\)'):
    plan.slice_opt_state(tx, tx.init(params), params)


def test_a_state_of_another_optimiser_is_refused(params, plan):
  state = optax.sgd(0.1, momentum=0.9).init(params)
  with pytest.raises(OptStateError, match='not the state of tx'):
    plan.slice_opt_state(optax.adam(1e-3), state, params)


def test_a_state_of_thin_parameters_is_refused(params, plan):
  tx = optax.adam(1e-3)
  with pytest.raises(OptStateError, match=r'mu/bn/bias has shape \(143,\).* makes \(160,\)'):
    plan.slice_opt_state(tx, tx.init(plan.slice(params)), params)


class Net(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
    self.bn = nnx.BatchNorm(8, rngs=rngs)
    self.head = nnx.Linear(8, 2, rngs=rngs)

  def __call__(self, x):
    return self.head(nnx.relu(self.bn(self.conv(x))).mean((1, 2)))


def test_nnx():
  net, x, tx = Net(nnx.Rngs(0)), jnp.ones((2, 6, 6, 3)), optax.adam(1e-3)
  net.bn.scale[...] = jnp.arange(1.0, 9)
  optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
  net.eval()
  graphdef, variables = nnx.split(net)
  dead = slim_jax.select_global(variables, fraction=0.5)
  plan = slim_jax.plan(lambda v, x: nnx.merge(graphdef, v, copy=True)(x), variables, x, dead=dead)
  params = nnx.state(net, nnx.Param)
  want = jax.tree.map(
    jnp.shape, jax.tree.leaves(tx.init(nnx.filter_state(plan.slice(variables), nnx.Param)))
  )
  for state, tree in [
    (tx.init(params), params),
    (optimizer.opt_state, params),
    (optimizer.opt_state, variables),
  ]:
    thin = plan.slice_opt_state(tx, state, tree)
    assert jax.tree.structure(thin) == jax.tree.structure(state)
    assert list(map(jnp.shape, jax.tree.leaves(thin))) == want
