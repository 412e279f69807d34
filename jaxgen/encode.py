"""Encodes the images and the texts of a dataset once, so that training reads latents and features of text.

`jaxgen data encode` as a library call. Every process encodes shards of its own on its own devices and writes them
(data/shard_writer.py); none waits for another before the end. Every field of a record is kept: a field of images that
is named in `fields` as latents, the others as they are. What a shard holds is a function of (dataset, networks, batch
size, its number), so a run that was killed ends with the bytes of one that was not.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import distributed, sharding
from jaxgen.data.captions import Describe, lines
from jaxgen.data.dataset import Dataset, Record, check_record
from jaxgen.data.datasets import latents
from jaxgen.data.job import Numbered
from jaxgen.data.loader import Batches, HostBatch, to_devices
from jaxgen.data.reader import Reader
from jaxgen.models.latents import Autoencoder, normal, posterior, scaled
from jaxgen.models.layers.convolution import compiler_options
from jaxgen.pretrained.text_encoder import TextEncoder
from jaxgen.typing import Array, Float, Key, Report

Latent = Float[Array, 'b h w z']
Form = Callable[[Latent, Latent, Key[Array, ' b']], tuple[Latent, ...]]  # (mean, std, keys) -> the stored arrays
Encode = Callable[[Any, dict[str, Array], dict[str, Array], Array], dict[str, Array]]  # (frozen, images, ids, index)
EncodePlaced = Callable[[dict[str, Array], dict[str, Array], Array], dict[str, Array]]  # (images, ids, index)
_LONGEST = 8192  # bytes of all texts of a record
_FIELD = 'field/'  # before the names of fields in what is read
_TEXTS, _DESCRIBED = 'texts', 'described'


def moments(mean: Latent, std: Latent, keys: Key[Array, ' b']) -> tuple[Latent, ...]:
  """Mean and standard deviation, of which training samples anew at each step."""
  return mean, std


def sample(mean: Latent, std: Latent, keys: Key[Array, ' b']) -> tuple[Latent, ...]:
  """One sample of the posterior, the same in every epoch."""
  return (normal(mean, std, keys),)


def mean(mean: Latent, std: Latent, keys: Key[Array, ' b']) -> tuple[Latent, ...]:
  """The mean of the posterior, a Gaussian, and so its mode: the form in which editing models read their images."""
  return (mean,)


class Latents(NamedTuple):
  """How a field of images is stored.

  Attributes:
    form: `moments`, `sample` or `mean`.
    scaled: after the autoencoder's shift and scale (models/latents.py, Eq. 1). `objectives.latent` applies them to
      'image' itself, and to no other field.
  """

  form: Form = moments
  scaled: bool = False


IMAGE = {'image': Latents()}


def encode(
  datasets: Sequence[Dataset],
  autoencoder: Autoencoder,
  *,
  name: str,
  mesh: jax.sharding.Mesh,
  batch_size: int,
  fields: Mapping[str, Latents] = IMAGE,
  text: TextEncoder | None = None,
  describe: Describe = lines,
  flips: bool = True,
  data_dir: str | pathlib.Path | None = None,
  report: Report = lambda message: None,
  shard: int = 8192,
) -> pathlib.Path:
  """Writes a dataset of latents, from where an earlier call was stopped; returns its folder.

  Args:
    datasets: splits of one dataset.
    autoencoder: the autoencoder; its parameters may be placed on the mesh already.
    name: name of the dataset that is written.
    mesh: devices of this process; the batch is sharded over them.
    batch_size: images at a time, of each process.
    fields: fields of images to encode, 'image' among them.
    text: encodes a text of each record; None for none.
    describe: chooses the text of a record; its random numbers are a function of the record's number.
    flips: also the mirrored images, as records of their own. Other fields of three axes are images, mirrored too.
    data_dir: the folder of prepared datasets.
    report: called with the progress.
    shard: images of a shard.

  Raises:
    ValueError: the name is taken by other latents, an image cannot be read, or is not what the autoencoder takes.
  """
  sharding.check_batch_size(batch_size, mesh)
  for dataset in datasets:
    _check(dataset, autoencoder.net, fields)
  identity = _identity(datasets, autoencoder, fields, text, batch_size=batch_size, flips=flips)
  path = latents.folder(name, data_dir)
  job = distributed.job(path.parent.parent)
  job.meet(f'the encoding of {name}')
  there = latents.are_there(path, identity)
  job.meet(f'a look at {path}')  # none writes it before all have looked
  if there:
    report(f'{name} is there already')
    return path
  frozen = {'autoencoder': autoencoder.frozen} | ({} if text is None else {'text': text.frozen})
  frozen = jax.device_put(frozen, sharding.shard_tree(frozen, mesh))
  run = encoder(autoencoder.net, mesh, fields=fields, text=text, flips=flips)
  encoded = functools.partial(run, frozen)
  rows = [_Rows(dataset, fields, text, describe) for dataset in datasets]
  nulls = {} if text is None else jax.jit(text.nulls, out_shardings=sharding.replicated(mesh))(frozen['text'])
  latents.write(
    path,
    {of.dataset.split: Numbered(of.dataset.num_examples, _maker(of, encoded, mesh, batch_size), shard) for of in rows},
    like=_example(rows[0], run, frozen, batch_size),
    identity=identity,
    class_names=datasets[0].class_names,
    nulls={name: np.asarray(_halved(entry)) for name, entry in nulls.items()},
    job=job,
    report=report,
  )
  return latents.folder(name, data_dir)


def _identity(
  datasets: Sequence[Dataset],
  autoencoder: Autoencoder,
  fields: Mapping[str, Latents],
  text: TextEncoder | None,
  **options: Any,
) -> dict[str, Any]:
  """Everything that the latents depend on; empty entries are left out, as in latents that an older version wrote."""
  usual = dict(fields) in (IMAGE, {'image': Latents(sample)})
  return {
    'autoencoder': autoencoder.hash,
    'dtype': jnp.dtype(autoencoder.net.dtype).name,
    'data': datasets[0].name,
    'fingerprints': ' '.join(dataset.fingerprint for dataset in datasets),
    'samples': fields['image'].form is sample,
    'fields': '' if usual else json.dumps({name: [how.form.__name__, how.scaled] for name, how in fields.items()}),
    'kept': ' '.join(sorted(datasets[0].read(0).keys() - fields.keys() - {'label', 'caption'})),
    'text': '' if text is None else text.hash,
  } | options


def _check(dataset: Dataset, net: Any, fields: Mapping[str, Latents]) -> None:
  """Raises ValueError where a field is missing or holds no image that the autoencoder takes."""
  record = dataset.read(0)
  check_record(dataset, record)
  if 'image' not in fields:
    raise ValueError(f"fields to encode are {', '.join(fields)}; wanted 'image' among them")
  for name, value in record.items():
    if np.asarray(value).dtype.kind not in 'biufU':
      raise ValueError(f'{name!r} of {dataset.name} is {type(value).__name__}; latents keep numbers and texts')
  for name in fields:
    if name not in record:
      raise ValueError(f'{dataset.name} has no field {name!r}; it has {", ".join(sorted(record))}')
    found = np.asarray(record[name])
    if found.ndim != 3 or found.dtype.kind != 'f':
      raise ValueError(f'{name!r} of {dataset.name} is {found.dtype} {found.shape}; an image is float [h, w, c]')
    of = f'{dataset.name} has {name}s of'
    height, width, channels = record[name].shape
    if channels != net.channels:
      raise ValueError(f'{of} {channels} channels; the autoencoder takes {net.channels}')
    if height % net.factor or width % net.factor:
      raise ValueError(
        f'{of} {height}x{width}, which do not divide by {net.factor}, the side of a latent; '
        'encode them at another --size'
      )


def encoder(
  net: Any, mesh: jax.sharding.Mesh, *, fields: Mapping[str, Latents], flips: bool, text: TextEncoder | None = None
) -> Encode:
  """`(frozen, images, ids, index) -> fields` of floats of 16 bits, b copies ..."""

  def encoded(frozen: Any, number: int, how: Latents, images: Array, index: Array) -> list[Array]:
    copies = [images, images[:, :, ::-1]] if flips else [images]
    made = [posterior(net, frozen, copy) for copy in copies]
    if how.scaled:
      made = [(scaled(frozen, mean), std * frozen['scale'].reshape(1, 1, 1, -1)) for mean, std in made]
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(jax.random.key(number), i), len(copies)))(index)
    stored = [how.form(mean, std, keys[:, i]) for i, (mean, std) in enumerate(made)]
    return [jnp.stack(parts, axis=1) for parts in zip(*stored, strict=True)]

  def run(frozen: Any, images: dict[str, Array], ids: dict[str, Array], index: Array) -> dict[str, Array]:
    found = {}
    for number, (name, how) in enumerate(fields.items()):
      parts = encoded(frozen['autoencoder'], number, how, images[name], index)
      found |= dict(zip((name, latents.deviation(name)), parts, strict=False))
    if text is not None:
      cond = text.encode(frozen['text'], ids)
      found |= {name: jnp.stack([entry] * (2 if flips else 1), axis=1) for name, entry in cond.items()}
    return {name: _halved(entry) for name, entry in found.items()}

  options = compiler_options()  # convolutions are most of the work
  return jax.jit(run, out_shardings=sharding.replicated(mesh), compiler_options=options)


def _halved(entry: Array) -> Array:
  return entry.astype(jnp.float16) if jnp.issubdtype(entry.dtype, jnp.floating) else entry


class _Batch(NamedTuple):
  """Rows of a dataset: images to encode, token ids, and the fields and texts that are kept."""

  images: HostBatch
  ids: HostBatch
  kept: HostBatch
  texts: list[dict[str, str]]


class _Rows:
  """Reads the rows of batches of a dataset."""

  def __init__(self, dataset: Dataset, fields: Mapping[str, Latents], text: TextEncoder | None, describe: Describe):
    self.dataset, self._fields, self._text, self._describe = dataset, fields, text, describe
    self._names = set(dataset.read(0))
    self._reader = Reader(dataset, transform=self._row, cache=False, threads=None, max_bad_records=0)

  def __call__(self, numbers: Sequence[int]) -> _Batch:
    rows = self._reader.blanks(numbers)
    found = {
      name.removeprefix(_FIELD): value for name, value in rows.items() if name == 'image' or name.startswith(_FIELD)
    }
    images = {name: found.pop(name) for name in self._fields}
    ids = {} if self._text is None else self._text.tokenize([_text(row) for row in rows[_DESCRIBED]])
    return _Batch(images, dict(ids), found, [json.loads(_text(row) or '{}') for row in rows[_TEXTS]])

  def _row(self, record: Record, rng: np.random.Generator) -> Record:
    if record.keys() != self._names:
      raise ValueError(
        f'a record of {self.dataset.name} has the fields {", ".join(sorted(record))}, and the first has '
        f'{", ".join(sorted(self._names))}; all must have the same'
      )
    texts = {name: value for name, value in record.items() if isinstance(value, str)}
    row = {_FIELD + name: np.asarray(value) for name, value in record.items() if name not in texts}
    row['image'] = row.pop(_FIELD + 'image')  # where the reader looks for it
    row[_TEXTS] = _bytes(json.dumps(texts, ensure_ascii=False), self.dataset)
    return row if self._text is None else row | {_DESCRIBED: _bytes(self._describe(record, rng), self.dataset)}


def _bytes(text: str, dataset: Dataset) -> np.ndarray:
  """A text as an array, which is what batches are made of."""
  data = text.encode()
  if len(data) > _LONGEST:
    raise ValueError(f'the texts of a record of {dataset.name} have {len(data)} bytes; latents keep {_LONGEST}')
  return np.frombuffer(data.ljust(_LONGEST, b'\0'), np.uint8)


def _text(row: np.ndarray) -> str:
  return row.tobytes().rstrip(b'\0').decode()


def _records(made: Mapping[str, np.ndarray], batch: _Batch, row: int) -> list[Record]:
  """The record of a row, and the record of its mirror image."""

  def record(copy: int) -> Record:
    fields = {name: values[row, copy] for name, values in made.items()}
    others = {name: values[row] for name, values in batch.kept.items()}
    return fields | {name: value[:, ::-1] if copy and value.ndim == 3 else value for name, value in others.items()}

  copies = next(iter(made.values())).shape[1]
  return [record(copy) | batch.texts[row] for copy in range(copies)]


def _example(read_rows: _Rows, run: Encode, frozen: Any, batch_size: int) -> Record:
  """A record without its latents: arrays of the shapes and dtypes that all have.

  Raises:
    ValueError: it has a field of its own with the name of one that is made.
  """
  batch = read_rows([0])
  like = lambda values: jax.ShapeDtypeStruct((batch_size, *values.shape[1:]), values.dtype)  # noqa: E731
  made = jax.eval_shape(run, frozen, *jax.tree.map(like, (batch.images, batch.ids, np.zeros(1, np.int32))))
  if twice := made.keys() & (batch.kept.keys() | batch.texts[0].keys()):
    of = read_rows.dataset.name
    raise ValueError(f'{of} has a field {min(twice)!r} of its own, which is the name of what is encoded')
  blanks = {name: np.zeros((1, *entry.shape[1:]), entry.dtype) for name, entry in made.items()}
  return _records(blanks, batch, 0)[0]


def _maker(
  read_rows: _Rows, run: EncodePlaced, mesh: jax.sharding.Mesh, batch_size: int
) -> Callable[[Sequence[Sequence[int]]], Iterator[Sequence[Record]]]:
  """Numbers of images by shard -> the records of each of them, and of its mirror; a batch is of one shard."""
  place, rows = sharding.batch_sharding(mesh), range(batch_size)

  def make(shards: Sequence[Sequence[int]]) -> Iterator[Sequence[Record]]:
    batches = [shard[first : first + batch_size] for shard in shards for first in range(0, len(shard), batch_size)]

    def read(i: int) -> tuple[_Batch, tuple[dict[str, Array], dict[str, Array], Array]]:
      numbers = np.full(batch_size, read_rows.dataset.num_examples, np.int32)  # beyond the last: blanks fill it up
      numbers[: len(batches[i])] = batches[i]
      batch = read_rows(numbers.tolist())
      put = lambda arrays: to_devices(arrays, rows, place, batch_size)  # noqa: E731
      return batch, (put(batch.images), put(batch.ids), put({'index': numbers})['index'])

    with Batches(read, range(len(batches)), prefetch=2) as read_ahead:
      for numbers, (batch, placed) in zip(batches, read_ahead, strict=True):
        made = jax.device_get(run(*placed))
        for row in range(len(numbers)):
          yield _records(made, batch, row)

  return make
