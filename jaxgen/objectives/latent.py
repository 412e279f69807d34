"""Training on an autoencoder's latents.

  latent(objective, net) -> objective

The inner objective takes latents for images; at each step they are sampled from the stored means and standard
deviations (models/latents.py, Eq. 1); its samples are decoded (Eq. 2 there), and images to be edited are encoded, as
the mean. The autoencoder's arrays are `frozen["autoencoder"]`. Rombach et al. 2022, "High-Resolution Image Synthesis
with Latent Diffusion Models".
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.latents import decode, posterior, sample_posterior, scaled
from jaxgen.models.tiles import decode_tiled
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.typing import Array, Batch, Float, Key

STORED = ('image', 'std')  # fields of a dataset of latents: means and standard deviations, or samples alone


def latent(objective: Objective, net: nn.Module, *, tile: int | None = None) -> Objective:
  """`objective`, on latents.

  Args:
    objective: an objective for arrays of the latents' shape.
    net: the autoencoder's network; `Experiment.frozen` is `{'autoencoder': autoencoder.frozen}`.
    tile: decodes large images in tiles of this many latents a side; None for all at once.
  """

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return objective.init(key, frozen, {name: value for name, value in batch.items() if name != 'std'})

  def on_latents(phase: Phase) -> Phase:
    def loss(
      params: dict[str, Any], state: Any, frozen: Any, batch: Batch, key: Key[Array, '']
    ) -> tuple[Float[Array, ''], Aux]:
      draw_key, key = jax.random.split(key)
      mean = batch['image'].astype(jnp.float32)
      std = batch.get('std', jnp.zeros_like(mean)).astype(jnp.float32)
      z = sample_posterior(frozen['autoencoder'], mean, std, jax.random.split(draw_key, len(mean)))
      rest = {name: value for name, value in batch.items() if name not in STORED}
      return phase.loss(params, state, frozen, rest | {'image': z}, key)

    return phase._replace(loss=loss)

  def encoded(frozen: Any, images: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 z']:
    mean, _ = posterior(net, frozen['autoencoder'], images)
    return scaled(frozen['autoencoder'], mean)

  def decoded(frozen: Any, z: Float[Array, 'b h2 w2 z']) -> Float[Array, 'b h w c']:
    if tile is None:
      return jnp.clip(decode(net, frozen['autoencoder'], z), -1.0, 1.0)
    return jnp.clip(decode_tiled(net, frozen['autoencoder'], z, tile=tile), -1.0, 1.0)

  def sample(params: dict[str, Any], frozen: Any, cond: Any, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    return decoded(frozen, objective.sample(params, frozen, cond, keys))

  parts = objective.denoising
  return objective._replace(
    init=init,
    phases=tuple(on_latents(phase) for phase in objective.phases),
    sample=sample,
    networks={**objective.networks, 'autoencoder': net},
    denoising=None if parts is None else parts._replace(encode=encoded, decode=decoded),
  )
