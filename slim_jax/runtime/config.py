"""The type of a config as the program reads it."""

from typing import Any, Protocol


class Config(Protocol):
  """A config, or a section of one, read by attribute: an `ml_collections.ConfigDict`.

  The types of the fields are those of the default config and are checked when a run begins, so
  that code may take a field for what it is.
  """

  def __getattr__(self, name: str, /) -> Any: ...

  def __setattr__(self, name: str, value: Any, /) -> None: ...

  def __getitem__(self, name: str, /) -> Any: ...
