"""Reads .pt, .pth and .ckpt files and TorchScript archives into numpy arrays, without torch, running nothing.

A torch file is a pickle of containers whose tensors point into raw storages, and comes in two formats:

  zip     NAME/data.pkl and NAME/data/KEY, uncompressed (torch >= 1.6, and every TorchScript archive)
  legacy  five pickles one after another (magic number, version, machine, object, storage keys), then for
          each key an int64 number of elements and the raw data (torch < 1.6)

The pickle is read as data (pickle_data.py): a tensor becomes a description, and afterwards a view of the memory-mapped
file, checked against its size. An object of any other class (an optimizer's, Lightning's callbacks, an
`argparse.Namespace`) becomes an `Opaque` that holds its attributes as data.
"""

import io
import logging
import math
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxgen.pretrained import bucket, pickle_data
from jaxgen.pretrained.pickle_data import Make, Named, Opaque, PickleError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b'\x80\x02\x8a\x0a' + _LEGACY_MAGIC.to_bytes(10, 'little')
_PICKLE_BYTES = 64 << 20  # largest pickle without its tensors: names of half a million
_EXPANDED_BYTES = 256 << 20  # most for all tensors of a file that repeat elements of their storage

_DTYPES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
  'ComplexFloatStorage': np.complex64,
  'ComplexDoubleStorage': np.complex128,
}
# Entries of a checkpoint that hold its state dict, the first that is there. Where there are 'ema' and 'model' it is the
# average, as DiT's own loader has it.
_PARTS = ('state_dict', 'ema', 'model', 'module', 'model_state_dict')


class _Storage(NamedTuple):
  type: str
  key: str


class _Tensor(NamedTuple):
  storage: Any
  offset: Any  # in elements, as are the strides
  shape: Any
  strides: Any


class _Object(dict):
  """A dict with what a pickle would set as its attributes: a TorchScript module's are its content."""

  def fill(self, state: Any) -> None:
    if isinstance(state, dict):
      self.update(state)


def _tensor(storage: Any = None, offset: Any = None, shape: Any = None, strides: Any = None, *_: Any) -> _Tensor:
  return _Tensor(storage, offset, shape, strides)


def _first(first: Any = None, *_: Any) -> Any:
  return first


def _from_type(function: Any = None, kind: Any = None, args: Any = None, *_: Any) -> Any:
  """A tensor with attributes, or of a subclass: the tensor alone."""
  made = _MAKE.get(function) if isinstance(function, Named) else None
  return made(*args) if made and isinstance(args, tuple) else Opaque(Named('torch', 'Tensor'), args)


def _ordered(pairs: Any = (), *_: Any) -> dict:
  """A dict of any kind; older pickles give its pairs as an argument."""
  made: dict = {}
  for pair in pairs if isinstance(pairs, list) else ():
    key, value = pair
    made[pickle_data.quick_key(key)] = value
  return made


_MAKE: dict[Named, Make] = {
  Named('collections', 'OrderedDict'): _ordered,
  Named('collections', 'defaultdict'): lambda *_: {},
  Named('torch', 'Size'): lambda sizes=(), *_: tuple(sizes) if isinstance(sizes, list | tuple) else (),
  Named('torch._utils', '_rebuild_tensor'): _tensor,
  Named('torch._utils', '_rebuild_tensor_v2'): _tensor,
  Named('torch._utils', '_rebuild_parameter'): _first,
  Named('torch._utils', '_rebuild_parameter_with_state'): _first,
  Named('torch._tensor', '_rebuild_from_type_v2'): _from_type,
  **{
    Named('torch.jit._pickle', name): _first
    for name in ('build_intlist', 'build_doublelist', 'build_boollist', 'build_tensorlist', 'restore_type_tag')
  },
}


def _maker(name: Named) -> Make | None:
  """The table, with a TorchScript archive's own classes, which are dictionaries of their attributes."""
  return (lambda *_: _Object()) if name.module.startswith('__torch__') else _MAKE.get(name)


class _References:
  """The storages that a pickle refers to, by their keys."""

  def __init__(self) -> None:
    self.storages: dict[str, _Storage] = {}

  def __call__(self, pid: Any) -> _Storage:
    # zip: (tag, type, key, location, numel); legacy: also (view key, offset, numel) of a view, or None
    tag, kind, key, *rest = pid if isinstance(pid, tuple) and 5 <= len(pid) <= 6 else (None,) * 5
    if tag != 'storage' or not isinstance(kind, Named) or kind.module != 'torch' or not isinstance(key, str):
      raise PickleError('it refers to what is no storage')
    if kind.name not in _DTYPES:
      raise PickleError(f'it has storages of {kind}')
    if len(rest) == 3 and rest[2] is not None:
      raise PickleError('its storages overlap; save it again with torch 1.6 or later')
    return self.storages.setdefault(key, _Storage(kind.name, key))


