"""Local blend: an edited prompt changes the image only where its words are (Hertz et al. 2022, section 3).

  a   = mean over layers and heads of the attention from each place to the words, source and target       (1)
  m   = [ widened(a) / max a > threshold ], of the source or of the target                                (2)
  D'  = m D(target) + (1 - m) D(source), of x0 and eps alike                                              (3)

Differs from Hertz et al., who blend x_t by the maps of all steps so far: here predictions are blended by the maps of
their own step, so that any sampler does it and carries nothing along. Outside of the mask of the last step the two
images are the same.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.processes.process import Prediction
from jaxgen.typing import Array, Bool, Cond, Float

_CROSS = {'cross', 'cross_attention'}  # the networks' names of attention to a prompt
Maps = Callable[[Array, Array, Cond], Array]  # (x_t, t, cond) -> attention to each token, b h w k


class Blend(NamedTuple):
  """Where an edit may change an image.

  Attributes:
    maps: attention to the prompt's tokens, such as of `attention_maps`.
    words: 1 for the tokens that an edit is about, of the source and of the target.
    threshold: see Eq. 2.
    until: the first share of time, from t = 1, in which all may change.
  """

  maps: Maps
  words: Float[np.ndarray, '2 k']
  threshold: float = 0.3
  until: float = 0.2


def words_of(source: Sequence[int], target: Sequence[int], *, pad: int = 0) -> Float[np.ndarray, '2 k']:
  """The tokens that two prompts do not share, as `Blend.words`.

  Args:
    source, target: token ids of the two rows, padded to one length.
    pad: the id of padding.

  Raises:
    ValueError: they share all.
  """
  if len(source) != len(target):
    raise ValueError(f'rows of {len(source)} and {len(target)} tokens; both must be padded to one length')
  shared = {pad, *set(source) & set(target)}
  own = np.array([[token not in shared for token in ids] for ids in (source, target)], np.float32)
  if not own.any():
    raise ValueError('the two prompts have the same words, so that no place of the image is about a change')
  return own


def attention_maps(net: nn.Module, tree: Any, network_time: Callable[[Array], Array]) -> Maps:
  """Eq. 1 for all tokens, of a network that reads its prompt by attention: U-Nets, PixArt and MMDiT.

  Args:
    net: the network.
    tree: its parameters.
    network_time: `Process.network_time`.
  """

  def maps(x_t: Array, t: Array, cond: Cond) -> Float[Array, 'b h w k']:
    _, kept = net.apply({'params': tree}, x_t, network_time(t), cond, mutable=['maps'])
    flat = jax.tree_util.tree_leaves_with_path(kept.get('maps', {}))
    cross = [leaf for path, leaf in flat if _CROSS & {getattr(key, 'key', '') for key in path}]
    found = [layer for leaf in cross for layer in _layers(leaf)]
    if not found:
      raise ValueError(f'{type(net).__name__} has no attention to a prompt, so there are no maps')
    height, width = x_t.shape[1:3]

    def placed(weights: Float[Array, 'b l k']) -> Float[Array, 'b h w k']:
      b, tokens, k = weights.shape
      factor = round(np.sqrt(height * width / tokens))  # side of the square that a place stands for
      rows = weights.reshape(b, height // factor, width // factor, k)
      return jax.image.resize(rows, (b, height, width, k), 'linear')

    return jnp.mean(jnp.stack([placed(weights) for weights in found]), axis=0)

  return maps


def _layers(maps: Float[Array, '...']) -> list[Float[Array, 'b l k']]:
  """Means over the heads of `b n l k`, or of a stack's `layers b n l k`."""
  mean = maps.mean(axis=-3)
  return list(mean) if mean.ndim == 4 else [mean]


def mask_of(maps: Float[Array, 'b h w k'], blend: Blend) -> Bool[Array, 'b h w']:
  """Eq. 2; the rows of a pair have one mask.

  Args:
    maps: attention of pairs of a source and its target.
    blend: which words, and the threshold.
  """
  words = jnp.tile(jnp.asarray(blend.words), (len(maps) // 2, 1))
  a = jnp.einsum('bhwk,bk->bhw', maps, words / jnp.maximum(words.sum(axis=1, keepdims=True), 1))
  a = jax.lax.reduce_window(a, -jnp.inf, jax.lax.max, (1, 3, 3), (1, 1, 1), 'SAME')
  over = a > blend.threshold * a.max(axis=(1, 2), keepdims=True)
  return jnp.repeat(over[::2] | over[1::2], 2, axis=0)


def blended(
  prediction: Prediction, x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond, blend: Blend
) -> Prediction:
  """Eq. 3 of pairs of a source and its target; the sources stay."""
  mask = mask_of(blend.maps(x_t, t, cond), blend) | (t > 1 - blend.until)[:, None, None]

  def mixed(leaf: Array) -> Array:
    return jnp.where(mask[..., None], leaf, jnp.repeat(leaf[::2], 2, axis=0))

  return prediction._replace(x0=mixed(prediction.x0), eps=mixed(prediction.eps))
