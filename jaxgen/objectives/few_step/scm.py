"""Continuous-time consistency models (sCM; Lu & Song 2024): no grid of times, but a derivative along the path.

With the angle o = pi t / 2 of TrigFlow, x = cos(o) x0 + d sin(o) eps, and d the data's standard deviation,

  (1)  f(x, o) = cos(o) x + d sin(o) F(x / d, o)                  the end of the path; f(x, 0) = x
  (2)  x'  = -sin(o) x0 + d cos(o) eps                            along the path: of the data, or of a teacher
  (3)  g   = cos(o) df/do = cos^2(o) (d F + x') + r cos(o) sin(o) (d dF/do - x),   r = min(1, step / warmup)
  (4)  L   = mean |F - sg(F) + g / (|g| + 0.1)|^2

where dF/do goes along the path (one forward-mode pass), and g is not differentiated. f is consistent where g = 0.

Differs from Lu & Song: F has the other sign; the loss has no learned weight of time, which the normalised tangent of
Eq. 4 makes of little use.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.layers import attention
from jaxgen.objectives.base import Aux, Objective, Phase, sampled
from jaxgen.objectives.conditioning import Conditioner, unconditional
from jaxgen.objectives.diffusion.diffusion import diffusion, trained
from jaxgen.objectives.few_step.consistency import Teacher
from jaxgen.objectives.network import Network
from jaxgen.objectives.weight_map import map_of, weighted
from jaxgen.processes import trig_flow
from jaxgen.processes.parameterisation import preconditioned
from jaxgen.processes.process import Process, corrupt, expand, noise_like, sum_per_image
from jaxgen.processes.times import TimeSampler
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.consistency import consistency
from jaxgen.samplers.sampler import Sampler
from jaxgen.typing import Array, Batch, Float, Key


def scm(
  net: nn.Module,
  *,
  shape: tuple[int, ...],
  process: Process | None = None,
  data_std: float = 0.5,
  times: TimeSampler | None = None,
  sample_times: tuple[float, ...] = (1.0,),
  warmup: int = 10_000,
  teacher: Teacher | None = None,
  conditioner: Conditioner = unconditional,
  limit: float | None = 1.0,
) -> Objective:
  """Trains f by Eq. 4.

  Args:
    net: `(x / d, network_time, cond, *, train) -> F`.
    shape: shape of one image, `(h, w, c)`.
    process: `trig_flow(data_std=d)`; if None, one whose network takes the angle o, as in Lu & Song.
    data_std: d.
    times: time sampler of training; `trig_flow.log_normal(data_std=d)` if None.
    sample_times: times at which `sample` calls f, falling from 1; one for each step.
    warmup: steps in which the second part of Eq. 3 comes in.
    teacher: `frozen -> denoise` of a diffusion model of `process` to distil; None trains from data alone.
    conditioner, limit: as in `diffusion`.
  """
  process = process or trig_flow.trig_flow(data_std=data_std, time_scale=math.pi / 2)
  times = times or trig_flow.log_normal(data_std=data_std)
  if not sample_times or sample_times[0] != 1 or (np.diff((*sample_times, 0.0)) >= 0).any():
    raise ValueError(f'sample_times are {sample_times}; they must start at 1 and fall, without reaching 0')
  grid, network = np.asarray([*sample_times, 0], np.float32), Network(net)
  base = diffusion(
    net,
    process,
    shape=shape,
    parameterisation=partial(preconditioned, data_std=data_std),
    times=times,
    sampler=Sampler(consistency, grid),
    conditioner=conditioner,
    guide=(clip(limit),),
    limit=limit,
  )

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    time_key, noise_key, drop_key, dropout_key, encode_key = jax.random.split(key, 5)
    x0 = batch['image'].astype(jnp.float32)
    t = times(time_key, len(x0))
    eps = noise_like(x0, noise_key)
    cond, _ = conditioner.dropped(params, frozen, batch, drop_key=drop_key, encode_key=encode_key)
    x_t = corrupt(process, x0, eps, t)
    if teacher is not None:
      x0, eps, _ = jax.lax.stop_gradient(teacher(frozen)(x_t, t, cond))

    apply = network.apply(params, train=True, rngs={'dropout': dropout_key})

    def output_of(x: Array, t: Array) -> Array:
      return apply(x / data_std, process.network_time(t), cond).astype(jnp.float32)

    share = jnp.minimum(1.0, (state.step + 1) / warmup)
    output, g = tangent(output_of, x_t, t, x0, eps, data_std=data_std, share=share)
    size = jnp.sqrt(sum_per_image(g * g))
    wanted = jax.lax.stop_gradient(output - g / expand(size + 0.1, g))
    squares = weighted((output - wanted) ** 2, map_of(batch))
    return jnp.mean(squares), Aux({'tangent': jnp.mean(size) / math.sqrt(g[0].size)})  # Eq. 4

  assert base.denoising is not None
  denoising = base.denoising._replace(walk=Sampler(consistency, grids.fine(grid)), inverse=None)
  phases = (Phase('scm', trained(conditioner), loss),)
  return base._replace(phases=phases, sample=sampled(denoising), denoising=denoising)


def tangent(
  network: Callable[[Array, Array], Array],
  x_t: Float[Array, 'b ...'],
  t: Float[Array, ' b'],
  x0: Float[Array, 'b ...'],
  eps: Float[Array, 'b ...'],
  *,
  data_std: float,
  share: float | Float[Array, ''] = 1.0,
) -> tuple[Float[Array, 'b ...'], Float[Array, 'b ...']]:
  """F, and g of Eq. 3 with r = `share`, at x_t between x0 and eps; `network` is `(x, t) -> F`."""
  angle = 0.5 * math.pi * t
  a, s = expand(jnp.cos(angle), x_t), expand(jnp.sin(angle), x_t)
  along_path = data_std * a * eps - s * x0  # Eq. 2
  # Both directions times cos sin, so that nothing is large near the ends.
  directions = a * s * along_path, jnp.cos(angle) * jnp.sin(angle) * (2 / math.pi)
  with attention.with_forward_derivative():
    output, derivative = jax.jvp(network, (x_t, t), directions)
  g = a * a * (data_std * output + along_path) + share * (data_std * derivative - a * s * x_t)
  return output, jax.lax.stop_gradient(g)
