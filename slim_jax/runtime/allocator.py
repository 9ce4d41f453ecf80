"""Runs Python with an allocator that keeps its memory.

XLA allocates the temporaries of a program each time that it runs on a CPU, and the allocator of the
C library gives them back to the system afterwards. Then every training step waits while the kernel
clears the same pages again: a fifth of the time of DenseNet-40 and ResNet-164. mimalloc (Leijen et
al., APLAS 2019) keeps its pages if it is told to; PyPI has it as `cmeel-mimalloc`.

An allocator has to be loaded before the program starts, so the commands of slim_jax start
themselves a second time. For other programs:

  python -m slim_jax.runtime.allocator train.py [ARGUMENT ...]
  python -m slim_jax.runtime.allocator -m jupyter lab

This module imports the standard library alone, so that `python slim_jax/runtime/allocator.py` starts
the program at once.
"""

from collections.abc import Mapping, Sequence
import importlib.metadata
import os
import pathlib
import platform
import sys

_PACKAGE, _FILE = 'cmeel-mimalloc', 'cmeel.prefix/lib/libmimalloc.so'

# Whoever loads an allocator has chosen it.
_ALLOCATORS = ('mimalloc', 'jemalloc', 'tcmalloc')

# What drivers of GPUs (NVIDIA, AMD) and TPUs create.
_ACCELERATORS = ('/dev/nvidiactl', '/dev/kfd', '/dev/accel0', '/dev/vfio/0')


def environment(
  environ: Mapping[str, str], *, accelerators: Sequence[str] = _ACCELERATORS
) -> dict[str, str]:
  """Returns an environment in which a program runs with the allocator.

  Args:
    environ: the environment of this process.
    accelerators: files of which one exists if the machine has an accelerator.

  Returns:
    `environ` with LD_PRELOAD and MIMALLOC_PURGE_DELAY. It is unchanged where the allocator is not
    installed or another one is loaded, on other systems than Linux, and where JAX will use an
    accelerator. A MIMALLOC_PURGE_DELAY that is set is kept.
  """
  unchanged = dict(environ)
  loaded = environ.get('LD_PRELOAD', '')
  if platform.system() != 'Linux' or any(name in loaded for name in _ALLOCATORS):
    return unchanged
  if not _on_cpu(environ, accelerators):
    return unchanged
  library = _library()
  if library is None or any(mark in str(library) for mark in ' :'):  # which separate the names
    return unchanged
  return {
    'MIMALLOC_PURGE_DELAY': '-1',  # in ms; -1 gives nothing back
    **environ,
    'LD_PRELOAD': f'{library}:{loaded}'.rstrip(':'),
  }


def restart(*, environ: Mapping[str, str] = os.environ) -> None:
  """Starts this process once more with the allocator, from the beginning, unless it has it.

  Call it before anything is read or written. It returns if there is nothing to change.
  """
  changed = environment(environ)
  if changed != dict(environ):
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)


def _on_cpu(environ: Mapping[str, str], accelerators: Sequence[str]) -> bool:
  if platforms := environ.get('JAX_PLATFORMS'):
    return platforms.split(',')[0] == 'cpu'
  return not any(pathlib.Path(path).exists() for path in accelerators)


def _library() -> pathlib.Path | None:
  """Returns the path of the installed library, or None."""
  try:
    found = importlib.metadata.distribution(_PACKAGE).locate_file(_FILE)
  except importlib.metadata.PackageNotFoundError:
    return None
  path = pathlib.Path(str(found)).resolve()
  return path if path.is_file() else None


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit('usage: python -m slim_jax.runtime.allocator (SCRIPT | -m MODULE) [ARGUMENT ...]')
  os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment(os.environ))
