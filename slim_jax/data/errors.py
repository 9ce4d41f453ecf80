"""What goes wrong with data, said to the person who can put it right."""


class DataError(Exception):
  """A data set cannot be found, prepared or read; the message says what to do."""