def _unpickle(file: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
  """Reads one pickle and the storages it refers to; leaves the file at the pickle's end."""
  references = _References()
  return pickle_data.load(file, make=_maker, reference=references), references.storages


class _Arrays:
  """Makes arrays of descriptions, each once however often it is referred to."""

  def __init__(self, storage: Callable[[_Storage], np.ndarray]):
    self._storage, self._made, self._expanded = storage, {}, 0

  def resolve(self, content: Any) -> Any:
    """Puts arrays where the tensors' descriptions are, in containers; an `Opaque` stays as it is."""
    if content is None or isinstance(content, bool | int | float | str | bytes | bytearray | Opaque | Named):
      return content
    if id(content) not in self._made:
      self._made[id(content)] = (content, _OPEN)  # holds `content`, so that its id is not given to another
      self._made[id(content)] = (content, self._make(content))
    made = self._made[id(content)][1]
    if made is _OPEN:
      raise PickleError('it has a container that holds itself')
    return made

  def _make(self, content: Any) -> Any:
    if isinstance(content, _Tensor):
      return self._array(content)
    if isinstance(content, _Storage):
      return Opaque(Named('torch', content.type), ())
    if isinstance(content, dict):
      return {key: self.resolve(value) for key, value in content.items()}
    return type(content)(self.resolve(value) for value in content)

  def _array(self, tensor: _Tensor) -> np.ndarray:
    """A tensor as a view of its storage, which torch's strides allow."""
    if not (isinstance(tensor.storage, _Storage) and type(tensor.shape) is tuple and type(tensor.strides) is tuple):
      raise PickleError('it has a tensor without a storage or a shape')
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    if len(shape) != len(strides) or any(
      type(n) is not int or not 0 <= n < 1 << 62 for n in (offset, *shape, *strides)
    ):
      raise PickleError('it has a tensor of no possible shape, strides or offset')
    data = self._storage(tensor.storage)
    if 0 in shape:
      return np.broadcast_to(np.zeros((), data.dtype), shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= data.size:
      raise PickleError(f'a tensor of shape {shape} ends at element {last} of a storage of {data.size}')
    size = math.prod(shape)
    self._expanded += size * data.itemsize if size > data.size else 0
    if self._expanded > _EXPANDED_BYTES:
      raise PickleError(
        f'a tensor of shape {shape} repeats {data.size} stored elements; together such tensors may take '
        f'{_EXPANDED_BYTES >> 20} MiB'
      )
    strides = tuple(stride * data.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(data[offset:], shape, strides, writeable=False)


_OPEN = object()


def _read_zip(path: Path, file: io.BufferedReader) -> Any:
  data = np.memmap(path, np.uint8, 'r')
  with zipfile.ZipFile(file) as archive:
    entries = {entry.filename: entry for entry in archive.infolist()}

  def raw(name: str) -> np.ndarray:
    entry = entries.get(name)
    if entry is None or entry.compress_type != zipfile.ZIP_STORED:
      raise ValueError(f'it has no uncompressed entry {name}')
    # the local header says where the data starts: the directory's copy of it lacks torch's padding
    lengths = struct.unpack('<HH', data[entry.header_offset + 26 : entry.header_offset + 30].tobytes())
    start = entry.header_offset + 30 + sum(lengths)
    if start + entry.file_size > data.size:
      raise ValueError(f'its entry {name} is cut off')
    return data[start : start + entry.file_size]

  roots = [name.removesuffix('data.pkl') for name in entries if name.endswith('/data.pkl')]
  if len(roots) != 1:
    raise ValueError('it is a zip archive without a data.pkl, or with several')
  big = f'{roots[0]}byteorder' in entries and raw(f'{roots[0]}byteorder').tobytes() == b'big'
  pickled = raw(f'{roots[0]}data.pkl')
  if pickled.size > _PICKLE_BYTES:
    raise ValueError(f'its pickle without the tensors has {pickled.size >> 20} MiB, more than {_PICKLE_BYTES >> 20}')
  content, _ = _unpickle(io.BytesIO(pickled.tobytes()))

  def storage(wanted: _Storage) -> np.ndarray:
    dtype = np.dtype(_DTYPES[wanted.type]).newbyteorder('>' if big else '<')
    return raw(f'{roots[0]}data/{wanted.key}').view(dtype)

  return _Arrays(storage).resolve(content)


def _read_legacy(path: Path, file: io.BufferedReader) -> Any:
  data = np.memmap(path, np.uint8, 'r')
  head = io.BytesIO(file.read(_PICKLE_BYTES))
  _, _, (machine, _), (content, wanted), (keys, _) = (_unpickle(head) for _ in range(5))
  order = '<' if machine['little_endian'] else '>'
  position, storages = head.tell(), {}
  for key in keys:
    dtype = np.dtype(_DTYPES[wanted[key].type]).newbyteorder(order)
    size = int(data[position : position + 8].view(f'{order}i8')[0])
    raw = data[position + 8 : position + 8 + size * dtype.itemsize]
    if size < 0 or raw.size != size * dtype.itemsize:
      raise ValueError(f'storage {key} is cut off')
    storages[key] = raw.view(dtype)
    position += 8 + raw.size
  return _Arrays(lambda storage: storages[storage.key]).resolve(content)


def read(path: str | os.PathLike) -> Any:
  """The content of a torch file: dicts, lists and tuples of numbers, text and read-only numpy arrays.

  Arrays are views of the memory-mapped file: nothing is read before it is used. A TorchScript archive gives
  its modules' attributes as nested dicts. An object of a class that is neither a tensor nor a container is an `Opaque`.

  Raises:
    ValueError: the file is damaged or hostile, or no torch file.
  """
  copy = bucket.here(path)  # which may go when its pages are mapped
  with Path(copy.path).open('rb') as file:
    start = file.read(265)
    file.seek(0)
    try:
      if start.startswith(b'PK'):
        return _read_zip(Path(copy.path), file)
      if start.startswith(_LEGACY_START):
        return _read_legacy(Path(copy.path), file)
    except zipfile.BadZipFile as error:
      raise ValueError(f'{path} is cut off or damaged ({error}); fetch it again') from error
    except Exception as error:  # a damaged or hostile pickle can raise anything
      raise ValueError(f'{path} cannot be read as a torch file: {error!s:.300}') from error
  if start[257:262] == b'ustar':
    raise ValueError(f'{path} is in the tar format of torch before 0.2; save it again with a newer torch')
  raise ValueError(f'{path} is no torch file: it starts with {start[:8]!r}, not with a zip or a pickle header')


def state_dict(path: str | os.PathLike, *, part: str | None = None) -> dict[str, np.ndarray]:
  """The tensors of a state dict, or of a checkpoint that holds one: Lightning's, DeepSpeed's, DiT's and SiT's.

  Prefixes that wrappers put before every name (`module.`, `_orig_mod.`) are taken off. Entries that are no tensors are
  left out, with a warning that names them.

  Args:
    path: the file.
    part: the entry to take, such as 'ema' or 'model', or 'trainer/vae' for one within another. By default the file's
      own tensors, or else its first entry of 'state_dict', 'ema', 'model', 'module', 'model_state_dict'.

  Raises:
    ValueError: as `read`; or there is no such part, or no tensors.
  """
  content = read(path)
  found = content if isinstance(content, dict) else {}
  name = part or next((name for name in _PARTS if isinstance(found.get(name), dict)), '')
  for entry in filter(None, name.split('/')):
    found = found.get(entry) if isinstance(found, dict) else None
  if not isinstance(found, dict):
    known = ', '.join(_parts(content)) or 'none'
    raise ValueError(f'{path} has no state dict {part!r}; its parts with tensors are {known}')
  tensors = {str(key): value for key, value in found.items() if isinstance(value, np.ndarray)}
  others = [f'{key!s:.80} is a {_kind(value)}' for key, value in found.items() if not isinstance(value, np.ndarray)]
  if not tensors:
    have = f'{others[0]}, not a tensor' if others else f'it holds a {_kind(content)}'
    inside = f'; its parts with tensors are {", ".join(_parts(content))}' if _parts(content) else ''
    raise ValueError(f'{path} holds no state dict: {have}{inside}')
  if others:
    logging.warning('%s: left out what is no tensor: %s', path, _few(others))
  return _unwrapped(tensors)


def _unwrapped(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The names without what DistributedDataParallel, torch.compile and AveragedModel put before them."""
  tensors = {name.replace('_orig_mod.', ''): tensor for name, tensor in tensors.items()}
  wrapped = {name: tensor for name, tensor in tensors.items() if name != 'n_averaged'}
  for _ in range(3):
    if wrapped and all(name.startswith('module.') for name in wrapped):
      tensors = wrapped = {name.removeprefix('module.'): tensor for name, tensor in wrapped.items()}
  return tensors


def _parts(content: Any) -> list[str]:
  """The first ten entries of a checkpoint that hold tensors by name, and entries within them."""
  found, to_do, seen = [], [('', content)], set()
  while to_do and len(found) < 10:
    prefix, value = to_do.pop(0)
    if not isinstance(value, dict) or id(value) in seen:
      continue
    seen.add(id(value))
    if prefix and any(isinstance(each, np.ndarray) for each in value.values()):
      found.append(prefix)
    to_do += [(f'{prefix}/{key}'.lstrip('/'), each) for key, each in value.items() if isinstance(key, str)][:1000]
  return found


def _kind(value: Any) -> str:
  return value.name if isinstance(value, Opaque) else str(value) if isinstance(value, Named) else type(value).__name__


def _few(things: list[str]) -> str:
  return ', '.join(things[:5]) + (f' and {len(things) - 5} more' if len(things) > 5 else '')
