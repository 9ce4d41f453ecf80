"""Terms: axes as products and sums of parts, and which parts of different axes are the same.

Networks split axes and merge them. The last axis of a fused projection [D, 3 * H * d] is the sum of
three parts, each the product of H heads and d dimensions. A term says how an axis is made. What is
not made of other terms is an atom. To unify two terms makes their atoms the same, and splits atoms
where the two terms are made of parts of different sizes.

Terms are shared by reference. Splitting an atom therefore splits it in every axis at once.
"""

from collections.abc import Callable, Iterable, Sequence
import math
from typing import Any

import numpy as np


class SizesError(Exception):
  """Two terms whose parts do not divide each other, as of axes of 6 = 2 * 3 and 6 = 3 * 2."""


class Term:
  """An axis or a part of one; see the module docstring.

  Attributes:
    size: number of indices.
    same: a term that this one was unified with, which stands for it. None: it stands for itself.
    how: 'atom', 'product' (major part first) or 'sum' (first part first).
    made_of: the terms that it is made of.
  """

  __slots__ = ('how', 'made_of', 'same', 'size')

  def __init__(self, size: int, how: str = 'atom', made_of: Sequence['Term'] = ()):
    self.size = int(size)
    self.same: Term | None = None
    self.how = how
    self.made_of = tuple(made_of)

  def become(self, how: str, made_of: Sequence['Term']) -> None:
    """Makes an atom a product or a sum."""
    self.how, self.made_of = how, tuple(made_of)


def find(term: Term) -> Term:
  """Returns the term that stands for this one."""
  while term.same is not None:
    if term.same.same is not None:
      term.same = term.same.same
    term = term.same
  return term


def product(terms: Iterable[Term]) -> Term:
  """Returns the term of an axis into which these are merged, the first one major."""
  terms = list(terms)
  made_of = [factor for term in terms for factor in factors(term)]
  if len(made_of) == 1:
    return made_of[0]
  size = math.prod(term.size for term in terms)
  return Term(size, 'product', made_of) if made_of else Term(size)


def total(terms: Iterable[Term]) -> Term:
  """Returns the term of an axis that holds these one after the other."""
  terms = [term for term in terms if term.size]
  if len(terms) == 1:
    return find(terms[0])
  return Term(sum(term.size for term in terms), 'sum', terms)


def factors(term: Term) -> list[Term]:
  """Returns what a term is a product of, no products themselves, without those of size 1."""
  term = find(term)
  if term.how == 'product':
    return [factor for part in term.made_of for factor in factors(part)]
  return [] if term.size == 1 else [term]


def parts(term: Term) -> list[Term]:
  """Returns what a term is a sum of: (a + b) * c is a * c + b * c."""
  term = find(term)
  if term.how == 'sum':
    return [inner for part in term.made_of for inner in parts(part)]
  if term.how == 'product':
    major, *rest = factors(term)
    if major.how == 'sum':
      return [product([part, *rest]) for part in parts(major)]
  return [term]


def atoms(term: Term) -> list[Term]:
  """Returns the atoms that a term is made of, without those of size 1; an atom may repeat."""
  term = find(term)
  if term.how == 'atom':
    return [] if term.size == 1 else [term]
  return [atom for part in term.made_of for atom in atoms(part)]


def unify(a: Term, b: Term) -> None:
  """Makes two terms of one size the same.

  Raises:
    SizesError: their parts do not divide each other. Some parts may be unified already.
  """
  a, b = find(a), find(b)
  if a is b or a.size == 1:
    return
  if a.how == 'atom':
    a.same = b
  elif b.how == 'atom':
    b.same = a
  elif a.how == b.how == 'product' and len(parts(a)) == len(parts(b)) == 1:
    _align(factors(a), factors(b), lambda term, size: split(term, size), -1)
    a.same = b
  else:
    _align(parts(a), parts(b), cut, 0)
    if a.how == 'sum':
      a.same = b
    else:
      b.same = a


def _align(
  left: list[Term], right: list[Term], divide: Callable[[Term, int], tuple[Term, Term]], end: int
) -> None:
  """Unifies lists of terms from one end, dividing the larger of two where they differ."""
  left, right = list(left), list(right)
  while left and right:
    x, y = left.pop(end), right.pop(end)
    if x.size == y.size:
      unify(x, y)
      continue
    larger, smaller, rest = (x, y, left) if x.size > y.size else (y, x, right)
    pieces = divide(larger, smaller.size)
    near, far = (pieces[1], pieces[0]) if end else pieces
    unify(near, smaller)
    rest.insert(len(rest) if end else 0, far)


