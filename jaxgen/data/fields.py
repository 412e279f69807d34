"""Labels and captions, from the values that files hold to those of a record: one reading for every kind of source."""

import codecs
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

CAPTIONS = ('text', 'caption', 'captions', 'prompt')  # names of a caption's field, the first that is there
LABELS = ('label', 'labels', 'class', 'cls')
MAX_CLASSES = 10**6

Label = int | str


def decode_text(data: bytes, errors: str = 'strict') -> str:
  """Text in UTF-8 with or without byte order mark, or in UTF-16 with one, as Windows writes it; lines end with LF.

  Args:
    data: the bytes.
    errors: what other bytes become, as `bytes.decode` has it.

  Raises:
    ValueError: it is in another encoding, and `errors` is 'strict'.
  """
  encoding = 'utf-16' if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else 'utf-8-sig'
  try:
    return data.decode(encoding, errors).replace('\r\n', '\n')
  except UnicodeDecodeError as error:
    raise ValueError(f'it is not UTF-8 text ({error}); write it again as UTF-8') from error


def caption_of(value: Any) -> str | None:
  """A caption, a line each of several, from text, numbers or a list of these; None for null and NaN.

  Raises:
    ValueError: it is anything else.
  """
  if value is None or value != value:
    return None
  if isinstance(value, list) and not any(isinstance(each, list) for each in value):
    several = [text for text in map(caption_of, value) if text]
    return '\n'.join(several) or None
  if isinstance(value, bytes):
    return decode_text(value).strip()
  if not isinstance(value, str | int | float):
    raise ValueError(f'a caption is text or a list of texts, and not {reprlib.repr(value)}')
  return str(value).encode('utf-8', 'replace').decode()  # JSON can hold halves of characters, which no file can


def label_of(value: Any) -> Label | None:
  """A label, an integer or a name; None for null, NaN and the empty text.

  Raises:
    ValueError: it is anything else.
  """
  if value is None or value != value:
    return None
  if isinstance(value, bool):
    return str(value)
  if isinstance(value, list | dict | bytes):
    raise ValueError(f'a label is an integer or a name, and not {reprlib.repr(value)}')
  if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):  # pandas makes floats where some miss
    return int(value)
  text = str(value).strip()
  return text or None


def classes_of(labels: Iterable[Label]) -> tuple[str, ...]:
  """Names of the classes: 0 up to the largest label where all are integers, else the labels themselves, sorted.

  Raises:
    ValueError: integers below 0, or so large that they are no labels.
  """
  known = set(labels)
  if not all(isinstance(label, int) for label in known):
    return tuple(sorted({str(label) for label in known}))
  low, high = min(map(int, known), default=0), max(map(int, known), default=-1)
  if low < 0 or high >= MAX_CLASSES:
    raise ValueError(
      f'labels go from {low} to {high}; wanted integers from 0 on, one a class, and at most {MAX_CLASSES:,} classes'
    )
  return tuple(map(str, range(high + 1)))


def in_lines(names: Sequence[str]) -> list[str]:
  """Names of classes as a file holds them, one a line: without line ends or other spaces at their ends, each once."""
  texts = [' '.join(name.encode('utf-8', 'backslashreplace').decode().split()) for name in names]
  seen: set[str] = set()
  found = []
  for number, text in enumerate(texts):
    unique = text if text and text not in seen and texts.count(text) == 1 else f'{text} ({number})'.strip()
    seen.add(unique)
    found.append(unique)
  return found
