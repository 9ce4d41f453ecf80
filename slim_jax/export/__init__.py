"""Exports functions and weights to files that work without slim_jax.

One module for each format, each with `convert`, which returns the content of a file:

  from slim_jax.export import onnx_file, safetensors_file, stablehlo

  content = stablehlo.convert(lambda image: thin(variables, image), shape=(32, 32, 3))
  content = onnx_file.convert(lambda image: thin(variables, image), shape=(32, 32, 3))
  content = safetensors_file.convert(variables, plan=plan)

The command `python -m slim_jax.export` does the same for the network of a run.
"""
