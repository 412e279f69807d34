"""Reads pickles of numpy arrays in containers, such as older trees of Flax parameters, without running them.

The pickle is read as data (pickle_data.py): an array becomes a description, from which it is made afterwards. An object
of any other class becomes an `Opaque`.
"""

import io
import math
import re
from typing import Any

import numpy as np

from jaxgen.pretrained import pickle_data
from jaxgen.pretrained.pickle_data import Named, Opaque, PickleError


class _DType:
  """`numpy.dtype(code, align, copy)`, and its state: (version, order of bytes, ...)."""

  def __init__(self, code: Any = '', *_: Any):
    self.code, self.order = code, '<'

  def fill(self, state: Any) -> None:
    self.order = state[1]

  def make(self) -> np.dtype | None:
    """The dtype, if it is of numbers."""
    if not isinstance(self.code, str) or not re.fullmatch(r'[biuf][1248]', self.code):
      return None
    return np.dtype(self.code if self.order == '|' else f'{">" if self.order == ">" else "<"}{self.code}')


class _Array:
  """`numpy.ndarray`, and its state: (version, shape, dtype, whether in Fortran's order, bytes)."""

  state: Any = ()

  def fill(self, state: Any) -> None:
    self.state = state

  def make(self) -> np.ndarray | Opaque:
    _, shape, dtype, fortran, data = self.state
    data = data.encode('latin-1') if isinstance(data, str) else data  # as Python 2 wrote it
    kind = dtype.make() if isinstance(dtype, _DType) else None
    if kind is None or not isinstance(data, bytes | bytearray):
      return Opaque(Named('numpy', 'ndarray'), ())
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * kind.itemsize != len(data):
      raise PickleError(f'it has an array of {len(data)} bytes that does not fill its shape')
    return np.frombuffer(data, kind).reshape(shape, order='F' if fortran else 'C')


def _encoded(text: Any = '', *_: Any) -> bytes:
  """`_codecs.encode(text, 'latin1')`: what protocol 2 makes of bytes."""
  if not isinstance(text, str):
    raise PickleError('it encodes what is no text')
  return text.encode('latin-1')


_MAKE = {
  Named('numpy.core.multiarray', '_reconstruct'): lambda *_: _Array(),
  Named('numpy', 'dtype'): _DType,
  Named('_codecs', 'encode'): _encoded,
}


def read(data: bytes, name: str) -> Any:
  """The content of a pickle: dicts, lists and tuples of read-only arrays.

  Args:
    data: the pickle.
    name: name of its file, for messages.

  Raises:
    ValueError: it is damaged or hostile.
  """
  try:
    content = pickle_data.load(
      io.BytesIO(data), make=lambda wanted: _MAKE.get(wanted._replace(module=wanted.module.replace('_core', 'core')))
    )
    return _resolve(content, {})
  except Exception as error:  # a damaged or hostile pickle can raise anything
    raise ValueError(f'{name} cannot be read as a pickle of arrays: {error!s:.300}') from error


def _resolve(content: Any, made: dict[int, Any]) -> Any:
  """Puts arrays where their descriptions are, in containers, each once however often it is referred to."""
  if content is None or isinstance(content, bool | int | float | str | bytes | bytearray | Opaque | Named):
    return content
  if id(content) not in made:
    made[id(content)] = (content, made)  # holds `content`, so that its id is not given to another
    made[id(content)] = (content, _make(content, made))
  if made[id(content)][1] is made:
    raise PickleError('it has a container that holds itself')
  return made[id(content)][1]


def _make(content: Any, made: dict[int, Any]) -> Any:
  if isinstance(content, _Array):
    return content.make()
  if isinstance(content, _DType):
    return Opaque(Named('numpy', 'dtype'), ())
  if isinstance(content, dict):
    return {key: _resolve(value, made) for key, value in content.items()}
  return type(content)(_resolve(value, made) for value in content)
