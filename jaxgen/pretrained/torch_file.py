"""Reads .pt and .pth files and TorchScript archives into numpy arrays, without torch, running nothing.

A torch file is a pickle of containers whose tensors point into raw storages, and comes in two formats:

  zip     NAME/data.pkl and NAME/data/KEY, uncompressed (torch >= 1.6, and every TorchScript archive)
  legacy  five pickles one after another (magic number, version, machine, object, storage keys), then for
          each key an int64 number of elements and the raw data (torch < 1.6)

A pickle is a program, so a file from somebody else may do anything when it is loaded. Here the program is
first read as data, and refused if it uses an opcode that no torch file needs; then it runs with a table of
names that holds containers and descriptions of tensors, and nothing else. No name of the file is ever
imported. Afterwards the descriptions become views of the memory-mapped file, each checked against its size.
"""

import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxgen.pretrained import bucket

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b'\x80\x02\x8a\x0a' + _LEGACY_MAGIC.to_bytes(10, 'little')

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

# fmt: off
OPCODES = {
  'PROTO', 'FRAME', 'STOP', 'MARK', 'GLOBAL', 'STACK_GLOBAL', 'REDUCE', 'NEWOBJ', 'BUILD', 'BINPERSID',
  'NONE', 'NEWTRUE', 'NEWFALSE', 'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE',
  'SHORT_BINUNICODE', 'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'EMPTY_LIST', 'APPEND', 'APPENDS',
  'EMPTY_DICT', 'SETITEM', 'SETITEMS', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE', 'BINGET', 'LONG_BINGET',
}
# fmt: on


class _StorageType(NamedTuple):
  name: str


class _Storage(NamedTuple):
  type: str
  key: str


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int  # in elements, as are the strides
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Module(dict):
  """A TorchScript object: its attributes as a dictionary; its class and its methods are ignored."""

  def __setstate__(self, state: dict) -> None:
    self.update(state)


class _OrderedDict(dict):
  """A state dict, without the version numbers (`_metadata`) that torch attaches to it."""

  def __setstate__(self, state: dict) -> None:
    pass


_File = io.BytesIO | io.BufferedReader


class _Function:
  """What a pickle may call; it has no attribute that a pickle could replace."""

  __slots__ = ('_function',)
  _function: Callable

  def __init__(self, function: Callable):
    object.__setattr__(self, '_function', function)

  def __call__(self, *args: Any) -> Any:
    return self._function(*args)

  def __setattr__(self, name: str, value: Any) -> None:
    raise pickle.UnpicklingError(f'it sets {name!r} of a function')


_FIRST = _Function(lambda first, *_: first)
_TENSOR = _Function(lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides))
_GLOBALS = {
  ('collections', 'OrderedDict'): _OrderedDict,
  ('torch', 'Size'): _Function(tuple),
  ('torch._utils', '_rebuild_tensor'): _TENSOR,
  ('torch._utils', '_rebuild_tensor_v2'): _TENSOR,
  ('torch._utils', '_rebuild_parameter'): _FIRST,
  ('torch.jit._pickle', 'build_intlist'): _FIRST,
  ('torch.jit._pickle', 'build_doublelist'): _FIRST,
  ('torch.jit._pickle', 'build_boollist'): _FIRST,
  ('torch.jit._pickle', 'build_tensorlist'): _FIRST,
  ('torch.jit._pickle', 'restore_type_tag'): _FIRST,
  **{('torch', name): _StorageType(name) for name in _DTYPES},
}


class _Unpickler(pickle.Unpickler):
  def __init__(self, file: _File):
    super().__init__(file)
    self.storages: dict[str, _Storage] = {}

  def find_class(self, module: str, name: str) -> Any:
    if module.startswith('__torch__'):
      return _Module
    if (module, name) in _GLOBALS:
      return _GLOBALS[module, name]
    raise pickle.UnpicklingError(f'it asks for {module}.{name}, which is neither a tensor nor a container')

  def persistent_load(self, pid: Any) -> _Storage:
    # zip: (tag, type, key, location, numel); legacy: also (view key, offset, numel) of a view, or None
    tag, kind, key, *rest = pid
    if tag != 'storage' or len(rest) not in (2, 3) or not isinstance(kind, _StorageType):
      raise pickle.UnpicklingError(f'it refers to {pid!r}, not to a storage')
    if rest[2:] not in ([], [None]):
      raise pickle.UnpicklingError('its storages overlap; save it again with torch 1.6 or later')
    return self.storages.setdefault(key, _Storage(kind.name, key))


