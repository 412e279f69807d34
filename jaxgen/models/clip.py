"""CLIP: a text tower and a vision tower, trained so that an image and its caption have similar embeddings.

  x = token(id) + position                       text; the first end-of-text token is the caption's       (1)
  x = norm_in([class, patches] + position)       vision                                                    (2)
  x <- x + attention(norm(x)); x <- x + mlp(norm(x))    `depth` times; text attends to earlier tokens only  (3)
  pooled = norm_out(x)[end of text or class]                                                               (4)
  projected = pooled W                                                                                     (5)
  logits = exp(logit_scale) <text, image> + logit_bias, of projections of length 1                         (6)

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"; Eq. 6's bias is SigLIP's
(Zhai et al. 2023). OpenAI's weights need `quick_gelu`, OpenCLIP's the exact GELU: the file does not say which.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.layers.attention import Attention
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.stack import TRANSFORMER_RULES, stack
from jaxgen.typing import Array, Bool, Float, Int

VOCABULARY, CONTEXT = 49408, 77
END_OF_TEXT = 49407
_EPS = 1e-5
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # for pixels in [0, 1]
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_LOGIT_SCALE = float(np.log(1 / 0.07))
_normal = nn.initializers.normal
Activation = Callable[[Array], Array]
RULES = TRANSFORMER_RULES


def quick_gelu(x: Array) -> Array:
  """x sigmoid(1.702 x), which OpenAI's weights were trained with."""
  return x * jax.nn.sigmoid(1.702 * x)


exact_gelu: Activation = functools.partial(jax.nn.gelu, approximate=False)


# (width, depth, heads, hidden) of the text tower and of the vision tower, features of the projections, activation.
_Tower = tuple[int, int, int, int]
SIZES: dict[str, tuple[_Tower, _Tower, int, Activation]] = {
  'B/32': ((512, 12, 8, 2048), (768, 12, 12, 3072), 512, quick_gelu),
  'L/14': ((768, 12, 12, 3072), (1024, 24, 16, 4096), 768, quick_gelu),
  'H/14': ((1024, 24, 16, 4096), (1280, 32, 16, 5120), 1024, exact_gelu),
  'bigG/14': ((1280, 32, 20, 5120), (1664, 48, 16, 8192), 1280, exact_gelu),
}


class TextFeatures(NamedTuple):
  """Outputs of the text tower; unused ones cost nothing under `jit`.

  Attributes:
    hidden: tokens `skip` blocks before the end, not normed: SDXL and SD3 read them with skip 1.
    normed: `norm_out(hidden)`: Stable Diffusion 1 and 2 read them, with skip 0 but for their `clip_skip`.
    last: `norm_out` of the last block's tokens.
    pooled: `last` at the first end-of-text token, Eq. 4.
    projected: Eq. 5, or `pooled` where the tower has no projection.
  """

  hidden: Float[Array, 'b k d']
  normed: Float[Array, 'b k d']
  last: Float[Array, 'b k d']
  pooled: Float[Array, 'b d']
  projected: Float[Array, 'b e']


class ImageFeatures(NamedTuple):
  """Outputs of the vision tower; unused ones cost nothing under `jit`.

  Attributes:
    hidden: class token and patches `skip` blocks before the end, not normed: IP-Adapter Plus reads them with skip 1.
    last: those of the last block, not normed.
    pooled: normed class token, Eq. 4.
    projected: Eq. 5, or `pooled` where the tower has no projection.
  """

  hidden: Float[Array, 'b l d']
  last: Float[Array, 'b l d']
  pooled: Float[Array, 'b d']
  projected: Float[Array, 'b e']


