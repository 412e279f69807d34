"""Adversarial post-training: a one-step student as a GAN's generator, and a frozen backbone of the discriminator.

  (1)  G(z, c) = x0(sigma_1 z, t = 1, c)

A student trained on pairs (distillation.py) matches its teacher in a distance between two images, and blurs what
it cannot predict. A discriminator compares with the data, which is better than the teacher: adversarial post-training
(Lin et al. 2025, "Diffusion Adversarial Post-Training for One-Step Video Generation").

Differs from it: the discriminator is any network that `gan` takes, not a second copy of the diffusion transformer. One
trained from scratch soon fails: a good generator fools it by small changes, and it learns no more. On features of
a pretrained network, as in adversarial distillation (Sauer et al. 2023), it does not.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models import lpips
from jaxgen.objectives.distances import judged
from jaxgen.objectives.gan.gan import Backbone
from jaxgen.objectives.network import averaged
from jaxgen.processes.parameterisation import Parameterise, denoiser
from jaxgen.processes.process import Process
from jaxgen.typing import Array, Cond, Float, Key


class OneStep(nn.Module):
  """Eq. 1, a generator for `gan(..., latent=height * width * channels)`.

  Attributes:
    net: a network of `diffusion`; its parameters are the generator's under 'net'.
    process, parameterisation: as in `diffusion`, which trained it.
    shape: (height, width, channels) of an image.
  """

  net: nn.Module
  process: Process
  parameterisation: Parameterise
  shape: tuple[int, ...]

  def __call__(
    self, z: Float[Array, 'b z'], cond: Cond, *, keys: Key[Array, ' b'] | None = None, train: bool = False
  ) -> Float[Array, 'b h w c']:
    """Images of normal noise. Neither `keys` nor `train` matters: the network is used without dropout.

    Raises:
      ValueError: z is not of the images' size.
    """
    if z.shape[1] != math.prod(self.shape):
      raise ValueError(f'latents of {z.shape[1]} for images of {self.shape}; give `gan` latent={math.prod(self.shape)}')
    denoise = denoiser(partial(self.net, train=False), self.process, self.parameterisation)
    t = jnp.ones(len(z))
    return denoise(self.process.sigma(jnp.float32(1)) * z.reshape(-1, *self.shape), t, cond).x0


def as_generator(old: Any, fresh: Any) -> Any:
  """The first state of a `gan` of OneStep after a stage that trained 'net', for Experiment.begin.

  Args:
    old: the state after the last stage; the average named 'net' of its network is used, if there is one.
    fresh: a new state of this stage, of which all else is kept.
  """
  generator = {'net': averaged(old)}
  return fresh.replace(
    step=old.step, params={**fresh.params, 'generator': generator}, ema=dict.fromkeys(fresh.ema, generator)
  )


def perceptual_backbone(judge: str = 'alexnet', *, side: int | None = None) -> Backbone:
  """LPIPS's features for a ProjectedDiscriminator; `frozen['lpips']` holds its parameters.

  Args:
    judge, side: as in `distances.perceptual`.
  """

  def apply(frozen: Any, images: Float[Array, 'b h w c']) -> tuple[Float[Array, 'b _ _ _'], ...]:
    return lpips.features(frozen['lpips'], judged(images, side), network=judge)

  def shapes(images: Float[Array, 'b h w c']) -> tuple[Float[Array, 'b _ _ _'], ...]:
    weights = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in lpips.shapes().items()}
    like = jax.eval_shape(apply, {'lpips': lpips.tree(weights)}, images)
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)

  return Backbone(apply, shapes)
