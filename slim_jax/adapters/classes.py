"""Classes of thin modules, for libraries whose modules are instances of classes."""

from collections.abc import Callable
import functools
from typing import Any

from slim_jax.channels.plan import Plan


def thin_class(cls: type, base: type, thin_base: type, plan: Plan, call: Callable[..., Any]) -> Any:
  """Returns a subclass of a module's class whose methods are evaluated with a plan.

  Args:
    cls: class of the module.
    base: class of all modules of the library. Its own methods stay as they are.
    thin_base: class of the thin modules, the first base of the result.
    plan: the plan.
    call: `call(module, name, args, kwargs)` evaluates a method.
  """
  methods = {
    name: _thin_method(name, member, call)
    for parent in reversed(cls.__mro__)
    if issubclass(parent, base) and parent is not base
    for name, member in vars(parent).items()
    if _is_method(name, member, base)
  }
  names = {'__module__': cls.__module__, '__doc__': cls.__doc__, 'full_class': cls, 'plan': plan}
  metaclass: Any = type(cls)
  return metaclass(f'Thin{cls.__name__}', (thin_base, cls), {**names, **methods})


def _is_method(name: str, member: Any, base: type) -> bool:
  """Returns whether a member of a class is a public method that `base` does not have."""
  if name != '__call__' and (name.startswith('_') or hasattr(base, name)):
    return False
  return callable(member) and not isinstance(member, staticmethod | classmethod | property | type)


def _thin_method(name: str, method: Any, call: Callable[..., Any]) -> Any:
  def thin_method(self: Any, *args: Any, **kwargs: Any) -> Any:
    return call(self, name, args, kwargs)

  return functools.wraps(method)(thin_method)