def check_opcodes(file: _File, allowed: set[str]) -> None:
  """Reads one pickle as data, to its end; raises UnpicklingError where it does what no file of arrays needs."""
  for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
    if opcode.name not in allowed:
      raise pickle.UnpicklingError(f'it uses the pickle opcode {opcode.name}')
    numbered = opcode.name in ('BINPUT', 'LONG_BINPUT')
    if numbered and (arg is None or arg > count):  # else one index could take all memory
      raise pickle.UnpicklingError(f'it numbers its objects up to {arg} after {count} opcodes')


def _unpickle(file: _File) -> tuple[Any, dict[str, _Storage]]:
  """Reads one pickle and the storages it refers to; leaves the file at the pickle's end."""
  start = file.tell()
  check_opcodes(file, OPCODES)
  end = file.tell()
  file.seek(start)
  unpickler = _Unpickler(file)
  content = unpickler.load()
  file.seek(end)
  return content, unpickler.storages


def _array(tensor: _Tensor, data: np.ndarray) -> np.ndarray:
  """A tensor as a view of its storage, which torch's strides allow."""
  sizes = (tensor.offset, *tensor.shape, *tensor.strides)
  if len(tensor.shape) != len(tensor.strides) or any(type(n) is not int or n < 0 for n in sizes):
    raise ValueError(f'a tensor has shape {tensor.shape}, strides {tensor.strides} and offset {tensor.offset}')
  last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
  if 0 in tensor.shape:
    return np.empty(tensor.shape, data.dtype)
  if last >= data.size:
    raise ValueError(f'a tensor of shape {tensor.shape} ends at element {last} of a storage of {data.size}')
  strides = tuple(stride * data.itemsize for stride in tensor.strides)
  return np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, strides, writeable=False)


def _resolve(content: Any, storage: Callable[[_Storage], np.ndarray]) -> Any:
  """Puts arrays where the tensors' descriptions are."""
  if isinstance(content, _Tensor):
    return _array(content, storage(content.storage))
  if isinstance(content, dict):
    return {key: _resolve(value, storage) for key, value in content.items()}
  if isinstance(content, list | tuple) and not isinstance(content, _Storage | _StorageType):
    return type(content)(_resolve(value, storage) for value in content)
  if content is None or isinstance(content, bool | int | float | str):
    return content
  raise pickle.UnpicklingError(f'it holds a {type(content).__name__} outside a tensor')


def _read_zip(path: Path, file: _File) -> Any:
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
  content, _ = _unpickle(io.BytesIO(raw(f'{roots[0]}data.pkl').tobytes()))

  def storage(wanted: _Storage) -> np.ndarray:
    dtype = np.dtype(_DTYPES[wanted.type]).newbyteorder('>' if big else '<')
    return raw(f'{roots[0]}data/{wanted.key}').view(dtype)

  return _resolve(content, storage)


def _read_legacy(path: Path, file: _File) -> Any:
  data = np.memmap(path, np.uint8, 'r')
  _, _, (machine, _), (content, wanted), (keys, _) = (_unpickle(file) for _ in range(5))
  order = '<' if machine['little_endian'] else '>'
  position, storages = file.tell(), {}
  for key in keys:
    dtype = np.dtype(_DTYPES[wanted[key].type]).newbyteorder(order)
    size = int(data[position : position + 8].view(f'{order}i8')[0])
    raw = data[position + 8 : position + 8 + size * dtype.itemsize]
    if size < 0 or raw.size != size * dtype.itemsize:
      raise ValueError(f'storage {key} is cut off')
    storages[key] = raw.view(dtype)
    position += 8 + raw.size
  return _resolve(content, lambda storage: storages[storage.key])


def read(path: str | os.PathLike) -> Any:
  """The content of a torch file: dicts, lists and tuples of numbers, strings and read-only numpy arrays.

  Arrays are views of the memory-mapped file: nothing is read before it is used. A TorchScript archive gives
  its modules' attributes as nested dicts.

  Raises:
    ValueError: the file is damaged, is no torch file, or holds anything but tensors and containers.
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
      raise ValueError(f'{path} cannot be read as a torch file: {error}') from error
  if start[257:262] == b'ustar':
    raise ValueError(f'{path} is in the tar format of torch before 0.2; save it again with a newer torch')
  raise ValueError(f'{path} is no torch file: it starts with {start[:8]!r}, not with a zip or a pickle header')


def state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The tensors of a file that is a state dict, or has one as its entry 'state_dict', as checkpoints do.

  Raises:
    ValueError: as `read`; or it holds something else.
  """
  content = read(path)
  found = content.get('state_dict', content) if isinstance(content, dict) else content
  if not isinstance(found, dict):
    raise ValueError(f'{path} holds no state dict but a {type(found).__name__}')
  odd = [name for name, value in found.items() if not isinstance(value, np.ndarray)]
  if odd:
    raise ValueError(f'{path} holds no state dict: {odd[0]!r} is a {type(found[odd[0]]).__name__}, not a tensor')
  return found
