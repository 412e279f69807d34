"""Classifier guidance, with the classifier trained beside the model (Dhariwal & Nichol 2021).

  (1)  L = -log p(y | x_t),   x_t = alpha(t) x0 + sigma(t) eps        in nats, at the times of sampling

  guided_by_classifier(objective, net) -> objective

The wrapped objective has one more network, 'classifier', with a phase of its own, and its samples come from
p(x) p(y | x)^(scale - 1): samplers/guidance.py, Eq. 4. The model itself may be unconditional.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.objectives.base import Aux, Denoising, Objective, Phase, sampled
from jaxgen.objectives.conditioning import Field
from jaxgen.processes import times as time_samplers
from jaxgen.processes.process import Denoiser, Prediction, Process, corrupt, noise_like
from jaxgen.samplers.guidance import Scale, classifier_guided
from jaxgen.typing import Array, Batch, Cond, Float, Key

NAME, LABEL = 'classifier', 'label'
_WANTED = 'class_of_classifier'  # entry of `cond` that the classifier reads and the network does not


def guided_by_classifier(
  objective: Objective,
  net: nn.Module,
  *,
  scale: Scale,
  times: time_samplers.TimeSampler = time_samplers.independent,
  interval: tuple[float, float] | None = None,
) -> Objective:
  """`objective`, sampled with a classifier that is trained with it.

  Args:
    objective: one that denoises, such as `diffusion`.
    net: `(x_t, network_time, cond, *, train) -> logits`, such as `UNetClassifier`; cond is empty.
    scale: 1 leaves the objective's samples as they are, 2 makes conditional ones of an unconditional model.
    times: times at which the classifier is trained.
    interval: times at which it guides.
  """
  d = objective.denoising
  if d is None:
    raise ValueError('a classifier guides a denoiser, and this objective has none')

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    objective_key, own_key = jax.random.split(key)
    made, x = objective.init(objective_key, frozen, batch), jnp.zeros((1, *d.shape))
    return made | {'params': made['params'] | {NAME: net.init(own_key, x, jnp.zeros(1), {}, train=False)['params']}}

  def loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    x0 = batch['image'].astype(jnp.float32)
    t = times(time_key, len(x0))
    process = d.process(params)
    x_t = corrupt(process, x0, noise_like(x0, noise_key), t)
    each = log_probabilities(net, process, params[NAME], train=True, rngs={'dropout': dropout_key})(x_t, t)
    right = jnp.argmax(each, axis=-1) == batch[LABEL]
    of_label = jnp.take_along_axis(each, batch[LABEL][:, None], axis=1)[:, 0]
    return -jnp.mean(of_label), Aux({'accuracy': jnp.mean(jnp.float32(right))})  # Eq. 1

  def denoiser(params: dict[str, Any], frozen: Any) -> Denoiser:
    process, denoise = d.process(params), d.denoiser(params, frozen)
    all_of = log_probabilities(net, process, params[NAME], train=False)

    def log_probability(x_t: Array, t: Array, cond: Cond) -> Array:
      return jnp.take_along_axis(all_of(x_t, t), cond[_WANTED][:, None], axis=1)[:, 0]

    def unlabelled(x_t: Array, t: Array, cond: Cond) -> Prediction:
      return denoise(x_t, t, {name: value for name, value in cond.items() if name != _WANTED})

    return classifier_guided(unlabelled, process, log_probability, scale, interval=interval)

  def condition(params: dict[str, Any], frozen: Any, batch: dict[str, Array], keys: Key[Array, ' b']) -> Any:
    cond, without = d.condition(params, frozen, batch, keys)
    return {**cond, _WANTED: batch[LABEL]}, without

  denoising: Denoising = d._replace(denoiser=denoiser, condition=condition)
  conditioner = objective.conditioner
  return objective._replace(
    init=init,
    phases=(*objective.phases, Phase(NAME, NAME, loss)),
    sample=sampled(denoising),
    denoising=denoising,
    conditioner=conditioner._replace(fields={LABEL: Field(), **conditioner.fields}),
  )


def log_probabilities(net: nn.Module, process: Process, params: dict[str, Any], **kwargs: Any) -> Any:
  """`(x_t, t) -> log p(y | x_t)` of every class y, float32 [b y], in nats."""

  def of(x_t: Float[Array, 'b ...'], t: Float[Array, ' b']) -> Float[Array, 'b y']:
    logits: Any = net.apply({'params': params}, x_t, process.network_time(t), {}, **kwargs)
    return jax.nn.log_softmax(logits.astype(jnp.float32))

  return of
