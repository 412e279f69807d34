"""A tokenizer of whole words, made from a dataset's captions, for small models that learn their own text encoder.

Its vocabulary is a JSON file beside the run: {"words": [...], "length": k, "end": false}; id 0 is padding, 1 an unknown
word, word i has id i + 2, and an end of text the id after the last word's. Case and punctuation are ignored; a word
with a hyphen (t-shirt) is one word.
"""

import collections
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

from jaxgen.data.tokenizers.tokenizer import Tokenizer
from jaxgen.files import write_whole

PAD, UNKNOWN = 0, 1
_WORD = re.compile(r"\w+(?:[-'\u2019]\w+)*")


def split(text: str) -> list[str]:
  """The words of a text."""
  return _WORD.findall(text.lower())


def words(vocabulary: Sequence[str], *, length: int, end: bool = False) -> Tokenizer:
  """A tokenizer of these words.

  Args:
    vocabulary: each once, in lower case.
    length: length of a row.
    end: whether a text ends with an id of its own, the last one, which CLIP's text tower is read at.

  Raises:
    ValueError: a word is there twice, or the length is none.
  """
  repeated = [word for word, count in collections.Counter(vocabulary).items() if count > 1]
  if repeated or length < 1:
    raise ValueError(
      f'a vocabulary with {repeated[:3]} more than once and rows of {length}; want each once and 1 or more'
    )
  ids = {word: number + 2 for number, word in enumerate(vocabulary)}
  return Tokenizer(
    name=f'a vocabulary of {len(ids)} words',
    pieces=lambda text: [ids.get(word, UNKNOWN) for word in split(text)],
    length=length,
    start=None,
    end=len(ids) + 2 if end else None,
    pad=PAD,
    size=len(ids) + 2 + end,
    fingerprint=hashlib.sha256(json.dumps([list(vocabulary), length] + ['end'] * end).encode()).hexdigest(),
    unknown=lambda text: [word for word in split(text) if word not in ids],
    vocabulary=tuple(vocabulary),
  )


def vocabulary_of(captions: Iterable[str], *, at_least: int = 1) -> list[str]:
  """The words of the captions that occur often enough, in alphabetical order."""
  counts = collections.Counter(word for caption in captions for word in split(caption))
  return sorted(word for word, count in counts.items() if count >= at_least)


def from_captions(
  captions: Sequence[str], *, length: int | None = None, at_least: int = 1, end: bool = False
) -> Tokenizer:
  """A tokenizer of the words of some captions.

  Args:
    captions: the texts.
    length: length of a row; what the longest caption needs when None.
    at_least: smallest number of occurrences of a word.
    end: as for `words`.

  Raises:
    ValueError: there are no words.
  """
  vocabulary = vocabulary_of(captions, at_least=at_least)
  if not vocabulary:
    raise ValueError(f'{len(captions)} captions hold no word that occurs {at_least} times; a vocabulary needs some')
  return words(vocabulary, length=length or max(len(split(caption)) for caption in captions) + end, end=end)


def save_words(path: str | pathlib.Path, tokenizer: Tokenizer) -> None:
  """Writes the vocabulary of a tokenizer of words as JSON."""
  text = json.dumps(
    {'words': tokenizer.vocabulary, 'length': tokenizer.length, 'end': tokenizer.end is not None},
    indent=1,
    ensure_ascii=False,
  )
  write_whole(path, text)


def load_words(path: str | pathlib.Path) -> Tokenizer:
  """Opens a vocabulary that `save_words` wrote.

  Raises:
    ValueError: the file is not one.
  """
  try:
    found = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    vocabulary, length = [str(word) for word in found['words']], int(found['length'])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{path} is no vocabulary: {error!r}; want {{"words": [...], "length": k}}') from error
  return words(vocabulary, length=length, end=bool(found.get('end')))
