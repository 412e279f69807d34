"""The noise of stochastic samplers: one key for each image, folded with the number of the step."""

import jax

from jaxgen.processes.process import image_noise
from jaxgen.typing import Array, Float, Int, Key


def required(keys: Key[Array, ' b'] | None, sampler: str) -> Key[Array, ' b']:
  """The keys; raises ValueError, naming the sampler, where there are none."""
  if keys is None:
    raise ValueError(f'{sampler} adds noise and got no keys: pass keys=, one for each image')
  return keys


def step_noise(keys: Key[Array, ' b'], step: int | Int[Array, ''], x: Float[Array, 'b ...']) -> Float[Array, 'b ...']:
  """Standard normal noise like `x` for one step; image i's depends on its key and the step alone."""
  return image_noise(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step), x.shape[1:])
