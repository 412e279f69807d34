"""The U-Nets of EDM on CIFAR-10 and its like: DDPM++ and NCSN++ (Song et al. 2021) as Karras et al. 2022 train them.

  c = silu(out(silu(in(time(t) + label(y) + augment(a)))))                                      (1)
  h = silu(norm(conv(resize(silu(norm(x)))) + shift(c)))                                        (2)
  block(x) = (skip(resize(x)) + conv(dropout(h))) / sqrt(2)                                     (3)
  attend(x) = (x + out(attention(norm(x)))) / sqrt(2)                                           (4)
  r <- (x + halve(conv(r))) / sqrt(2),  x <- r       at the head of each level, r first the image    (5)    NCSN++

What differs from models/unet.py is where the embedding's parts meet (Eq. 1), the halves of Eqs. 3 to 5, which keep the
variance, that the decoder attends after the last block of a level alone, and NCSN++'s smooth resampling, features of
time and second path from the image (Eq. 5).

Last convolutions of blocks, outputs of attention and the output start at 1e-5 of the others, as EDM's do.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxgen import sharding
from jaxgen.models.layers import resample
from jaxgen.models.layers.attention_block import AttentionBlock
from jaxgen.models.layers.conv import Conv
from jaxgen.models.layers.embedding import ddpm_timestep_embedding
from jaxgen.models.layers.group_norm import GroupNorm
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Cond, Float

_HALF = 0.5**0.5
_xavier = nn.initializers.xavier_uniform()
_small = nn.initializers.variance_scaling(1e-10, 'fan_avg', 'uniform')
_of_qkv = nn.initializers.variance_scaling(0.2, 'fan_avg', 'uniform')

# Over `tensor`: hidden features of a block; attention has one head.
RULES: tuple[sharding.Rule, ...] = (
  (r'(block\d+|up|down|in\d)/conv0/kernel$', (..., ..., ..., 'tensor')),
  (r'(block\d+|up|down|in\d)/conv1/kernel$', (..., ..., 'tensor', ...)),
  (r'(block\d+|up|down|in\d)/affine/kernel$', (..., 'tensor')),
)


class Stage(NamedTuple):
  """A block of the encoder or the decoder, as it is named in `EDMUNet`'s parameters.

  Attributes:
    name: `LEVEL_block0`, `LEVEL_down`, ...
    features: number of features of its output.
    attend: whether attention follows the block.
    resize: -1 halves the image, 1 doubles it.
    reads: whether a skip connection from the encoder is concatenated to its input.
  """

  name: str
  features: int
  attend: bool = False
  resize: int = 0
  reads: bool = False


class EDMUNet(nn.Module):
  """The network: `(x, t, cond) -> output`, both images.

  Attributes:
    width: features that `multipliers` multiply; the embedding is four times as wide.
    multipliers: features of each level, in widths; level i works at 1 / 2^i of the image's side.
    blocks: residual blocks in each level of the encoder; the decoder has one more.
    attention: the levels with attention; the middle has it too.
    num_classes: labels are 0 to num_classes - 1, and num_classes, the null label, adds nothing; 0 is unconditional.
    augment: features of `cond['augment']`, the augmentation of an image; 0 for none, 9 as published.
    dropout: rate within the blocks (Eq. 3), when training.
    smooth: NCSN++: taps 1, 3, 3, 1 when resampling, random Fourier features of time, and the path of Eq. 5.
    frequencies: `width` frequencies of the Fourier features, as published weights have them; None samples them.
    dtype: dtype of activations; parameters, the conditioning and the output are float32.
  """

  width: int = 128
  multipliers: tuple[int, ...] = (2, 2, 2)
  blocks: int = 4
  attention: tuple[int, ...] = (1,)
  num_classes: int = 0
  augment: int = 0
  dropout: float = 0.13
  smooth: bool = False
  frequencies: tuple[float, ...] | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, 'b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b h w c']:
    """Denoises.

    Args:
      x: images.
      t: log(sigma) / 4 (`Process.network_time` of processes/edm.py).
      cond: `'label'`, int32 b, if there are classes; `'augment'`, float b a, of images that are augmented.
      train: whether dropout is on; its rng is 'dropout'.
    """
    self._check(x.shape)
    channels, c = x.shape[-1], self._embed(t, cond)
    x = residual = x.astype(self.dtype)
    x = _conv(self.width, self.dtype, 'conv_in')(x)
    kept = [x]
    for stage in encoder(self):
      x = self._run(stage, x, c, train)
      if self.smooth and stage.resize:
        residual = FusedHalve(stage.features, self.dtype, name=stage.name + '_residual')(residual)
        x = residual = (x + residual) * _HALF  # Eq. 5
      kept.append(x)
    for stage in decoder(self):
      x = jnp.concatenate([x, kept.pop()], axis=-1) if stage.reads else x
      x = self._run(stage, x, c, train)
    x = nn.silu(_norm(x.shape[-1], self.dtype, 'norm_out')(x))
    return _conv(channels, self.dtype, 'conv_out', _small)(x).astype(jnp.float32)

  def _run(self, stage: Stage, x: Array, c: Array, train: bool) -> Array:
    dropout = self.dropout if train else 0.0
    return Block(stage, dropout, self.smooth, self.dtype, name=stage.name)(x, c)

  def _embed(self, t: Array, cond: Cond) -> Array:
    """c of Eq. 1, of float32 until the last."""
    features = self._fourier(t) if self.smooth else ddpm_timestep_embedding(t, self.width)
    if self.num_classes:
      rows = jnp.arange(self.num_classes)[None] == cond['label'][:, None]  # no row is the null label's
      features += Linear(features.shape[-1], name='label')(rows * self.num_classes**0.5)
    if self.augment:
      width = features.shape[-1]
      augment = cond.get('augment', jnp.zeros((len(t), self.augment)))
      features += Linear(width, use_bias=False, name='augment_embed')(augment)
    h = nn.silu(Linear(4 * self.width, name='embed_in')(features))
    return nn.silu(Linear(4 * self.width, name='embed_out')(h)).astype(self.dtype)

  def _fourier(self, t: Array) -> Array:
    """Sines, then cosines, of 2 pi t times random frequencies."""
    frequencies = self.frequencies or 16 * np.random.default_rng(0).standard_normal(self.width)
    angles = 2 * np.pi * t.astype(jnp.float32)[:, None] * jnp.asarray(frequencies, jnp.float32)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

  def _check(self, shape: tuple[int, ...]) -> None:
    factor = 2 ** (len(self.multipliers) - 1)
    if shape[1] % factor or shape[2] % factor:
      raise ValueError(
        f'images of {shape[1]}x{shape[2]} cannot be halved {len(self.multipliers) - 1} times; '
        f'the sides of the images must divide by {factor}, or `multipliers` be fewer'
      )


def encoder(net: EDMUNet) -> list[Stage]:
  """From the first convolution down; the result of each is kept for the decoder."""
  stages, before = [], net.width
  for level, multiplier in enumerate(net.multipliers):
    if level:
      stages.append(Stage(f'encoder_{level}_down', before, resize=-1))
    before = multiplier * net.width
    attend = level in net.attention
    stages += [Stage(f'encoder_{level}_block{i}', before, attend) for i in range(net.blocks)]
  return stages


def decoder(net: EDMUNet) -> list[Stage]:
  """Through the middle and back up."""
  last = len(net.multipliers) - 1
  before = net.multipliers[-1] * net.width
  stages = [Stage(f'decoder_{last}_in0', before, attend=True), Stage(f'decoder_{last}_in1', before)]
  for level in reversed(range(len(net.multipliers))):
    if level < last:
      stages.append(Stage(f'decoder_{level}_up', before, resize=1))
    before = net.multipliers[level] * net.width
    for i in range(net.blocks + 1):
      attend = i == net.blocks and level in net.attention
      stages.append(Stage(f'decoder_{level}_block{i}', before, attend, reads=True))
  return stages


def ddpmpp(*, num_classes: int = 0, augment: int = 0, dtype: Any = jnp.float32) -> EDMUNet:
  """EDM's DDPM++ for CIFAR-10; `augment=9` for the published weights."""
  return EDMUNet(num_classes=num_classes, augment=augment, dtype=dtype)


