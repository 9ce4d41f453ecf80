"""One file for each family of primitives; importing this package fills the table of `rule`."""

from slim_jax.channels.rules import (  # noqa: F401  pylint: disable=unused-import
  calls,
  contraction,
  control,
  elementwise,
  generators,
  indexing,
  movement,
  pieces,
  placement,
  reduction,
  scatter,
  transforms,
  window,
)
