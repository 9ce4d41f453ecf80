"""Operations that make arrays from nothing, from a key or from sizes: run at full width, live parts taken.

So dropout and noise are the same as in the masked network, bit for bit.
"""

from slim_jax import jaxprs
from slim_jax.channels.rule import FULL_WIDTH, register
from slim_jax.jaxprs import primitives as p

register(
  [
    p.iota_p,
    p.random_bits_p,
    p.random_fold_in_p,
    p.random_gamma_p,
    p.random_seed_p,
    p.random_split_p,
    p.rng_bit_generator_p,
    p.rng_uniform_p,
    p.threefry2x32_p,
    p.axis_index_p,
    jaxprs.random_wrap_p,
    jaxprs.random_unwrap_p,
    *jaxprs.random_clone_ps,
    jaxprs.dim_as_value_p,
    jaxprs.platform_index_p,
  ],
  FULL_WIDTH,
)
