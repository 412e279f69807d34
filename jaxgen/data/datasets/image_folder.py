"""image_folder: any folder or .zip of images, cropped and resized once to squares of one size.

`jaxgen data prepare image_folder --source FOLDER --size 256` takes what jaxgen/data/listing.py finds: images at any
depth with their splits, classes and captions. Cropping and resizing are ADM's (jaxgen/data/image.py).
"""

import functools
import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from jaxgen.data.buckets import nearest_shape
from jaxgen.data.dataset import Dataset, NoSuchSplit, default_data_dir
from jaxgen.data.image import image_shape
from jaxgen.data.job import ALONE, Job
from jaxgen.data.listing import Listed, Listing, Tree, list_images, open_tree
from jaxgen.data.parallel import parallel_map
from jaxgen.data.pictures import Picture, numbered
from jaxgen.data.recipe import Recipe, load, opened, prepare, read_origin
from jaxgen.home import mirror

VERSION = '3.0.0'


def image_folder(
  source: str | pathlib.Path,
  split: str = 'train',
  *,
  size: int = 256,
  name: str | None = None,
  data_dir: str | pathlib.Path | None = None,
) -> Dataset:
  """Opens a folder of images that `prepare_image_folder` has prepared.

  Args:
    source: the original folder or .zip. It need not be on this machine where `name` is given.
    split: 'train' is all of it unless its folders are called train and test; 'train[:90%]' and 'train[90%:]' are
      parts.
    size: height and width.
    name: name of the prepared dataset, as given when it was prepared; made from the folder's path when None.
    data_dir: the folder of prepared datasets.

  Raises:
    FileNotFoundError: it is not prepared; the message has the command.
    ValueError: the folder has changed since.
  """
  path = prepared_folder(source, size, name, data_dir)
  command = f'image_folder --source {source} --size {size}' + (f' --name {name}' if name else '')
  dataset = load(path, split, command=command)
  there = str(source) and pathlib.Path(source).expanduser().exists()
  if there and read_origin(path) != _origin(open_tree(source), size):
    raise ValueError(
      f'{source} has changed since {path.parent.name} was made from it; run `jaxgen data prepare {command}` again'
    )
  return dataset


def prepare_image_folder(
  source: str | pathlib.Path,
  *,
  size: int = 256,
  name: str | None = None,
  max_bad_images: int = 100,
  data_dir: str | pathlib.Path | None = None,
  progress: bool = False,
  overwrite: bool = False,
  job: Job = ALONE,
) -> pathlib.Path:
  """Crops, resizes and writes every image of a folder; returns the prepared dataset's folder.

  It is made again where the folder has changed: by the names, sizes and times of its files.

  Args:
    source: the folder of images, or a .zip of one.
    size: height and width.
    name: name of the prepared dataset, so that it can be opened where the folder is not; made from the path when None.
    max_bad_images: unreadable files that are left out, with a warning each, before it is an error.
    data_dir: the folder of prepared datasets.
    progress: whether to show a bar, in a terminal, and a line with the result.
    overwrite: makes it again where it is there already.
    job: processes that share the work.
  """
  if size < 1:
    raise ValueError(f'the size of the images is {size}; it must be 1 or more')
  path, tree = opened(prepared_folder(source, size, name, data_dir)), open_tree(source)
  origin = _origin(tree, size)
  if job.count == 1 and path.exists() and read_origin(path) == origin and not overwrite:
    return path  # without listing them; several processes decide together
  listing = list_images(tree)
  if progress:
    print(f'{source}: {listing.summary()}', file=sys.stderr)
  recipe = _recipe(listing, listing.splits, path.parent.name, (size, size), origin, max_bad_images)
  return prepare(recipe, data_dir=data_dir, progress=progress, overwrite=overwrite, job=job)


