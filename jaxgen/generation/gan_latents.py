"""Using a trained generator with styles: truncation, mixing, walks between latents, and finding an image's latents.

  (1)  walk:  z(u) on the great circle from one stop to the next, round and back to the first
  (2)  mixing:  the first layers' w of one image, the rest of another
  (3)  projection:  min over w, n of  d(G(w, n), x) + 1e5 r(n)

In Eq. 3 w starts at its mean and is disturbed by noise that falls to 0, n are the noise images, kept normal by r, the
squared correlations of neighbours at all scales, and d is a perceptual distance. In W one w serves all layers; in W+
each layer has its own, which comes closer to x and is worse to edit. Karras et al. 2020, StyleGAN2, appendix D; Abdal
et al. 2019 (W+).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen.generation.interpolate import slerp
from jaxgen.models.layers.styles import Noise, StyleGenerator, constant_noise
from jaxgen.typing import Array, Cond, Float, Key


class Projection(NamedTuple):
  """Attributes: ws, one for each layer; noise, the collection; image and its distance to the target; distances, of all
  steps."""

  ws: Float[Array, 'l d']
  noise: Any
  image: Float[Array, 'h w c']
  distance: Float[Array, '']
  distances: Float[Array, ' s']


def variables(params: dict[str, Any]) -> dict[str, Any]:
  """The generator's variables in the parameters that `sampling_params` returns."""
  return {'params': params['generator'], **params['extra']['generator']}


def walk(key: Key[Array, ''], *, latent: int, stops: int, frames: int) -> Float[Array, 'f z']:
  """Eq. 1: `frames` latents between each stop and the next, evenly, the last before the first."""
  places = jax.random.normal(key, (stops, latent))
  before, after = (jnp.repeat(ends, frames, axis=0) for ends in (places, jnp.roll(places, -1, axis=0)))
  return slerp(before, after, jnp.tile(jnp.arange(frames) / frames, stops))


def mix(coarse: Float[Array, 'b l d'], fine: Float[Array, 'b l d'], *, layer: int) -> Float[Array, 'b l d']:
  """Eq. 2: styles of `coarse` before `layer`, of `fine` from it on."""
  return jnp.concatenate([coarse[:, :layer], fine[:, layer:]], axis=1)


def images_of(
  generator: StyleGenerator,
  params: dict[str, Any],
  z: Float[Array, 'b z'],
  cond: Cond,
  *,
  truncation: float = 1.0,
  cutoff: int | None = None,
  noise: Noise = constant_noise,
) -> Float[Array, 'b h w c']:
  """Images of latents, truncated in the first `cutoff` layers (all of them by default)."""
  made = variables(params)
  ws = generator.apply(made, z, cond, truncation=truncation, cutoff=cutoff, method='styles')
  images: Any = generator.apply(made, ws, noise, method='images')
  return jnp.clip(images, -1.0, 1.0)


def project(
  generator: StyleGenerator,
  params: dict[str, Any],
  target: Float[Array, 'h w c'],
  key: Key[Array, ''],
  *,
  distance: Callable[[Array, Array], Array],
  cond: Cond | None = None,
  each_layer: bool = False,
  steps: int = 1000,
  rate: float = 0.1,
  samples: int = 10_000,
  disturbance: float = 0.05,
  noise_weight: float = 1e5,
) -> Projection:
  """Eq. 3; jit it for speed.

  Args:
    generator: a generator with styles.
    params: as `sampling_params` returns them.
    target: x, in [-1, 1].
    key: key of the samples.
    distance: `(images, images) -> distances`, such as LPIPS.
    cond: condition of the one image, if the generator has labels.
    each_layer: W+, else W.
    steps: steps of Adam.
    rate: the learning rate; it rises over the first 5% of the steps and falls over the last quarter.
    samples: samples of w, which give its standard deviation.
    disturbance: disturbance of w, in its standard deviations, at the start.
    noise_weight: weight of r.
  """
  made, cond = variables(params), cond or {}
  z_key, start_key, noise_key = jax.random.split(key, 3)
  many = jax.tree.map(lambda x: jnp.broadcast_to(x, (samples, *x.shape[1:])), cond)
  z = jax.random.normal(z_key, (samples, generator.z_width))
  styles: Any = generator.apply(made, z, many, method='styles')
  w = styles[:, 0]
  spread = jnp.sqrt(jnp.mean(jnp.sum((w - w.mean(0, keepdims=True)) ** 2, axis=-1)))
  layers = generator.num_styles if each_layer else 1
  start = jnp.broadcast_to(w.mean(0)[None], (layers, generator.width))
  leaves, tree = jax.tree.flatten(made['noise'])
  keys = jax.random.split(start_key, len(leaves))
  noises = jax.tree.unflatten(tree, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])

  def images(ws: Array, noise: Any) -> Array:
    full = jnp.broadcast_to(ws, (generator.num_styles, generator.width))[None]
    made_images: Any = generator.apply(made | {'noise': noise}, full, constant_noise, method='images')
    return made_images

  def loss(found: tuple[Array, Any], moved: Array) -> tuple[Array, Array]:
    ws, noise = found
    away = distance(images(ws + moved, noise), target[None])[0]
    return away + noise_weight * sum(map(_correlation, jax.tree.leaves(noise))), away

  adam = optax.adam(lambda step: rate * _ramps(jnp.asarray(step) / steps), b1=0.9, b2=0.999)

  def step(carry: Any, inputs: tuple[Array, Array]) -> tuple[Any, Array]:
    (found, state), (index, step_key) = carry, inputs
    strength = disturbance * spread * jnp.maximum(0.0, 1 - index / steps / 0.75) ** 2
    moved = strength * jax.random.normal(step_key, start.shape)
    grads, away = jax.grad(loss, has_aux=True)(found, moved)
    updates, state = adam.update(grads, state, found)
    moved_to: Any = optax.apply_updates(found, updates)
    ws, noise = moved_to
    return ((ws, jax.tree.map(_normal, noise)), state), away

  found = (start, noises)
  inputs = (jnp.arange(steps), jax.random.split(noise_key, steps))
  ((ws, noise), _), distances = jax.lax.scan(step, (found, adam.init(found)), inputs)
  image = images(ws, noise)
  full = jnp.broadcast_to(ws, (generator.num_styles, generator.width))
  return Projection(full, noise, jnp.clip(image[0], -1, 1), distance(image, target[None])[0], distances)


def _ramps(share: Array) -> Array:
  """The learning rate over the run: up within 5%, down by a cosine within the last quarter."""
  down = jnp.minimum(1.0, (1.0 - share) / 0.25)
  return (0.5 - 0.5 * jnp.cos(down * jnp.pi)) * jnp.minimum(1.0, share / 0.05)


def _normal(noise: Array) -> Array:
  centred = noise - noise.mean(keepdims=True)
  return centred * jax.lax.rsqrt(jnp.mean(centred**2, keepdims=True) + 1e-8)


def _correlation(noise: Float[Array, 'h w']) -> Array:
  """r: squared correlations with the neighbours to the right and below, at this scale and those down to 8."""
  total = jnp.zeros(())
  while True:
    total += jnp.mean(noise * jnp.roll(noise, 1, axis=1)) ** 2 + jnp.mean(noise * jnp.roll(noise, 1, axis=0)) ** 2
    if noise.shape[0] <= 8:
      return total
    h, w = noise.shape
    noise = noise.reshape(h // 2, 2, w // 2, 2).mean((1, 3))
