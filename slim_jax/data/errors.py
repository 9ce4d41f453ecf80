"""The error of this package."""

from slim_jax.errors import SlimError


class DataError(SlimError):
  """A data set is missing, or cannot be prepared or read. The message says what to do."""