def split(term: Term, minor: int) -> tuple[Term, Term]:
  """Splits a term into a major part and a minor one of the given size."""
  rest, inner, size = factors(term), [], 1
  while size < minor:
    factor = rest.pop() if rest else Term(1)
    if minor % (size * factor.size) == 0 and factor.size > 1:
      inner.insert(0, factor)
      size *= factor.size
      continue
    need = minor // size
    if minor % size or factor.size % need or factor.size == 1:
      raise SizesError
    outer, near = _divided(factor, need)
    rest.append(outer)
    inner.insert(0, near)
    size = minor
  return product(rest), product(inner)


def _divided(factor: Term, minor: int) -> tuple[Term, Term]:
  """Makes a factor, an atom or a sum, a product whose minor part has the given size."""
  if factor.how == 'atom':
    outer, near = Term(factor.size // minor), Term(minor)
  else:
    pairs = [split(part, minor) for part in parts(factor)]
    outer, near = total(major for major, _ in pairs), pairs[0][1]
    for _, other in pairs[1:]:
      unify(near, other)
  factor.become('product', (outer, near))
  return outer, near


def cut(term: Term, size: int) -> tuple[Term, Term]:
  """Cuts a term into its first `size` indices and the others."""
  term = find(term)
  if term.how == 'atom':
    first, second = Term(size), Term(term.size - size)
    term.become('sum', (first, second))
    return first, second
  if len(parts(term)) > 1:
    return segment(term, 0, size), segment(term, size, term.size)
  major, *rest = factors(term)
  row = term.size // major.size
  if size % row:
    raise SizesError
  first, second = cut(major, size // row)
  return product([first, *rest]), product([second, *rest])


def segment(term: Term, start: int, stop: int) -> Term:
  """Returns the term of the indices from `start` to `stop`, cutting parts where it has to."""
  chosen, at = [], 0
  for part in parts(term):
    low, high = max(start - at, 0), min(stop - at, part.size)
    at += part.size
    if low >= high:
      continue
    if high < part.size:
      part, _ = cut(part, high)
    if low > 0:
      _, part = cut(part, low)
    chosen.append(part)
  return total(chosen)


def singles(term: Term) -> list[Term]:
  """Cuts a term into single indices."""
  for index in range(1, find(term).size):
    segment(term, index, index + 1)
  return parts(term)


class Members:
  """Which index of an atom each index of an axis belongs to; remembers what was asked."""

  def __init__(self):
    self._found: dict[tuple[int, int], np.ndarray | None] = {}

  def of(self, term: Term, atom: Term) -> np.ndarray | None:
    """Returns int32 [size of the term], -1 where the atom has no part in an index; None: nowhere.

    Raises:
      SizesError: the atom occurs twice in a product, so an index belongs to two of it.
    """
    term = find(term)
    key = id(term), id(atom)
    if key not in self._found:
      self._found[key] = self._of(term, atom)
    return self._found[key]

  def _of(self, term: Term, atom: Term) -> np.ndarray | None:
    if term is atom:
      return np.arange(atom.size, dtype=np.int32)
    inner = [self.of(part, atom) for part in term.made_of]
    if all(member is None for member in inner):
      return None
    sizes = [part.size for part in term.made_of]
    if term.how == 'sum':
      nowhere = [np.full(size, -1, np.int32) for size in sizes]
      return np.concatenate([n if m is None else m for n, m in zip(nowhere, inner, strict=True)])
    (at, *more) = [i for i, member in enumerate(inner) if member is not None]
    if more:
      raise SizesError
    before, after = math.prod(sizes[:at]), math.prod(sizes[at + 1 :])
    member: Any = inner[at]
    return np.tile(np.repeat(member, after), before)


def share(term: Term, atom: Term) -> float:
  """Returns which share of a term's indices belongs to one index of an atom."""
  term = find(term)
  if term is atom:
    return 1 / atom.size
  if term.how == 'sum':
    return sum(share(part, atom) * part.size for part in term.made_of) / term.size
  return 1 - math.prod(1 - share(part, atom) for part in term.made_of)