def image_buckets(
  source: str | pathlib.Path,
  shapes: Sequence[tuple[int, int]],
  *,
  split: str = 'train',
  max_bad_images: int = 100,
  data_dir: str | pathlib.Path | None = None,
  progress: bool = False,
) -> tuple[Dataset, ...]:
  """The images of a folder by the shape that is nearest to their own: a dataset each, prepared at the first use.

  Args:
    source: the folder of images, or a .zip of one.
    shapes: heights and widths, from `data.bucket_shapes`.
    split: 'train' is all of it unless its folders are called train and test.
    max_bad_images: unreadable files of a bucket that are left out, with a warning each, before it is an error.
    data_dir: the folder of prepared datasets.
    progress: whether to show a bar, in a terminal, and a line with the result.
  """
  tree = open_tree(source)
  place = prepared_folder(source, 0, f'{dataset_name(source, 0)}_buckets', data_dir).parent
  origin = hashlib.sha256(f'{VERSION} {split} {sorted(shapes)} {tree.fingerprint()}'.encode()).hexdigest()
  note = place.with_suffix('.json')
  known = json.loads(note.read_text(encoding='utf-8')) if note.exists() else {}
  if known.get('origin') != origin:
    listing = list_images(tree)
    buckets = _by_shape(listing, split, shapes)
    if progress:
      counts = ', '.join(f'{height}x{width}: {len(images):,}' for (height, width), images in buckets.items())
      print(f'{source}: {listing.summary()}; {counts}', file=sys.stderr)
    names = []
    for (height, width), images in buckets.items():
      name = f'{place.name}_{height}x{width}'
      recipe = _recipe(listing, {split: images}, name, (height, width), origin, max_bad_images)
      names.append(str(prepare(recipe, data_dir=data_dir, progress=progress)))
    note.write_text(json.dumps({'origin': origin, 'buckets': names}), encoding='utf-8')
    known = {'buckets': names}
  return tuple(load(pathlib.Path(path), split) for path in known['buckets'])


def _by_shape(listing: Listing, split: str, shapes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[Listed]]:
  """The images of each shape that has any; what cannot be read goes with the first, which leaves it out."""
  if split not in listing.splits:
    raise NoSuchSplit(f'{listing.tree.where} has no split {split!r}; it has {", ".join(listing.splits)}')

  def shape_of(image: Listed) -> tuple[int, int]:
    try:
      return nearest_shape(image_shape(listing.tree.read(image.name)), shapes)
    except ValueError:
      return shapes[0]

  found: dict[tuple[int, int], list[Listed]] = {}
  images = listing.splits[split]
  for image, shape in zip(images, parallel_map(shape_of, images), strict=True):
    found.setdefault(shape, []).append(image)
  return dict(sorted(found.items()))


def _recipe(
  listing: Listing,
  splits: Mapping[str, Sequence[Listed]],
  name: str,
  shape: tuple[int, int],
  origin: str,
  max_bad_images: int,
) -> Recipe:
  return Recipe(
    name=name,
    version=VERSION,
    about=f'images of {listing.tree.where}',
    license='that of the images',
    image_shape=(*shape, 3),
    examples=lambda _: {
      split: numbered(_picture(listing, images), len(images), size=shape, max_bad_images=max_bad_images)
      for split, images in splits.items()
    },
    class_names=listing.class_names,
    texts=('caption',) if listing.has_captions else (),
    origin=origin,
  )


def prepared_folder(
  source: str | pathlib.Path, size: int, name: str | None = None, data_dir: str | pathlib.Path | None = None
) -> pathlib.Path:
  """Where a folder of images is, or would be, prepared."""
  return mirror(data_dir or default_data_dir()) / dataset_name(source, size, name) / VERSION


def dataset_name(source: str | pathlib.Path, size: int, name: str | None = None) -> str:
  """The prepared dataset's name: `name`, else the folder's own with a hash of its path; and the size."""
  path = pathlib.Path(source).expanduser().resolve()
  name = name or f'{path.name}_{hashlib.sha256(str(path).encode()).hexdigest()[:6]}'
  return re.sub('[^a-z0-9]+', '_', f'image_folder_{name}_{size}'.lower())


def _origin(tree: Tree, size: int) -> str:
  return hashlib.sha256(f'{VERSION} {size} {tree.fingerprint()}'.encode()).hexdigest()


def _picture(listing: Listing, images: Sequence[Listed]) -> Callable[[int], Picture]:
  tree, number_of = listing.tree, {name: number for number, name in enumerate(listing.class_names)}

  def picture(number: int) -> Picture:
    image, fields = images[number], {}
    if image.label is not None:
      fields['label'] = number_of[image.label]
    if listing.has_captions:
      fields['caption'] = image.caption or ''
    return Picture(str(tree.where / image.name), functools.partial(tree.read, image.name), fields)

  return picture
