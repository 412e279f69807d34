"""Reads pickles of numpy arrays in containers, running nothing of them: trees of Flax parameters of earlier years.

The program is read as data first, and refused if it has an opcode that no such file needs; then it runs with three
names, none of which is numpy's: they make descriptions, from which the arrays are made afterwards (torch_file.py).
"""

import io
import pickle
from typing import Any

import numpy as np

from jaxgen.pretrained.torch_file import OPCODES, check_opcodes

_BYTES = {'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8'}
_KINDS = 'biuf'  # of dtypes: numbers only


class _DType:
  """`numpy.dtype(code, align, copy)`, and its state: (version, order of bytes, ...)."""

  def __init__(self, code: str = '', *_: Any):
    self.code, self.order = code, '<'

  def __setstate__(self, state: tuple) -> None:
    self.order = state[1]

  def make(self) -> np.dtype:
    dtype = np.dtype(self.code if self.order == '|' else f'{self.order}{self.code}')
    if dtype.kind not in _KINDS:
      raise ValueError(f'it holds an array of {dtype}')
    return dtype


class _Array:
  """`numpy.ndarray`, and its state: (version, shape, dtype, whether in Fortran's order, bytes)."""

  state: tuple = ()

  def __setstate__(self, state: tuple) -> None:
    self.state = state

  def make(self) -> np.ndarray:
    _, shape, dtype, fortran, data = self.state
    return np.frombuffer(data, dtype.make()).reshape(shape, order='F' if fortran else 'C')


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if (module.replace('numpy._core', 'numpy.core'), name) == ('numpy.core.multiarray', '_reconstruct'):
      return _reconstruct
    if (module, name) in (('numpy', 'ndarray'), ('numpy', 'dtype')):
      return _Array if name == 'ndarray' else _DType
    raise pickle.UnpicklingError(f'it asks for {module}.{name}, which is neither an array nor a container')


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
  return _Array()


def read(data: bytes, name: str) -> Any:
  """The content of a pickle: dicts, lists and tuples of read-only arrays.

  Args:
    data: the pickle.
    name: of its file, for messages.

  Raises:
    ValueError: it is damaged, or holds anything but arrays of numbers and containers.
  """
  try:
    check_opcodes(io.BytesIO(data), OPCODES | _BYTES)
    return _resolve(_Unpickler(io.BytesIO(data)).load())
  except Exception as error:  # a damaged or hostile pickle can raise anything
    raise ValueError(f'{name} cannot be read as a pickle of arrays: {error}') from error


def _resolve(content: Any) -> Any:
  if isinstance(content, _Array):
    return content.make()
  if isinstance(content, dict):
    return {key: _resolve(value) for key, value in content.items()}
  if isinstance(content, list | tuple):
    return type(content)(_resolve(value) for value in content)
  if content is None or isinstance(content, bool | int | float | str):
    return content
  raise pickle.UnpicklingError(f'it holds a {type(content).__name__} outside an array')
