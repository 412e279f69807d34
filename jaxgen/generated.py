"""A dataset of samples of a model: DreamBooth's prior, which keeps a class while one of its subjects is learned.

The dataset's name has a hash of all that its pictures follow from: the weights, the prompts, the seed and the sampler's
settings. So the same call finds them again, and another model's are never taken for them.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxgen import sample
from jaxgen.data.dataset import Record
from jaxgen.data.recipe import Recipe, prepare
from jaxgen.frozen import tree_hash
from jaxgen.sample import Trained

_AT_ONCE = 256  # pictures in memory


def prepare_generated(
  trained: Trained,
  prompts: Sequence[str],
  *,
  number: int,
  seed: int = 0,
  batch_size: int | None = None,
  settings: Mapping[str, Any] | None = None,
  name: str | None = None,
  data_dir: str | pathlib.Path | None = None,
  **how: Any,
) -> pathlib.Path:
  """Samples pictures and writes them, with their prompts as captions; returns the folder, DATA_DIR/NAME/VERSION.

  Args:
    trained: the model, from `sample.restore` or `from_weights.trained`.
    prompts: prompts, used in turn.
    number: number of pictures.
    seed: seed of the noise.
    batch_size: pictures at a time.
    settings: everything else that the pictures depend on, such as the run's config; it enters the hash.
    name: name of the dataset; 'generated_HASH' by default.
    data_dir: the folder of prepared datasets.
    how: `progress` and `overwrite` of `recipe.prepare`.

  Raises:
    ValueError: there is no prompt, or no picture is wanted.
  """
  if not prompts or number < 1:
    raise ValueError(f'{number} pictures of {len(prompts)} prompts; wanted one or more of each')
  about = {'prompts': list(prompts), 'number': number, 'seed': seed, 'settings': settings or {}}
  weights = {part: tree_hash(tree) for part, tree in sorted({**trained.frozen, **trained.params}.items())}
  digest = hashlib.sha256(json.dumps([about, weights], sort_keys=True, default=str).encode()).hexdigest()
  height, width, channels = sample.image_shape(trained)
  made = Recipe(
    name=re.sub(r'\W', '_', name or f'generated_{digest[:10]}'),
    version='1.0.0',
    about=f'{number:,} pictures that a model sampled for {prompts[0]!r}' + (', ...' if len(prompts) > 1 else ''),
    license='that of the model that sampled them',
    image_shape=(height, width, channels),
    examples=lambda source: {'train': _drawn(trained, prompts, number, seed, batch_size)},
    texts=('caption',),
    origin=digest,
    notes=lambda: {'weights': json.dumps(weights), 'prompts': json.dumps(list(prompts)), 'seed': str(seed)},
  )
  return prepare(made, data_dir=data_dir, **how)


def _drawn(
  trained: Trained, prompts: Sequence[str], number: int, seed: int, batch_size: int | None
) -> Iterator[Record]:
  """The pictures in order; picture i depends on the seed and i alone."""
  texts = [prompts[i % len(prompts)] for i in range(number)]
  cond = sample.conditioning(trained.stage, number, given=sample.prompt_fields(trained.stage, texts))
  for first in range(0, number, _AT_ONCE):
    last = min(first + _AT_ONCE, number)
    given = {field: rows[:last] for field, rows in cond.items()}
    images = sample.sample(trained, given, num=last, seed=seed, batch_size=batch_size, first=first)
    for text, image in zip(texts[first:last], np.asarray(images), strict=True):
      yield {'image': image, 'caption': text}
