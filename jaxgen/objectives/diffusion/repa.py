"""REPA: a transformer's tokens after some block are aligned with a frozen encoder's features of the clean image.

With h_l the network's token l of the noisy image after block k, y_l the encoder's of the clean one, and P trained:

  (1)  L = -w mean_l cos(P(h)_l, y_l)                                               while step < stop, then 0
  (2)  P = three layers of each token, with SiLU between                            (REPA)
  (3)  P = one 3x3 convolution;  y <- (y - g mean_l y) / std_l y                     (iREPA)

Yu et al. 2025, "Representation Alignment for Generation"; Singh et al. 2025, "What matters for Representation
Alignment", for Eq. 3. w is 0.5; stopping (Wang et al. 2025, HASTE) frees the network when it knows more than the
encoder.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.layers.conv import Conv
from jaxgen.models.layers.linear import Linear
from jaxgen.objectives.diffusion.diffusion import Beside
from jaxgen.typing import Array, Batch, Float, Key, Metrics

NAME = 'projector'
Encode = Callable[[Any, Array], Array]  # (frozen, images in [-1, 1]) -> features, float b h w e, of the tokens' grid


class PerToken(nn.Module):
  """P of Eq. 2."""

  features: int
  width: int = 256

  @nn.compact
  def __call__(self, h: Float[Array, 'b h w d']) -> Float[Array, 'b h w e']:
    for layer in ('first', 'second'):
      h = nn.silu(Linear(self.width, name=layer)(h))
    return Linear(self.features, name='out')(h)


class Spatial(nn.Module):
  """P of Eq. 3."""

  features: int

  @nn.compact
  def __call__(self, h: Float[Array, 'b h w d']) -> Float[Array, 'b h w e']:
    return Conv(self.features, name='out')(h)


def repa(
  encode: Encode,
  *,
  depth: int,
  projector: Callable[[int], nn.Module] = PerToken,
  normalise: Callable[[Array], Array] = lambda y: y,
  weight: float = 0.5,
  stop: int | None = None,
) -> Beside:
  """Eq. 1, for `diffusion(..., beside=repa(...))`.

  Args:
    encode: the frozen encoder.
    depth: k; the network's `hidden` names it.
    projector: features -> P.
    normalise: what is done to y, such as `spatially`.
    weight: w.
    stop: the step after which there is no alignment; None for never.
  """

  def target(frozen: Any, batch: Batch) -> Float[Array, 'b h w e']:
    return normalise(encode(frozen, batch['image'].astype(jnp.float32)).astype(jnp.float32))

  def tokens_of(tokens: Any, grid: Sequence[int]) -> Array:
    name = f'depth_{depth}'
    if name not in tokens:
      raise ValueError(
        f'the network gives hidden tokens of {sorted(tokens)}; REPA wants {name}: set its hidden=({depth},)'
      )
    h = tokens[name][0]
    if h.shape[1] != grid[0] * grid[1]:
      raise ValueError(f'{h.shape[1]} tokens of the network for {grid[0]}x{grid[1]} of the encoder; they must be equal')
    return h.reshape(len(h), *grid, h.shape[-1]).astype(jnp.float32)

  def init(key: Key[Array, ''], tokens: Any, frozen: Any, batch: Batch) -> Any:
    like = jax.eval_shape(target, frozen, {'image': batch['image']})
    h = jax.eval_shape(lambda tokens: tokens_of(tokens, like.shape[1:3]), tokens)
    made: Any = projector(like.shape[-1]).init(key, jnp.zeros(h.shape))
    return made['params']

  def loss(params: Any, tokens: Any, frozen: Any, batch: Batch, step: Array) -> tuple[Array, Metrics]:
    y = target(frozen, batch)
    h: Any = projector(y.shape[-1]).apply({'params': params}, tokens_of(tokens, y.shape[1:3]))
    aligned = jnp.mean(cosine(h, y))
    now = jnp.float32(1) if stop is None else (step < stop).astype(jnp.float32)
    return -weight * now * aligned, {'alignment': aligned}

  return Beside(NAME, init, loss)


def cosine(a: Float[Array, '*s e'], b: Float[Array, '*s e']) -> Float[Array, '*s']:
  """The cosine of the angle between vectors."""
  length = jnp.sqrt(jnp.sum(a * a, -1) * jnp.sum(b * b, -1))
  return jnp.sum(a * b, -1) / jnp.maximum(length, 1e-8)


def spatially(y: Float[Array, 'b h w e'], *, share: float = 1.0) -> Float[Array, 'b h w e']:
  """Eq. 3's y: what all places have in common is taken away; `share` is g."""
  centred = y - share * jnp.mean(y, axis=(1, 2), keepdims=True)
  return centred / (jnp.std(y, axis=(1, 2), keepdims=True) + 1e-6)
