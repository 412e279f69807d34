"""A file that is stored unchanged, as one array of bytes: the vocabulary of a tokenizer."""

import hashlib
import pathlib

import numpy as np


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The file's bytes."""
  return {'file': np.frombuffer(path.read_bytes(), np.uint8)}


def content_hash(tensors: dict[str, np.ndarray]) -> str:
  return hashlib.sha256(tensors['file'].tobytes()).hexdigest()
