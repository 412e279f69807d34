"""MMDiT: a transformer over image patches and text tokens, with weights for each and one softmax over both.

  c = time(t) + pooled(y) + guidance(w), the last only with `guidance`                         (1)
  for each stream s, image and text:
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation_s(silu(c))                       (2)
    q_s, k_s, v_s = qkv_s(norm(s) (1 + scale1) + shift1)                                       (3)
  a_text, a_image = attention([q_text, q_image], [k_text, k_image], [v_text, v_image])         (4)
    s <- s + gate1 * out_s(a_s)                                                                (5)
    s <- s + gate2 * mlp_s(norm(s) (1 + scale2) + shift2)                                      (6)

Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (SD3). In its last block
the text only gives keys and values. Stable Diffusion 3.5 adds qk-norm (`qk_norm`) and, in the first blocks of its
medium size, a second attention of the image alone (`dual`):

  x <- x + gate3 * attention(norm(x) (1 + scale3) + shift3), beside Eq. 5                      (7)

Flux (Black Forest Labs 2024) has rotary positions (`rope`), no last block of that kind (`single` > 0), and after the
joint blocks `single` blocks on x = [text, image] with one set of weights, where attention and MLP run side by side:

  h = norm(x) (1 + scale) + shift;   x <- x + gate * out([attention(qkv(h)), gelu(in(h))])     (8)
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxgen import sharding
from jaxgen.models.dit import (
  FinalLayer,
  Mlp,
  TimeEmbedding,
  modulate,
  modulation,
  norm,
  patchify,
  unpatchify,
  with_hint,
)
from jaxgen.models.layers.attention import Attention, attention, joint_attention
from jaxgen.models.layers.attention_edit import Edits
from jaxgen.models.layers.embedding import sincos_at
from jaxgen.models.layers.image_prompt import ImagePrompt, decoupled, of_blocks
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.remat import Policy
from jaxgen.models.layers.rope import angles_of, rotate_pairs
from jaxgen.models.layers.stack import stack
from jaxgen.typing import Array, Bool, Cond, Float, MakeModule

_NO_EDITS = Edits()
Streams = tuple[Array, Array]  # tokens of the image, b l d, and of the text, b k d


_BOTH = ('tensor', 'fsdp')
# Those of DiT for each stream. In `single_blocks`, `out` is not over `tensor`: it reads two things side by side.
RULES: tuple[sharding.Rule, ...] = (
  (r'blocks/(attention/(image|text)_|image_attention/)qkv/kernel$', (None, None, None, _BOTH, None)),
  (r'blocks/(attention/(image|text)_|image_attention/)qkv/kernel$', (None, 'fsdp', None, 'tensor', None)),
  (r'blocks/(attention/(image|text)_|image_attention/)out/kernel$', (None, _BOTH, None, None)),
  (r'blocks/(attention/(image|text)_|image_attention/)out/kernel$', (None, 'tensor', None, 'fsdp')),
  (r'blocks/(image|text)_mlp/in/kernel$', (None, None, _BOTH)),
  (r'blocks/(image|text)_mlp/in/kernel$', (None, 'fsdp', 'tensor')),
  (r'blocks/(image|text)_mlp/out/kernel$', (None, _BOTH, None)),
  (r'blocks/(image|text)_mlp/out/kernel$', (None, 'tensor', 'fsdp')),
  (r'single_blocks/qkv/kernel$', (None, None, None, _BOTH, None)),
  (r'single_blocks/qkv/kernel$', (None, 'fsdp', None, 'tensor', None)),
  (r'single_blocks/in/kernel$', (None, None, _BOTH)),
)


class Size(NamedTuple):
  """The shape of a published MMDiT; the attributes are MMDiT's."""

  depth: int
  width: int
  heads: int
  single: int = 0
  dual: int = 0
  qk_norm: bool = False
  table: tuple[int, int] | None = None
  rope: tuple[int, ...] = ()
  guidance: bool = False


SIZES = {
  'sd3-medium': Size(depth=24, width=1536, heads=24, table=(192, 64)),
  'sd3.5-medium': Size(depth=24, width=1536, heads=24, dual=13, qk_norm=True, table=(384, 64)),
  'sd3.5-large': Size(depth=38, width=2432, heads=38, qk_norm=True, table=(192, 64)),
  'flux-dev': Size(depth=19, width=3072, heads=24, single=38, qk_norm=True, rope=(16, 56, 56), guidance=True),
  'flux-schnell': Size(depth=19, width=3072, heads=24, single=38, qk_norm=True, rope=(16, 56, 56)),
}