def ncsnpp(*, num_classes: int = 0, augment: int = 0, dtype: Any = jnp.float32) -> EDMUNet:
  """EDM's NCSN++ for CIFAR-10; `augment=9` for the published weights."""
  return EDMUNet(num_classes=num_classes, augment=augment, smooth=True, dtype=dtype)


class Block(nn.Module):
  """Eqs. 2 to 4."""

  stage: Stage
  dropout: float
  smooth: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], c: Float[Array, 'b d']) -> Float[Array, 'b h2 w2 o']:
    stage, features = self.stage, self.stage.features
    h = nn.silu(_norm(x.shape[-1], self.dtype, 'norm0')(x))
    h = _conv(features, self.dtype, 'conv0')(_resized(h, stage.resize, self.smooth))
    h += Linear(features, dtype=self.dtype, name='affine')(c)[:, None, None]
    h = nn.silu(_norm(features, self.dtype, 'norm1')(h))  # Eq. 2
    h = nn.Dropout(self.dropout, deterministic=False)(h)
    h = _conv(features, self.dtype, 'conv1', _small)(h)
    if x.shape[-1] != features or stage.resize:
      x = Linear(features, dtype=self.dtype, name='skip')(_resized(x, stage.resize, self.smooth))
    x = (x + h) * _HALF  # Eq. 3
    if not stage.attend:
      return x
    attend = AttentionBlock(
      _groups(features), 1e-6, qkv_init=_of_qkv, out_init=_small, dtype=self.dtype, name='attention'
    )
    return attend(x) * _HALF  # Eq. 4


class FusedHalve(nn.Module):
  """halve(conv(x)) of Eq. 5, the convolution reaching one pixel further for the taps."""

  features: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 o']:
    h = Conv(self.features, padding=2, dtype=self.dtype, kernel_init=_xavier, use_bias=False, name='conv')(x)
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,), jnp.float32)
    return resample.halve_smooth(h, padding=0) + bias.astype(self.dtype)[None, None, None]


def _resized(x: Array, resize: int, smooth: bool) -> Array:
  if resize == 0:
    return x
  if resize < 0:
    return resample.halve_smooth(x) if smooth else resample.halve(x)
  return resample.double_smooth(x) if smooth else resample.double(x)


def _norm(features: int, dtype: Any, name: str) -> GroupNorm:
  return GroupNorm(_groups(features), dtype=dtype, name=name)


def _groups(features: int) -> int:
  return min(32, features // 4)


def _conv(features: int, dtype: Any, name: str, kernel_init: Any = _xavier) -> Conv:
  """A 3x3 convolution."""
  return Conv(features, padding=1, dtype=dtype, kernel_init=kernel_init, name=name)
