"""VQModel, the autoencoder of VQ-VAE and VQGAN: images to a grid of codes, each a row of a codebook, and back.

  k(z) = argmin_k |z - e_k|^2, or argmax_k z . e_k / |z||e_k| (cosine)                     (1)
  z_q = e_k(z) + z - sg[z]                                                                 (2)
  z_q = z + sg[round(bound(z)) - z], on a fixed grid (FSQ)                                 (3)

Eq. 2 is the value of the code with the gradient of z (straight-through); sg stops a gradient. Encoder and decoder are
those of models/autoencoder.py. van den Oord et al. 2017 (VQ-VAE); Esser et al. 2021 (VQGAN); Yu et al. 2022 (cosine
codes: ViT-VQGAN); Mentzer et al. 2024, "Finite Scalar Quantization" (FSQ).
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.autoencoder import Decoder, Encoder, Policy, stack
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Float, Int

_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
# For FSQ, whose codes would all be 0 at the start, and a decoder's norms of zeros make gradients without bound.
_wide = nn.initializers.variance_scaling(9.0, 'fan_in', 'uniform')


class Size(NamedTuple):
  """The shape of a published model; the attributes are VQModel's."""

  multipliers: tuple[int, ...]
  latent: int
  codes: int
  attention: tuple[int, ...] = ()


SIZES = {
  'vq-f4': Size((1, 2, 4), latent=3, codes=8192),  # Rombach et al. 2022, as is the next
  'ldm-vq-f8': Size((1, 2, 2, 4), latent=4, codes=16384, attention=(3,)),
  'vq-f8': Size((1, 1, 2, 4), latent=4, codes=16384, attention=(3,)),  # Esser et al., on OpenImages
  'vqgan-f16-1024': Size((1, 1, 2, 2, 4), latent=256, codes=1024, attention=(4,)),
  'vqgan-f16-16384': Size((1, 1, 2, 2, 4), latent=256, codes=16384, attention=(4,)),
}


class Codes(NamedTuple):
  """A grid of codes.

  Attributes:
    z: the codes' vectors, without a gradient to anything but the codebook.
    index: their numbers.
  """

  z: Float[Array, 'b h w d']
  index: Int[Array, 'b h w']


