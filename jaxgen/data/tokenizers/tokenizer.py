"""Tokenizers, and how their pieces become rows of one length.

A row of length k of a text with pieces p_1 .. p_n is

  (1)  start, p_1, ..., p_m, end, pad, ..., pad      m = min(n, k - 2)

without `start` or `end` where a model has none; a chat's ids may stand around the pieces. A text that is too long loses
pieces and never its `end`, which CLIP reads the pooled text from.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

LONGEST = 100_000  # characters of a text


def _none(text: str) -> list[str]:
  return []


class Tokenizer(NamedTuple):
  """Text to token ids.

  Attributes:
    name: name in messages.
    pieces: a text's ids, without those of Eq. 1 that stand around and behind them.
    length: k of Eq. 1.
    start: id before the pieces; None for none.
    end: id behind the pieces; None for none.
    pad: id that fills a row.
    size: number of ids.
    fingerprint: changes with the vocabulary; a run is not resumed with another one.
    unknown: words of a text that the vocabulary lacks.
    vocabulary: the words of a tokenizer that was made from captions; empty for a published one.
    before, after: ids of the chat around the pieces.
  """

  name: str
  pieces: Callable[[str], list[int]]
  length: int
  start: int | None
  end: int | None
  pad: int
  size: int
  fingerprint: str
  unknown: Callable[[str], list[str]] = _none
  vocabulary: tuple[str, ...] = ()
  before: tuple[int, ...] = ()
  after: tuple[int, ...] = ()

  @property
  def room(self) -> int:
    """How many pieces a row has room for."""
    around = len(self.before) + len(self.after)
    return self.length - (self.start is not None) - (self.end is not None) - around


class Row(NamedTuple):
  """A text as a row of ids.

  Attributes:
    ids: Eq. 1.
    mask: False where the row is padding.
    dropped: pieces that had no room.
  """

  ids: Int32[np.ndarray, 'k']
  mask: Bool[np.ndarray, 'k']
  dropped: int


def encode(tokenizer: Tokenizer, text: str) -> Row:
  """A text as a row.

  Raises:
    ValueError: the text is longer than LONGEST, or holds a NUL.
  """
  return row(tokenizer, tokenizer.pieces(checked(text)))


def checked(text: str) -> str:
  """The text, if it can be one.

  Raises:
    ValueError: it is longer than LONGEST, or holds a NUL.
  """
  if len(text) > LONGEST:
    raise ValueError(f'a text has {len(text):,} characters; at most {LONGEST:,} are tokenized')
  if '\0' in text:
    raise ValueError(f'a text holds a NUL byte at character {text.index(chr(0))}; it is not text')
  return text


def row(tokenizer: Tokenizer, pieces: Sequence[int]) -> Row:
  """Eq. 1."""
  kept = list(pieces[: tokenizer.room])
  start = ([] if tokenizer.start is None else [tokenizer.start]) + list(tokenizer.before)
  end = list(tokenizer.after) + ([] if tokenizer.end is None else [tokenizer.end])
  ids = np.full(tokenizer.length, tokenizer.pad, np.int32)
  used = len(start) + len(kept) + len(end)
  ids[:used] = start + kept + end
  return Row(ids, np.arange(tokenizer.length) < used, len(pieces) - len(kept))


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> Int32[np.ndarray, 'b k']:
  """The ids of several texts; one warning names what was cut off and which words are unknown."""
  rows = [encode(tokenizer, text) for text in texts]
  cut = [index for index, found in enumerate(rows) if found.dropped]
  if cut:
    logging.warning(
      '%d of %d texts are longer than the %d tokens of %s and were cut off; the first: %.60r',
      *(len(cut), len(texts), tokenizer.length, tokenizer.name, texts[cut[0]]),
    )
  unknown = sorted({word for text in texts for word in tokenizer.unknown(text)})
  if unknown:
    names = ', '.join(unknown[:8]) + (', ...' if len(unknown) > 8 else '')
    logging.warning('%d words are unknown to %s and say nothing: %s', len(unknown), tokenizer.name, names)
  return np.stack([found.ids for found in rows]) if rows else np.zeros((0, tokenizer.length), np.int32)


def with_tokens(tokenizer: Tokenizer, tokens: Mapping[str, int]) -> Tokenizer:
  """A tokenizer that knows more tokens: textual inversion's.

  Args:
    tokenizer: the one to extend.
    tokens: new token -> its number of vectors. They get ids from `tokenizer.size` on, in this order; a token of n
      vectors is n ids.

  Raises:
    ValueError: a token is empty, or holds a space.
  """
  bad = [token for token in tokens if not token or re.search(r'\s', token)]
  if bad:
    raise ValueError(f'the new token {bad[0]!r} is empty or holds a space; want one word, such as <cat>')
  first, ids = tokenizer.size, {}
  for token, vectors in tokens.items():
    ids[token.lower()] = list(range(first, first + vectors))
    first += vectors
  if not ids:
    return tokenizer
  longest_first = sorted(ids, key=lambda token: -len(token))
  split = re.compile(f'({"|".join(map(re.escape, longest_first))})', re.IGNORECASE)

  def pieces(text: str) -> list[int]:
    parts = split.split(text)
    return [i for part in parts for i in (ids[part.lower()] if part.lower() in ids else tokenizer.pieces(part))]

  def unknown(text: str) -> list[str]:
    return tokenizer.unknown(split.sub(' ', text))

  digest = hashlib.sha256(f'{tokenizer.fingerprint} {sorted(ids.items())}'.encode()).hexdigest()
  return tokenizer._replace(pieces=pieces, unknown=unknown, size=first, fingerprint=digest)
