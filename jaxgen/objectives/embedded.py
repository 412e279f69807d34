"""Training on embeddings of images: DALL-E 2's prior.

  embedded(objective, embed, mean=mean, std=std) -> objective,   x0 = (embed(image) - mean) / std     (1)

The inner objective takes rows `b 1 d` for images. Embeddings of length 1 have entries of about 1/sqrt(d), far below the
noise, so they are standardised; mean and deviation are parameters of the network (models/prior.py), which travel with
it, and to which no gradient comes. A sample is an embedding, `b d`, no image; an image that is edited is embedded.
Ramesh et al. 2022.

  beside(objective, {'embedding': embed}) -> objective                                               (2)

adds fields to the batch that are made of its images in each step, such as the embedding that a decoder reads.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.objectives.conditioning import Conditioner, Field
from jaxgen.objectives.network import NET, weights
from jaxgen.typing import Array, Batch, Cond, Float, Key

EMBEDDING = 'embedding'  # entry of a batch: the embedding of each image, float b d
Embed = Callable[[Any, Array], Array]  # (frozen, images b h w c in [-1, 1]) -> embeddings b d


def embedded(
  objective: Objective, embed: Embed, *, mean: Float[np.ndarray, ' d'], std: Float[np.ndarray, ' d']
) -> Objective:
  """`objective`, on standardised embeddings of a batch's images.

  Args:
    objective: an objective of shape (1, d) whose network has the parameters `mean` and `std`.
    embed: embeds images with a network of `frozen`.
    mean, std: mean and deviation of the embeddings of the data, of each feature; see `statistics`.

  Raises:
    ValueError: the deviation of a feature is zero.
  """
  if (flat := np.flatnonzero(np.asarray(std) <= 0)).size:
    raise ValueError(f'embeddings do not vary in feature {flat[0]}, of {len(std)}; measure them on more images')

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    made = objective.init(key, frozen, batch)
    net = {**weights(made['params']), 'mean': jnp.asarray(mean), 'std': jnp.asarray(std)}
    return {**made, 'params': {**made['params'], NET: net}}

  def rows(params: dict[str, Any], frozen: Any, images: Array) -> Array:
    mean, std = (jax.lax.stop_gradient(weights(params)[name])[None] for name in ('mean', 'std'))
    return ((embed(frozen, images) - mean) / std)[:, None]  # Eq. 1

  def on_embeddings(phase: Phase) -> Phase:
    def loss(
      params: dict[str, Any], state: Any, frozen: Any, batch: Batch, key: Key[Array, '']
    ) -> tuple[Float[Array, ''], Aux]:
      x0 = jax.lax.stop_gradient(rows(params, frozen, batch['image']))
      return phase.loss(params, state, frozen, batch | {'image': x0}, key)

    return phase._replace(loss=loss)

  return of_standardised(objective)._replace(
    init=init, phases=tuple(on_embeddings(phase) for phase in objective.phases)
  )


def of_standardised(objective: Objective) -> Objective:
  """`objective`, whose samples are embeddings b d, by the network's mean and deviation."""

  def sample(params: dict[str, Any], frozen: Any, cond: Any, keys: Key[Array, ' b']) -> Float[Array, 'b d']:
    x0 = objective.sample(params, frozen, cond, keys)[:, 0]
    return x0 * weights(params)['std'][None] + weights(params)['mean'][None]

  # Its x0 are no images, nor made of them without the network's parameters.
  return objective._replace(sample=sample, denoising=None)


def beside(objective: Objective, fields: Mapping[str, Embed]) -> Objective:
  """`objective`, whose batches have further fields that are made of their images.  # Eq. 2

  Args:
    objective: an objective whose conditioner has these fields.
    fields: makes each, with a network of `frozen`.
  """

  def added(frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {name: jax.lax.stop_gradient(make(frozen, batch['image'])) for name, make in fields.items()}

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    return objective.init(key, frozen, {**batch, **_shapes(fields, frozen, batch)})

  def with_fields(phase: Phase) -> Phase:
    def loss(
      params: dict[str, Any], state: Any, frozen: Any, batch: Batch, key: Key[Array, '']
    ) -> tuple[Float[Array, ''], Aux]:
      return phase.loss(params, state, frozen, added(frozen, batch), key)

    return phase._replace(loss=loss)

  return objective._replace(init=init, phases=tuple(with_fields(phase) for phase in objective.phases))


def with_embedding(
  conditioner: Conditioner, projection: nn.Module, *, features: int, text_width: int, drop_rate: float = 0.1
) -> Conditioner:
  """A conditioner of text and of the embedding of an image: DALL-E 2's decoder.

  Args:
    conditioner: the text's, which makes `text` and `pooled`; without drops of its own.
    projection: models/unclip.py, trained as params['embedding']; its `null` stands for no embedding.
    features: features of an embedding.
    text_width: features of `text` and `pooled`.
    drop_rate: probability of each of three events: no embedding, no text, neither.
  """
  texts = conditioner.nullable

  def encode(params: dict[str, Any], frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    if EMBEDDING not in fields or not set(texts) <= set(fields):
      raise ValueError(f'this network reads an embedding and a text together; got {sorted(fields)} alone')
    cond = dict(conditioner.encode(params, frozen, {name: fields[name] for name in texts}, keys))
    made: Any = projection.apply({'params': params[EMBEDDING]}, fields[EMBEDDING], cond['pooled'], cond['text'])
    if 'text_mask' in cond:
      more = made['text'].shape[1] - cond['text'].shape[1]
      cond['text_mask'] = jnp.pad(cond['text_mask'], ((0, 0), (more, 0)), constant_values=True)
    return {**cond, **made}

  def init(key: Key[Array, '']) -> dict[str, Any]:
    of_text, own = jax.random.split(key)
    row = jnp.zeros((1, text_width))
    return {
      **conditioner.init(of_text),
      EMBEDDING: projection.init(own, jnp.zeros((1, features)), row, row[:, None])['params'],
    }

  fields = {**conditioner.fields, EMBEDDING: Field(lambda params: params[EMBEDDING]['null'])}
  events = ((EMBEDDING,), texts, (*texts, EMBEDDING))
  return Conditioner(fields, dict.fromkeys(events, drop_rate) if drop_rate else {}, encode, init)


def statistics(embeddings: Float[np.ndarray, 'n d']) -> tuple[Float[np.ndarray, ' d'], Float[np.ndarray, ' d']]:
  """Mean and deviation of each feature."""
  rows = np.asarray(embeddings, np.float64)
  return rows.mean(0).astype(np.float32), rows.std(0).astype(np.float32)


def _shapes(fields: Mapping[str, Embed], frozen: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
  def shaped(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

  image, trees = shaped(batch['image']), jax.tree.map(shaped, frozen)
  return {name: jax.eval_shape(make, trees, image) for name, make in fields.items()}
