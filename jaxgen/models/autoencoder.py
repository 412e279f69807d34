"""AutoencoderKL, the autoencoder of latent diffusion and of Stable Diffusion: images to a Gaussian of latents and back.

  h = conv(silu(norm(x))), block(x) = skip(x) + conv(silu(norm(h)))                        (1)
  attend(x) = x + out(attention(norm(x))), one head, over all pixels                       (2)
  encode(x) = N(mean, diag exp(log variance)),  both from encoder(x)                       (3)
  decode(z) = decoder(z)                                                                   (4)

Encoder and decoder are stacks of Eq. 1 on levels of half the size each, with Eq. 2 in the middle and on the levels that
ask for it; f levels less one give latents of side h / 2^f. Rombach et al. 2022, "High-Resolution Image Synthesis with
Latent Diffusion Models"; Esser et al. 2021, "Taming Transformers" (VQGAN) has the same two stacks.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.layers.attention_block import AttentionBlock
from jaxgen.models.layers.conv import Conv
from jaxgen.models.layers.group_norm import GroupNorm
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.remat import Policy
from jaxgen.models.layers.resample import double
from jaxgen.typing import Array, Float, Key, MakeModule

_EPS = 1e-6
_LOG_VARIANCE = (-30.0, 20.0)  # its range, outside of which exp is of no use
# PyTorch's own initialiser for convolutions and linear layers: uniform, of variance 1 / (3 fan in).
_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class Gaussian(NamedTuple):
  """Latents that are independent normals."""

  mean: Float[Array, 'b ...']
  log_variance: Float[Array, 'b ...']

  @property
  def std(self) -> Array:
    return jnp.exp(0.5 * self.log_variance)

  def sample(self, keys: Key[Array, ' b']) -> Array:
    """One sample for each image from its own key."""
    noise = jax.vmap(lambda key: jax.random.normal(key, self.mean.shape[1:]))(keys)
    return self.mean + self.std * noise

  def kl(self) -> Array:
    """KL(N(mean, std^2) || N(0, 1)) of each latent, in nats."""
    return 0.5 * (self.mean**2 + jnp.exp(self.log_variance) - 1.0 - self.log_variance)


class Size(NamedTuple):
  """The shape of a published autoencoder; the attributes are those of AutoencoderKL."""

  multipliers: tuple[int, ...]
  latent: int
  attention: tuple[int, ...] = ()
  quant: bool = True


SIZES = {
  'sd-f8': Size((1, 2, 4, 4), latent=4),  # Stable Diffusion 1 and 2
  'sd3-f8': Size((1, 2, 4, 4), latent=16, quant=False),  # Stable Diffusion 3
  'sdxl-f8': Size((1, 2, 4, 4), latent=4),
  'flux-f8': Size((1, 2, 4, 4), latent=16, quant=False),
  'kl-f4': Size((1, 2, 4), latent=3),  # Rombach et al.
  'kl-f8': Size((1, 2, 4, 4), latent=4),
  'kl-f16': Size((1, 1, 2, 2, 4), latent=16, attention=(4,)),
}


class AutoencoderKL(nn.Module):
  """`encode(images) -> Gaussian` and `decode(latents) -> images`, by `apply(..., method='encode')`.

  Attributes:
    multipliers: features of each level, in widths; level i works at 1 / 2^i of the image's side.
    latent: channels of the latents.
    attention: the levels with attention after each block; the middle has it too, if `middle_attention`.
    quant: a 1x1 convolution after the encoder.
    post_quant: a 1x1 convolution before the decoder; None for the value of `quant`.
    channels: number of channels of the images.
    width: features that `multipliers` multiply.
    blocks: residual blocks in each level of the encoder; the decoder has one more.
    groups: number of groups in each group norm.
    dtype: dtype of activations; parameters, norms' statistics, latents and images are float32.
    remat: policy of `jax.checkpoint` for each block (`layers.remat.policy(name)`); None keeps everything.
  """

  multipliers: tuple[int, ...]
  latent: int
  attention: tuple[int, ...] = ()
  quant: bool = True
  post_quant: bool | None = None
  channels: int = 3
  width: int = 128
  blocks: int = 2
  groups: int = 32
  middle_attention: bool = True
  dtype: Any = jnp.float32
  remat: Policy = None

  def setup(self) -> None:
    self.encoder = Encoder(2 * self.latent, *stack(self), name='encoder')
    self.decoder = Decoder(self.channels, *stack(self), name='decoder')
    if self.quant:
      self.quant_conv = Linear(2 * self.latent, dtype=self.dtype, kernel_init=_uniform)
    if self.has_post_quant:
      self.post_quant_conv = Linear(self.latent, dtype=self.dtype, kernel_init=_uniform)

  @property
  def has_post_quant(self) -> bool:
    return self.quant if self.post_quant is None else self.post_quant

  @property
  def factor(self) -> int:
    """Pixels along the side of one latent."""
    return 2 ** (len(self.multipliers) - 1)

  def encode(self, images: Float[Array, 'b h w c']) -> Gaussian:
    h = self.encoder(images)
    h = self.quant_conv(h) if self.quant else h
    mean, log_variance = jnp.split(h.astype(jnp.float32), 2, axis=-1)
    return Gaussian(mean, jnp.clip(log_variance, *_LOG_VARIANCE))  # Eq. 3

  def decode(self, latents: Float[Array, 'b h w z']) -> Float[Array, 'b h2 w2 c']:
    z = latents.astype(self.dtype)
    return self.decoder(self.post_quant_conv(z) if self.has_post_quant else z).astype(jnp.float32)  # Eq. 4

  @property
  def channels_of_latents(self) -> int:
    return self.latent

  def posterior(self, images: Float[Array, 'b h w c']) -> tuple[Array, Array]:
    """Mean and standard deviation of the latents: models/latents.py."""
    gaussian = self.encode(images)
    return gaussian.mean, gaussian.std

  def restore(self, z: Float[Array, 'b h w z']) -> Float[Array, 'b h2 w2 c']:
    return self.decode(z)

  def __call__(self, images: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    """The image of the mean: what `init` runs."""
    return self.decode(self.encode(images).mean)


def autoencoder_kl(name: str, **options: Any) -> AutoencoderKL:
  """A published autoencoder: `autoencoder_kl('sd-f8')`; options are other attributes of AutoencoderKL."""
  if name not in SIZES:
    raise ValueError(f'there is no autoencoder {name!r}; wanted one of {", ".join(SIZES)}')
  return AutoencoderKL(**SIZES[name]._asdict(), **options)


class Stack(NamedTuple):
  """The attributes that an encoder and a decoder share with AutoencoderKL."""

  features: tuple[int, ...]  # one number for each level
  blocks: int
  attention: tuple[int, ...]
  middle_attention: bool
  groups: int
  dtype: Any
  remat: Policy


def stack(net: Any) -> Stack:
  """The stack of a network with the fields of AutoencoderKL."""
  features = tuple(net.width * multiplier for multiplier in net.multipliers)
  for level, size in enumerate(features):
    if size % net.groups:
      raise ValueError(f'level {level}: {size} features do not divide into {net.groups} groups')
  return Stack(features, net.blocks, net.attention, net.middle_attention, net.groups, net.dtype, net.remat)


class Encoder(nn.Module):
  """Images to `outputs` channels at 1 / 2^(levels - 1) of the side."""

  outputs: int
  features: tuple[int, ...]
  blocks: int
  attention: tuple[int, ...]
  middle_attention: bool
  groups: int
  dtype: Any
  remat: Policy

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 o']:
    factor = 2 ** (len(self.features) - 1)
    if x.shape[1] % factor or x.shape[2] % factor:
      raise ValueError(f'images of {x.shape[1]}x{x.shape[2]} do not divide by {factor}, the side of a latent')
    block, attend = _layers(self)
    x = _conv(self.features[0], self.dtype, name='conv_in')(x.astype(self.dtype))
    for level, features in enumerate(self.features):
      for i in range(self.blocks):
        x = block(features, name=f'level_{level}_block_{i}')(x)
        if level in self.attention:
          x = attend(name=f'level_{level}_attention_{i}')(x)
      if level + 1 < len(self.features):
        # The published encoders put their zeros after the image only.
        x = _conv(features, self.dtype, strides=2, padding=((0, 1), (0, 1)), name=f'level_{level}_resize')(x)
    x = _middle(self, x)
    x = nn.silu(_norm(self.groups, self.dtype, name='norm_out')(x))
    return _conv(self.outputs, self.dtype, name='conv_out')(x)


class Decoder(nn.Module):
  """Latents to `outputs` channels at 2^(levels - 1) times the side; levels are numbered as the encoder's."""

  outputs: int
  features: tuple[int, ...]
  blocks: int
  attention: tuple[int, ...]
  middle_attention: bool
  groups: int
  dtype: Any
  remat: Policy

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 o']:
    block, attend = _layers(self)
    x = _conv(self.features[-1], self.dtype, name='conv_in')(x.astype(self.dtype))
    x = _middle(self, x)
    for level, features in reversed(list(enumerate(self.features))):
      for i in range(self.blocks + 1):
        x = block(features, name=f'level_{level}_block_{i}')(x)
        if level in self.attention:
          x = attend(name=f'level_{level}_attention_{i}')(x)
      if level:
        x = _conv(features, self.dtype, name=f'level_{level}_resize')(double(x))
    x = nn.silu(_norm(self.groups, self.dtype, name='norm_out')(x))
    return _conv(self.outputs, self.dtype, name='conv_out')(x)


