"""Flags of XLA with which tests compile quickly: they compile much and run little.

Code that is not optimised halves their time, in one piece a bit more. The older of two ways to emit
loops, which jaxlib 0.11 no longer has, compiles in half of the time again.
"""

from importlib import metadata

_FLAGS = ['--xla_backend_optimization_level=0', '--xla_cpu_parallel_codegen_split_count=1']
if metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')


def flags(devices: int = 1) -> str:
  """Returns the value of XLA_FLAGS for a number of CPU devices."""
  return ' '.join([*_FLAGS, f'--xla_force_host_platform_device_count={devices}'])
