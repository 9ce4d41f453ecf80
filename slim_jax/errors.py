"""The parent of every error that a person can put right."""


class SlimError(Exception):
  """Says what is wrong, where, and what to do about it; commands print it without a traceback."""
