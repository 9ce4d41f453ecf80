"""How fast photographs are read, decoded and cropped to 224 pixels, on the host.

  python tests/benchmarks/input.py

The photographs are noise over a smooth ground, of the size in bytes of those of
ImageNet. The first table is one thread, decoding alone, and what decoding at the scale
that is needed saves; the second the whole stream; the third the colours, which change
in the compiled step.
"""

import argparse
import functools
import io
import pathlib
import tempfile
import time

import jax
import numpy as np
import PIL.Image

from slim_jax import data
from slim_jax.data import photos

SIZE, BATCH = 224, 64


def photo(width, height, seed):
  """A JPEG of quality 90, bytes."""
  random = np.random.default_rng(seed)
  coarse = random.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
  ground = PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)
  noisy = np.asarray(ground) + random.normal(0, 10, (height, width, 3))
  buffer = io.BytesIO()
  PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, 'jpeg', quality=90)
  return buffer.getvalue()


def rate(calls, n):
  """Calls a second of CPU time; other programs may be running."""
  start = time.process_time()
  for call in calls:
    call()
  return n / (time.process_time() - start)


def decoding():
  print('| photographs | kB | crop | images/s, scale needed | images/s, full scale | ratio |')
  print('|---|---|---|---|---|---|')
  for width, height in ((500, 375), (1000, 750), (2000, 1500)):
    encoded = [photo(width, height, seed) for seed in range(8)]
    for crop in ('random', 'central'):
      rates = []
      for reduce in (True, False):
        rng = np.random.default_rng(0)
        choose = (
          functools.partial(photos.random_box, rng)
          if crop == 'random'
          else functools.partial(photos.central_box, size=SIZE)
        )
        calls = [
          functools.partial(photos.decode, one, choose, SIZE, where='', reduce=reduce)
          for one in encoded * 20
        ]
        rates.append(rate(calls, len(calls)))
      print(
        f'| {width}x{height} | {len(encoded[0]) / 1e3:.0f} | {crop} | {rates[0]:.0f} '
        f'| {rates[1]:.0f} | {rates[0] / rates[1]:.2f} |',
        flush=True,
      )


def streaming(root):
  for index in range(512):
    path = root / str(index % 2) / f'{index}.jpg'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(photo(500, 375, index))
  print(f'\n| workers | s to the first batch of {BATCH} | images/s after |')
  print('|---|---|---|')
  for workers in (0, 1, 2):
    stream = data.load(f'folder:{root}', split='train', image_size=SIZE, workers=workers)
    batches = stream.train_batches(BATCH, seed=0)
    start = time.perf_counter()
    next(batches)
    first = time.perf_counter() - start
    for _ in range(8):  # what was decoded ahead while the processes started
      next(batches)
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < 15:
      n += len(next(batches)['label'])
    seconds = time.perf_counter() - start
    batches.close()
    print(f'| {workers} | {first:.1f} | {n / seconds:.0f} |', flush=True)


def coloring():
  print('\n| in the compiled step | images/s |')
  print('|---|---|')
  image = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
  for kind in data.AUGMENTATIONS:
    run = jax.jit(functools.partial(data.augment, kind=kind, pad=0, flip=True))
    key = jax.random.key(0)
    jax.block_until_ready(run(key, image))
    start = time.perf_counter()
    for _ in range(5):
      jax.block_until_ready(run(key, image))
    print(f'| {kind} | {5 * BATCH / (time.perf_counter() - start):.0f} |', flush=True)


def main():
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  ).parse_args()
  decoding()
  with tempfile.TemporaryDirectory() as root:
    streaming(pathlib.Path(root))
  coloring()


if __name__ == '__main__':
  main()
