"""A transformer over patches that reads more channels beside x, such as a picture that is to be edited.

  tokens = W patches(x) + V patches(cond['concat'])                                          (1)

which is [W; V] times the patches of both, with W the network's own first layer, and V from zero: the first step is the
network's. Its parameters stay at the top of the tree, so that a trained network is where this one begins. U-Nets read
cond['concat'] themselves (models/unet.py).
"""

from typing import Any

import flax.linen as nn

from jaxgen.models.dit import patchify, with_hint
from jaxgen.models.layers.linear import Linear
from jaxgen.typing import Array, Cond, Float


class Concatenated(nn.Module):
  """The network: `(x, t, cond) -> output`, which is `net` where cond has no 'concat'.

  Attributes:
    net: DiT, MMDiT or PixArt.
  """

  net: Any

  def setup(self) -> None:
    nn.share_scope(self, self.net)
    zeros = nn.initializers.zeros_init()
    self.concat_embed = Linear(self.net.width, use_bias=False, kernel_init=zeros, dtype=self.net.dtype)

  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, 'b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b h w o']:
    if 'concat' not in cond:
      return self.net(x, t, cond, train=train)
    if cond['concat'].shape[1:3] != x.shape[1:3]:
      raise ValueError(
        f'concat is {cond["concat"].shape[1:3]} for images or latents of {x.shape[1:3]}; want both alike'
      )
    more = self.concat_embed(patchify(cond['concat'].astype(self.net.dtype), self.net.patch))

    return self.net(x, t, {**cond, 'patch_hint': with_hint(more, cond)}, train=train)