class CLIPText(nn.Module):
  """The text tower, `(ids) -> TextFeatures`.

  Attributes:
    width, depth, heads: features of a token, number of blocks, attention heads.
    projection: features of Eq. 5; 0 for none.
    hidden: features within the MLP; 0 for 4 widths.
    vocabulary: number of tokens in the table.
    context: the longest sequence.
    end_of_text: id of the token that `pooled` is read at.
    activation: activation of the MLP.
    dtype: dtype of activations; parameters are float32.
  """

  width: int
  depth: int
  heads: int
  projection: int = 0
  hidden: int = 0
  vocabulary: int = VOCABULARY
  context: int = CONTEXT
  end_of_text: int = END_OF_TEXT
  activation: Activation = quick_gelu
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    ids: Int[Array, 'b k'],
    *,
    mask: Bool[Array, 'b k'] | None = None,
    rows: Float[Array, 'r d'] | None = None,
    skip: int = 0,
  ) -> TextFeatures:
    """Encodes captions.

    Args:
      ids: ids of tokens. Those from `vocabulary` on are `rows`.
      mask: tokens that are attended to, beside the causal mask; Stable Diffusion's models have none.
      rows: embeddings of new tokens, such as textual inversion learns.
      skip: number of last blocks that `hidden` and `normed` leave out.
    """
    tokens = ids.shape[1]
    if tokens > self.context:
      raise ValueError(f'{tokens} tokens are more than the {self.context} of this CLIP; truncate or cut into chunks')
    table = nn.Embed(self.vocabulary, self.width, embedding_init=_normal(0.02), name='token_embed')
    x = embed(table, ids, rows)
    positions = self.param('position_embed', _normal(0.01), (self.context, self.width), jnp.float32)
    x = (x + positions[None, :tokens]).astype(self.dtype)  # Eq. 1
    allowed = jnp.tril(jnp.ones((tokens, tokens), bool))[None]  # 1 l k
    if mask is not None:
      allowed = allowed & mask[:, None].astype(bool)
    x, kept = _blocks(self, x, mask=allowed, skip=skip)
    norm = _norm(self.dtype, 'norm_out')
    last = norm(x)
    end = jnp.argmax(ids == self.end_of_text, axis=1)  # the first; 0 where there is none, as transformers has it
    pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]  # Eq. 4
    return TextFeatures(kept, norm(kept), last, pooled, _projected(pooled, self.projection, self.dtype))


class CLIPVision(nn.Module):
  """The vision tower, `(images) -> ImageFeatures`; images are `preprocess`ed.

  Attributes:
    size: side of the images.
    patch: side of a patch.
    width, depth, heads: features of a token, number of blocks, attention heads.
    projection: features of Eq. 5; 0 for none.
    hidden: features within the MLP; 0 for 4 widths.
    activation: activation of the MLP.
    dtype: dtype of activations; parameters are float32.
  """

  size: int
  patch: int
  width: int
  depth: int
  heads: int
  projection: int = 0
  hidden: int = 0
  activation: Activation = quick_gelu
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w c'], *, skip: int = 0) -> ImageFeatures:
    """Encodes images; `skip` is the number of last blocks that `hidden` leaves out."""
    b, height, width, c = images.shape
    if (height, width) != (self.size, self.size):
      raise ValueError(f'images of {height}x{width}; this CLIP takes {self.size}x{self.size}: preprocess them')
    side = self.size // self.patch
    x = images.astype(self.dtype).reshape(b, side, self.patch, side, self.patch, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, side * side, self.patch, self.patch, c)
    init = _normal(self.width**-0.5)
    x = Linear(self.width, inputs=3, use_bias=False, kernel_init=init, dtype=self.dtype, name='patch_embed')(x)
    first = self.param('class_embed', init, (self.width,), jnp.float32)
    first = jnp.broadcast_to(first.astype(x.dtype)[None, None], (b, 1, self.width))
    positions = self.param('position_embed', init, (side * side + 1, self.width), jnp.float32)
    x = jnp.concatenate([first, x], axis=1) + positions[None].astype(x.dtype)
    x = _norm(self.dtype, 'norm_in')(x)  # Eq. 2
    x, kept = _blocks(self, x, skip=skip)
    pooled = _norm(self.dtype, 'norm_out')(x[:, 0])  # Eq. 4
    return ImageFeatures(kept, x, pooled, _projected(pooled, self.projection, self.dtype))


class CLIP(nn.Module):
  """Both towers with the temperature of Eq. 6.

  Attributes:
    text, vision: the towers, with projections of one width.
    logit_bias: whether Eq. 6 has a bias, as in SigLIP.
  """

  text: CLIPText
  vision: CLIPVision
  logit_bias: bool = False

  @nn.compact
  def __call__(self, ids: Int[Array, 'b k'], images: Float[Array, 'b h w c']) -> 'Similarity':
    text, image = self.text(ids).projected, self.vision(images).projected
    scale = self.param('logit_scale', nn.initializers.constant(_LOGIT_SCALE), (), jnp.float32)
    bias = jnp.float32(0)
    if self.logit_bias:
      bias = self.param('logit_bias', nn.initializers.constant(-10.0), (), jnp.float32)
    return Similarity(unit(text), unit(image), scale, bias)

  def encode_text(self, ids: Int[Array, 'b k']) -> Float[Array, 'b e']:
    """Projections of captions, of length 1."""
    return unit(self.text(ids).projected)

  def encode_image(self, images: Float[Array, 'b h w c']) -> Float[Array, 'b e']:
    """Projections of preprocessed images, of length 1."""
    return unit(self.vision(images).projected)


