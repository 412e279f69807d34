"""TREAD: in training, the middle of a transformer sees a part of the tokens, and the others pass by it unchanged.

  x_kept <- blocks_i ... blocks_j(x_kept),   kept a random part of each image's tokens, another in each step      (1)

Attention and MLPs of those blocks cost as much less, and the network learns faster, too: Krause et al. 2025, "TREAD:
Token Routing for Efficient Architecture-agnostic Diffusion Training". Samples are made with all tokens.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.typing import Array, Cond, Float


class Routed(nn.Module):
  """A transformer with a `route`, whose parameters stay at the top of the tree.

  Attributes:
    net: the network, such as `PixArt(..., route=(1, 4))` or a DiT; it has a `patch`.
    keep: share of the tokens that take the route.
  """

  net: Any
  keep: float = 0.5

  def setup(self) -> None:
    if self.net.route is None:
      raise ValueError('the network has no route; give it the blocks that see a part of the tokens, route=(1, 4)')
    if not 0 < self.keep < 1:
      raise ValueError(f'keep is {self.keep}; it is a share of the tokens, in (0, 1)')
    nn.share_scope(self, self.net)

  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, ' b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b h w o']:
    """The network; in training with the rng 'dropout', Eq. 1."""
    if train and self.has_rng('dropout'):
      tokens = (x.shape[1] // self.net.patch) * (x.shape[2] // self.net.patch)
      order = jnp.argsort(jax.random.uniform(self.make_rng('dropout'), (len(x), tokens)), axis=1)
      cond = {**cond, 'kept': jnp.sort(order[:, : max(1, round(self.keep * tokens))], axis=1)}
    return self.net(x, t, cond, train=train)
