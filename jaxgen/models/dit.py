"""DiT: a transformer over image patches, conditioned by adaptive layer norms that start as the identity.

  c = time(t) + label(y) + interval(t - r), the last only with `interval`                   (1)
  shift1, scale1, gate1, shift2, scale2, gate2 = modulation(silu(c))                        (2)
  x <- x + gate1 * attention(norm(x) (1 + scale1) + shift1)                                 (3)
  x <- x + gate2 * mlp(norm(x) (1 + scale2) + shift2)                                       (4)

The modulations and the last layer start at zero: each block is the identity and the output is zero.
Peebles and Xie 2023, "Scalable Diffusion Models with Transformers".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxgen.models.layers.attention import attention
from jaxgen.models.layers.embedding import sincos_2d, timestep_embedding
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Cond, Float, Int

_TIME_FEATURES = 256
_normal = nn.initializers.normal(0.02)
_zeros = nn.initializers.zeros_init()


class Size(NamedTuple):
  """The shape of a transformer."""

  depth: int
  width: int
  heads: int


SIZES = {
  'S': Size(depth=12, width=384, heads=6),
  'B': Size(depth=12, width=768, heads=12),
  'L': Size(depth=24, width=1024, heads=16),
  'XL': Size(depth=28, width=1152, heads=16),
}
PATCHES = (2, 4, 8)


class DiT(nn.Module):
  """The network: `(x, t, cond) -> output`, both images.

  Attributes:
    patch: side of a square patch, in pixels; divides the image's sides.
    depth, width, heads: number of blocks, width of a token, attention heads of size width / heads.
    num_classes: labels are 0 to num_classes - 1, and num_classes is the null label; 0 is unconditional.
    mlp_ratio: hidden width of the MLP, in widths.
    learn_sigma: the output has twice the input's channels, the second half for a learned variance.
    interval: the length t - r of a jump is a condition too, as in MeanFlow and shortcut models.
    dtype: of activations; parameters, the conditioning and the output are float32.
    remat: policy of `jax.checkpoint` for each block (`layers.remat.policy(name)`); None keeps everything.
    unroll: blocks per iteration of the scan over depth; compile time grows with it.
  """

  patch: int
  depth: int
  width: int
  heads: int
  num_classes: int = 0
  mlp_ratio: int = 4
  learn_sigma: bool = False
  interval: bool = False
  dtype: Any = jnp.float32
  remat: Callable[..., bool] | None = None
  unroll: int = 1

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, 'b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b h w o']:
    """Denoises.

    Args:
      x: images or latents.
      t: time as the sinusoid sees it, of the order of 0 to 1000 (`Process.network_time`).
      cond: `{'label': int32 b}`, or anything if the network is unconditional; with `interval` also
        `{'interval': float32 b}`, of the order of 0 to 1000 like `t`.
      train: part of every network's signature; DiT behaves the same.
    """
    height, width, channels = x.shape[1:]
    if height % self.patch or width % self.patch:
      raise ValueError(f'images of {height}x{width} do not divide into patches of {self.patch}')
    grid = (height // self.patch, width // self.patch)
    c = TimeEmbedding(self.width, name='time_embed')(t)
    if self.num_classes:
      c += LabelEmbedding(self.num_classes, self.width, name='label_embed')(cond['label'])
    if self.interval:
      c += TimeEmbedding(self.width, name='interval_embed')(cond['interval'])
    c = nn.silu(c).astype(self.dtype)  # b d
    x = patchify(x.astype(self.dtype), self.patch)  # b l ppc
    x = Linear(self.width, dtype=self.dtype, name='patch_embed')(x)
    x += jnp.asarray(sincos_2d(*grid, self.width), self.dtype)[None]
    x, _ = self._blocks()(x, c)
    channels *= 1 + self.learn_sigma
    x = FinalLayer(self.patch**2 * channels, self.dtype, name='final')(x, c)
    return unpatchify(x, grid, self.patch).astype(jnp.float32)

  def _blocks(self) -> nn.Module:
    block = Block
    if self.remat is not None:
      block = nn.remat(block, policy=self.remat, prevent_cse=False)  # a scan needs no such fence
    stack = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=nn.broadcast,
      length=self.depth,
      unroll=self.unroll,
    )
    return stack(self.heads, self.mlp_ratio, self.dtype, name='blocks')


def dit(
  size: str,
  *,
  num_classes: int = 0,
  learn_sigma: bool = False,
  dtype: Any = jnp.float32,
  remat: Callable[..., bool] | None = None,
  unroll: int = 1,
) -> DiT:
  """A published size by name: `dit('XL/2', num_classes=1000, learn_sigma=True)`."""
  name, _, patch = size.partition('/')
  if name not in SIZES or patch not in map(str, PATCHES):
    raise ValueError(f'DiT size {size!r} is unknown; wanted one of {", ".join(SIZES)}, then /2, /4 or /8')
  return DiT(
    patch=int(patch),
    **SIZES[name]._asdict(),
    num_classes=num_classes,
    learn_sigma=learn_sigma,
    dtype=dtype,
    remat=remat,
    unroll=unroll,
  )


def patchify(x: Float[Array, 'b h w c'], patch: int) -> Float[Array, 'b l ppc']:
  """Cuts images into rows of tokens; a token is a patch in row-major order, channels last."""
  b, height, width, c = x.shape
  x = x.reshape(b, height // patch, patch, width // patch, patch, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, patch * patch * c)


def unpatchify(x: Float[Array, 'b l ppc'], grid: tuple[int, int], patch: int) -> Float[Array, 'b h w c']:
  """The inverse of `patchify` for a grid of (rows, columns) of patches."""
  rows, columns = grid
  c = x.shape[-1] // patch**2
  x = x.reshape(x.shape[0], rows, columns, patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(x.shape[0], rows * patch, columns * patch, c)


def norm(x: Float[Array, 'b l d']) -> Float[Array, 'b l d']:
  """Layer norm with no parameters; its statistics are float32."""
  h = x.astype(jnp.float32)
  mean = h.mean(-1, keepdims=True)
  variance = jnp.square(h - mean).mean(-1, keepdims=True)
  return ((h - mean) * lax.rsqrt(variance + 1e-6)).astype(x.dtype)


def modulation(parts: int, x: Float[Array, 'b l d'], c: Float[Array, 'b d']) -> list[Float[Array, 'b 1 d']]:
  """Eq. 2: shifts, scales and gates for `x`; call it inside a compact module."""
  dense = Linear((parts, x.shape[-1]), kernel_init=_zeros, dtype=x.dtype, name='modulation')
  return [part[:, None] for part in jnp.unstack(dense(c), axis=1)]


def modulate(
  x: Float[Array, 'b l d'], shift: Float[Array, 'b 1 d'], scale: Float[Array, 'b 1 d']
) -> Float[Array, 'b l d']:
  return x * (1 + scale) + shift


class TimeEmbedding(nn.Module):
  """time(t) of Eq. 1, in float32; of an interval's length just as well."""

  width: int

  @nn.compact
  def __call__(self, t: Float[Array, 'b']) -> Float[Array, 'b d']:
    h = timestep_embedding(t, _TIME_FEATURES)
    h = nn.silu(Linear(self.width, kernel_init=_normal, name='in')(h))
    return Linear(self.width, kernel_init=_normal, name='out')(h)


