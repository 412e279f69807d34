"""Aspect-ratio buckets: images of several shapes, each batch of one of them (NovelAI 2022; Podell et al. 2023, SDXL).

A bucket is a dataset whose images have one shape. With n_k images in bucket k and batches of B, the first e epochs have

  (1)  T_k(e) = floor(e n_k / B)

batches of it, so epoch e has T_k(e + 1) - T_k(e), in proportion to its images however few they are. The slots of an
epoch's batches, of all buckets, are permuted by a function of (seed, epoch), so the bucket of a step, and the number
of its batch there, follow from (seed, step) by arithmetic: nothing is stored and nothing is remembered. The images of
batch j of bucket k are those of step j of a `Loader` of its own.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxgen.data.dataset import Dataset
from jaxgen.data.loader import Batches, HostBatch, Loader, held_rows, to_devices
from jaxgen.typing import Array

Shape = tuple[int, int]  # height, width


def bucket_shapes(size: int, *, step: int = 64, most: float = 2.0) -> tuple[Shape, ...]:
  """Shapes of about size x size pixels, from the tallest to the widest.

  Args:
    size: side of the square among them.
    step: sides are multiples of this: what the network and the autoencoder divide by.
    most: greatest ratio of the sides.
  """
  if size % step:
    raise ValueError(f'size {size} is no multiple of {step}; use one, or another step')
  wide = {(size * size // width // step * step, width) for width in range(size, int(size * most) + 1, step)}
  wide = {(height, width) for height, width in wide if height and width <= most * height}
  return tuple(sorted(wide | {(width, height) for height, width in wide} | {(size, size)}, key=lambda s: s[1] / s[0]))


def nearest_shape(shape: Shape, shapes: Sequence[Shape]) -> Shape:
  """The shape whose ratio of sides is nearest, by its logarithm."""
  ratio = lambda s: np.log(s[1] / s[0])  # noqa: E731
  return min(shapes, key=lambda s: (abs(ratio(s) - ratio(shape)), s))


class BucketLoader:
  """Batches of several datasets by the number of the step; used as `Loader` is."""

  def __init__(self, datasets: Sequence[Dataset], *, batch_size: int, seed: int, prefetch: int = 2, **options: Any):
    """
    Args:
      datasets: the buckets, with the same classes.
      batch_size: images in the global batch, over all processes.
      seed: seed of the order, in [0, 2**32).
      prefetch: batches made ready before they are asked for.
      options: those of `Loader`.
    """
    if not datasets or len({dataset.class_names for dataset in datasets}) > 1:
      raise ValueError(f'{len(datasets)} buckets, whose classes must be the same; got none, or different ones')
    seeds = np.random.SeedSequence(seed).generate_state(len(datasets))
    self._loaders = [
      Loader(dataset, batch_size=batch_size, seed=int(own), **options)
      for dataset, own in zip(datasets, seeds, strict=True)
    ]
    self._sizes = [dataset.num_examples for dataset in datasets]
    self._batch_size, self._seed, self._prefetch = batch_size, seed, prefetch
    self.class_names = datasets[0].class_names
    self.dataset = datasets[int(np.argmax(self._sizes))]
    if sum(self._sizes) < batch_size:
      raise ValueError(f'{sum(self._sizes)} images in all buckets are less than a batch of {batch_size}')

  @property
  def identity(self) -> dict[str, Any]:
    """What must not change when a run is resumed."""
    own = [loader.identity for loader in self._loaders]
    return own[0] | {'dataset': ' '.join(each['dataset'] for each in own), 'data_seed': self._seed, 'buckets': len(own)}

  @property
  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of the largest bucket, whose images are sampled."""
    return self._loaders[int(np.argmax(self._sizes))].spec

  @property
  def specs(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """Those of every bucket."""
    return [loader.spec for loader in self._loaders]

  @property
  def bad_records(self) -> int:
    return sum(loader.bad_records for loader in self._loaders)

  def place(self, step: int) -> tuple[int, int]:
    """The bucket of a step, and the number of the batch in it."""
    from grain.experimental import index_shuffle

    epoch = self._epoch(step)
    before, after = self._batches(epoch), self._batches(epoch + 1)
    counts = [last - first for first, last in zip(before, after, strict=True)]
    seed = int(np.random.SeedSequence((self._seed, epoch)).generate_state(1)[0])
    slot = index_shuffle(step - sum(before), max_index=sum(counts) - 1, seed=seed, rounds=4)
    ends = np.cumsum(counts)
    bucket = int(np.searchsorted(ends, slot, side='right'))
    return bucket, before[bucket] + slot - int(ends[bucket] - counts[bucket])

  def rows(self, step: int, rows: Sequence[int]) -> HostBatch:
    """Some rows of the global batch of a step, in the order asked for."""
    bucket, number = self.place(step)
    return self._loaders[bucket].rows(number, rows)

  def iterate(self, start_step: int, sharding: jax.sharding.Sharding) -> Batches[dict[str, Array]]:
    """Global batches of `start_step`, `start_step + 1`, ... as arrays on the devices of `sharding`."""
    rows = held_rows(sharding, self._batch_size)
    return Batches(
      lambda step: to_devices(self.rows(step, rows), rows, sharding, self._batch_size),
      range(start_step, sys.maxsize),
      prefetch=self._prefetch,
    )

  def _batches(self, epoch: int) -> list[int]:
    return [epoch * size // self._batch_size for size in self._sizes]  # Eq. 1

  def _epoch(self, step: int) -> int:
    """The epoch that a step is in: the last one that begins at it or before."""
    epoch = step * self._batch_size // sum(self._sizes)  # never too late, since Eq. 1 rounds down
    while sum(self._batches(epoch + 1)) <= step:
      epoch += 1
    return epoch
