"""Transforms for the loader that turn a record's caption into a row of token ids.

  loader = data.Loader(dataset, transform=tokenized(tokenizer, describe=lines), ...)     # adds 'text', int32 [b, k]

The choices (which phrasing, which order of tags) come from the loader's random numbers for that row of that
step, so it varies from epoch to epoch and a resumed run sees the same.
"""

import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np

from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.tokenizers.tokenizer import Tokenizer, encode

Describe = Callable[[Record, np.random.Generator], str]


def lines(record: Record, rng: np.random.Generator) -> str:
  """One of the lines of the record's 'caption'; the empty text where it has none."""
  found = [line.strip() for line in record.get('caption', '').splitlines() if line.strip()]
  return found[int(rng.integers(len(found)))] if found else ''


def tags(keep_first: int = 0, drop: float = 0.0) -> Describe:
  """Captions that are tags with commas between them, in another order each time.

  Args:
    keep_first: tags that stay in front, such as the name of a subject.
    drop: probability that one of the others is left out.
  """

  def describe(record: Record, rng: np.random.Generator) -> str:
    found = [tag.strip() for tag in lines(record, rng).split(',') if tag.strip()]
    others = [tag for tag in found[keep_first:] if not drop or rng.random() >= drop]
    return ', '.join(found[:keep_first] + [others[i] for i in rng.permutation(len(others))])

  return describe


def tokenized(
  tokenizer: Tokenizer, *, describe: Describe = lines, field: str = 'text'
) -> Callable[[Record, np.random.Generator], Record]:
  """A transform that adds the token ids of a description.

  Captions that are cut off are counted; the 1st, 10th, 100th, ... is named in a warning.

  Args:
    tokenizer: makes the ids.
    describe: chooses the text.
    field: name of the ids in the batch.
  """
  cut, lock = 0, threading.Lock()

  def transform(record: Record, rng: np.random.Generator) -> Record:
    nonlocal cut
    text = describe(record, rng)
    found = encode(tokenizer, text)
    if found.dropped:
      with lock:
        cut += 1
        number = cut
      if str(number).strip('0') == '1':
        message = '%d captions so far are longer than the %d tokens of %s and were cut off; this one: %.60r'
        logging.warning(message, number, tokenizer.length, tokenizer.name, text)
    return record | {field: found.ids}

  return transform


def check_captions(dataset: Dataset, *, look_at: int = 64) -> None:
  """Refuses a dataset of which none of some records, spread over it, has a caption.

  Raises:
    ValueError: none has.
  """
  numbers = np.unique(np.linspace(0, dataset.num_examples - 1, look_at).astype(int))
  if not any(dataset.read(int(number)).get('caption', '').strip() for number in numbers):
    raise ValueError(
      f'none of {len(numbers)} records of {dataset.name} ({dataset.split}) has a caption; add NAME.txt beside each '
      'image, or metadata.jsonl with file_name and text'
    )


def sample_captions(dataset: Dataset, *, number: int, seed: int = 0, describe: Describe = lines) -> Sequence[str]:
  """Descriptions of records spread over a dataset, to make a vocabulary from.

  Args:
    dataset: a dataset with captions, or with the fields that `describe` makes them from.
    number: number of descriptions; a record may be described more than once.
    seed: seed of the choices.
    describe: chooses the text.
  """
  rng = np.random.default_rng(seed)
  records = (dataset.read(i * dataset.num_examples // number % dataset.num_examples) for i in range(number))
  return [describe(record, rng) for record in records]
