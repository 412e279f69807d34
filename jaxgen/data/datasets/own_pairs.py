"""Pairs of one's own pictures, before and after an edit: what InstructPix2Pix learns from.

  PATH/before/NAME.jpg      the picture
  PATH/after/NAME.png       the picture as it should be
  PATH/after/NAME.txt       the instruction, one a line where there are several ways to say it

Both folders are prepared as image_folder is; a record has `before`, `image` and `caption`.
"""

import pathlib
from typing import Any

import numpy as np

from jaxgen.data.dataset import BadRecord, Dataset, NoSuchSplit, Record
from jaxgen.data.datasets.image_folder import prepare_image_folder
from jaxgen.data.listing import image_names, open_tree
from jaxgen.data.recipe import load

_SIDES = ('before', 'after')


def own_pairs(
  place: str | pathlib.Path, split: str = 'train', *, size: int, data_dir: str | pathlib.Path | None = None, **how: Any
) -> Dataset:
  """Opens the pairs of a folder, which are prepared at the first use.

  Args:
    place: the folder with `before` and `after`.
    split: 'train', which is all of them.
    size: height and width.
    data_dir: the folder of prepared datasets.
    how: `progress` of `prepare_image_folder`.

  Raises:
    FileNotFoundError: a folder is not there, or empty.
    ValueError: a picture has no partner, or cannot be read.
  """
  if split != 'train':
    raise NoSuchSplit(f"{place} has no split {split!r}; pairs of one's own have train")
  place = pathlib.Path(place).expanduser()
  names = {
    side: [str(pathlib.PurePosixPath(name).with_suffix('')) for name in image_names(open_tree(place / side))[0]]
    for side in _SIDES
  }
  alone = sorted(set(names['before']) ^ set(names['after']))
  alone = alone or [name for side in _SIDES for name in names[side] if names[side].count(name) > 1]
  if alone:
    raise ValueError(f'{place} has {alone[0]} without its one partner; pictures of before and after pair by name')
  if names['before'] != names['after']:  # sorted with their endings; they are paired by their numbers
    name = next(one for one, other in zip(names['before'], names['after'], strict=True) if one != other)
    raise ValueError(f'{place} sorts {name} differently in before and after; give both pictures the same ending')
  before, after = (
    load(prepare_image_folder(place / side, size=size, max_bad_images=0, data_dir=data_dir, **how), split)
    for side in _SIDES
  )
  if before.num_examples != after.num_examples:
    raise ValueError(
      f'{place} has {before.num_examples} pictures before that can be read, and {after.num_examples} after'
    )

  def decode(number: int) -> Record:
    record, old = after.read(number), before.read(number)['image']
    if np.array_equal(record['image'], old):
      raise BadRecord(f'pair {number} of {place}: before and after are the same picture, which teaches no edit')
    return record | {'before': old}

  return Dataset(
    f'pairs of {place.name}',
    split,
    range(after.num_examples),
    decode,
    f'{before.fingerprint} to {after.fingerprint}',
  )
