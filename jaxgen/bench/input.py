"""Times loaders on the same JPEG files: jaxgen's, Grain's own pipeline, and PyTorch's as a peer.

Each decodes every file, crops it as ADM does, and makes batches of floats. The rounds of all alternate, so that the
ratios hold on a machine that is busy with other things.
"""

import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxgen import sharding
from jaxgen.bench.peer import Peer
from jaxgen.bench.usage import Usage, own
from jaxgen.data.dataset import Dataset
from jaxgen.data.image import decode_image, to_float
from jaxgen.data.loader import Loader

BATCH_SIZE = 64
SIZE = 256


def write_jpegs(folder: pathlib.Path, *, num: int, side: int = 320) -> Sequence[pathlib.Path]:
  """Writes smooth random pictures as JPEG files, of about the size of photos."""
  from PIL import Image

  rng, paths = np.random.default_rng(0), []
  for i in range(num):
    coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    path = folder / f'{i:05}.jpg'
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
    paths.append(path)
  return paths


def jpegs(folder: pathlib.Path) -> Sequence[pathlib.Path]:
  """The JPEG files of a folder.

  Raises:
    ValueError: there are none.
  """
  paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg'))
  if not paths:
    raise ValueError(f'{folder} has no .jpg files to read; give a folder that has some')
  return paths


def bench_input(
  *,
  folder: pathlib.Path | None = None,
  rounds: int = 5,
  batch_size: int = BATCH_SIZE,
  size: int = SIZE,
  num: int = 512,
  threads: int | None = None,
  peer: Callable[[pathlib.Path], Peer] | None = None,
) -> dict[str, Any]:
  """Times an epoch of the files by each loader, in turn.

  Args:
    folder: folder of JPEG files; by default `num` that are made.
    rounds: epochs of each to time, after one to warm up.
    batch_size: images in a batch.
    size: images are cropped and resized to this side.
    num: number of files that are made.
    threads: threads that decode; a thread for each core by default.
    peer: starts another program on the folder, which reads an epoch and returns its seconds, such as PyTorch's loader.
  """
  with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as stack:
    paths = jpegs(folder) if folder else write_jpegs(pathlib.Path(made), num=num)
    loaders = {'jaxgen': _ours(paths, batch_size, size, threads), 'grain': _grain(paths, batch_size, size, threads)}
    other = None if peer is None else stack.enter_context(peer(folder or pathlib.Path(made)))
    seconds: dict[str, list[float]] = {name: [] for name in (*loaders, 'peer')}
    used: list[Usage] = []
    for _ in range(rounds + 1):
      for name, epoch in loaders.items():
        began, before = time.perf_counter(), own()
        epoch()
        seconds[name].append(time.perf_counter() - began)
        if name == 'jaxgen':
          used.append(own().since(before))
      if other is not None:
        seconds['peer'].append(other())
  images = len(paths) // batch_size * batch_size
  found = {name: each[1:] for name, each in seconds.items() if each}  # the first ones fill caches
  result: dict[str, Any] = {
    'files': len(paths),
    'size': size,
    'batch_size': batch_size,
    'images_per_core_second': images / statistics.median(each.seconds for each in used[1:]),
  }
  for name, each in found.items():
    result[f'{name}_images_per_second'] = images / statistics.median(each)
    if name != 'jaxgen':
      result[f'time_to_{name}'] = statistics.median(a / b for a, b in zip(found['jaxgen'], each, strict=True))
  return result


def _image(path: pathlib.Path, size: int) -> np.ndarray:
  return to_float(decode_image(path.read_bytes(), size=size))


def _ours(paths: Sequence[pathlib.Path], batch_size: int, size: int, threads: int | None) -> Callable[[], None]:
  """An epoch of jaxgen's loader."""
  dataset = Dataset('files', 'train', paths, lambda path: {'image': _image(path, size)}, 'files')
  loader = Loader(dataset, batch_size=batch_size, seed=0, threads=threads)
  place = sharding.batch_sharding(sharding.make_mesh(data=1, devices=jax.devices()[:1]))

  def epoch() -> None:
    batches = loader.iterate(0, place)
    for _ in range(len(paths) // batch_size):
      jax.block_until_ready(next(batches))
    batches.close()

  return epoch


def _grain(paths: Sequence[pathlib.Path], batch_size: int, size: int, threads: int | None) -> Callable[[], None]:
  """An epoch of Grain's own pipeline, with its threads and without worker processes."""
  import grain

  data = grain.MapDataset.source(list(paths)).shuffle(seed=0).map(lambda path: {'image': _image(path, size)})
  options = grain.ReadOptions(num_threads=threads or 16)

  def epoch() -> None:
    for batch in data.to_iter_dataset(options).batch(batch_size, drop_remainder=True):
      jax.block_until_ready(jax.device_put(batch))

  return epoch
