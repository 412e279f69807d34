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
  stems = {side: sorted(pathlib.PurePath(n).stem for n in image_names(open_tree(place / side))[0]) for side in _SIDES}
  alone = sorted(set(stems['before']) ^ set(stems['after']))
  if alone or len(set(stems['before'])) != len(stems['before']):
    name = alone[0] if alone else 'a name'
    raise ValueError(f'{place} has {name} without its one partner; pictures of before and after pair by name')
  before, after = (
    load(prepare_image_folder(place / side, size=size, max_bad_images=0, data_dir=data_dir, **how), split)
    for side in _SIDES
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
