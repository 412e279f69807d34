"""Textual inversion: new tokens, whose embeddings alone are trained (Gal et al. 2022, "An Image is Worth One Word").

  e(id) = table[id]  if id < V,  else rows[id - V]                                           (1)

The rows are a parameter of their own beside the frozen table, so no other row can move (models/clip.py, `embed`). A
token may have several rows; `data/tokenizers/tokenizer.py`'s `with_tokens` gives it as many ids. Files:

  diffusers        {'<cat>': n d}                            .safetensors, .bin
  A1111, kohya     {'string_to_param': {'*': n d}, 'name'}   .pt;  {'emb_params': n d}  .safetensors
  SDXL             {'clip_l': n 768, 'clip_g': n 1280}       .safetensors; the token is the file's name
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.adapters.added import Added, Make, Trees
from jaxgen.pretrained import safetensors_file, torch_file
from jaxgen.typing import Array, Float, Key, Params

NAME = 'tokens'  # the key of `state.params`
_ENCODERS = {'clip_l': 'text_encoder', 'clip_g': 'text_encoder_2'}  # SDXL's
_ANY = 'emb_params'


class Embedding(NamedTuple):
  """A token's rows.

  Attributes:
    token: the word that stands for them in a prompt.
    rows: by the encoder that reads them: 'text_encoder', and of SDXL 'text_encoder_2'.
  """

  token: str
  rows: Mapping[str, Float[np.ndarray, 'n d']]


def textual_inversion(
  start: Sequence[int],
  *,
  width: int,
  table: Callable[[Any], Float[Array, 'v d']],
  base: Sequence[str] = ('net', 'text'),
) -> Added:
  """New rows beside frozen networks, for `objectives/adapted.py`: params['tokens'], and params['tokens']['rows'] of the
  objective.

  The trained parameter is the difference of each row from its start, so that it can be made before the table is read.

  Args:
    start: ids of the words that the rows start as, one for each row.
    width: features of a row.
    table: the frozen networks' table of tokens.
    base: the networks of the objective; `Experiment.frozen` has them.
  """
  if not start:
    raise ValueError('a new token has no vectors; give it 1 or more')

  def init(key: Key[Array, ''], make: Make) -> Trees:
    del key, make
    return {NAME: {'offset': jnp.zeros((len(start), width), jnp.float32)}}

  def join(params: Trees, frozen: Any) -> tuple[Trees, Any]:
    made = {NAME: {'rows': rows(params[NAME], table(frozen), start)}}
    return {**params, **{name: frozen[name] for name in base}, **made}, frozen

  return Added(init, join, (NAME,))


def rows(trained: Params, table: Float[Array, 'v d'], start: Sequence[int]) -> Float[Array, 'n d']:
  """The new rows.

  Args:
    trained: `params['tokens']`.
    table: the table of tokens.
    start: as for `textual_inversion`.
  """
  return jnp.asarray(table, jnp.float32)[jnp.asarray(start)] + trained['offset']


def start_as(ids: Sequence[int], *, vectors: int) -> list[int]:
  """The words that a token of so many vectors starts as: some words in turn."""
  if vectors < 1 or not ids:
    raise ValueError(f'a token of {vectors} vectors that starts as {len(ids)} words; both must be 1 or more')
  return [ids[i % len(ids)] for i in range(vectors)]


def check(rows: Any, *, width: int | None = None, source: str = 'an embedding') -> None:
  """Raises ValueError where rows are none, or of another encoder."""
  shape = np.shape(rows)
  if len(shape) != 2 or not shape[0]:
    raise ValueError(f'{source} has the shape {shape}; wanted one row or more, n d')
  if not np.isfinite(np.asarray(rows, np.float32)).all():
    raise ValueError(f'{source} has values that are not finite; the file is damaged or its training diverged')
  if width is not None and shape[1] != width:
    raise ValueError(f'{source} has rows of {shape[1]} features; this text encoder has {width}: it is for another one')


def read(path: str | os.PathLike, *, token: str | None = None) -> Embedding:
  """The embedding of a file.

  Args:
    path: .safetensors, .pt or .bin; nothing in it is run.
    token: its name; by default the one in the file, else <NAME> of the file's name.

  Raises:
    ValueError: it is none.
  """
  path = Path(path)
  content = safetensors_file.read(path) if path.suffix == '.safetensors' else torch_file.read(path)
  if not isinstance(content, dict):
    raise ValueError(f'{path} is no embedding: it holds a {type(content).__name__}')
  called = f'<{path.stem}>'
  if isinstance(content.get('string_to_param'), dict):  # A1111
    arrays = [array for array in content['string_to_param'].values() if isinstance(array, np.ndarray)]
    called = str(content.get('name') or path.stem)
    found = {'text_encoder': arrays[0]} if len(arrays) == 1 else {}
  elif set(content) >= set(_ENCODERS):
    found = {encoder: content[name] for name, encoder in _ENCODERS.items()}
  elif len(content) == 1:
    name, array = next(iter(content.items()))
    called, found = (called if name == _ANY else str(name)), {'text_encoder': array}
  else:
    found = {}
  if not found or not all(isinstance(array, np.ndarray) for array in found.values()):
    raise ValueError(f'{path} is no embedding of one token: it holds {", ".join(map(str, list(content)[:5]))}')
  rows = {name: np.atleast_2d(np.asarray(array, np.float32)) for name, array in found.items()}
  for array in rows.values():
    check(array, source=str(path))
  return Embedding(token or called, rows)


def write(path: str | os.PathLike, embedding: Embedding) -> None:
  """Writes .safetensors as diffusers reads it; of two encoders, as SDXL's tools do."""
  if set(embedding.rows) == {'text_encoder'}:
    arrays = {embedding.token: embedding.rows['text_encoder']}
  else:
    arrays = {name: embedding.rows[encoder] for name, encoder in _ENCODERS.items()}
  safetensors_file.write(path, arrays, metadata={'format': 'pt'})