class VQModel(nn.Module):
  """`encode(images) -> z`, `quantize(z) -> Codes`, `decode(z_q) -> images`, by `apply(..., method='encode')`.

  Attributes:
    codes: rows of the codebook; 0 for FSQ.
    width_of_code: features of a code; `latent` for None.
    cosine: codes are compared by direction.
    levels: FSQ's number of levels for each feature of a code, instead of a codebook.
    multipliers, latent, ...: as in AutoencoderKL.
  """

  multipliers: tuple[int, ...]
  latent: int
  codes: int
  attention: tuple[int, ...] = ()
  width_of_code: int | None = None
  cosine: bool = False
  levels: tuple[int, ...] = ()
  channels: int = 3
  width: int = 128
  blocks: int = 2
  groups: int = 32
  middle_attention: bool = True
  dtype: Any = jnp.float32
  remat: Policy = None

  def setup(self) -> None:
    if bool(self.codes) == bool(self.levels):
      raise ValueError(f'codes is {self.codes} and levels {self.levels}; set one of them: a codebook, or FSQ')
    self.encoder = Encoder(self.latent, *stack(self), name='encoder')
    self.decoder = Decoder(self.channels, *stack(self), name='decoder')
    into_codes = _wide if self.levels else _uniform
    self.quant_conv = Linear(self.features, dtype=self.dtype, kernel_init=into_codes)
    self.post_quant_conv = Linear(self.latent, dtype=self.dtype, kernel_init=_uniform)
    if self.codes:
      self.codebook = self.param('codebook', initial_codebook(self.cosine), (self.codes, self.features))

  @property
  def features(self) -> int:
    """Number of channels of a code."""
    return self.width_of_code or self.latent

  @property
  def codes_in_all(self) -> int:
    """Rows of the codebook, or of the one that FSQ stands for."""
    return math.prod(self.levels) if self.levels else self.codes

  @property
  def factor(self) -> int:
    """Pixels along the side of one code."""
    return 2 ** (len(self.multipliers) - 1)

  def encode(self, images: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
    """The vectors before quantization; float32."""
    return self.quant_conv(self.encoder(images)).astype(jnp.float32)

  def quantize(self, z: Float[Array, 'b h w d']) -> Codes:
    """Eq. 1, from the model's own codebook, or Eq. 3."""
    return fsq(z, self.levels) if self.levels else nearest(z, self.codebook, cosine=self.cosine)

  def decode(self, z: Float[Array, 'b h w d']) -> Float[Array, 'b h2 w2 c']:
    """Images from quantized vectors."""
    return self.decoder(self.post_quant_conv(z.astype(self.dtype))).astype(jnp.float32)

  @property
  def channels_of_latents(self) -> int:
    return self.features

  def posterior(self, images: Float[Array, 'b h w c']) -> tuple[Array, Array]:
    """The vectors before quantization, which are certain: models/latents.py."""
    z = self.encode(images)
    return z, jnp.zeros_like(z)

  def restore(self, z: Float[Array, 'b h w d']) -> Float[Array, 'b h2 w2 c']:
    """Images from vectors that are quantized first, as latent diffusion leaves them."""
    return self.decode(self.quantize(z).z)

  def __call__(self, images: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    return self.restore(self.encode(images))


def vq_model(name: str, **options: Any) -> VQModel:
  """A published model: `vq_model('vq-f4')`; options are other attributes of VQModel."""
  if name not in SIZES:
    raise ValueError(f'there is no VQ model {name!r}; wanted one of {", ".join(SIZES)}')
  return VQModel(**SIZES[name]._asdict(), **options)


def initial_codebook(cosine: bool) -> nn.initializers.Initializer:
  """Initialiser: uniform in +-1 / codes as VQGAN's, or normal for codes that are compared by direction."""

  def init(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    if cosine:
      return jax.random.normal(key, shape, dtype)
    return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])

  return init


def nearest(z: Float[Array, 'b h w d'], codebook: Float[Array | np.ndarray, 'k d'], *, cosine: bool = False) -> Codes:
  """Eq. 1. With `cosine` the vectors of the codes have length 1, as `direction(z)` has."""
  codebook = jnp.asarray(codebook)  # NumPy's own cannot be indexed under jit
  codebook = direction(codebook) if cosine else codebook
  flat = z.reshape(-1, z.shape[-1])
  dots = jnp.dot(flat, codebook.T, precision=jax.lax.Precision.HIGHEST)  # n k
  # |z|^2 is the same for all codes, and so are the lengths of directions.
  scores = dots if cosine else dots - 0.5 * jnp.sum(codebook**2, axis=-1)[None]
  index = jnp.argmax(scores, axis=-1)
  return Codes(codebook[index].reshape(z.shape), index.reshape(z.shape[:-1]).astype(jnp.int32))


def direction(z: Float[Array, '... d']) -> Float[Array, '... d']:
  """z / |z|, 0 where z is."""
  return z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z**2, axis=-1, keepdims=True), 1e-12))


def straight_through(z: Float[Array, '...'], value: Float[Array, '...']) -> Float[Array, '...']:
  """Eq. 2: the value, with the gradient of z."""
  return z + jax.lax.stop_gradient(value - z)


def fsq(z: Float[Array, 'b h w d'], levels: tuple[int, ...]) -> Codes:
  """Eq. 3: channel i takes one of `levels[i]` values, evenly spread in [-1, 1]; the gradient passes straight through.

  An even number of levels is shifted by half a step, so that 0 is between two of them.
  """
  if z.shape[-1] != len(levels):
    raise ValueError(f'FSQ has {len(levels)} levels and z {z.shape[-1]} channels; set width_of_code to len(levels)')
  counts = np.asarray(levels, np.float32).reshape(1, 1, 1, -1)
  half = (counts - 1) * (1 + 1e-3) / 2
  offset = np.where(counts % 2 == 0, 0.5, 0.0).astype(np.float32)
  shift = jnp.arctanh(jnp.asarray(offset / half))
  bounded = jnp.asarray(half) * jnp.tanh(z + shift) - jnp.asarray(offset)
  digits = straight_through(bounded, jnp.round(bounded))
  places = np.cumprod([1, *levels[:-1]]).astype(np.int32).reshape(1, 1, 1, -1)
  whole = counts // 2
  index = jnp.sum((jax.lax.stop_gradient(digits) + whole).astype(jnp.int32) * places, axis=-1)
  return Codes(digits / whole, index)
