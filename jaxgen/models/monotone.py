"""A monotone function of one number, learned: the noise schedule of VDM (Kingma et al. 2021, appendix H).

(1)  h(t) = w1 t + b1 + w3 . sigmoid(w2 (w1 t + b1) + b2),   w1, w2, w3 > 0
(2)  y(t) = start + (end - start) (h(t) - h(0)) / (h(1) - h(0))
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.typing import Array, Float


class Monotone(nn.Module):
  """y of Eq. 2, `t -> y`, rising from `start` at 0 to `end` at 1; at first nearly straight.

  Attributes:
    start, end: y(0) and y(1), which are not learned.
    width: width of the hidden layer.
  """

  start: float
  end: float
  width: int = 128

  @nn.compact
  def __call__(self, t: Float[Array, '*s']) -> Float[Array, '*s']:
    normal, zeros = nn.initializers.normal(1.0), nn.initializers.zeros_init()
    w1, b1 = self.param('w1', zeros, ()), self.param('b1', zeros, ())
    w2, b2 = self.param('w2', normal, (self.width,)), self.param('b2', normal, (self.width,))
    w3 = self.param('w3', nn.initializers.constant(-5.0), (self.width,))

    def h(t: Array) -> Array:
      line = jax.nn.softplus(w1) * t + b1
      shape = (1,) * t.ndim + (-1,)
      hidden = jax.nn.sigmoid(jax.nn.softplus(w2).reshape(shape) * line[..., None] + b2.reshape(shape))
      return line + (jax.nn.softplus(w3).reshape(shape) * hidden).sum(-1)  # Eq. 1

    zero, one = h(jnp.zeros(())), h(jnp.ones(()))
    return self.start + (self.end - self.start) * (h(t) - zero) / (one - zero)  # Eq. 2
