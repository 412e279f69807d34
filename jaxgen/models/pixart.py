"""PixArt: a transformer over image patches that reads text by cross-attention, with one modulation for all blocks.

  e = time(t) [+ sizes(height, width, aspect)] [+ pooled(y)]                                        (1)
  m = modulation(silu(e)), six vectors for all blocks                                               (2)
  shift1, scale1, gate1, shift2, scale2, gate2 = m + table_i, of block i                            (3)
  x <- x + gate1 * attention(norm(x) (1 + scale1) + shift1)                                         (4)
  x <- x + cross_attention(x, caption(text))                                                        (5)
  x <- x + gate2 * mlp(norm(x) (1 + scale2) + shift2)                                               (6)
  out = final(norm(x) (1 + scale) + shift),  shift, scale = e + table                               (7)
  x_l <- x_l + to_width(map(y)_l), before the blocks                                                (8)

Chen et al. 2024, "PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image Synthesis".
A block has a table of 6 vectors where DiT's has a matrix that makes them: 27% fewer parameters at DiT-XL's shape. The
sizes are conditions of the model of 1024 pixels. Three fields are not the paper's, for small models whose text encoder
learns with them: `pooled`; `own_modulation`, which gives each block DiT's matrix in place of Eqs. 2 and 3; and
`text_map`, Eq. 8: a few channels a patch l, made of the pooled text y. Cross-attention has to learn which words matter
before it says anything; the map says from the first step what color the words put where.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxgen import sharding
from jaxgen.models.dit import Mlp, TimeEmbedding, modulate, modulation, norm, patchify, unpatchify, with_hint
from jaxgen.models.layers.attention import Attention
from jaxgen.models.layers.attention_edit import Edits
from jaxgen.models.layers.embedding import sincos_at
from jaxgen.models.layers.image_prompt import ImagePrompt, decoupled, of_blocks
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.remat import Policy
from jaxgen.models.layers.stack import in_segments, stack
from jaxgen.models.mmdit import PooledEmbedding
from jaxgen.typing import Array, Bool, Cond, Float

_zeros = nn.initializers.zeros_init()
_NO_EDITS = Edits()
_BOTH = ('tensor', 'fsdp')
# Beside DiT's: the products of the cross-attention, by whole heads.
RULES: tuple[sharding.Rule, ...] = (
  (r'blocks/cross_attention/(query|key|value)/kernel$', (None, None, _BOTH, None)),
  (r'blocks/cross_attention/(query|key|value)/kernel$', (None, 'fsdp', 'tensor', None)),
  (r'blocks/cross_attention/out/kernel$', (None, _BOTH, None, None)),
  (r'blocks/cross_attention/out/kernel$', (None, 'tensor', None, 'fsdp')),
)


class PixArt(nn.Module):
  """The network: `(x, t, cond) -> output`, both images.

  Attributes:
    patch: side of a square patch, in pixels; divides the image's sides.
    depth, width, heads: number of blocks, width of a token, attention heads of size width / heads.
    learn_sigma: the output has twice the input's channels, the second half for a learned variance.
    sizes: the original size and the aspect ratio are conditions (PixArt-alpha at 1024 pixels).
    pooled: the pooled text is a condition too.
    text_map: number of channels of Eq. 8; 0 for none. The parameters are then for images of one size.
    own_modulation: each block makes its own shifts, scales and gates, as in DiT, which start at zero.
    base, scale: sin-cos positions are those of a grid of `base` patches a side, divided by `scale`; a `base` of 0 for
      the positions of the image's own grid.
    mlp_ratio: hidden width of the MLPs, in widths.
    dtype: dtype of activations; parameters, the conditioning and the output are float32.
    remat: policy of `jax.checkpoint` for each block (`layers.remat.policy(name)`); None keeps everything.
    hidden, route, head: as in DiT.
  """

  patch: int
  depth: int
  width: int
  heads: int
  learn_sigma: bool = False
  sizes: bool = False
  pooled: bool = False
  text_map: int = 0
  own_modulation: bool = False
  base: int = 0
  scale: float = 1.0
  mlp_ratio: int = 4
  dtype: Any = jnp.float32
  remat: Policy = None
  hidden: tuple[int, ...] = ()
  route: tuple[int, int] | None = None
  head: bool = True

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, 'b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b h w o'] | Float[Array, 'b l d']:
    """Denoises.

    Args:
      x: images or latents.
      t: time as the sinusoid sees it, from 0 to 1000 (`Process.network_time`).
      cond: `text`, float b k e; optional `text_mask`, bool b k, True where there is a token, one of each image at
        least; with `pooled` or `text_map` also `pooled`, float b p; with `sizes` also `size`, float b 2, height
        and width in pixels, and `aspect`, float b, height / width. If given, `attention_edit`, `Edits` of
        layers/attention_edit.py, and `image_prompt`, float b m e, tokens of an image, with `image_prompt_scale`, float
        b or b n, of all blocks or of each; `patch_hint` as in DiT.
      train: part of every network's signature; PixArt behaves the same.

    Raises:
      ValueError: the image does not divide into patches.
    """
    height, width, channels = x.shape[1:]
    if height % self.patch or width % self.patch:
      raise ValueError(f'images of {height}x{width} do not divide into patches of {self.patch}')
    grid = (height // self.patch, width // self.patch)
    e = self._condition(t, cond)
    m = nn.silu(e).astype(self.dtype)
    if not self.own_modulation:
      m = sharding.by_features(
        Linear((6, self.width), kernel_init=_zeros, dtype=self.dtype, name='modulation'), m
      )  # b 6 d, Eq. 2
    x = Linear(self.width, dtype=self.dtype, name='patch_embed')(patchify(x.astype(self.dtype), self.patch))
    x = with_hint(x, cond)
    x += jnp.asarray(self._positions(grid), self.dtype)[None]
    if self.text_map:
      x += TextMap(x.shape[1], self.text_map, self.width, self.dtype, name='text_map')(cond['pooled'])
    text = CaptionEmbedding(self.width, self.dtype, name='caption_embed')(cond['text'])
    block = partial(Block, self.heads, self.mlp_ratio, self.dtype)
    edits: Any = cond.get('attention_edit', _NO_EDITS)
    image = of_blocks(cond, self.depth)
    shared = (m, text, cond.get('text_mask'), edits, None if image is None else image.tokens)

    def run(x: Array, kept: Array | None, *, start: int, stop: int) -> Array:
      scales = None if image is None or image.scale is None else image.scale[start:stop]
      part = {'depth': self.depth, 'each': scales, 'start': start, 'stop': stop}
      return stack(self, block, x, *shared, remat=self.remat, **part)

    x = in_segments(
      run,
      x,
      depth=self.depth,
      hidden=() if self.is_initializing() else self.hidden,
      route=self.route,
      kept=cond.get('kept'),
      leave=lambda depth, x: self.sow('hidden', f'depth_{depth}', x),
    )
    if not self.head:
      return x
    table = self.param('table', nn.initializers.normal(self.width**-0.5), (2, self.width), jnp.float32)
    shift, scale = jnp.unstack((table[None] + e[:, None])[:, :, None].astype(self.dtype), axis=1)  # Eq. 7
    channels *= 1 + self.learn_sigma
    final = Linear(self.patch**2 * channels, kernel_init=_zeros, dtype=self.dtype, name='final')
    return unpatchify(final(modulate(norm(x), shift, scale)), grid, self.patch).astype(jnp.float32)

  def _condition(self, t: Float[Array, 'b'], cond: Cond) -> Float[Array, 'b d']:
    """Eq. 1."""
    e = TimeEmbedding(self.width, name='time_embed')(t)
    if self.sizes:
      size = TimeEmbedding(self.width // 3, name='size_embed')(cond['size'].reshape(-1)).reshape(len(t), -1)
      aspect = TimeEmbedding(self.width // 3, name='aspect_embed')(cond['aspect'].reshape(-1))
      e += jnp.concatenate([size, aspect], axis=1)
    if self.pooled:
      e += PooledEmbedding(self.width, name='pooled_embed')(cond['pooled'])
    return e

  def _positions(self, grid: tuple[int, int]) -> np.ndarray:
    """Sin-cos positions of the patches, `l d`."""
    rows, columns = (
      np.arange(side, dtype=np.float64) * (self.base / side if self.base else 1) / self.scale for side in grid
    )
    return sincos_at(rows, columns, self.width)


class CaptionEmbedding(nn.Module):
  """caption(text) of Eq. 5: two layers with a GELU (its tanh form) between."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, text: Float[Array, 'b k e']) -> Float[Array, 'b k d']:
    h = nn.gelu(Linear(self.width, dtype=self.dtype, name='in')(text.astype(self.dtype)))
    return Linear(self.width, dtype=self.dtype, name='out')(h)


