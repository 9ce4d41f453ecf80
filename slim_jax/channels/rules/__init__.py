"""One file for each family of primitives; importing this package fills the table of `rule`."""

from slim_jax.channels.rules import (  # noqa: F401  pylint: disable=unused-import
  calls,
  collectives,
  contraction,
  control,
  elementwise,
  generators,
  indexing,
  linear_solve,
  movement,
  pieces,
  placement,
  ragged,
  reduction,
  scatter,
  shard_maps,
  transforms,
  window,
)
