"""ADA's pipeline: each of its transformations happens to each image with probability p times its own.

  (1)  one geometric map: flips, quarter turns and shifts by whole pixels ("blit"); scale, rotation, anisotropic scale
       and shift by parts of pixels ("geometry")
  (2)  one affine map of colours: brightness, contrast, luma flip, hue and saturation ("colour")
  (3)  noise and cutout

The image is doubled with a filter whose correlation with itself is 1 at 0 and 0 at even shifts (the wavelet sym6),
sampled bilinearly where the map of Eq. 1 says, mirrored at its edges, and halved with the same filter: shifts by whole
pixels are exact, and flips and turns nearly, as sym6 is nearly symmetric. Everything is differentiable, twice, for
gradient penalties. Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", appendix B,
without its filters of frequency bands, which its default set has not. Differs: edges are mirrored however far an image
moves, by its coordinates, rather than by padding as much as the batch needs.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from jaxgen.models.layers.upfirdn import upfirdn2d
from jaxgen.typing import Array, Float, Key

SYM6 = (
  0.015404109327027373,
  0.0034907120842174702,
  -0.11799011114819057,
  -0.048311742585633,
  0.4910559419267466,
  0.787641141030194,
  0.3379294217276218,
  -0.07263752278646252,
  -0.021060292512300564,
  0.04472490177066578,
  0.0017677118642428036,
  -0.007800708325034148,
)
_MARGIN = 6  # pixels around an image that the filter sees
_LUMA = (1 / math.sqrt(3),) * 3  # the axis of grays
_GRAY = np.outer(_LUMA, _LUMA).astype(np.float32)


class Pipeline(NamedTuple):
  """Factors of p, one for each transformation; 0 for none. The default is ADA's ("bgc").

  The first seven are Eq. 1, the next five Eq. 2; a group of which all are 0 costs nothing.
  """

  flip: float = 1.0
  quarter_turns: float = 1.0
  shift: float = 1.0
  scale: float = 1.0
  rotation: float = 1.0
  stretch: float = 1.0
  part_shift: float = 1.0
  brightness: float = 1.0
  contrast: float = 1.0
  luma_flip: float = 1.0
  hue: float = 1.0
  saturation: float = 1.0
  noise: float = 0.0
  cutout: float = 0.0


_FIRST_COLOUR, _AFTER_COLOUR = Pipeline._fields.index('brightness'), Pipeline._fields.index('noise')


def augment(
  pipeline: Pipeline, probability: Array, images: Float[Array, 'b h w c'], key: Key[Array, '']
) -> Float[Array, 'b h w c']:
  """The images, each transformed at random.

  Raises:
    ValueError: the images are neither gray nor RGB.
  """
  if images.shape[-1] not in (1, 3):
    raise ValueError(f'images of {images.shape[-1]} channels have no colours to augment; wanted 1 or 3')
  maps_key, colours_key, noise_key, cut_key = jax.random.split(key, 4)
  b, h, w, _ = images.shape
  p = jnp.clip(probability, 0.0, 1.0)
  images = images.astype(jnp.float32)
  if any(pipeline[:_FIRST_COLOUR]):
    maps = jax.vmap(lambda key: geometry(pipeline, p, key, (h, w)))(jax.random.split(maps_key, b))
    images = warp(images, maps)
  if any(pipeline[_FIRST_COLOUR:_AFTER_COLOUR]):
    colours = jax.vmap(lambda key: colour(pipeline, p, key))(jax.random.split(colours_key, b))
    images = recolour(images, colours)
  if pipeline.noise:
    images = jax.vmap(lambda x, key: _noisy(x, p * pipeline.noise, key))(images, jax.random.split(noise_key, b))
  if pipeline.cutout:
    images = jax.vmap(lambda x, key: _cut(x, p * pipeline.cutout, key))(images, jax.random.split(cut_key, b))
  return images


def geometry(pipeline: Pipeline, p: Array, key: Key[Array, ''], size: tuple[int, int]) -> Float[Array, '3 3']:
  """The map of Eq. 1, from where a pixel goes to where it comes from; (x, y, 1), in pixels from the middle."""
  keys = iter(jax.random.split(key, 18))

  def gate(probability: Array, value: Array, neutral: float) -> Array:
    return jnp.where(jax.random.uniform(next(keys)) < probability, value, neutral)

  height, width = size
  sides = jnp.array([width, height], jnp.float32)
  mirror = gate(pipeline.flip * p, 1 - 2 * jnp.floor(2 * jax.random.uniform(next(keys))), 1.0)
  turns = gate(pipeline.quarter_turns * p, jnp.floor(4 * jax.random.uniform(next(keys))), 0.0)
  whole = jnp.round(jax.random.uniform(next(keys), (2,), minval=-0.125, maxval=0.125) * sides)
  whole = gate(pipeline.shift * p, whole, 0.0)
  scale = gate(pipeline.scale * p, jnp.exp2(0.2 * jax.random.normal(next(keys))), 1.0)
  each = 1 - jnp.sqrt(jnp.clip(1 - pipeline.rotation * p, 0, 1))  # before or after stretching: p in all
  before = gate(each, jax.random.uniform(next(keys), minval=-math.pi, maxval=math.pi), 0.0)
  stretch = gate(pipeline.stretch * p, jnp.exp2(0.2 * jax.random.normal(next(keys))), 1.0)
  after = gate(each, jax.random.uniform(next(keys), minval=-math.pi, maxval=math.pi), 0.0)
  part = gate(pipeline.part_shift * p, 0.125 * jax.random.normal(next(keys), (2,)) * sides, 0.0)
  inverse = _scaled(mirror, 1.0) @ _quarter(turns) @ _shifted(-whole)
  inverse = inverse @ _scaled(1 / scale, 1 / scale) @ _turned(-before) @ _scaled(1 / stretch, stretch)
  return inverse @ _turned(-after) @ _shifted(-part)


def colour(pipeline: Pipeline, p: Array, key: Key[Array, '']) -> Float[Array, '4 4']:
  """The map of Eq. 2 of (r, g, b, 1)."""
  keys = iter(jax.random.split(key, 10))

  def gate(probability: float, value: Array, neutral: float) -> Array:
    return jnp.where(jax.random.uniform(next(keys)) < probability * p, value, neutral)

  brightness = gate(pipeline.brightness, 0.2 * jax.random.normal(next(keys)), 0.0)
  contrast = gate(pipeline.contrast, jnp.exp2(0.5 * jax.random.normal(next(keys))), 1.0)
  flips = gate(pipeline.luma_flip, jnp.floor(2 * jax.random.uniform(next(keys))), 0.0)
  hue = gate(pipeline.hue, jax.random.uniform(next(keys), minval=-math.pi, maxval=math.pi), 0.0)
  saturation = gate(pipeline.saturation, jnp.exp2(jax.random.normal(next(keys))), 1.0)
  turn = _turned_around_luma(hue)
  linear = (_GRAY + (jnp.eye(3) - _GRAY) * saturation) @ turn @ (jnp.eye(3) - 2 * _GRAY * flips) * contrast
  shift = linear @ jnp.full((3, 1), brightness)
  return jnp.concatenate([jnp.concatenate([linear, shift], axis=1), jnp.array([[0.0, 0.0, 0.0, 1.0]])])


def warp(images: Float[Array, 'b h w c'], maps: Float[Array, 'b 3 3']) -> Float[Array, 'b h w c']:
  """Eq. 1, applied."""
  _, h, w, _ = images.shape
  taps = np.asarray(SYM6) / sum(SYM6)
  n, m = len(taps), _MARGIN
  reach = min(m + 3, h - 1, w - 1)
  double = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode='reflect')
  double = upfirdn2d(double, taps, up=2, pad=((n + 1) // 2, (n - 2) // 2) * 2, gain=4.0)
  # Where the pixels of the doubled result, and those around it that the filter sees, come from. Pixel i is at
  # 2 i of the doubled image, since the middle of sym6 is its sixth tap.
  y, x = (jnp.arange(-m, 2 * side + m) / 2 - (side - 1) / 2 for side in (h, w))
  x, y = jnp.meshgrid(x, y)
  places = jnp.stack([x, y, jnp.ones_like(x)], axis=-1)  # H W 3

  def one(image: Array, inverse: Array) -> Array:
    source = places @ inverse.T
    rows = 2 * (reach + _mirrored(source[..., 1] + (h - 1) / 2, h, reach - 3))
    columns = 2 * (reach + _mirrored(source[..., 0] + (w - 1) / 2, w, reach - 3))
    sample = jax.vmap(lambda channel: map_coordinates(channel, [rows, columns], order=1, mode='nearest'), -1, -1)
    return sample(image)

  moved = jax.vmap(one)(double, maps)
  crop = ((n - 1) // 2 - m, (n - 2) // 2 - m)
  return upfirdn2d(moved, taps[::-1], down=2, pad=crop * 2)


def recolour(images: Float[Array, 'b h w c'], colours: Float[Array, 'b 4 4']) -> Float[Array, 'b h w c']:
  """Eq. 2, applied; a gray image is the mean of what would become of three equal channels."""
  linear, shift = colours[:, :3, :3], colours[:, :3, 3]
  if images.shape[-1] == 1:
    linear, shift = linear.sum(2).mean(1)[:, None, None], shift.mean(1)[:, None]
  return jnp.einsum('bhwc,boc->bhwo', images, linear) + shift[:, None, None]


def _mirrored(place: Array, size: int, beyond: int) -> Array:
  """Coordinates more than `beyond` outside 0 ... size - 1, reflected there as often as it takes."""
  if size == 1:
    return jnp.zeros_like(place)
  inside = (place >= -beyond) & (place <= size - 1 + beyond)
  return jnp.where(inside, place, (size - 1) - jnp.abs(jnp.mod(place, 2.0 * (size - 1)) - (size - 1)))


def _shifted(by: Array) -> Array:
  return jnp.eye(3).at[:2, 2].set(by)


def _scaled(x: Array | float, y: Array | float) -> Array:
  return jnp.diag(jnp.stack([jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), jnp.float32(1)]))


def _turned(angle: Array) -> Array:
  c, s = jnp.cos(angle), jnp.sin(angle)
  return jnp.eye(3).at[:2, :2].set(jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])]))


def _quarter(turns: Array) -> Array:
  """A rotation by quarters of a circle, exact."""
  return jnp.round(_turned(turns * (math.pi / 2)))


def _turned_around_luma(angle: Array) -> Array:
  """Rodrigues' formula."""
  a, b, c = _LUMA
  cross = jnp.array([[0.0, -c, b], [c, 0.0, -a], [-b, a, 0.0]])
  return jnp.cos(angle) * jnp.eye(3) + jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * _GRAY


def _noisy(image: Array, p: Array, key: Key[Array, '']) -> Array:
  coin, size, noise = jax.random.split(key, 3)
  sigma = jnp.where(jax.random.uniform(coin) < p, 0.1 * jnp.abs(jax.random.normal(size)), 0.0)
  return image + sigma * jax.random.normal(noise, image.shape)


def _cut(image: Array, p: Array, key: Key[Array, '']) -> Array:
  """A square of half the side around a random middle becomes 0."""
  coin, middle = jax.random.split(key)
  size = jnp.where(jax.random.uniform(coin) < p, 0.5, 0.0)
  row, column = jax.random.uniform(middle, (2,))
  h, w, _ = image.shape
  rows = jnp.abs((jnp.arange(h) + 0.5) / h - row) < size / 2
  columns = jnp.abs((jnp.arange(w) + 0.5) / w - column) < size / 2
  return jnp.where((rows[:, None] & columns[None])[..., None], 0.0, image)
