"""What datasets share that are drawn as avatars are, of other records: pairs, maps of parts, one subject."""

import pathlib
from typing import Any

import numpy as np

from jaxgen.data.dataset import Dataset, Record
from jaxgen.data.datasets import avatars
from jaxgen.data.datasets.avatars import Make, Options
from jaxgen.data.recipe import Examples, Recipe, folder, load


def drawn_recipe(
  name: str, options: Options, make: Make, *, data_dir: str | pathlib.Path | None, **changes: Any
) -> Recipe:
  """The recipe of avatars with records that `make` draws.

  Args:
    name: name of the dataset.
    options: options of the drawing.
    make: makes a record; a function of a module, so that other processes find it.
    data_dir: the folder of prepared datasets, where part files are kept.
    changes: other fields of the recipe that differ from those of avatars.
  """
  parts = avatars.parts_folder(name, data_dir)

  def examples(source: pathlib.Path | None) -> Examples:
    avatars.no_source(source)
    return avatars.drawn(options, make, parts)

  return avatars.recipe(options)._replace(name=name, examples=examples, **changes)


def drawn_dataset(
  made: Recipe,
  split: str,
  *,
  kind: str,
  name: str | None,
  data_dir: str | pathlib.Path | None,
  halves: tuple[str, str] | None = None,
) -> Dataset:
  """Opens a dataset that was prepared.

  Args:
    made: its recipe.
    split: train, test or seen.
    kind: what `jaxgen data prepare` calls it.
    name: name of the prepared dataset in place of the recipe's, as of other options.
    data_dir: the folder of prepared datasets.
    halves: fields of the left and of the right half of its images; None for whole images.
  """
  place = folder(made if name is None else made._replace(name=name), data_dir)
  dataset = load(place, split, command=kind + ('' if name is None else ' ...'))
  return dataset if halves is None else in_halves(dataset, halves)


def in_halves(dataset: Dataset, fields: tuple[str, str]) -> Dataset:
  """The dataset with the left and the right half of its images as fields of these names."""

  def decode(raw: Any) -> Record:
    record = dataset.decode(raw)
    parts = np.split(record['image'], 2, axis=1)
    return record | {field: np.ascontiguousarray(part) for field, part in zip(fields, parts, strict=True)}

  return dataset._replace(decode=decode)


def own_name(kind: str, options: Options, default: Options) -> str:
  """The name of a dataset of 32 pixels by default, where that of avatars has 64."""
  if options == default:
    return kind
  return options.name.replace('avatars', kind, 1) + ('_64px' if options.size == Options().size else '')


def as_control(dataset: Dataset) -> Dataset:
  """The dataset with its field `control` in [0, 1]."""

  def decode(raw: Any) -> Record:
    record = dataset.decode(raw)
    return record | {'control': (record['control'] + 1) / 2}

  return dataset._replace(decode=decode)