class LabelEmbedding(nn.Module):
  """label(y) of Eq. 1; the row `num_classes` is the null label's."""

  num_classes: int
  width: int

  @nn.compact
  def __call__(self, label: Int[Array, 'b']) -> Float[Array, 'b d']:
    return nn.Embed(self.num_classes + 1, self.width, embedding_init=_normal, name='table')(label)


class Block(nn.Module):
  """Eqs. 2 to 4; a scan's body, so it returns a pair."""

  heads: int
  mlp_ratio: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d'], c: Float[Array, 'b d']) -> tuple[Float[Array, 'b l d'], None]:
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation(6, x, c)
    h = Attention(self.heads, self.dtype, name='attention')(modulate(norm(x), shift1, scale1))
    x = x + gate1 * h
    h = Mlp(self.mlp_ratio, self.dtype, name='mlp')(modulate(norm(x), shift2, scale2))
    return x + gate2 * h, None


class Attention(nn.Module):
  """Self-attention; the heads are an axis of the parameters, so they can be sharded."""

  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d']) -> Float[Array, 'b l d']:
    d = x.shape[-1]
    if d % self.heads:
      raise ValueError(f'width {d} does not divide into {self.heads} heads')
    qkv = (3, self.heads, d // self.heads)
    qkv = Linear(qkv, dtype=self.dtype, name='qkv')(x)  # b l 3 n h
    h = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])  # b l n h
    return Linear(d, inputs=2, dtype=self.dtype, name='out')(h)


class Mlp(nn.Module):
  """Two layers with a GELU (its tanh form) between."""

  ratio: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d']) -> Float[Array, 'b l d']:
    d = x.shape[-1]
    h = Linear(self.ratio * d, dtype=self.dtype, name='in')(x)
    return Linear(d, dtype=self.dtype, name='out')(nn.gelu(h))


class FinalLayer(nn.Module):
  """From tokens to patches, under one more modulation (shift, scale)."""

  features: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d'], c: Float[Array, 'b d']) -> Float[Array, 'b l o']:
    shift, scale = modulation(2, x, c)
    x = modulate(norm(x), shift, scale)
    return Linear(self.features, dtype=self.dtype, kernel_init=_zeros, name='linear')(x)
