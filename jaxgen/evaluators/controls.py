"""Measures whether samples follow the edges that they were given: F1 with control, and without (scale 0)."""

from collections.abc import Mapping

import jax
import numpy as np

from jaxgen.data.controls import canny_edges, edge_f1
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import Generate
from jaxgen.sharding import replicated
from jaxgen.train_state import sampling_params


def edges_followed(
  generate: Generate,
  *,
  mesh: jax.sharding.Mesh,
  cond: Mapping[str, np.ndarray],
  every: int,
  field: str = 'control',
  reach: int = 1,
  seed: int = 0,
  name: str = 'edges',
) -> Evaluator:
  """NAME_f1 and NAME_f1_without, of samples from the same noise.

  Args:
    generate: from `make_generate`.
    mesh: the mesh `generate` was made for.
    cond: conditioning of the images, as host arrays, with edges under `field` and their scale under FIELD_scale.
    every: interval in steps.
    field: name of the control.
    reach: how far an edge may be off, in pixels; 0 for the same pixel, as small images need.
    seed: seed of the noise.
    name: name of its numbers.
  """
  wanted = cond[field][..., 0] > 0.5

  def run(context: Context) -> dict[str, float]:
    gather, found = jax.jit(lambda images: images, out_shardings=replicated(mesh)), {}
    for key, scale in ((f'{name}_f1', 1.0), (f'{name}_f1_without', 0.0)):
      scaled = {**cond, f'{field}_scale': np.full(len(wanted), scale, np.float32)}
      images: list[np.ndarray] = []
      params = sampling_params(context.state)
      for batch, count in generate(params, context.frozen, scaled, seed=seed, num=len(wanted)):
        images += list(np.asarray(gather(batch))[:count])
        context.progress(name, len(images), len(wanted))
      seen = (canny_edges(np.clip(image, -1, 1)) for image in images)
      found[key] = float(np.mean([edge_f1(*pair, reach=reach) for pair in zip(seen, wanted, strict=True)]))
    return found

  return Evaluator(name, every, run)
