"""A walk between latents as an animation: how a generator's images change into one another."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxgen import animation
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import to_uint8
from jaxgen.train_state import sampling_params
from jaxgen.typing import Array


def walk(
  draw: Callable[[Any, Array], Array],
  latents: Callable[[Array], Array],
  *,
  every: int,
  columns: int = 4,
  frames_per_second: int = 24,
  seed: int = 0,
  name: str = 'walk',
) -> Evaluator:
  """Saves samples/NAME_STEP.webp: `columns` walks beside each other, from the averaged generator.

  Args:
    draw: `(params, latents) -> images`, of what `sampling_params` returns.
    latents: `key -> latents` of one walk's frames (generation/gan_latents.py).
    every: interval in steps.
    columns: walks.
    frames_per_second: frames per second of the file.
    seed: seed of the walks.
    name: name of the files.
  """
  run_frame = jax.jit(lambda params, z: to_uint8(draw(params, z)))

  def run(context: Context) -> dict[str, float]:
    params = sampling_params(context.state)
    paths = np.stack([np.asarray(latents(key)) for key in jax.random.split(jax.random.key(seed), columns)])
    frames = []
    for place in range(paths.shape[1]):
      images = np.asarray(run_frame(params, paths[:, place]))
      frames.append(np.concatenate(list(images), axis=1))
      context.progress(name, place + 1, paths.shape[1])
    if jax.process_index() == 0:
      path = context.workdir / 'samples' / f'{name}_{context.step:08d}.webp'
      animation.write(path, np.stack(frames), frames_per_second=frames_per_second)
    return {}

  return Evaluator(name, every, run)
