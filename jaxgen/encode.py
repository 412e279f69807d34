"""Encodes the images of a dataset once, so that training reads latents: `jaxgen data encode` as a library call.

Every process encodes shards of its own on its own devices and writes them (data/shard_writer.py); none waits for
another before the end. What a shard holds is a function of (dataset, autoencoder, batch size, its number), so a run
that was killed ends with the bytes of one that was not.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import distributed, sharding
from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.datasets import latents
from jaxgen.data.datasets.latents import TEXT
from jaxgen.data.job import Numbered
from jaxgen.data.loader import Batches, held_rows, to_devices
from jaxgen.data.reader import Reader
from jaxgen.models.latents import Autoencoder, normal, posterior
from jaxgen.models.layers.convolution import compiler_options
from jaxgen.typing import Array

Report = Callable[[str], None]
Encode = Callable[[Any, Array, Array], dict[str, Array]]  # (frozen, images, index) -> fields
_LONGEST = 2048  # bytes of a caption


def encode(
  datasets: Sequence[Dataset],
  autoencoder: Autoencoder,
  *,
  name: str,
  mesh: jax.sharding.Mesh,
  batch_size: int,
  flips: bool = True,
  samples: bool = False,
  data_dir: str | pathlib.Path | None = None,
  report: Report = lambda message: None,
  shard: int = 8192,
) -> pathlib.Path:
  """Writes a dataset of latents, from where an earlier call was stopped; returns its folder.

  Args:
    datasets: splits of one dataset.
    autoencoder: whose latents; its parameters may be placed on the mesh already.
    name: name of the dataset that is written.
    mesh: devices of this process; the batch is split over them.
    batch_size: images at a time, of each process.
    flips: also the mirrored images, as records of their own.
    samples: writes one sample of the latents, rather than their means and standard deviations.
    data_dir: the folder of prepared datasets.
    report: called with the progress.
    shard: images of a shard.

  Raises:
    ValueError: the name is taken by other latents, an image cannot be read, or is not what the autoencoder takes.
  """
  sharding.check_batch_size(batch_size, mesh)
  for dataset in datasets:
    _check_images(dataset, autoencoder.net)
  identity = {
    'autoencoder': autoencoder.hash,
    'dtype': jnp.dtype(autoencoder.net.dtype).name,
    'data': datasets[0].name,
    'fingerprints': ' '.join(dataset.fingerprint for dataset in datasets),
    'batch_size': batch_size,
    'flips': flips,
    'samples': samples,
  }
  path = latents.folder(name, data_dir)
  job = distributed.job(path.parent.parent)
  job.meet(f'the encoding of {name}')
  there = latents.are_there(path, identity)
  job.meet(f'a look at {path}')  # none writes it before all have looked
  if there:
    report(f'{name} is there already')
    return path
  frozen = jax.device_put(autoencoder.frozen, sharding.shard_tree(autoencoder.frozen, mesh))
  run = encoder(autoencoder.net, mesh, flips=flips, samples=samples)
  encoded = lambda images, index: run(frozen, images, index)  # noqa: E731
  latents.write(
    path,
    {
      dataset.split: Numbered(dataset.num_examples, _maker(dataset, encoded, mesh, batch_size), shard)
      for dataset in datasets
    },
    like=_example(datasets[0], run, frozen, batch_size),
    identity=identity,
    class_names=datasets[0].class_names,
    job=job,
    report=report,
  )
  return latents.folder(name, data_dir)


def _check_images(dataset: Dataset, net: Any) -> None:
  height, width, channels = dataset.read(0)['image'].shape
  if channels != net.channels:
    raise ValueError(f'{dataset.name} has images of {channels} channels; the autoencoder takes {net.channels}')
  if height % net.factor or width % net.factor:
    raise ValueError(
      f'{dataset.name} has images of {height}x{width}, which do not divide by {net.factor}, the side of a latent; '
      'encode them at another --size'
    )


def encoder(net: Any, mesh: jax.sharding.Mesh, *, flips: bool, samples: bool) -> Encode:
  """`(frozen, images, index) -> {'image', 'std'}`, float16, b copies ..."""

  def run(frozen: Any, images: Array, index: Array) -> dict[str, Array]:
    copies = [images, images[:, :, ::-1]] if flips else [images]
    made = [posterior(net, frozen, copy) for copy in copies]
    if samples:
      keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(jax.random.key(0), i), len(copies)))(index)
      fields = {'image': [normal(mean, std, keys[:, i]) for i, (mean, std) in enumerate(made)]}
    else:
      fields = {'image': [mean for mean, _ in made], 'std': [std for _, std in made]}
    return {name: jnp.stack(parts, axis=1).astype(jnp.float16) for name, parts in fields.items()}

  options = compiler_options()  # convolutions are most of the work
  return jax.jit(run, out_shardings=sharding.replicated(mesh), compiler_options=options)


def _example(dataset: Dataset, run: Encode, frozen: Any, batch_size: int) -> Record:
  """A record without its values: arrays of the shapes that all have."""
  record = dataset.read(0)
  images = jax.ShapeDtypeStruct((batch_size, *record['image'].shape), jnp.float32)
  fields = jax.eval_shape(run, frozen, images, jax.ShapeDtypeStruct((batch_size,), jnp.int32))
  others = {name: record[name] for name in ('label', TEXT) if name in record}
  return {name: np.empty(field.shape[2:], np.float16) for name, field in fields.items()} | others


def _maker(
  dataset: Dataset, run: Callable[[Array, Array], dict[str, Array]], mesh: jax.sharding.Mesh, batch_size: int
) -> Callable[[Sequence[Sequence[int]]], Iterator[Sequence[Record]]]:
  """Numbers of images by shard -> the latents of each of them, and of its mirror; a batch is of one shard."""
  place = sharding.batch_sharding(mesh)
  rows = held_rows(place, batch_size)

  def make(shards: Sequence[Sequence[int]]) -> Iterator[Sequence[Record]]:
    reader = Reader(dataset, transform=_with_bytes, cache=False, threads=None, max_bad_records=0)
    batches = [shard[first : first + batch_size] for shard in shards for first in range(0, len(shard), batch_size)]

    def read(i: int) -> dict[str, Any]:
      numbers = np.full(batch_size, dataset.num_examples, np.int32)  # beyond the last: a blank fills up the batch
      numbers[: len(batches[i])] = batches[i]
      local = reader.blanks([int(numbers[row]) for row in rows])
      return to_devices(local | {'index': numbers[rows]}, rows, place, batch_size)

    with Batches(read, range(len(batches)), prefetch=2) as read_ahead:
      for numbers, arrays in zip(batches, read_ahead, strict=True):
        made = jax.device_get(run(arrays['image'], arrays['index']))
        others = jax.device_get({name: arrays[name] for name in ('label', TEXT) if name in arrays})
        for row in range(len(numbers)):
          about = {name: _plain(name, values[row]) for name, values in others.items()}
          copies = made['image'].shape[1]
          yield [{name: values[row, copy] for name, values in made.items()} | about for copy in range(copies)]

  return make


def _plain(name: str, value: Any) -> Any:
  return value.tobytes().rstrip(b'\0').decode() if name == TEXT else int(value)


def _with_bytes(record: Record, rng: np.random.Generator) -> Record:
  """A caption as an array, which is what batches are made of."""
  if TEXT not in record:
    return record
  data = record[TEXT].encode()
  if len(data) > _LONGEST:
    raise ValueError(f'a caption has {len(data)} bytes; latents keep captions of at most {_LONGEST}')
  return record | {TEXT: np.frombuffer(data.ljust(_LONGEST, b'\0'), np.uint8)}