class MMDiT(nn.Module):
  """The network: `(x, t, cond) -> output`, both images.

  Attributes:
    patch: side of a square patch, in pixels; divides the image's sides.
    depth, width, heads: number of joint blocks, width of a token, attention heads of size width / heads.
    single: number of blocks on both streams with one set of weights, Eq. 8; 0 is SD3, whose last joint block leaves
      the text as it is.
    dual: number of first blocks with Eq. 7.
    qk_norm: RMS-normalises queries and keys per head.
    table: (size, base) of the table of sin-cos positions whose centre is used: `base` positions apart over `size`
      patches; None for the positions of the image's own grid.
    rope: sizes of the rotary axes (text, row, column), which add up to a head's; () for sin-cos positions.
    guidance: the guidance scale is a condition (Flux-dev).
    mlp_ratio: hidden width of the MLPs, in widths.
    dtype: dtype of activations; parameters, the conditioning and the output are float32.
    remat: policy of `jax.checkpoint` for each block (`layers.remat.policy(name)`); None keeps everything.
    head: as in DiT; without it all joint blocks are alike, and there are no others.
  """

  patch: int
  depth: int
  width: int
  heads: int
  single: int = 0
  dual: int = 0
  qk_norm: bool = False
  table: tuple[int, int] | None = None
  rope: tuple[int, ...] = ()
  guidance: bool = False
  mlp_ratio: int = 4
  dtype: Any = jnp.float32
  remat: Policy = None
  head: bool = True

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, 'b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b h w c'] | Float[Array, 'b l d']:
    """Denoises.

    Args:
      x: images or latents.
      t: time as the sinusoid sees it, from 0 to 1000 (`Process.network_time`).
      cond: `text`, float b k e; `pooled`, float b p; optional `text_mask`, bool b k, True where there is a token; with
        `guidance` also `guidance`, float b, the guidance scale. If given, `attention_edit`, `Edits` of
        layers/attention_edit.py, and `image_prompt`, float b m e, tokens of an image that the joint blocks read, with
        `image_prompt_scale`, float b or b n, of all of them or of each; `patch_hint` as in DiT.
      train: part of every network's signature; MMDiT behaves the same.
    """
    grid = self._grid(x.shape)
    c = TimeEmbedding(self.width, name='time_embed')(t)
    c += PooledEmbedding(self.width, name='pooled_embed')(cond['pooled'])
    if self.guidance:
      c += TimeEmbedding(self.width, name='guidance_embed')(1000 * cond['guidance'])
    c = nn.silu(c).astype(self.dtype)  # b d
    channels = x.shape[-1]
    x = Linear(self.width, dtype=self.dtype, name='patch_embed')(patchify(x.astype(self.dtype), self.patch))
    x = with_hint(x, cond)
    text = Linear(self.width, dtype=self.dtype, name='text_embed')(cond['text'].astype(self.dtype))
    angles = self._angles(grid, text.shape[1])
    if angles is None:
      x += jnp.asarray(self._positions(grid), self.dtype)[None]
    mask = None
    if 'text_mask' in cond:
      mask = jnp.concatenate([cond['text_mask'], jnp.ones(x.shape[:2], bool)], axis=1)
    edits: Any = cond.get('attention_edit', _NO_EDITS)
    x = self._blocks((x, text), (c, angles, mask, edits), of_blocks(cond, self.depth))
    if not self.head:
      return x
    x = FinalLayer(self.patch**2 * channels, self.dtype, name='final')(x, c)
    return unpatchify(x, grid, self.patch).astype(jnp.float32)

  def _blocks(self, streams: Streams, shared: tuple, image: ImagePrompt | None) -> Array:
    """`shared` are what all blocks read: c, angles, mask and edits."""
    options = {'heads': self.heads, 'mlp_ratio': self.mlp_ratio, 'dtype': self.dtype, 'qk_norm': self.qk_norm}
    full = self.depth if self.single or not self.head else self.depth - 1
    if self.dual:
      block = partial(JointBlock, dual=True, **options)
      streams = self._joint(block, 0, min(self.dual, full), 'dual_blocks', streams, shared, image)
    if full > self.dual:
      block = partial(JointBlock, **options)
      streams = self._joint(block, self.dual, full, 'blocks', streams, shared, image)
    if not self.head:
      return streams[0]
    if not self.single:
      more = () if image is None else (image.tokens, image.scale[full])  # pyrefly: ignore
      x, _ = JointBlock(**options, dual=self.dual > full, last=True, name='last_block')(streams, *shared, *more)
      return x
    x, text = streams
    tokens = text.shape[1]
    both = jnp.concatenate([text, x], axis=1)
    block = partial(SingleBlock, **options, tokens=tokens)
    both = stack(self, block, both, *shared, depth=self.single, name='single_blocks', remat=self.remat)
    return both[:, tokens:]

  def _joint(
    self, block: MakeModule, start: int, stop: int, name: str, x: Streams, shared: tuple, image: ImagePrompt | None
  ) -> Streams:
    """The joint blocks from `start` to `stop`."""
    tokens, scales = (None, None) if image is None else (image.tokens, image.scale[start:stop])  # pyrefly: ignore
    return stack(self, block, x, *shared, tokens, depth=stop - start, name=name, each=scales, remat=self.remat)

  def _grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of patches."""
    height, width = shape[1:3]
    if height % self.patch or width % self.patch:
      raise ValueError(f'images of {height}x{width} do not divide into patches of {self.patch}')
    if self.rope and sum(self.rope) != self.width // self.heads:
      raise ValueError(f'rotary axes of {self.rope} do not add up to heads of {self.width // self.heads}')
    return height // self.patch, width // self.patch

  def _positions(self, grid: tuple[int, int]) -> np.ndarray:
    """Sin-cos positions of the patches, `l d`: the centre of the table, or their own."""
    if self.table is None:
      rows, columns = (np.arange(size, dtype=np.float64) for size in grid)
    else:
      size, base = self.table
      if max(grid) > size:
        raise ValueError(f'{grid[0]}x{grid[1]} patches exceed the table of {size} positions a side; change `table`')
      rows, columns = (((size - side) // 2 + np.arange(side)) * base / size for side in grid)
    return sincos_at(rows, columns, self.width)

  def _angles(self, grid: tuple[int, int], tokens: int) -> Float[Array, 'm r'] | None:
    """Rotary angles of the text, whose place is 0, and of the patches."""
    if not self.rope:
      return None
    rows, columns = np.meshgrid(*(np.arange(size) for size in grid), indexing='ij')
    places = np.stack([np.zeros(rows.size), rows.reshape(-1), columns.reshape(-1)], axis=1)
    return jnp.asarray(angles_of(np.concatenate([np.zeros((tokens, 3)), places]), self.rope))


def mmdit(name: str, *, patch: int = 2, dtype: Any = jnp.float32, remat: Policy = None) -> MMDiT:
  """A published MMDiT: `mmdit('sd3-medium')`, `mmdit('flux-dev')`."""
  if name not in SIZES:
    raise ValueError(f'there is no MMDiT {name!r}; wanted one of {", ".join(SIZES)}')
  return MMDiT(patch=patch, **SIZES[name]._asdict(), dtype=dtype, remat=remat)


class PooledEmbedding(nn.Module):
  """pooled(y) of Eq. 1: two layers, float32."""

  width: int

  @nn.compact
  def __call__(self, pooled: Float[Array, 'b p']) -> Float[Array, 'b d']:
    h = nn.silu(Linear(self.width, name='in')(pooled.astype(jnp.float32)))
    return Linear(self.width, name='out')(h)


class Modulation(nn.Module):
  """Eq. 2: `parts` shifts, scales and gates."""

  parts: int

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d'], c: Float[Array, 'b d']) -> list[Float[Array, 'b 1 d']]:
    return modulation(self.parts, x, c)


class JointBlock(nn.Module):
  """Eqs. 2 to 7. In the `last` block the text is not changed."""

  heads: int
  mlp_ratio: int
  dtype: Any
  qk_norm: bool = False
  dual: bool = False
  last: bool = False

  @nn.compact
  def __call__(
    self,
    streams: Streams,
    c: Float[Array, 'b d'],
    angles: Float[Array, 'm r'] | None = None,
    mask: Bool[Array, 'b m'] | None = None,
    edits: Edits = _NO_EDITS,
    image: Float[Array, 'b i e'] | None = None,
    image_scale: Float[Array, ' b'] | None = None,
  ) -> Streams:
    """`image` are the tokens of an image that is a prompt (layers/image_prompt.py)."""
    x, text = streams
    prompt = None if image is None else ImagePrompt(image, image_scale)
    shift, scale, gate, *mlp_x = Modulation(9 if self.dual else 6, name='image')(x, c)
    shift_text, scale_text, *rest = Modulation(2 if self.last else 6, name='text')(text, c)
    a_image, a_text = JointAttention(self.heads, self.dtype, self.qk_norm, self.last, name='attention')(
      modulate(norm(x), shift, scale), modulate(norm(text), shift_text, scale_text), angles, mask, edits, prompt
    )
    before = x
    x = x + gate * a_image  # Eq. 5
    if self.dual:
      *mlp_x, shift3, scale3, gate3 = mlp_x
      second = Attention(
        self.heads, qk_norm=nn.RMSNorm if self.qk_norm else None, dtype=self.dtype, name='image_attention'
      )
      x = x + gate3 * second(modulate(norm(before), shift3, scale3))  # Eq. 7
    x = self._mlp(x, mlp_x, 'image_mlp')
    if a_text is not None:
      gate_text, *mlp_text = rest
      text = self._mlp(text + gate_text * a_text, mlp_text, 'text_mlp')
    return x, text

  def _mlp(self, x: Array, parts: list[Array], name: str) -> Array:
    shift, scale, gate = parts
    return x + gate * Mlp(self.mlp_ratio, self.dtype, name=name)(modulate(norm(x), shift, scale))  # Eq. 6


class JointAttention(nn.Module):
  """Eqs. 3 and 4; the text comes first."""

  heads: int
  dtype: Any
  qk_norm: bool = False
  last: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b l d'],
    text: Float[Array, 'b k d'],
    angles: Float[Array, 'm r'] | None,
    mask: Bool[Array, 'b m'] | None,
    edits: Edits = _NO_EDITS,
    image: ImagePrompt | None = None,
  ) -> tuple[Float[Array, 'b l d'], Float[Array, 'b k d'] | None]:
    d, tokens = x.shape[-1], text.shape[1]
    streams = [self._project(text, 'text'), self._project(x, 'image')]
    q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip(*streams, strict=True))  # b m n h
    if angles is not None:
      q, k = rotate_pairs(q, angles), rotate_pairs(k, angles)
    h = joint_attention(self, q, k, v, tokens=tokens, mask=mask, edits=edits)
    h_image = h[:, tokens:]
    if image is not None:
      seen = decoupled(image, (self.heads, d // self.heads), dtype=self.dtype, normed=self.qk_norm)
      h_image += seen.scale * attention(q[:, tokens:], seen.keys, seen.values)
    out = Linear(d, 2, dtype=self.dtype, name='image_out')(h_image)
    return out, None if self.last else Linear(d, 2, dtype=self.dtype, name='text_out')(h[:, :tokens])

  def _project(self, x: Array, name: str) -> tuple[Array, Array, Array]:
    if x.shape[-1] % self.heads:
      raise ValueError(f'width {x.shape[-1]} does not divide into {self.heads} heads')
    qkv = Linear((3, self.heads, x.shape[-1] // self.heads), dtype=self.dtype, name=f'{name}_qkv')(x)
    q, k, v = jnp.unstack(qkv, axis=2)  # b l n h
    if self.qk_norm:
      q = nn.RMSNorm(dtype=self.dtype, name=f'{name}_q_norm')(q)
      k = nn.RMSNorm(dtype=self.dtype, name=f'{name}_k_norm')(k)
    return q, k, v


class SingleBlock(nn.Module):
  """Eq. 8; the first `tokens` of x are the text's."""

  heads: int
  mlp_ratio: int
  dtype: Any
  qk_norm: bool = False
  tokens: int = 0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b m d'],
    c: Float[Array, 'b d'],
    angles: Float[Array, 'm r'] | None = None,
    mask: Bool[Array, 'b m'] | None = None,
    edits: Edits = _NO_EDITS,
  ) -> Float[Array, 'b m d']:
    d = x.shape[-1]
    shift, scale, gate = modulation(3, x, c)
    h = modulate(norm(x), shift, scale)
    q, k, v = jnp.unstack(Linear((3, self.heads, d // self.heads), dtype=self.dtype, name='qkv')(h), axis=2)
    if self.qk_norm:
      q, k = (nn.RMSNorm(dtype=self.dtype, name=f'{name}_norm')(array) for name, array in (('q', q), ('k', k)))
    if angles is not None:
      q, k = rotate_pairs(q, angles), rotate_pairs(k, angles)
    a = joint_attention(self, q, k, v, tokens=self.tokens, mask=mask, edits=edits).reshape(x.shape)
    m = nn.gelu(Linear(self.mlp_ratio * d, dtype=self.dtype, name='in')(h))
    return x + gate * Linear(d, dtype=self.dtype, name='out')(jnp.concatenate([a, m], axis=-1))
