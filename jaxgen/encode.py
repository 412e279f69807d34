"""Encodes the images of a dataset once, so that training reads latents: `jaxgen data encode` as a library call.

Batches go over the mesh; the first process keeps them (data/datasets/latents.py). What a batch becomes is a function of
(dataset, autoencoder, batch size, its number), so a run that was killed ends with the bytes of one that was not.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import distributed, sharding
from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.datasets.latents import TEXT, Writer
from jaxgen.data.loader import Batches, held_rows, to_devices
from jaxgen.data.reader import Reader
from jaxgen.metrics.inception import compiler_options
from jaxgen.models.latents import Autoencoder, normal, posterior
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
) -> pathlib.Path:
  """Writes a dataset of latents, from where an earlier call was stopped; returns its folder.

  Args:
    datasets: splits of one dataset.
    autoencoder: whose latents; its parameters may be placed on the mesh already.
    name: name of the dataset that is written.
    mesh: the batch is split over it.
    batch_size: images at a time.
    flips: also the mirrored images, as records of their own.
    samples: writes one sample of the latents, rather than their means and standard deviations.
    data_dir: the folder of prepared datasets.
    report: called with the progress.

  Raises:
    ValueError: the name is taken by other latents, an image cannot be read, or is not what the autoencoder takes.
  """
  sharding.check_batch_size(batch_size, mesh)
  for dataset in datasets:
    _check_images(dataset, autoencoder.net)
  writer = Writer(
    name,
    identity={
      'autoencoder': autoencoder.hash,
      'dtype': jnp.dtype(autoencoder.net.dtype).name,
      'data': datasets[0].name,
      'fingerprints': ' '.join(dataset.fingerprint for dataset in datasets),
      'batch_size': batch_size,
      'flips': flips,
      'samples': samples,
    },
    batches={dataset.split: -(-dataset.num_examples // batch_size) for dataset in datasets},
    class_names=datasets[0].class_names,
    data_dir=data_dir,
  )
  first = distributed.is_first()
  if distributed.agree(int(first and writer.done)):
    report(f'{name} is there already')
    return writer.path
  if first:
    writer.start()
  distributed.agree(0)  # the others wait for the folder
  frozen = jax.device_put(autoencoder.frozen, sharding.shard_tree(autoencoder.frozen, mesh))
  run = encoder(autoencoder.net, mesh, flips=flips, samples=samples)
  for dataset in datasets:
    _encode_split(dataset, writer, lambda images, index: run(frozen, images, index), mesh, batch_size, report)
  if first:
    writer.finish()
  distributed.agree(0)
  return writer.path


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
  """`(frozen, images, index) -> {'image', 'std'}`, float16, b copies ...: everything on every process."""

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


def _encode_split(
  dataset: Dataset,
  writer: Writer,
  run: Callable[[Array, Array], dict[str, Array]],
  mesh: jax.sharding.Mesh,
  batch_size: int,
  report: Report,
) -> None:
  reader = Reader(dataset, transform=_with_bytes, cache=False, threads=None, max_bad_records=0)
  place, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  rows = held_rows(place, batch_size)
  batches = writer.batches[dataset.split]
  wanted = [batch for batch in range(batches) if not distributed.agree(int(writer.has(dataset.split, batch)))]

  def read(i: int) -> dict[str, Array]:
    index = np.arange(wanted[i] * batch_size, (wanted[i] + 1) * batch_size, dtype=np.int32)
    local = reader.blanks([int(index[row]) for row in rows])
    return to_devices(local | {'index': index[rows]}, rows, place, batch_size)

  with Batches(read, range(len(wanted)), prefetch=2) as read_ahead:
    for batch, arrays in zip(wanted, read_ahead, strict=True):
      latents = run(arrays['image'], arrays['index'])
      others = {name: value for name, value in arrays.items() if name in ('label', TEXT, 'mask')}
      others = jax.device_get(jax.device_put(others, everywhere))
      if distributed.is_first():
        writer.put(dataset.split, batch, _rows(jax.device_get(latents), others))
      report(f'{dataset.name} {dataset.split}: {batch + 1} of {batches} batches')


def _rows(latents: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Copies of an image as rows, one after the other, without the rows that only fill up the batch."""
  mask = others.pop('mask')
  copies = latents['image'].shape[1]
  fields = {name: value[mask].reshape(-1, *value.shape[2:]) for name, value in latents.items()}
  return fields | {name: np.repeat(value[mask], copies, axis=0) for name, value in others.items()}


def _with_bytes(record: Record, rng: np.random.Generator) -> Record:
  """A caption as an array, which is what batches are made of."""
  if TEXT not in record:
    return record
  data = record[TEXT].encode()
  if len(data) > _LONGEST:
    raise ValueError(f'a caption has {len(data)} bytes; latents keep captions of at most {_LONGEST}')
  return record | {TEXT: np.frombuffer(data.ljust(_LONGEST, b'\0'), np.uint8)}
