"""What goes wrong with data, said to the person who can put it right."""

from slim_jax.errors import SlimError


class DataError(SlimError):
  """A data set cannot be found, prepared or read; the message says what to do."""
