"""Autoencoders: an encoder, a bottleneck and a decoder are trained to reconstruct images.

  (1)  L_rec = mean |x - x_hat|^p + w_p LPIPS(x, x_hat)
  (2)  L = L_rec + L_bottleneck + w_a lambda L_adv,   L_adv = - mean D(x_hat)
  (3)  lambda = |grad L_rec| / (|grad L_adv| + 1e-4),  gradients to the decoder's last kernel, lambda <= 1e4
  (4)  L_D = mean [relu(1 - D(x)) + relu(1 + D(x_hat))] / 2

In the first `start` steps w_a is 0, and D is not trained. Bottlenecks are in quantize.py: a Gaussian with
its KL makes this a VAE (Kingma & Welling 2014) or AutoencoderKL (Rombach et al. 2022), a codebook VQ-VAE (van den Oord
et al. 2017), both with the adversary VQGAN (Esser et al. 2021), whose Eqs. 3 and 4 are.

Differs from VQGAN's code: Eq. 1 is a mean over all values of an image, where theirs is a sum in one place and a mean in
another; weights of theirs for sums are to be divided alike, as objectives/autoencoder/quantize.py does for the KL.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.objectives import distances
from jaxgen.objectives.autoencoder.quantize import Bottleneck
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.objectives.weight_map import map_of, masked, weighted
from jaxgen.typing import Array, Batch, Float, Key, Params

_LARGEST = 1e4
_DELTA = 1e-4
Pixels = Callable[[Array, Array], Array]  # (x, x_hat) -> its error, elementwise


class Adversary(NamedTuple):
  """Eqs. 2 to 4.

  Attributes:
    net: `images -> logits`, such as models/patchgan.py's.
    weight: w_a.
    start: the first step of adversarial training.
    adaptive: Eq. 3; else lambda is 1.
  """

  net: nn.Module
  weight: float = 0.5
  start: int = 0
  adaptive: bool = True


def absolute(x: Array, x_hat: Array) -> Array:
  return jnp.abs(x - x_hat)


def squared(x: Array, x_hat: Array) -> Array:
  return (x - x_hat) ** 2


def autoencoder(
  net: nn.Module,
  bottleneck: Bottleneck,
  *,
  pixels: Pixels = absolute,
  perceptual: float = 0.0,
  judge: str = 'vgg16',
  adversary: Adversary | None = None,
) -> Objective:
  """Trains `net`, an AutoencoderKL or a VQModel.

  Args:
    net: a network with methods `encode` and `decode`.
    bottleneck: bottleneck between the two, and its loss.
    pixels: the error of Eq. 1.
    perceptual: w_p; where it is not 0, `frozen['lpips']` holds LPIPS's parameters, of its `judge` at least.
    judge: the network of LPIPS: 'vgg16' or, at a fraction of the cost, 'alexnet'.
    adversary: Eqs. 2 to 4; None for none.

  The trained networks are 'autoencoder' and, with an adversary, 'discriminator'.
  """
  reconstruction = partial(_reconstruction, pixels=pixels, perceptual=perceptual, judge=judge)

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    net_key, discriminator_key = jax.random.split(key)
    images = jnp.zeros((1, *batch['image'].shape[1:]))
    made: Any = net.init(net_key, images)
    params, extra = bottleneck.init(made['params'])
    if adversary is None:
      return {'params': {'autoencoder': params}, 'extra': extra}
    discriminator = adversary.net.init(discriminator_key, images)['params']
    return {'params': {'autoencoder': params, 'discriminator': discriminator}, 'extra': extra}

  def loss(
    params: dict[str, Any], state: Any, frozen: Any, batch: Batch, key: Key[Array, '']
  ) -> tuple[Float[Array, ''], Aux]:
    x = batch['image'].astype(jnp.float32)
    code = bottleneck.encode(net, params['autoencoder'], state.extra, x, key)
    last = _last_kernel(code.params)
    x_hat, pull = jax.vjp(lambda kernel: _decode(net, _with_last_kernel(code.params, kernel), code.z), last)
    fixed = jax.lax.stop_gradient(x_hat)
    compare = partial(reconstruction, frozen, x, map_of(batch))
    (error, metrics), gradient = jax.value_and_grad(compare, has_aux=True)(fixed)
    total = error
    if adversary is not None:
      judged, towards = jax.value_and_grad(partial(_fooling, adversary, params['discriminator']))(fixed)
      scale = _adaptive(pull(gradient)[0], pull(towards)[0]) if adversary.adaptive else jnp.float32(1)  # Eq. 3
      weight = jnp.where(state.step >= adversary.start, adversary.weight * scale, 0.0)
      total, gradient = total + weight * judged, gradient + weight * towards  # Eq. 2
      metrics |= {'adversarial': judged, 'adversarial_weight': weight}
    # The value of Eq. 2 with the gradient to the image that Eq. 3 has computed already.
    through = jnp.sum(jax.lax.stop_gradient(gradient) * x_hat)
    total = jax.lax.stop_gradient(total - through) + through + code.loss
    return total, Aux({'loss': total, **metrics, **code.metrics}, code.extra)

  def discriminate(
    params: dict[str, Any], state: Any, frozen: Any, batch: Batch, key: Key[Array, '']
  ) -> tuple[Float[Array, ''], Aux]:
    assert adversary is not None
    x = batch['image'].astype(jnp.float32)
    code = bottleneck.encode(net, params['autoencoder'], state.extra, x, key)
    x_hat = jax.lax.stop_gradient(_decode(net, code.params, code.z))
    real, fake = (_logits(adversary, params['discriminator'], images) for images in (x, x_hat))
    hinge = 0.5 * (jnp.mean(nn.relu(1 - real)) + jnp.mean(nn.relu(1 + fake)))  # Eq. 4
    value = jnp.where(state.step >= adversary.start, hinge, 0.0)
    return value, Aux({'loss': value, 'real': jnp.mean(real), 'fake': jnp.mean(fake)})

  def sample(params: dict[str, Any], frozen: Any, cond: Any, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    return jnp.clip(bottleneck.generate(net, params['autoencoder'], keys), -1.0, 1.0)

  phases = (Phase('autoencoder', 'autoencoder', loss),)
  if adversary is not None:
    phases += (Phase('discriminator', 'discriminator', discriminate),)
  return Objective(init, phases, sample, networks={'autoencoder': net})


def _reconstruction(
  frozen: Any, x: Array, weight: Array | None, x_hat: Array, *, pixels: Pixels, perceptual: float, judge: str
) -> tuple[Array, dict[str, Array]]:
  """Eq. 1."""
  error = jnp.mean(weighted(pixels(x, x_hat), weight))
  metrics = {'pixels': error}
  if perceptual:
    a, b, factor = masked(x, x_hat, weight)
    metrics['lpips'] = jnp.mean(factor * distances.perceptual(judge)(frozen, a, b))
    error = error + perceptual * metrics['lpips']
  return error, metrics


def _fooling(adversary: Adversary, params: Params, x_hat: Array) -> Array:
  return -jnp.mean(_logits(adversary, params, x_hat))


def _logits(adversary: Adversary, params: Params, images: Array) -> Array:
  made: Any = adversary.net.apply({'params': params}, images)
  return made


def _decode(net: nn.Module, params: Params, z: Array) -> Array:
  made: Any = net.apply({'params': params}, z, method='decode')
  return made


def _adaptive(of_reconstruction: Array, of_adversary: Array) -> Array:
  """Eq. 3."""
  ratio = jnp.linalg.norm(of_reconstruction.ravel()) / (jnp.linalg.norm(of_adversary.ravel()) + _DELTA)
  return jnp.clip(ratio, 0.0, _LARGEST)


def _last_kernel(params: Params) -> Array:
  return params['decoder']['conv_out']['kernel']


def _with_last_kernel(params: Params, kernel: Array) -> Params:
  decoder = params['decoder']
  return params | {'decoder': decoder | {'conv_out': decoder['conv_out'] | {'kernel': kernel}}}