class TextMap(nn.Module):
  """map(y) of Eq. 8: a layer with a SiLU, then `channels` numbers for each of `patches`, then the tokens' width."""

  patches: int
  channels: int
  width: int
  dtype: Any

  @nn.compact
  def __call__(self, y: Float[Array, 'b p']) -> Float[Array, 'b l d']:
    h = nn.silu(Linear(2 * self.width, dtype=self.dtype, name='in')(y.astype(self.dtype)))
    h = Linear((self.patches, self.channels), dtype=self.dtype, name='map')(h)
    return Linear(self.width, dtype=self.dtype, name='out')(h)


class Block(nn.Module):
  """Eqs. 3 to 6."""

  heads: int
  mlp_ratio: int
  dtype: Any

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b l d'],
    m: Float[Array, 'b ...'],
    text: Float[Array, 'b k d'],
    mask: Bool[Array, 'b k'] | None = None,
    edits: Edits = _NO_EDITS,
    image: Float[Array, 'b m e'] | None = None,
    image_scale: Float[Array, ' b'] | None = None,
  ) -> Float[Array, 'b l d']:
    """`image` are the tokens of an image that is a prompt, read beside the text in Eq. 5 (layers/image_prompt.py)."""
    d = x.shape[-1]
    if m.ndim == 2:  # the condition itself
      parts = modulation(6, x, m)
    else:
      table = self.param('table', nn.initializers.normal(d**-0.5), (6, d), jnp.float32)
      parts = jnp.unstack((m + table.astype(m.dtype)[None])[:, :, None], axis=1)  # b 1 d each
    shift1, scale1, gate1, shift2, scale2, gate2 = parts
    attention = Attention(self.heads, dtype=self.dtype, name='attention')
    x = x + gate1 * attention(modulate(norm(x), shift1, scale1), edit=edits.itself)
    cross = Attention(self.heads, fused=False, out_init=_zeros, dtype=self.dtype, name='cross_attention')
    seen = ()
    if image is not None:
      seen = (decoupled(ImagePrompt(image, image_scale), (self.heads, d // self.heads), dtype=self.dtype),)
    x = x + cross(x, text, mask=mask, edit=edits.prompt, decoupled=seen)
    return x + gate2 * Mlp(self.mlp_ratio, self.dtype, name='mlp')(modulate(norm(x), shift2, scale2))


def pixart_alpha(side: int, *, dtype: Any = jnp.float32, remat: Policy = None) -> PixArt:
  """PixArt-alpha XL/2 for images of `side` pixels, 256, 512 or 1024; latents are an eighth.

  Raises:
    ValueError: there is none of that size.
  """
  if side not in (256, 512, 1024):
    raise ValueError(f'PixArt-alpha is for images of 256, 512 or 1024 pixels, not {side}')
  positions = {'base': side // 16, 'scale': max(side // 512, 1)}
  return PixArt(
    patch=2, depth=28, width=1152, heads=16, learn_sigma=True, sizes=side == 1024, **positions, dtype=dtype, remat=remat
  )  # fmt: skip
