"""A generator with styles: z becomes w, and a copy of w modulates each layer of a synthesis network.

  (1)  w = f(z),  z ~ N(0, 1) scaled to unit mean square, f eight layers
  (2)  truncation:    w <- mean + psi (w - mean)
  (3)  style mixing:  from a random layer on, the w of another z

The mean of w is kept in the collection 'statistics'. Noise is a function, so that an image can be made with noise of
its own key, with the network's constant noise, or with none. Karras et al. 2019, "A Style-Based Generator Architecture
for Generative Adversarial Networks".
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.layers.equalized import EqualizedDense, leaky
from jaxgen.typing import Array, Cond, Float, Key

# (layer, the layer's constant noise h w, images) -> b h w 1
Noise = Callable[[int, Array, int], Array]


def random_noise(keys: Key[Array, ' b']) -> Noise:
  """Normal noise; an image's is a function of its key alone."""

  def noise(layer: int, constant: Array, images: int) -> Array:
    draw = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, layer), constant.shape))
    return draw(keys)[..., None]

  return noise


def constant_noise(layer: int, constant: Array, images: int) -> Array:
  """The generator's own noise, the same for all images."""
  return jnp.broadcast_to(constant[None, :, :, None], (images, *constant.shape, 1))


def no_noise(layer: int, constant: Array, images: int) -> Array:
  return jnp.zeros((images, *constant.shape, 1))


def normalize(x: Float[Array, 'b d']) -> Float[Array, 'b d']:
  """To unit mean square."""
  return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-8)


class Mapping(nn.Module):
  """Eq. 1: `(z, cond) -> w`; z, label or both, each scaled to unit mean square.

  Attributes:
    width: width of w and of the layers.
    layers: number of layers.
    num_classes: labels are 0 to num_classes - 1; 0 for none.
    rate: relative learning rate.
  """

  width: int
  layers: int = 8
  num_classes: int = 0
  rate: float = 0.01

  @nn.compact
  def __call__(self, z: Float[Array, 'b z'] | None, cond: Cond) -> Float[Array, 'b d']:
    parts = [] if z is None else [normalize(z.astype(jnp.float32))]
    if self.num_classes:
      label = jax.nn.one_hot(cond['label'], self.num_classes)
      parts.append(normalize(EqualizedDense(self.width, name='embed')(label)))
    x = jnp.concatenate(parts, axis=-1)
    for layer in range(self.layers):
      x = leaky(EqualizedDense(self.width, self.rate, name=f'dense_{layer}')(x))
    return x


class StyleGenerator(nn.Module):
  """The generator: `(z, cond) -> images`.

  Attributes:
    synthesis: `(ws, noise) -> images`, a module that has `num_styles`.
    width: width of w.
    latent: width of z; that of w when None.
    num_classes: labels are 0 to num_classes - 1; 0 for none.
    layers: number of layers of the mapping.
    mixing: probability of style mixing when training.
    mean_decay: decay of the running mean of w.
    mapping_rate: relative learning rate of the mapping.
  """

  synthesis: nn.Module
  width: int = 512
  latent: int | None = None
  num_classes: int = 0
  layers: int = 8
  mixing: float = 0.9
  mean_decay: float = 0.995
  mapping_rate: float = 0.01

  def setup(self):
    self.mapping = Mapping(self.width, self.layers, self.num_classes, self.mapping_rate)
    self.mean = self.variable('statistics', 'w_mean', jnp.zeros, (self.width,))

  @property
  def num_styles(self) -> int:
    return self.synthesis.num_styles

  @property
  def z_width(self) -> int:
    return self.latent or self.width

  def __call__(
    self, z: Float[Array, 'b z'], cond: Cond, *, keys: Key[Array, ' b'], train: bool = False
  ) -> Float[Array, 'b h w c']:
    """Makes images.

    Args:
      z: latents, standard normal.
      cond: `'label'`, int32 b, if there are classes.
      keys: one key per image, for its noise and style mixing.
      train: mixes styles and moves the mean of w.
    """
    mixing_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    ws = self.styles(z, cond, train=train)
    if train and self.mixing:
      ws = self._mixed(ws, cond, mixing_keys)
    return self.synthesis(ws, random_noise(noise_keys))

  def styles(
    self, z: Float[Array, 'b z'], cond: Cond, *, truncation: float = 1.0, cutoff: int | None = None, train: bool = False
  ) -> Float[Array, 'b l d']:
    """The same w for every layer; in the first `cutoff` of them truncated: mean + truncation (w - mean)."""
    w = self.mapping(z, cond)
    if train and not self.is_initializing():
      self.mean.value = self.mean.value + (1 - self.mean_decay) * (jax.lax.stop_gradient(w).mean(0) - self.mean.value)
    ws = jnp.repeat(w[:, None], self.num_styles, axis=1)
    if truncation == 1.0:
      return ws
    mean = self.mean.value[None, None]  # Eq. 2
    first = jnp.arange(self.num_styles) < (self.num_styles if cutoff is None else cutoff)
    return jnp.where(first[None, :, None], mean + truncation * (ws - mean), ws)

  def images(self, ws: Float[Array, 'b l d'], noise: Noise) -> Float[Array, 'b h w c']:
    return self.synthesis(ws, noise)

  def _mixed(self, ws: Array, cond: Cond, keys: Key[Array, ' b']) -> Array:
    """Eq. 3, in a share of the images."""
    z_keys, layer_keys, coin_keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
    other = self.mapping(jax.vmap(lambda key: jax.random.normal(key, (self.z_width,)))(z_keys), cond)
    layer = jax.vmap(lambda key: jax.random.randint(key, (), 1, self.num_styles))(layer_keys)
    mixes = jax.vmap(lambda key: jax.random.bernoulli(key, self.mixing))(coin_keys)
    layer = jnp.where(mixes, layer, self.num_styles)
    return jnp.where((jnp.arange(self.num_styles)[None] >= layer[:, None])[..., None], other[:, None], ws)
