"""CLIP's and SigLIP's losses against their definitions, on one device and many, and retrieval."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from jaxgen import sharding
from jaxgen.evaluators.base import Context
from jaxgen.evaluators.retrieval import retrieval
from jaxgen.metrics.retrieval import recall
from jaxgen.models.clip import CLIP, CLIPText, CLIPVision, Similarity, unit
from jaxgen.objectives.contrastive import NAME, contrastive, info_nce, sigmoid_pairs
from jaxgen.train_state import TrainState

NET = CLIP(
  text=CLIPText(width=16, depth=1, heads=2, projection=8, vocabulary=9, context=4, end_of_text=8),
  vision=CLIPVision(size=8, patch=4, width=16, depth=1, heads=2, projection=8),
  logit_bias=True,
)


def similarity(n: int = 8) -> Similarity:
  text, image = (unit(jnp.asarray(x, jnp.float32)) for x in np.random.default_rng(0).normal(size=(2, n, 5)))
  return Similarity(text, image, jnp.float32(np.log(7.0)), jnp.float32(-2.0))


def test_info_nce_is_its_definition():
  found = similarity()
  z = 7 * np.asarray(found.text, np.float64) @ np.asarray(found.image, np.float64).T
  by_text = np.diag(scipy.special.log_softmax(z, axis=1))
  by_image = np.diag(scipy.special.log_softmax(z, axis=0))
  assert float(info_nce(found)) == pytest.approx(-(by_text.mean() + by_image.mean()) / 2, rel=1e-5)


def test_the_scale_is_no_larger_than_100():
  assert float(info_nce(similarity()._replace(logit_scale=jnp.float32(9.0)))) == pytest.approx(
    float(info_nce(similarity()._replace(logit_scale=jnp.float32(np.log(100.0)))))
  )


def test_sigmoid_pairs_is_its_definition():
  found, n = similarity(), 8
  z = 7 * np.asarray(found.text, np.float64) @ np.asarray(found.image, np.float64).T - 2
  wanted = -sum(scipy.special.log_expit(z[i, j] if i == j else -z[i, j]) for i in range(n) for j in range(n)) / n
  assert float(sigmoid_pairs(found)) == pytest.approx(wanted, rel=1e-5)


def batch(n: int) -> dict[str, jax.Array]:
  """Eight colours, each with its word."""
  rng = np.random.default_rng(1)
  label = rng.permutation(np.arange(n) % 8)
  corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), axis=-1).reshape(8, 3)
  image = corners[label][:, None, None] + 0.1 * rng.normal(size=(n, 8, 8, 3))
  text = np.stack([label, np.full(n, 8), np.zeros(n), np.zeros(n)], axis=1)
  return {'image': jnp.asarray(image, jnp.float32), 'text': jnp.asarray(text, jnp.int32)}


@pytest.mark.parametrize('loss', [info_nce, sigmoid_pairs])
def test_the_global_batch_is_compared_on_any_mesh(loss):
  made = contrastive(NET, loss=loss)
  data = batch(8)
  params = made.init(jax.random.key(0), {}, data)['params']

  def value(params, data):
    return made.phases[0].loss(params, None, {}, data, jax.random.key(0))[0]

  alone, grads = jax.jit(jax.value_and_grad(value))(params, data)
  mesh = sharding.make_mesh(data=4, fsdp=2)
  spread = jax.device_put(data, sharding.batch_sharding(mesh))
  many, many_grads = jax.jit(sharding.under(mesh, jax.value_and_grad(value)))(params, spread)
  assert float(many) == pytest.approx(float(alone), rel=1e-5)
  for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(many_grads), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5 * (1 + float(jnp.abs(one).max())))


def test_words_and_colours_find_each_other():
  made = contrastive(NET, loss=info_nce)
  data = batch(8)
  params = made.init(jax.random.key(0), {}, data)['params']
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(params, state):
    (loss, aux), grads = jax.value_and_grad(made.phases[0].loss, has_aux=True)(
      params, None, {}, data, jax.random.key(0)
    )
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, loss, aux.metrics['accuracy']

  state, losses = optimizer.init(params), []
  for _ in range(60):
    params, state, loss, accuracy = step(params, state)
    losses.append(float(loss))
  assert losses[-1] < 0.2 < losses[0] and float(accuracy) == 1.0

  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  zero = jnp.zeros((), jnp.int32)
  trained = TrainState(step=zero, params=params, opt_state={}, ema={}, extra={}, bad_steps=zero)

  def compare(params, ids, images):
    return NET.apply({'params': params}, ids, images)

  texts, images = np.asarray(data['text']), np.asarray(data['image'])
  found = retrieval(compare, mesh=mesh, texts=texts, images=images, every=1, name=NAME, batch_size=3, at=(1, 2))
  assert found.run(Context(0, trained, {}, None, None)) == {
    'recall@1_image': 1.0, 'recall@2_image': 1.0, 'recall@1_text': 1.0, 'recall@2_text': 1.0
  }  # fmt: skip


def test_recall_counts_ties_as_nearer():
  eye = np.eye(4, 3, dtype=np.float32) + 0.0
  eye[3] = (1, 1, 1)
  assert recall(eye, eye, at=(1,)) == {1: 1.0}
  assert recall(eye, np.ones((4, 3), np.float32), at=(1, 4)) == {1: 0.0, 4: 1.0}
  assert recall(eye, eye[[1, 0, 2, 3]], at=(1, 4)) == {1: 0.5, 4: 1.0}
  with pytest.raises(ValueError, match='and 9 of them or more'):
    recall(eye, eye, at=(1, 9))
