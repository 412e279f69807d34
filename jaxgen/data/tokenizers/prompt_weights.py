"""Weights within a prompt, and prompts of any length, as users of Stable Diffusion write them (A1111's rules).

  (text)      times 1.1          (text:1.3)   times 1.3
  [text]      divided by 1.1     \\( \\) \\[ \\] \\\\  the character itself
  BREAK       the rest begins a new chunk

Brackets nest and multiply; one that is never closed reaches to the end, one that was never opened is text.

A prompt of n pieces becomes ceil(n / 75) chunks of 77 ids, each with a start and an end of its own; the encoder reads
them apart, and their outputs are joined along the tokens. A weight multiplies a token's output.
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from jaxgen.data.tokenizers.tokenizer import Tokenizer, checked, row

_STEP = 1.1
_LEXER = re.compile(r'\\[()\[\]\\]|\(|\[|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|[^\\()\[\]:]+|.', re.DOTALL)
_BREAK = re.compile(r'\s*\bBREAK\b\s*')


class Weighted(NamedTuple):
  """A piece of a prompt.

  Attributes:
    text: the piece; None for BREAK.
    weight: factor of its tokens.
  """

  text: str | None
  weight: float


def parse(prompt: str) -> list[Weighted]:
  """The prompt's pieces with their weights; neighbours of the same weight are one piece.

  Round and square brackets are matched apart from one another, and a backslash before any other character is dropped.

  Raises:
    ValueError: a weight is not finite, or the prompt is no text.
  """
  texts: list[str] = []
  weights: list[float] = []
  round_, square = [], []  # for each open bracket, the number of the first text within

  def close(first: int, factor: float) -> None:
    weights[first:] = [weight * factor for weight in weights[first:]]

  for found in _LEXER.finditer(checked(prompt)):
    lexeme, number = found.group(0), found.group(1)
    if lexeme == '(':
      round_.append(len(texts))
    elif lexeme == '[':
      square.append(len(texts))
    elif number is not None and round_:
      close(round_.pop(), float(number))
    elif lexeme == ')' and round_:
      close(round_.pop(), _STEP)
    elif lexeme == ']' and square:
      close(square.pop(), 1 / _STEP)
    else:
      texts.append(lexeme[1:] if lexeme[0] == '\\' else lexeme)
      weights.append(1.0)
  for first in round_:
    close(first, _STEP)
  for first in square:
    close(first, 1 / _STEP)
  if not np.all(np.isfinite(weights)):
    raise ValueError(f'a weight in the prompt {prompt[:60]!r} is not finite; want a number such as (red:1.3)')
  return _with_breaks(_joined(texts, weights))


def _joined(texts: list[str], weights: list[float]) -> list[tuple[str, float]]:
  joined: list[tuple[str, float]] = []
  for text, weight in zip(texts, weights, strict=True):
    if joined and joined[-1][1] == weight:
      joined[-1] = (joined[-1][0] + text, weight)
    else:
      joined.append((text, weight))
  return joined


def _with_breaks(pieces: list[tuple[str, float]]) -> list[Weighted]:
  found: list[Weighted] = []
  for text, weight in pieces:
    for number, part in enumerate(_BREAK.split(text)):
      found += [Weighted(None, 1.0)] if number else []
      found += [Weighted(part, weight)] if part else []
  return found


class Chunks(NamedTuple):
  """A prompt of any length.

  Attributes:
    ids: each row is Eq. 1 of `tokenizer`.
    weights: weight of each token; 1 for those that are not pieces of the prompt.
  """

  ids: Int32[np.ndarray, 'n k']
  weights: Float32[np.ndarray, 'n k']


def weighted(tokenizer: Tokenizer, prompt: str, *, chunks: int | None = None) -> Chunks:
  """The prompt's tokens and their weights.

  Args:
    tokenizer: CLIP's, in general.
    prompt: the text, with weights perhaps.
    chunks: rows to give, so that a prompt and a negative prompt have as many; as many as are needed when None.

  Raises:
    ValueError: the prompt needs more chunks, or a weight is not finite.
  """
  rows: list[tuple[list[int], list[float]]] = [([], [])]
  for text, weight in parse(prompt):
    if text is None:
      rows.append(([], []))
      continue
    for piece in tokenizer.pieces(text):
      if len(rows[-1][0]) == tokenizer.room:
        rows.append(([], []))
      rows[-1][0].append(piece)
      rows[-1][1].append(weight)
  if chunks is not None and len(rows) > chunks:
    raise ValueError(f'the prompt needs {len(rows)} rows of {tokenizer.length} tokens, and has {chunks}; shorten it')
  rows += [([], [])] * ((chunks or 0) - len(rows))
  before = int(tokenizer.start is not None)
  ids = np.stack([row(tokenizer, pieces).ids for pieces, _ in rows])
  weights = np.ones(ids.shape, np.float32)
  for number, (pieces, factors) in enumerate(rows):
    weights[number, before : before + len(pieces)] = factors
  return Chunks(ids, weights)
