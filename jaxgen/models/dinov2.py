"""DINOv2: a vision transformer trained without labels, whose features judge generators better than Inception's.

  x = [class, patches] + position                                                                          (1)
  x <- x + s1 * attention(norm(x)); x <- x + s2 * mlp(norm(x))    `depth` times; s1, s2 per feature        (2)
  features = norm_out(x)[class]                                                                            (3)

The positions were learned for 37 x 37 patches (518 pixels). For other sizes they are resized by the cubic of PyTorch
(A = -0.75, no antialiasing); the original code calls 16 patches 16.1 of 37, and transformers 16.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision" (arXiv:2304.07193). As a metric: Stein
et al. 2023, "Exposing flaws of generative model evaluation metrics" (arXiv:2306.04675).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.clip import Mlp, exact_gelu
from jaxgen.models.layers.attention import Attention
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.stack import TRANSFORMER_RULES, stack
from jaxgen.typing import Array, Float

SIZE = 224  # side of the images that its features are compared at
OFFSET = 0.1  # what the original code adds to the number of patches before it divides
_EPS = 1e-6
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # for pixels in [0, 1]
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_A = -0.75
_init = nn.initializers.normal(0.02)
RULES = TRANSFORMER_RULES


class DINOv2(nn.Module):
  """The transformer, `(images) -> features of the class token`; images are `preprocess`ed.

  Attributes:
    width, depth, heads: features of a token, number of blocks, attention heads.
    hidden: features within the MLP.
    patch: side of a patch.
    size: side of the images that the positions were learned for.
    offset: patches added where positions are resized: OFFSET as the original code, 0 as transformers.
    dtype: dtype of activations; parameters are float32.
  """

  width: int = 1024
  depth: int = 24
  heads: int = 16
  hidden: int = 4096
  patch: int = 14
  size: int = 518
  offset: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w c']) -> Float[Array, 'b d']:
    b, height, width, c = images.shape
    rows, columns = height // self.patch, width // self.patch
    if (rows * self.patch, columns * self.patch) != (height, width):
      raise ValueError(f'images of {height}x{width} are not made of patches of {self.patch}; preprocess them')
    x = images.astype(self.dtype).reshape(b, rows, self.patch, columns, self.patch, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, rows * columns, self.patch, self.patch, c)
    x = Linear(self.width, inputs=3, kernel_init=_init, dtype=self.dtype, name='patch_embed')(x)
    first = self.param('class_embed', _init, (self.width,), jnp.float32)
    first = jnp.broadcast_to(first.astype(x.dtype)[None, None], (b, 1, self.width))
    side = self.size // self.patch
    positions = self.param('position_embed', _init, (side * side + 1, self.width), jnp.float32)
    positions = resize_positions(positions, side=side, rows=rows, columns=columns, offset=self.offset)
    x = jnp.concatenate([first, x], axis=1) + positions[None].astype(x.dtype)  # Eq. 1
    block = functools.partial(Block, self.heads, self.hidden, self.dtype)
    x = stack(self, block, x, depth=self.depth)
    return nn.LayerNorm(epsilon=_EPS, dtype=self.dtype, use_fast_variance=False, name='norm_out')(x[:, 0])  # Eq. 3


class Block(nn.Module):
  """Eq. 2."""

  heads: int
  hidden: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d']) -> Float[Array, 'b l d']:
    norm = functools.partial(nn.LayerNorm, epsilon=_EPS, dtype=self.dtype, use_fast_variance=False)
    s1, s2 = (self.param(name, nn.initializers.ones, (x.shape[-1],), jnp.float32) for name in ('scale1', 'scale2'))
    attention = Attention(self.heads, dtype=self.dtype, qkv_init=_init, out_init=_init, name='attention')
    x = x + s1.astype(x.dtype)[None, None] * attention(norm(name='norm1')(x))
    return x + s2.astype(x.dtype)[None, None] * Mlp(self.hidden, exact_gelu, _init, self.dtype, name='mlp')(
      norm(name='norm2')(x)
    )


def resize_positions(
  positions: Float[Array, 'l d'], *, side: int, rows: int, columns: int, offset: float
) -> Float[Array, 'k d']:
  """The class token's position, and those of side x side patches for rows x columns."""
  if (rows, columns) == (side, side):
    return positions
  grid = positions[1:].reshape(side, side, -1)
  by_row, by_column = (jnp.asarray(_cubic_matrix(side, new, offset)) for new in (rows, columns))
  grid = jnp.einsum('ih,hwd->iwd', by_row, grid, precision=jax.lax.Precision.HIGHEST)
  grid = jnp.einsum('jw,iwd->ijd', by_column, grid, precision=jax.lax.Precision.HIGHEST)
  return jnp.concatenate([positions[:1], grid.reshape(rows * columns, -1)])


@functools.lru_cache(maxsize=16)
def _cubic_matrix(old: int, new: int, offset: float) -> np.ndarray:
  """Weights of `old` values for each of `new`: PyTorch's bicubic, without antialiasing, its border repeated."""
  centre = (np.arange(new) + 0.5) * old / (new + offset) - 0.5
  low = np.floor(centre).astype(int)
  matrix = np.zeros((new, old))
  for tap in range(-1, 3):
    distance = np.abs(centre - (low + tap))
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = ((_A * distance - 5 * _A) * distance + 8 * _A) * distance - 4 * _A
    weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    np.add.at(matrix, (np.arange(new), np.clip(low + tap, 0, old - 1)), weight)
  return matrix.astype(np.float32)


def preprocess(images: Float[Array, 'b h w 3']) -> Float[Array, 'b 224 224 3']:
  """Images in [-1, 1] of any size as dgm-eval gives them: 8 bits, Pillow's bicubic to 224x224 in 8 bits, standardised.

  Pillow resizes each row first, and rounds between the two passes. (Pillow 13 resizes columns first where that is
  cheaper, for some images that are not square.)
  """
  x = _eight_bits(127.5 * (images.astype(jnp.float32) + 1))
  for shape in ((*x.shape[:2], SIZE, 3), (x.shape[0], SIZE, SIZE, 3)):
    if shape != x.shape:
      x = jax.image.resize(x, shape, 'cubic', antialias=True, precision=jax.lax.Precision.HIGHEST)
      x = _eight_bits(x)
  return (x / 255 - _MEAN.reshape(1, 1, 1, 3)) / _STD.reshape(1, 1, 1, 3)


def _eight_bits(x: Array) -> Array:
  return jnp.clip(jnp.floor(x + 0.5), 0, 255)
