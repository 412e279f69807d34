"""Retrieval on held-out pairs in the loop: images found by their captions, and captions by their images."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxgen import sharding
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import placed
from jaxgen.metrics.retrieval import recall
from jaxgen.models.clip import Similarity
from jaxgen.train_state import sampling_params
from jaxgen.typing import Float, Int, Params


def retrieval(
  compare: Callable[[Params, Int[jax.Array, 'b k'], Float[jax.Array, 'b h w c']], Similarity],
  *,
  mesh: jax.sharding.Mesh,
  texts: Int[np.ndarray, 'n k'],
  images: Float[np.ndarray, 'n h w c'],
  every: int,
  name: str = 'clip',
  batch_size: int = 128,
  at: Sequence[int] = (1, 5),
) -> Evaluator:
  """An evaluator of `recall@K_image` (an image is found by its caption) and `recall@K_text` (a caption by its image).

  Args:
    compare: `(params, ids, images) -> Similarity`; params are those under `name`, averaged if they are.
    mesh: the mesh of the run.
    texts: token ids of the captions.
    images: an image for each, in [-1, 1].
    every: interval in steps.
    name: key of the parameters.
    batch_size: pairs at a time.
    at: the K.
  """
  sharding.check_batch_size(batch_size, mesh)
  place, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)

  def both(params, ids, pictures):
    found = compare(params, ids, pictures)
    return found.text, found.image

  features = jax.jit(sharding.under(mesh, both), out_shardings=whole)

  def run(context: Context) -> dict[str, float]:
    params, found = sampling_params(context.state)[name], []
    for begin in range(0, len(texts), batch_size):
      rows = np.minimum(np.arange(begin, begin + batch_size), len(texts) - 1)
      ids, pictures = (placed(array[rows], place) for array in (texts, images))
      kept = min(batch_size, len(texts) - begin)
      found.append([np.asarray(x)[:kept] for x in features(params, ids, pictures)])
    text, image = (np.concatenate(parts) for parts in zip(*found, strict=True))
    numbers = {f'recall@{k}_image': value for k, value in recall(text, image, at=at).items()}
    return numbers | {f'recall@{k}_text': value for k, value in recall(image, text, at=at).items()}

  return Evaluator('retrieval', every, run)
