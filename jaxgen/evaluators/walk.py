"""A walk between latents, as a file that moves: how a generator's images turn into one another."""

import io
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from PIL import Image

from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import to_uint8
from jaxgen.files import write_whole
from jaxgen.train_state import sampling_params
from jaxgen.typing import Array, UInt8


def walk(
  draw: Callable[..., Array],
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
      write_animation(path, np.stack(frames), frames_per_second=frames_per_second)
    return {}

  return Evaluator(name, every, run)


def write_animation(path: epath.Path, frames: UInt8[np.ndarray, 'f h w c'], *, frames_per_second: int) -> None:
  """An animated WebP, PNG or GIF, by the path's suffix, which plays for ever; complete or not there.

  Raises:
    ValueError: another suffix.
  """
  formats = {'.webp': 'WEBP', '.png': 'PNG', '.gif': 'GIF'}
  if path.suffix not in formats:
    raise ValueError(f'{path.name}: an animation is a {", ".join(formats)} file')
  first, *rest = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]
  data, duration = io.BytesIO(), round(1000 / frames_per_second)
  options = {'lossless': True} if path.suffix == '.webp' else {}
  first.save(data, formats[path.suffix], save_all=True, append_images=rest, duration=duration, loop=0, **options)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, data.getvalue())