def clip(size: str, *, dtype: Any = jnp.float32) -> CLIP:
  """A published size by name: B/32 and L/14 as OpenAI trained them, H/14 and bigG/14 as OpenCLIP did."""
  if size not in SIZES:
    raise ValueError(f'CLIP has no size {size!r}; wanted one of {", ".join(SIZES)}')
  text, vision, features, activation = SIZES[size]
  patch = int(size.rpartition('/')[2])
  return CLIP(
    CLIPText(*text[:3], features, text[3], activation=activation, dtype=dtype),
    CLIPVision(224, patch, *vision[:3], features, vision[3], activation=activation, dtype=dtype),
  )


class Similarity(NamedTuple):
  """Eq. 6's parts: projections of length 1, float32, and the logarithm of the scale."""

  text: Float[Array, 'b e']
  image: Float[Array, 'b e']
  logit_scale: Float[Array, '']
  logit_bias: Float[Array, '']


def unit(x: Float[Array, 'b e']) -> Float[Array, 'b e']:
  """Vectors of length 1, float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


def embed(table: nn.Embed, ids: Int[Array, 'b k'], rows: Float[Array, 'r d'] | None) -> Float[Array, 'b k d']:
  """Embeddings of tokens: the table's, and from its end on those of `rows`, whose gradient is then their own."""
  if rows is None:
    return table(ids)
  new = ids >= table.num_embeddings
  learned = jnp.asarray(rows, jnp.float32)[jnp.where(new, ids - table.num_embeddings, 0)]
  return jnp.where(new[..., None], learned, table(jnp.where(new, 0, ids)))


def preprocess(images: Float[Array, 'b h w 3'], *, size: int = 224) -> Float[Array, 'b s s 3']:
  """Images in [-1, 1] of any size as the vision tower takes them: shortest side resized, centre cropped, standardised.

  Differs from the published code, which resizes uint8 images to uint8: here nothing is rounded.
  """
  b, height, width, c = images.shape
  short = min(height, width)
  height, width = (size * side // short for side in (height, width))
  x = images.astype(jnp.float32)
  if (height, width) != images.shape[1:3]:
    x = jax.image.resize(x, (b, height, width, c), 'cubic', antialias=True)
  top, left = (height - size) // 2, (width - size) // 2
  x = jnp.clip(x[:, top : top + size, left : left + size], -1, 1)
  return ((x + 1) / 2 - _MEAN.reshape(1, 1, 1, 3)) / _STD.reshape(1, 1, 1, 3)


class Block(nn.Module):
  """Eq. 3."""

  heads: int
  hidden: int
  depth: int
  activation: Activation
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d'], mask: Array | None) -> Float[Array, 'b l d']:
    init, out = _normal(x.shape[-1] ** -0.5), _normal((2 * self.depth * x.shape[-1]) ** -0.5)
    h = _norm(self.dtype, 'norm1')(x)
    x = x + Attention(self.heads, dtype=self.dtype, qkv_init=init, out_init=out, name='attention')(h, mask=mask)
    h = _norm(self.dtype, 'norm2')(x)
    return x + Mlp(self.hidden, self.activation, out, self.dtype, name='mlp')(h)


def _blocks(
  tower: 'CLIPText | CLIPVision', x: Float[Array, 'b l d'], *, mask: Array | None = None, skip: int = 0
) -> tuple[Float[Array, 'b l d'], Float[Array, 'b l d']]:
  """The last tokens, and those before the last `skip` blocks; call it inside a compact module."""
  if not 0 <= skip <= tower.depth:
    raise ValueError(f'skip is {skip}; this tower has {tower.depth} blocks')
  hidden = tower.hidden or 4 * tower.width
  block = partial(Block, tower.heads, hidden, tower.depth, tower.activation, tower.dtype)
  kept = stack(tower, block, x, mask, depth=tower.depth, stop=tower.depth - skip)
  return stack(tower, block, kept, mask, depth=tower.depth, start=tower.depth - skip), kept


class Mlp(nn.Module):
  """Two layers with the activation between."""

  hidden: int
  activation: Activation
  out_init: nn.initializers.Initializer
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d']) -> Float[Array, 'b l d']:
    d = x.shape[-1]
    h = Linear(self.hidden, kernel_init=_normal((2 * d) ** -0.5), dtype=self.dtype, name='in')(x)
    return Linear(d, kernel_init=self.out_init, dtype=self.dtype, name='out')(self.activation(h))


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=_EPS, dtype=dtype, use_fast_variance=False, name=name)


def _projected(pooled: Float[Array, 'b d'], features: int, dtype: Any) -> Float[Array, 'b e']:
  """Eq. 5; call it inside a compact module."""
  if not features:
    return pooled
  init = _normal(pooled.shape[-1] ** -0.5)
  return Linear(features, use_bias=False, kernel_init=init, dtype=dtype, name='projection')(pooled)
