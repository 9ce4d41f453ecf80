"""Faster convolutional networks on a CPU: other operations, and options for XLA.

transform      `for_cpu`: replaces operations that XLA compiles poorly on a CPU
convolutions   convolutions by kind: depthwise, tiny, odd widths, pointwise, few outputs
winograd       3x3 convolutions of many channels
gradients      gradients of kernels
pooling        sums and maxima over windows
gathers        selections of channels
linear, parts  custom gradients of linear functions; a batch in parts that fit the cache
options        `cpu_options`: compiler options
"""

from slim_jax.cpu.options import cpu_options, is_default
from slim_jax.cpu.transform import for_cpu

__all__ = ['cpu_options', 'for_cpu', 'is_default']
