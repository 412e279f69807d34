"""Contrastive training of images with captions: CLIP and SigLIP.

  z_ij = s <u_i, v_j> + b,  u_i of text i and v_j of image j, of length 1                               (1)
  L = -mean_i (log softmax_j(z_ij)_i + log softmax_j(z_ji)_i) / 2,  s <= 100, b = 0                     (2)
  L = -mean_i sum_j log sigmoid(y_ij z_ij),  y_ij = 1 for j = i, else -1                                (3)

Eq. 2: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", in nats. Eq. 3:
Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training". s and b are learned.

Each image is compared with all captions of the global batch: a device has the rows of z of its own texts (and, in
Eq. 2, of its own images), so only embeddings are gathered.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.clip import Similarity
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.objectives.weight_map import check_no_map
from jaxgen.sharding import split_batch
from jaxgen.typing import Array, Batch, Float, Key

NAME = 'clip'
_LARGEST_SCALE = 100.0

PairLoss = Callable[[Similarity], Float[Array, '']]


def contrastive(
  net: nn.Module,
  *,
  loss: PairLoss,
  prepare: Callable[[Float[Array, 'b h w c']], Float[Array, 'b _ _ c']] = lambda images: images,
) -> Objective:
  """The objective; it makes no images.

  Args:
    net: `(ids, images) -> Similarity`, such as `models.clip.CLIP`.
    loss: `info_nce` or `sigmoid_pairs`.
    prepare: preprocessing of images in [-1, 1], such as `models.clip.preprocess` with its size.

  A batch has 'image' and 'text', int32 `b k`.
  """

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    check_no_map(batch, 'a contrastive loss')
    image, text = (jnp.zeros((1, *batch[name].shape[1:]), batch[name].dtype) for name in ('image', 'text'))
    return {'params': {NAME: net.init(key, text, prepare(image))['params']}}

  def pair_loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    found: Any = net.apply({'params': params[NAME]}, batch['text'], prepare(batch['image'].astype(jnp.float32)))
    right = jnp.argmax(_rows(found.image, found.text), axis=1) == jnp.arange(len(found.text))
    return loss(found), Aux({'accuracy': jnp.mean(right), 'scale': scale(found)})

  def sample(*_: Any) -> Array:
    raise ValueError('this model compares images with captions, and makes none')

  return Objective(init=init, phases=(Phase(NAME, NAME, pair_loss),), sample=sample)


def info_nce(found: Similarity) -> Float[Array, '']:
  """Eq. 2."""
  s = scale(found)
  return (_cross_entropy(s * _rows(found.text, found.image)) + _cross_entropy(s * _rows(found.image, found.text))) / 2


def sigmoid_pairs(found: Similarity) -> Float[Array, '']:
  """Eq. 3."""
  z = jnp.exp(found.logit_scale) * _rows(found.text, found.image) + found.logit_bias
  y = 2 * jnp.eye(len(z)) - 1
  return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(y * z), axis=1))


def scale(found: Similarity) -> Float[Array, '']:
  """s of Eq. 1; no larger than 100, as CLIP's."""
  return jnp.minimum(jnp.exp(found.logit_scale), _LARGEST_SCALE)


def _rows(own: Float[Array, 'b e'], others: Float[Array, 'b e']) -> Float[Array, 'b b']:
  """Cosines of each of `own` with all of `others`; the rows are sharded over devices as the batch is."""
  return split_batch(jnp.einsum('ie,je->ij', split_batch(own), others, precision='highest'))


def _cross_entropy(z: Float[Array, 'b b']) -> Float[Array, '']:
  """The cross-entropy of row i with column i, in nats."""
  return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(z.astype(jnp.float32), axis=1)))
