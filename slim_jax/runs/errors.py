"""Errors of runs that a person can put right."""

from slim_jax.errors import SlimError


class ConfigError(SlimError):
  """A config cannot work. The message names the fields and their possible values."""


class PruneError(ConfigError):
  """A trained network cannot be pruned as the config says."""


class WorkdirError(SlimError):
  """A directory holds another run, or none. The message says what to do."""
