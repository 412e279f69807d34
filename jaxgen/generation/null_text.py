"""Null-text inversion: the noise of an image, and null conditions with which guided sampling reconstructs it.

  (1)  x_0* = x0, ..., x_T*      DDIM inversion without guidance (samplers/ddim_inversion.py)
  (2)  null_t = argmin |x_s* - step(x_t, t, s; cond, null, w)|^2, from null_(t+1); x_s = step(..., null_t)
  (3)  sampled again with null_t at each step, and edited as its prompt is

Guidance strays from the trajectory of Eq. 1; Eq. 2 trains the null condition of each step to keep it there.
Mokady et al. 2022, "Null-text Inversion for Editing Real Images using Guided Diffusion Models".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen.objectives.base import Denoising, decoded, split_keys, walk_of
from jaxgen.processes.process import Denoiser, Process
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.guidance import Term, guided, replaced
from jaxgen.samplers.sampler import Times
from jaxgen.typing import Array, Cond, Float, Key


class Inverted(NamedTuple):
  """The result of an inversion.

  Attributes:
    noise: x_T.
    nulls: null entries of `cond`, with the steps in front: n b ...
    error: mean squared error to the trajectory after each step.
  """

  noise: Float[Array, 'b ...']
  nulls: dict[str, Float[Array, 'n b ...']]
  error: Float[Array, ' n']


def invert(
  denoise: Denoiser,
  process: Process,
  x0: Float[Array, 'b ...'],
  times: Times,
  *,
  cond: Cond,
  null: Cond,
  scale: float,
  iterations: int = 10,
  learning_rate: float = 1e-2,
  inverse: Any,
) -> Inverted:
  """Eqs. 1 and 2.

  Args:
    denoise: the denoiser without guidance.
    process: the process that it undoes.
    x0: the images.
    times: decreasing, of DDIM.
    cond: conditions of the images.
    null: null entries of `cond`, of floating-point; the start of Eq. 2.
    scale: w.
    iterations: gradient steps (Adam) at each time.
    learning_rate: their size, which falls linearly over the times, as in the paper's code.
    inverse: finds noise, such as `ddim_inversion`.
  """
  times = jnp.asarray(times)
  trained = {name: _rows(value, cond[name]) for name, value in null.items()}
  floats = {name: a for name, a in trained.items() if jnp.issubdtype(a.dtype, jnp.floating)}
  fixed = {name: a for name, a in trained.items() if name not in floats}

  def up(x: Array, t_s: Array) -> tuple[Array, Array]:
    return inverse(denoise, process, x, t_s, cond=cond), x

  pairs = jnp.stack([times[:-1], times[1:]], axis=1)
  noise, trajectory = jax.lax.scan(up, x0, pairs, reverse=True)  # trajectory[i] is at times[i + 1]
  optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)

  def step(carry: tuple[Array, Any], inputs: tuple[Array, Array, Array]) -> tuple[tuple[Array, Any], tuple[Any, Array]]:
    (x, nulls), (i, t_s, wanted) = carry, inputs

    def distance(nulls: Any) -> tuple[Array, Array]:
      terms = (Term({**nulls, **fixed}, scale),)
      made = ddim(guided(denoise, terms), process, x, t_s, cond=cond)
      return jnp.mean(jnp.square(made - wanted)), made

    def train(_: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
      nulls, opt = state
      updates, opt = optimizer.update(jax.grad(lambda n: distance(n)[0])(nulls), opt)
      return optax.apply_updates(nulls, updates), opt

    opt: Any = optimizer.init(nulls)
    opt = opt._replace(hyperparams={'learning_rate': learning_rate * (1 - i / len(pairs))})
    nulls, _ = jax.lax.fori_loop(0, iterations, train, (nulls, opt))  # Eq. 2
    error, made = distance(nulls)
    return (made, nulls), ({**nulls, **fixed}, error)

  _, (nulls, error) = jax.lax.scan(step, (noise, floats), (jnp.arange(len(pairs)), pairs, trajectory))
  return Inverted(noise, nulls, error)


def resampled(
  denoise: Denoiser, process: Process, found: Inverted, times: Times, *, cond: Cond, scale: float
) -> Float[Array, 'b ...']:
  """Eq. 3: DDIM with the null conditions of each step, to x0; with another `cond` an edit."""
  times = jnp.asarray(times)

  def step(x: Array, inputs: tuple[Array, Any]) -> tuple[Array, None]:
    t_s, nulls = inputs
    return ddim(guided(denoise, (Term(nulls, scale),)), process, x, t_s, cond=cond), None

  return jax.lax.scan(step, found.noise, (jnp.stack([times[:-1], times[1:]], axis=1), found.nulls))[0]


def reconstructed(d: Denoising, *, scale: float, names: Sequence[str] = (), iterations: int = 10) -> Any:
  """`(params, frozen, cond, keys, *, image) -> images`: to the noise and back, with guidance of `scale`, at the walk's
  times; `names` are the fields that the null condition lacks, by default all that have a null."""
  (_, times), inverse = walk_of(d), d.inverse
  if inverse is None:
    raise ValueError(
      'this model predicts where a path ends, not its direction, so the noise of an image cannot be found'
    )

  def sample(
    params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b'], *, image: Float[Array, 'b h w c']
  ) -> Float[Array, 'b h w c']:
    x0, process, denoise = d.encode(frozen, image), d.process(params), d.denoiser(params, frozen)
    encoded, without = d.condition(params, frozen, cond, split_keys(keys)[2])
    null = without(tuple(names))
    found = invert(
      denoise, process, x0, times, cond=encoded, null=null, scale=scale, iterations=iterations, inverse=inverse
    )
    return decoded(d, frozen, resampled(denoise, process, found, times, cond=encoded, scale=scale))

  return sample


def _rows(null: Any, value: Array) -> Array:
  return replaced({'value': value}, {'value': null})['value']
