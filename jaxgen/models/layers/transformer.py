"""A transformer over the pixels of a U-Net's level that reads a sequence of tokens, such as a text's.

  h = in(norm(x))                                                     (1)
  h <- h + self(norm(h)); h <- h + cross(norm(h), text)               (2)    `depth` times, each with
  h <- h + mlp(norm(h)),  mlp(h) = out(a gelu(b)), (a, b) = in(h)     (3)    Shazeer 2020, "GLU Variants"
  y = x + out(h)                                                      (4)    starts at zero

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models". With an image as a prompt, Eq. 2's
`cross` has a second softmax over the image's tokens (layers/image_prompt.py).
"""

from typing import Any

import flax.linen as nn

from jaxgen.models.layers.attention import Attention
from jaxgen.models.layers.attention_edit import Edits
from jaxgen.models.layers.group_norm import GroupNorm
from jaxgen.models.layers.image_prompt import ImagePrompt, decoupled
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Bool, Float

_MLP_RATIO = 4
_EDITED_TOKENS = 16**2  # self-attention of more tokens is left as it is by an edit (Hertz et al. 2022)
_lecun = nn.initializers.lecun_normal()
_zeros = nn.initializers.zeros_init()
_NO_EDITS = Edits()


class Transformer(nn.Module):
  """Eqs. 1 to 4, on images."""

  heads: int
  depth: int
  groups: int
  dtype: Any

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    text: Float[Array, 'b k e'],
    *,
    mask: Bool[Array, 'b k'] | None = None,
    edits: Edits = _NO_EDITS,
    image: ImagePrompt | None = None,
  ) -> Float[Array, 'b h w c']:
    """`mask` is of the text's tokens, True where there is one."""
    b, height, width, d = x.shape
    h = GroupNorm(self.groups, dtype=self.dtype, name='norm')(x)
    h = Linear(d, dtype=self.dtype, name='in')(h.reshape(b, height * width, d))  # Eq. 1
    for i in range(self.depth):
      h = Block(self.heads, self.dtype, name=f'block_{i}')(h, text.astype(self.dtype), mask, edits, image)
    h = Linear(d, dtype=self.dtype, kernel_init=_zeros, name='out')(h)
    return x + h.reshape(x.shape)  # Eq. 4


class Block(nn.Module):
  """Eqs. 2 and 3."""

  heads: int
  dtype: Any

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b l d'],
    text: Float[Array, 'b k e'],
    mask: Bool[Array, 'b k'] | None,
    edits: Edits,
    image: ImagePrompt | None = None,
  ) -> Float[Array, 'b l d']:
    edit = edits.itself if x.shape[1] <= _EDITED_TOKENS else None
    x = x + self._attention('self')(self._norm('norm_self')(x), edit=edit)
    d = x.shape[-1]
    seen = () if image is None else (decoupled(image, (self.heads, d // self.heads), dtype=self.dtype),)
    x = x + self._attention('cross')(self._norm('norm_cross')(x), text, mask=mask, edit=edits.prompt, decoupled=seen)
    h = Linear((2, _MLP_RATIO * d), dtype=self.dtype, name='mlp_in')(self._norm('norm_mlp')(x))  # b l 2 4d
    h = h[:, :, 0] * nn.gelu(h[:, :, 1], approximate=False)
    return x + Linear(d, dtype=self.dtype, name='mlp_out')(h)

  def _attention(self, name: str) -> Attention:
    return Attention(self.heads, fused=False, qkv_bias=False, qkv_init=_lecun, dtype=self.dtype, name=name)

  def _norm(self, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name=name)
