"""The folders that diffusers and transformers keep a model in: config.json and the tensors.

  config.json                             {"_class_name": "AutoencoderKL"} or {"architectures": ["CLIPTextModel"]}
  STEM.safetensors                        or several, with STEM.safetensors.index.json that says which has what
  STEM.bin                                in older folders, read without pickle (torch_file.py)
  STEM.fp16.safetensors                   where there is nothing else

STEM is `diffusion_pytorch_model` in diffusers' folders, `model` in transformers' (`pytorch_model` for .bin).

Tensors are read lazily, so that a model larger than the host's free memory can be placed tensor by tensor. The folder
may be in a bucket, gs://BUCKET/FOLDER.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from jaxgen.files import write_whole
from jaxgen.pretrained import safetensors_file, torch_file
from jaxgen.pretrained.state_dict import Tensors

STEM = 'diffusion_pytorch_model'
TRANSFORMERS = 'model'
_OLD_STEMS = {TRANSFORMERS: 'pytorch_model'}
_VERSION = '0.36.0'  # version of diffusers, which warns where there is none
Config = dict[str, Any]


def config(folder: str | os.PathLike, *, classes: tuple[str, ...], name: str = 'config.json') -> Config:
  """A model's configuration.

  Args:
    folder: folder of the model.
    classes: classes that it may name.
    name: name of the file.

  Raises:
    FileNotFoundError: there is no such folder or file.
    ValueError: it is not JSON, or names another class.
  """
  path = epath.Path(folder) / name
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist; wanted a folder as diffusers' save_pretrained writes it")
  try:
    made = json.loads(path.read_text())
    if not isinstance(made, dict):
      raise TypeError(f'it holds a {type(made).__name__}, not an object')
    found = class_of(made)
  except (ValueError, TypeError) as error:
    raise ValueError(f'{path} is no configuration of a model: {error}') from error
  if found is None:
    raise ValueError(f'{path} is no configuration of a model: it names no class')
  if found not in classes:
    raise ValueError(f'{path} is of a {found}; wanted {" or ".join(classes)}')
  return made


def class_of(config: Mapping[str, Any]) -> str | None:
  """The class that a configuration of diffusers or transformers names."""
  named = config.get('_class_name') or config.get('architectures')
  return named[0] if isinstance(named, list) and named else named or None


def tensors(folder: str | os.PathLike, *, stem: str = STEM) -> Tensors:
  """The tensors of a model by name.

  Raises:
    FileNotFoundError: there are none.
    ValueError: a file is damaged, or holds more than tensors.
  """
  folder = epath.Path(folder)
  single, index, half = (
    folder / f'{stem}.{end}' for end in ('safetensors', 'safetensors.index.json', 'fp16.safetensors')
  )
  old = folder / f'{_OLD_STEMS.get(stem, stem)}.bin'
  if single.exists():
    return safetensors_file.lazily(single)
  if index.exists():
    files = [safetensors_file.lazily(folder / name) for name in _shards(index)]
    return {name: tensor for file in files for name, tensor in file.items()}
  if old.exists():
    return torch_file.state_dict(old)
  if half.exists():
    return safetensors_file.lazily(half)
  raise FileNotFoundError(f'{folder} has no {single.name}, {index.name} or {old.name}')


def _shards(index: epath.Path) -> list[str]:
  """The names of the files that an index lists, all beside it."""
  try:
    names = set(json.loads(index.read_text())['weight_map'].values())
    strangers = [name for name in names if epath.Path(name).name != name]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{index} is no index of safetensors files: {error}; fetch it again') from error
  if strangers:
    raise ValueError(f'{index} names {strangers[0]!r}, which is not a file beside it')
  return sorted(names)


def write(folder: str | os.PathLike, config: Config, arrays: Mapping[str, np.ndarray], *, stem: str = STEM) -> None:
  """Writes a folder that diffusers or transformers loads; its configuration is written last."""
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').unlink(missing_ok=True)
  safetensors_file.write(folder / f'{stem}.safetensors', arrays, metadata={'format': 'pt'})
  write_config(folder / 'config.json', config)


def write_config(path: str | os.PathLike, config: Config) -> None:
  """Writes a JSON file that is complete or absent."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  version = {} if 'architectures' in config else {'_diffusers_version': _VERSION}
  write_whole(path, json.dumps(version | config, indent=2, sort_keys=True) + '\n')


def require(config: Mapping[str, Any], *entries: str) -> None:
  """Raises ValueError, naming every entry that a configuration lacks; others may be left to diffusers' defaults."""
  missing = [entry for entry in entries if entry not in config]
  if missing:
    raise ValueError(f'config.json lacks {", ".join(missing)}, which a folder of {class_of(config)} has')


def expect(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  """Raises ValueError, naming every difference, where a configuration asks for what the network here cannot do.

  `wanted` holds diffusers' own defaults or None too: an entry that the configuration lacks is as wanted.
  """
  odd = {name: config[name] for name, value in wanted.items() if name in config and config[name] != value}
  if odd:
    each = ', '.join(f'{name} is {value!r}, wanted {wanted[name]!r}' for name, value in odd.items())
    raise ValueError(f'this {class_of(config)} is not one that jaxgen has: {each}')


class Hashed:
  """Tensors that are hashed as they are read: `digest()` is of names, shapes and float32 values, in whatever files."""

  def __init__(self, tensors: Tensors):
    self._digests: dict[str, bytes] = {}
    self.tensors: Tensors = {name: _Noting(name, tensor, self._digests) for name, tensor in tensors.items()}

  def digest(self) -> str:
    missing = [name for name in self.tensors if name not in self._digests]
    for name in missing:
      np.asarray(self.tensors[name])
    return hashlib.sha256(b''.join(self._digests[name] for name in sorted(self._digests))).hexdigest()


class _Noting:
  def __init__(self, name: str, tensor: Any, digests: dict[str, bytes]):
    self._name, self._tensor, self._digests, self.shape = name, tensor, digests, tuple(tensor.shape)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    array = np.asarray(np.asarray(self._tensor), np.float32, order='C')
    head = f'{self._name} {self.shape}\n'.encode()
    self._digests[self._name] = head + hashlib.blake2b(array.data).digest()
    return array if dtype is None else array.astype(dtype, copy=False)


def float32(put: Callable[[str, np.ndarray], Any] | None) -> Callable[[str, np.ndarray], Any]:
  """`put`, if any, of arrays that are made float32 first."""
  return lambda path, array: (put or (lambda _, a: a))(path, np.asarray(array, np.float32))
