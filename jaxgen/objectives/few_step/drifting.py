"""Drifting models: training moves the samples of a generator of one step towards the data, and them apart.

G(eps) is the network's x0 of pure noise. Among the features f of N samples x_i, of the data p_j and of the samples
themselves as negatives n_k (without x_i), with temperature h, and A over all of them together,

  (1)  l_ij = -|f(x_i) - f(y_j)| / (h d),   d the mean distance             y the data and the negatives
  (2)  A    = sqrt(softmax_j(l) softmax_i(l))                               the mean of both normalisations
  (3)  V_i  = sum_j A_ij^p (sum_k A_ik^n) f(p_j) - sum_k A_ik^n (sum_j A_ij^p) f(n_k)
  (4)  L    = mean |f(x) - sg(f(x) + V)|^2,   V the sum over h of V(h) / rms V(h), times d min(h) / sqrt(D)

D is the number of features. V is zero where samples and data are alike, before it is divided by its size. Deng et al.
2026, "Generative Modeling via Drifting" (Algorithm 2). The data are the last rows that training saw, in a bank in
`state.extra` of the global batch, so it does not depend on the number of hosts. With classes, l is -inf between two of
them.

Differs from Deng et al.: no guidance by negatives of other classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.objectives.conditioning import Conditioner, unconditional
from jaxgen.objectives.diffusion.diffusion import diffusion, trained
from jaxgen.objectives.preference.rollouts import empty_pool, put
from jaxgen.objectives.weight_map import check_no_map
from jaxgen.processes import parameterisation
from jaxgen.processes import times as time_samplers
from jaxgen.processes.process import noise_like
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.clipping import clip
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.sampler import Sampler
from jaxgen.typing import Array, Batch, Bool, Float, Key

Features = Callable[[Any, Array], Sequence[Array]]  # (frozen, images) -> sets of features, each b d
_FAR = 1e6


def pixels(frozen: Any, images: Float[Array, 'b h w c']) -> tuple[Float[Array, 'b d']]:
  """The values themselves."""
  return (images.reshape(len(images), -1),)


def drifting(
  net: nn.Module,
  *,
  shape: tuple[int, ...],
  bank: int,
  features: Features = pixels,
  temperatures: Sequence[float] = (0.02, 0.05, 0.2),
  conditioner: Conditioner = unconditional,
  label: str = '',
  limit: float | None = 1.0,
) -> Objective:
  """Trains G by Eq. 4.

  Args:
    net: `(noise, 1000, cond, *, train) -> x0`.
    shape: shape of one image.
    bank: rows of data that are kept; a multiple of the batch.
    features: f; each set has a drift of its own.
    temperatures: h, in mean distances.
    conditioner: conditions of the network.
    label: entry of the batch within which samples and data are compared; '' compares all.
    limit: samples are clipped to [-limit, limit]; None for latents.
  """
  base = diffusion(
    net,
    rectified_flow(),
    shape=shape,
    parameterisation=parameterisation.x0,
    times=time_samplers.uniform(),
    sampler=Sampler(ddim, grids.uniform(1)),
    conditioner=conditioner,
    guide=() if limit is None else (clip(limit),),
    limit=limit,
  )
  assert base.denoising is not None
  denoiser = base.denoising.denoiser

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    check_no_map(batch, 'a drifting model')
    if bank % len(batch['image']):
      raise ValueError(f'a bank of {bank} rows for batches of {len(batch["image"])}; use a multiple')
    rows = {'image': jnp.zeros((1, *shape))}
    rows |= {'label': jnp.zeros(1, jnp.int32)} if label else {}
    return base.init(key, frozen, batch) | {'extra': {'bank': empty_pool(rows, bank)}}

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    noise_key, encode_key, drop_key = jax.random.split(key, 3)
    real = batch['image'].astype(jnp.float32)
    rows = {'image': real} | ({'label': batch[label].astype(jnp.int32)} if label else {})
    kept = put(state.extra['bank'], rows)
    there = jnp.arange(bank) < kept['drawn']
    cond, _ = conditioner.dropped(params, frozen, batch, drop_key=drop_key, encode_key=encode_key)
    x = denoiser(params, frozen)(noise_like(real, noise_key), jnp.ones(len(real)), cond).x0
    same = jnp.broadcast_to(there[None], (len(x), bank))
    mine = jnp.ones((len(x), len(x)), bool)
    if label:
      same &= rows['label'][:, None] == kept['rows']['label'][None]
      mine = rows['label'][:, None] == rows['label'][None]
    total, length = jnp.float32(0), jnp.float32(0)
    for f, data in zip(features(frozen, x), features(frozen, kept['rows']['image']), strict=True):
      still = jax.lax.stop_gradient(f)
      v = field(still, jax.lax.stop_gradient(data), temperatures, same, mine)
      total += jnp.mean((f - (still + v)) ** 2)  # Eq. 4
      length += jnp.mean(v**2)
    return total, Aux({'drift': length}, {'bank': kept})

  return base._replace(init=init, phases=(Phase('drifting', trained(conditioner), loss),))


def field(
  x: Float[Array, 'n d'],
  data: Float[Array, 'm d'],
  temperatures: Sequence[float],
  same: Bool[Array, 'n m'],
  mine: Bool[Array, 'n n'],
) -> Float[Array, 'n d']:
  """V of Eq. 4; `same` and `mine` say which pairs are compared."""
  mine = mine & ~jnp.eye(len(x), dtype=bool)
  y, compared = jnp.concatenate([data, x]), jnp.concatenate([same, mine], axis=1)
  away = distances(x, y)
  scale = jnp.sum(jnp.where(compared, away, 0.0)) / jnp.maximum(jnp.sum(compared), 1)
  total = jnp.zeros_like(x)
  for h in temperatures:
    v = drift(jnp.where(compared, away, _FAR * scale) / jnp.maximum(h * scale, 1e-12), y, len(data))
    total += v / jnp.maximum(jnp.sqrt(jnp.mean(v**2)), 1e-8)
  return total * scale / jnp.sqrt(x.shape[1]) * min(temperatures)


def drift(away: Float[Array, 'n k'], y: Float[Array, 'k d'], num_data: int) -> Float[Array, 'n d']:
  """Eqs. 2 and 3; `away` is -l, and `y` are the data and then the negatives."""
  a = jnp.sqrt(jax.nn.softmax(-away, axis=1) * jax.nn.softmax(-away, axis=0))
  of_data, of_negatives = a[:, :num_data], a[:, num_data:]
  pull = of_data * of_negatives.sum(1, keepdims=True)
  push = of_negatives * of_data.sum(1, keepdims=True)
  return pull @ y[:num_data] - push @ y[num_data:]


def distances(x: Float[Array, 'n d'], y: Float[Array, 'k d']) -> Float[Array, 'n k']:
  """Euclidean distances of all pairs."""
  squared = jnp.sum(x * x, 1)[:, None] + jnp.sum(y * y, 1)[None] - 2 * jnp.einsum('nd,kd->nk', x, y)
  return jnp.sqrt(jnp.maximum(squared, 1e-12))
