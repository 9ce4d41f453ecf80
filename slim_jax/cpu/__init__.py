"""What a CPU needs that other devices do not: other operations, and options for XLA."""

from slim_jax.cpu.options import cpu_options, is_default
from slim_jax.cpu.transform import for_cpu

__all__ = ['cpu_options', 'for_cpu', 'is_default']
