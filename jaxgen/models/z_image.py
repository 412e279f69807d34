"""Z-Image: one stack of blocks over image patches and text tokens, after a short one for each alone.

  c = time(1000 - t)                                                                              (1)
  scale1, gate1, scale2, gate2 = modulation(c);   g = tanh(gate)                                  (2)
  x <- x + g1 * norm(attention(norm(x) (1 + scale1)))                                             (3)
  x <- x + g2 * norm(mlp(norm(x) (1 + scale2))),   mlp(h) = (silu(h A) * h B) C                   (4)
  x = refine_x(patches);   y = refine_y(text), without Eq. 2;   [x, y] <- blocks([x, y])          (5)
  out = linear(norm(x) (1 + scale(silu(c))))                                                      (6)

Norms are RMS norms with gains, but for that of Eq. 6. Rotary positions have three axes: token j of the text is at
(1 + j, 0, 0), the patch at row i and column k at (1 + n, i, k), with n the length of the text rounded up to 32. Both
sequences are filled up to multiples of 32 with tokens of their own, which are attended to; further padding is not.
The published network's time runs from noise to data, and its velocity too: both are turned here, so that it is
sampled as other flows. Z-Image team 2025, "Z-Image: An Efficient Image Generation Foundation Model".
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxgen import sharding
from jaxgen.models.dit import modulate, norm, patchify, unpatchify
from jaxgen.models.layers.attention import attention
from jaxgen.models.layers.embedding import timestep_embedding
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.remat import Policy
from jaxgen.models.layers.rope import rotate_pairs
from jaxgen.models.layers.stack import stack
from jaxgen.typing import Array, Bool, Cond, Float

MULTIPLE = 32  # each sequence is padded to a multiple of so many tokens
CONDITION = 256  # features of c
_HIDDEN = 1024  # width of the time's MLP
_BOTH = ('tensor', 'fsdp')
RULES: tuple[sharding.Rule, ...] = (
  (r'(^|/)(blocks|refine_(image|text))/qkv/kernel$', (None, None, None, _BOTH, None)),
  (r'(^|/)(blocks|refine_(image|text))/(gate|in)/kernel$', (None, None, _BOTH)),
  (r'(^|/)(blocks|refine_(image|text))/(out|down)/kernel$', (None, _BOTH, ...)),
)


class ZImage(nn.Module):
  """The network: `(x, t, cond) -> velocity`, both images.

  Attributes:
    depth, width, heads: number of blocks on both, width of a token, attention heads.
    refiners: number of blocks on each alone.
    patch: side of a patch.
    rope: sizes of the rotary axes (text, row, column), which add up to a head's.
    theta: base of their frequencies.
    eps: added to the mean squares of the norms.
    dtype: dtype of activations; parameters, the conditioning and the output are float32.
    remat: policy of `jax.checkpoint` for each block; None keeps everything.
  """

  depth: int
  width: int
  heads: int
  refiners: int = 2
  patch: int = 2
  rope: tuple[int, ...] = (32, 48, 48)
  theta: float = 256.0
  eps: float = 1e-5
  dtype: Any = jnp.float32
  remat: Policy = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, 'b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b h w c']:
    """Denoises.

    Args:
      x: images or latents.
      t: time from 0, data, to 1000, noise (`Process.network_time`).
      cond: `text`, float b k e; optional `text_mask`, bool b k, True for the first tokens, where there is one.
      train: part of every network's signature; Z-Image behaves the same.

    Raises:
      ValueError: the image does not divide into patches, or `rope` into heads.
    """
    b, height, width, channels = x.shape
    if height % self.patch or width % self.patch:
      raise ValueError(f'images of {height}x{width} do not divide into patches of {self.patch}')
    if sum(self.rope) != self.width // self.heads:
      raise ValueError(f'rotary axes of {self.rope} do not add up to heads of {self.width // self.heads}')
    grid = (height // self.patch, width // self.patch)
    c = self._time(t)
    x = Linear(self.width, dtype=self.dtype, name='patch_embed')(patchify(x.astype(self.dtype), self.patch))
    x = _filled(x, jnp.full(b, x.shape[1]), self._pad('image_pad'))
    text, lengths, there = self._text(cond)
    of_text, of_image = self._angles(lengths, text.shape[1], grid, x.shape[1])
    block = partial(Block, self.heads, self.eps, self.dtype)
    x = stack(self, block, x, c, of_image, None, depth=self.refiners, name='refine_image', remat=self.remat)
    plain = partial(block, modulated=False)
    text = stack(self, plain, text, None, of_text, there, depth=self.refiners, name='refine_text', remat=self.remat)
    both, angles = jnp.concatenate([x, text], axis=1), jnp.concatenate([of_image, of_text], axis=1)
    mask = jnp.concatenate([jnp.ones(x.shape[:2], bool), there], axis=1)
    both = stack(self, block, both, c, angles, mask, depth=self.depth, remat=self.remat)
    scale = Linear(self.width, name='final_modulation')(nn.silu(c)).astype(self.dtype)[:, None]
    h = modulate(norm(both[:, : grid[0] * grid[1]]), jnp.zeros_like(scale), scale)
    out = Linear(self.patch**2 * channels, dtype=self.dtype, name='final')(h)  # Eq. 6
    return -unpatchify(out, grid, self.patch).astype(jnp.float32)

  def _time(self, t: Float[Array, 'b']) -> Float[Array, 'b f']:
    """Eq. 1."""
    h = nn.silu(Linear(_HIDDEN, name='time_in')(timestep_embedding(1000 - t, CONDITION)))
    return Linear(min(self.width, CONDITION), name='time_out')(h)

  def _text(self, cond: Cond) -> tuple[Float[Array, 'b k d'], Array, Bool[Array, 'b k']]:
    """Tokens of the text, filled up; their number, rounded up; which are attended to."""
    text = cond['text'].astype(self.dtype)
    b, k, _ = text.shape
    known = cond['text_mask'].sum(1) if 'text_mask' in cond else jnp.full(b, k)
    text = Linear(self.width, dtype=self.dtype, name='text_embed')(_rms(self.eps, self.dtype, 'text_norm')(text))
    text = _filled(text, known, self._pad('text_pad'))
    lengths = -(-known // MULTIPLE) * MULTIPLE
    return text, lengths, jnp.arange(text.shape[1])[None] < lengths[:, None]

  def _pad(self, name: str) -> Float[Array, 'd']:
    return self.param(name, nn.initializers.normal(0.02), (self.width,), jnp.float32).astype(self.dtype)

  def _angles(
    self, lengths: Array, tokens: int, grid: tuple[int, int], patches: int
  ) -> tuple[Float[Array, 'b k r'], Float[Array, 'b l r']]:
    """Rotary angles of the text and of the patches; those of filled patches are 0."""
    rows, columns = (np.pad(a.reshape(-1), (0, patches - a.size)) for a in np.indices(grid))
    first = np.pad(np.ones(grid[0] * grid[1]), (0, patches - grid[0] * grid[1]))
    b, zero = len(lengths), jnp.zeros((len(lengths), tokens))
    text = jnp.broadcast_to(1.0 + jnp.arange(tokens)[None], (b, tokens))
    places = [(1 + lengths)[:, None] * first[None], *(jnp.broadcast_to(a[None], (b, patches)) for a in (rows, columns))]
    return self._turns([text, zero, zero]), self._turns(places)

  def _turns(self, places: list[Array]) -> Float[Array, 'b l r']:
    each = []
    for place, size in zip(places, self.rope, strict=True):
      frequencies = np.float32(self.theta ** (-np.arange(0, size, 2, dtype=np.float64) / size))
      each.append(place[..., None].astype(jnp.float32) * frequencies.reshape(1, 1, -1))
    return jnp.concatenate(each, axis=-1)


class Block(nn.Module):
  """Eqs. 2 to 4."""

  heads: int
  eps: float
  dtype: Any
  modulated: bool = True

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b l d'],
    c: Float[Array, 'b f'] | None,
    angles: Float[Array, 'b l r'],
    mask: Bool[Array, 'b l'] | None,
  ) -> Float[Array, 'b l d']:
    d = x.shape[-1]
    scale1 = gate1 = scale2 = gate2 = None
    if self.modulated:
      assert c is not None
      made = Linear((4, d), name='modulation')(c).astype(self.dtype)[:, :, None]
      scale1, gate1, scale2, gate2 = jnp.unstack(made, axis=1)  # b 1 d, Eq. 2
    h = self._attention(self._scaled(x, scale1, 'norm1'), angles, mask)
    x = x + self._gated(h, gate1, 'norm2')  # Eq. 3
    h = self._scaled(x, scale2, 'norm3')
    hidden = int(d / 3 * 8)
    h = nn.silu(self._linear(hidden, 'gate')(h)) * self._linear(hidden, 'in')(h)
    return x + self._gated(self._linear(d, 'down')(h), gate2, 'norm4')  # Eq. 4

  def _attention(self, h: Array, angles: Array, mask: Array | None) -> Array:
    d = h.shape[-1]
    q, k, v = jnp.unstack(self._linear((3, self.heads, d // self.heads), 'qkv')(h), axis=2)
    q, k = (_rms(1e-5, self.dtype, f'{name}_norm')(array) for name, array in (('q', q), ('k', k)))
    h = attention(rotate_pairs(q, angles), rotate_pairs(k, angles), v, mask=mask)
    return Linear(d, 2, use_bias=False, dtype=self.dtype, name='out')(h)

  def _scaled(self, x: Array, scale: Array | None, name: str) -> Array:
    h = _rms(self.eps, self.dtype, name)(x)
    return h if scale is None else h * (1 + scale)

  def _gated(self, h: Array, gate: Array | None, name: str) -> Array:
    h = _rms(self.eps, self.dtype, name)(h)
    return h if gate is None else jnp.tanh(gate) * h

  def _linear(self, features: int | tuple[int, ...], name: str) -> Linear:
    return Linear(features, use_bias=False, dtype=self.dtype, name=name)


def z_image(*, dtype: Any = jnp.float32, remat: Policy = None) -> ZImage:
  """The published network, for latents of 16 channels and text of 2560 features."""
  return ZImage(depth=30, width=3840, heads=30, dtype=dtype, remat=remat)


def _filled(x: Float[Array, 'b l d'], known: Array, pad: Float[Array, 'd']) -> Float[Array, 'b m d']:
  """Tokens from number `known` on are `pad`, up to a multiple of 32."""
  more = -x.shape[1] % MULTIPLE
  x = jnp.pad(x, ((0, 0), (0, more), (0, 0)))
  there = jnp.arange(x.shape[1])[None] < known[:, None]
  return jnp.where(there[..., None], x, pad[None, None])


def _rms(eps: float, dtype: Any, name: str) -> nn.RMSNorm:
  return nn.RMSNorm(epsilon=eps, dtype=dtype, name=name)
