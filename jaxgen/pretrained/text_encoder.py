"""Published text encoders by themselves: they turn the texts of a dataset into features for training.

A folder of transformers holds one encoder and its tokenizer:

  CLIP     text: the last tokens, normed; pooled: the projection, or the token at the text's end
  T5       text: the tokens; text_mask: False for padding, which is not attended to
  BERT     as T5

A folder of a diffusers pipeline holds those of a generator; what they make is what that generator reads (prompts.py).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgen.data.tokenizers import encode_all, from_folder
from jaxgen.models.bert import Bert
from jaxgen.models.clip import CLIPText
from jaxgen.models.t5 import T5Encoder
from jaxgen.objectives.conditioning import Conditioner, Field
from jaxgen.pretrained import networks, pipeline, prompts
from jaxgen.pretrained.layout import Put
from jaxgen.typing import Array, Cond, Key

_Read = Callable[[Any, Any, Array, Array], Cond]  # (net, params, ids, mask) -> entries of cond


class TextEncoder(NamedTuple):
  """A text encoder with its parameters.

  Attributes:
    conditioner: its fields are token ids; `encode` makes entries of `cond` from them.
    tokenize: texts to those fields.
    frozen: arrays that `conditioner.encode` reads.
    hash: hash of the parameters and of the vocabularies.
  """

  conditioner: Conditioner
  tokenize: Callable[[Sequence[str]], Mapping[str, np.ndarray]]
  frozen: Any
  hash: str

  def encode(self, frozen: Any, ids: dict[str, Array]) -> Cond:
    """The entries of `cond` of token ids; the arrays are an argument, so that they can be placed."""
    rows = len(next(iter(ids.values())))
    return self.conditioner.encode({}, frozen, ids, jax.random.split(jax.random.key(0), rows))  # which none reads

  def nulls(self, frozen: Any) -> Cond:
    """The entries of `cond` that stand for no text, without the batch axis."""
    found = self.conditioner.nulls({}, frozen, self.conditioner.nullable)
    encoded = any(field.encoded for field in self.conditioner.fields.values())
    return dict(found) if encoded else {name: entry[0] for name, entry in found.items()}


def load(
  path: str | os.PathLike,
  *,
  tokenizer: str | os.PathLike | None = None,
  length: int | None = None,
  put: Put | None = None,
  dtype: Any = jnp.float32,
) -> TextEncoder:
  """The text encoder of a folder of transformers, or those of a diffusers pipeline.

  Args:
    path: path of the folder.
    tokenizer: folder of the tokenizer; the same by default.
    length: tokens of a text; the tokenizer's own by default.
    put: as of `networks.load`.
    dtype: dtype of the activations.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: it is no text encoder that jaxgen has.
  """
  if (epath.Path(path) / pipeline.INDEX).exists():
    if tokenizer is not None or length is not None:
      raise ValueError(f'{path} is a pipeline, which has tokenizers and lengths of its own; leave out those given')
    return _of_pipeline(path, put=put, dtype=dtype)
  made = networks.load(path, put=put, dtype=dtype)
  if type(made.net) not in _READERS:
    raise ValueError(f'{path} is of a {type(made.net).__name__}; wanted a text encoder: CLIP, T5 or BERT')
  rows = from_folder(tokenizer or path, length=length)
  read = _READERS[type(made.net)]

  def encode(params: Any, frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    return read(made.net, frozen, fields['text'], fields['text'] != rows.pad)

  conditioner = Conditioner({'text': Field(encode_all(rows, [''])[0])}, {}, encode)
  return TextEncoder(
    conditioner, lambda texts: {'text': encode_all(rows, texts)}, made.params, f'{made.meta.hash} {rows.fingerprint}'
  )


def _of_pipeline(path: str | os.PathLike, *, put: Put | None, dtype: Any) -> TextEncoder:
  whole = pipeline.load(path, dtype=dtype)
  names = [name for name in pipeline.TEXT_ENCODERS if name in whole.components]
  if not names:
    raise ValueError(f'{path} is a {whole.kind}, which has no text encoder')
  loaded = {name: networks.load(epath.Path(path) / name, put=put, dtype=dtype) for name in names}
  it = prompts.prompts_of(whole, size=(0, 0))  # sizes and scales are no text, and are left out
  fields = {name: field for name, field in it.conditioner.fields.items() if name.startswith(prompts.FIELDS[0])}

  def tokenize(texts: Sequence[str]) -> Mapping[str, np.ndarray]:
    return {name: value for name, value in it.tokenize(texts).items() if name in fields}

  hashes = [it.meta.hash for it in loaded.values()] + [it.fingerprint for it in whole.tokenizers.values()]
  frozen = {name: it.params for name, it in loaded.items()}
  return TextEncoder(it.conditioner._replace(fields=fields, drops={}), tokenize, frozen, ' '.join(hashes))


def _clip(net: Any, params: Any, ids: Array, mask: Array) -> Cond:
  features: Any = net.apply({'params': params}, ids)
  return {'text': features.normed, 'pooled': features.projected}


def _t5(net: Any, params: Any, ids: Array, mask: Array) -> Cond:
  return {'text': net.apply({'params': params}, ids, mask), 'text_mask': mask}


def _bert(net: Any, params: Any, ids: Array, mask: Array) -> Cond:
  return {'text': net.apply({'params': params}, ids, mask).last, 'text_mask': mask}


_READERS: dict[type[nn.Module], _Read] = {CLIPText: _clip, T5Encoder: _t5, Bert: _bert}
