"""An image as a prompt: keys and values of its tokens beside those that a layer attends to already.

  out = attention(q, k, v) + w attention(q, image_key(tokens), image_value(tokens))                    (1)

Ye et al. 2023, "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models"; the tokens are
those of models/image_prompt.py. Differs from Ye et al.: values start at zero, not as the text's, so that the first step
is the network's own.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.models.layers.attention import Decoupled
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Cond, Float


class ImagePrompt(NamedTuple):
  """An image as a prompt.

  Attributes:
    tokens: tokens of the image, projected by models/image_prompt.py.
    scale: w of each image of the batch; None for 1.
  """

  tokens: Float[Array, 'b m e']
  scale: Float[Array, ' b'] | None = None


def decoupled(image: ImagePrompt, heads: tuple[int, int], *, dtype: Any, normed: bool = False) -> Decoupled:
  """Keys and values of the image, Eq. 1; call it inside a compact module, which then has `image_key`, `image_value`.

  Args:
    image: the image.
    heads: number and size of the heads.
    dtype: dtype of the products.
    normed: the keys are RMS-normalised per head, as the network's own are.
  """
  tokens = image.tokens.astype(dtype)
  key = Linear(heads, use_bias=False, dtype=dtype, kernel_init=nn.initializers.lecun_normal(), name='image_key')(tokens)
  if normed:
    key = nn.RMSNorm(dtype=dtype, name='image_key_norm')(key)
  value = Linear(heads, use_bias=False, dtype=dtype, kernel_init=nn.initializers.zeros_init(), name='image_value')(
    tokens
  )
  scale = 1.0 if image.scale is None else image.scale[:, None, None, None].astype(dtype)
  return Decoupled(key, value, scale)


def of_blocks(cond: Cond, depth: int) -> ImagePrompt | None:
  """The image that `cond` has as a prompt for a stack of `depth` blocks, its scales `n b`; None where it has none.

  Raises:
    ValueError: there are neither one scale nor one for each block.
  """
  if 'image_prompt' not in cond:
    return None
  tokens, scale = cond['image_prompt'], cond.get('image_prompt_scale')
  each = jnp.ones((len(tokens), 1)) if scale is None else scale.reshape(len(tokens), -1)
  if each.shape[1] not in (1, depth):
    raise ValueError(f'image_prompt_scale has {each.shape[1]} factors for {depth} blocks; give 1 or all')
  return ImagePrompt(tokens, jnp.broadcast_to(each, (len(tokens), depth)).T)