class Block(nn.Module):
  """Eq. 1."""

  features: int
  groups: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w o']:
    h = nn.silu(_norm(self.groups, self.dtype, name='norm_in')(x))
    h = _conv(self.features, self.dtype, name='conv_in')(h)
    h = nn.silu(_norm(self.groups, self.dtype, name='norm_out')(h))
    h = _conv(self.features, self.dtype, name='conv_out')(h)
    if x.shape[-1] != self.features:
      x = Linear(self.features, dtype=self.dtype, kernel_init=_uniform, name='skip')(x)
    return x + h


def _layers(net: Encoder | Decoder) -> tuple[MakeModule, MakeModule]:
  """Makers of Eq. 1, `(features, name=)`, and of Eq. 2, `(name=)`."""
  block, attend = Block, AttentionBlock
  if net.remat is not None:
    block, attend = nn.remat(block, policy=net.remat), nn.remat(attend, policy=net.remat)
  return (
    lambda features, name: block(features, net.groups, net.dtype, name=name),
    lambda name: attend(
      net.groups, _EPS, fused=False, qkv_init=_uniform, out_init=_uniform, dtype=net.dtype, name=name
    ),
  )


def _middle(net: Encoder | Decoder, x: Array) -> Array:
  """Block, attention, block, at the smallest size."""
  block, attend = _layers(net)
  x = block(net.features[-1], name='middle_block_0')(x)
  x = attend(name='middle_attention')(x) if net.middle_attention else x
  return block(net.features[-1], name='middle_block_1')(x)


def _norm(groups: int, dtype: Any, *, name: str) -> GroupNorm:
  return GroupNorm(groups, _EPS, dtype, name=name)


def _conv(features: int, dtype: Any, *, name: str, strides: int = 1, padding: Any = 1) -> Conv:
  """A 3x3 convolution."""
  return Conv(features, strides=strides, padding=padding, dtype=dtype, kernel_init=_uniform, name=name)
