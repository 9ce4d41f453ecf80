"""Damaged and hostile versions of files, for hypothesis to choose from."""

import io
import json
import zipfile

from hypothesis import strategies as st
import numpy as np

# Numbers that readers of sizes and indices stumble over.
_WORDS = [(2**n - 1).to_bytes(8, 'little') for n in (8, 16, 31, 32, 63, 64)]

_STRANGE = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-2, 3),
  st.sampled_from([2**31, 2**63, 10**400, -1, 0]),
  st.floats(),
  st.sampled_from(['', '..', '../../x', '/etc/passwd', 'a\nb', '\x00', '\ud800', '=1+1', 'é']),
  st.text(max_size=5),
  st.just([]),
  st.just({}),
  st.lists(st.integers(-1, 2), max_size=3),
  st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def of_bytes(whole):
  """Bits that flip, pieces that are lost, repeated, overwritten, or put in."""
  place = st.integers(0, max(len(whole) - 1, 0))
  step = st.one_of(
    st.tuples(st.just('flip'), place, st.integers(0, 7)),
    st.tuples(st.just('cut'), place, st.just(None)),
    st.tuples(st.just('lose'), place, st.integers(1, 40)),
    st.tuples(st.just('repeat'), place, st.integers(1, 40)),
    st.tuples(st.just('write'), place, st.one_of(st.binary(max_size=8), st.sampled_from(_WORDS))),
    st.tuples(st.just('insert'), place, st.binary(min_size=1, max_size=8)),
  )
  return st.lists(step, min_size=1, max_size=3).map(lambda steps: _changed(whole, steps))


def of_json(whole):
  """Values and names that are replaced, lost, or nested deeply; and damaged bytes."""
  value = json.loads(whole)
  places = list(_places(value))
  strange = st.tuples(st.sampled_from(places), st.sampled_from('replace lose rename nest'.split()))
  mutant = st.tuples(strange, _STRANGE).map(lambda chosen: _replaced(value, *chosen))
  return st.one_of(mutant, mutant, of_bytes(whole))


def of_lines(whole):
  """The same for one of the lines of a file of JSON."""
  lines = whole.splitlines(keepends=True)

  def of_line(number):
    changed = of_json(lines[number]).map(lambda line: line.rstrip(b'\n') + b'\n')
    return changed.map(lambda line: b''.join([*lines[:number], line, *lines[number + 1 :]]))

  return st.one_of(st.integers(0, len(lines) - 1).flatmap(of_line), of_bytes(whole))


def of_npz(whole):
  """Arrays that are others, lost, or not what their headers claim; and damaged bytes."""
  with zipfile.ZipFile(io.BytesIO(whole)) as file:
    members = {name: file.read(name) for name in file.namelist()}
  array = st.one_of(
    st.just(np.zeros(0)),
    st.just(np.zeros((2, 2), np.float16)),
    st.just(np.ones(3, bool)),
    st.just(np.int64(-1)),
    st.just(np.full(4, np.nan)),
    st.just(np.array(['a'])),
    st.just(np.array([{}], object)),
    st.binary(max_size=20).map(lambda content: np.frombuffer(content, np.uint8)),
  ).map(_npy)
  lie = st.sampled_from([lying((10**13,)), lying((-1,)), lying((2**63, 2**63)), lying((0, -5))])
  other = st.one_of(array, lie, st.just(None), st.binary(max_size=200))
  mutant = st.tuples(st.sampled_from(sorted(members)), other).map(
    lambda chosen: zipped({**members, chosen[0]: chosen[1]})
  )
  inner = st.sampled_from(sorted(members)).flatmap(
    lambda name: of_bytes(members[name]).map(lambda content: zipped({**members, name: content}))
  )
  return st.one_of(mutant, inner, of_bytes(whole))


def bomb(name, size):
  """A small .npz file whose one array unpacks to `size` bytes of zeros."""
  content = io.BytesIO()
  with zipfile.ZipFile(content, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as file:
    with file.open(f'{name}.npy', 'w', force_zip64=True) as member:
      np.lib.format.write_array_header_1_0(
        member, {'descr': '|u1', 'fortran_order': False, 'shape': (size,)}
      )
      for _ in range(size >> 20):
        member.write(bytes(1 << 20))
  return content.getvalue()


def _changed(whole, steps):
  data = bytearray(whole)
  for what, at, how in steps:
    at = min(at, len(data))
    if what == 'flip' and at < len(data):
      data[at] ^= 1 << how
    elif what == 'cut':
      del data[at:]
    elif what == 'lose':
      del data[at : at + how]
    elif what == 'repeat':
      data[at:at] = data[at : at + how] * 2
    elif what == 'write':
      data[at : at + len(how)] = how
    elif what == 'insert':
      data[at:at] = how
  return bytes(data)


def _places(value, above=()):
  """Yields the path of every value of a document."""
  yield above
  if isinstance(value, (dict, list)):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
      yield from _places(inner, (*above, key))


def _replaced(value, where, strange):
  path, what = where
  root = {'root': json.loads(json.dumps(value))}
  *above, last = 'root', *path
  node = root
  for key in above:
    node = node[key]
  if what == 'replace' or last == 'root':
    node[last] = strange
  elif what == 'lose':
    del node[last]
  elif what == 'nest':
    node[last] = json.loads('[' * 500 + ']' * 500)
  elif isinstance(node, dict):
    node[f'{strange}'] = node.pop(last)
  return json.dumps(root['root']).encode()


def _npy(array):
  content = io.BytesIO()
  np.lib.format.write_array(content, np.asarray(array), allow_pickle=True)
  return content.getvalue()


def lying(shape):
  """A .npy file of some bytes that claims to hold an array of this shape."""
  content = io.BytesIO()
  np.lib.format.write_array_header_2_0(
    content, {'descr': '<f8', 'fortran_order': False, 'shape': shape}
  )
  return content.getvalue() + bytes(16)


def zipped(members):
  """An archive with these files; without those that are None."""
  content = io.BytesIO()
  with zipfile.ZipFile(content, 'w', zipfile.ZIP_DEFLATED) as file:
    for name, member in members.items():
      if member is not None:
        file.writestr(name, member)
  return content.getvalue()
