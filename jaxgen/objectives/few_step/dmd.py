"""DMD2: a generator of a few steps whose samples, under noise, are as likely as a trained model's.

G(x_t, t) is the network's x0. At one of the times t_1 = 1 > ... > t_n, which all images of a step share, x_t is what
the generator itself comes to in the steps before (from the last x0, with new noise), and x = G(x_t, t_k). With x_u = x
under noise at a random time u, the guided teacher's x0_real and a second model's x0_fake, which learns what G makes,

  (1)  generator   L = 1/2 mean |x - sg(x - g)|^2 + w softplus(-D(x_u)),   g = (x0_fake - x0_real) / mean |x - x0_real|
  (2)  fake        L = mean |F(x0_fake) - F(x)|^2                          the diffusion loss on samples of G
  (3)  adversary   L = softplus(D(x_u)) + softplus(-D(y_u)),               y the data

D is one layer on the mean of the fake model's tokens after some block. Eqs. 1, 2 and 3 are a phase each; the
generator's runs every few steps, so that the fake model keeps up. Yin et al. 2024, "Improved Distribution Matching
Distillation for Fast Image Synthesis". The teacher and the encoders are frozen (teacher.py). The fake model is the
teacher's weights plus params['fake'], which starts at zero.

Differs from Yin et al.: the adversary trains its layer alone, not the fake model under it.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.objectives.base import Aux, Objective, Phase, sampled
from jaxgen.objectives.diffusion.diffusion import squared_error
from jaxgen.objectives.few_step.latent_consistency import check_times
from jaxgen.objectives.few_step.teacher import condition_of, init_of_student, taught, teacher_of
from jaxgen.objectives.network import NET, weights
from jaxgen.processes.parameterisation import Parameterise, eps
from jaxgen.processes.process import Process, corrupt, expand, noise_like
from jaxgen.processes.times import TimeSampler
from jaxgen.samplers import grids
from jaxgen.samplers.consistency import consistency
from jaxgen.samplers.sampler import Guide, Sampler
from jaxgen.typing import Array, Batch, Cond, Float, Key

FAKE, HEAD = 'fake', 'head'
_STACK = 'blocks'


def dmd(
  objective: Objective,
  *,
  noise_times: TimeSampler,
  times: tuple[float, ...] = (1.0,),
  every: int = 5,
  guide_teacher: Sequence[Guide] = (),
  guide: Sequence[Guide] = (),
  space: Parameterise = eps,
  adversary: float = 0.0,
  depth: int = 0,
) -> Objective:
  """Trains a student of a diffusion objective's model by Eqs. 1 to 3.

  Args:
    objective: the teacher's.
    noise_times: time sampler of u.
    times: t_1 ... t_n, falling from 1; one for each step of sampling.
    every: updates of the fake model and the adversary for one of the generator.
    guide_teacher: wrappers of the teacher, such as `(classifier_free(4.0), clip())`.
    guide: wrappers of the student when sampling, such as `(clip(),)`.
    space: F.
    adversary: w; 0 for no third phase. It needs the data, which Eqs. 1 and 2 do not see.
    depth: block of the network's stack whose tokens D reads.
  """
  check_times(times)
  d, net = taught(objective), objective.networks[NET]
  grid = np.asarray([*times, 0], np.float32)
  student = d._replace(
    sampler=Sampler(consistency, grid), guide=tuple(guide), walk=Sampler(consistency, grids.fine(grid)), inverse=None
  )
  of_student = init_of_student(objective)

  def init(key: Key[Array, ''], frozen: Any, batch: dict[str, Any]) -> dict[str, Any]:
    params = of_student(key, frozen, batch)['params']
    params[FAKE] = jax.tree.map(jnp.zeros_like, weights(params))
    if adversary:
      width = jax.tree.leaves(_tokens(net, weights(params), d, frozen, batch))[0].shape[-1]
      params[HEAD] = {'kernel': jnp.zeros((width, 1)), 'bias': jnp.zeros(1)}
    return {'params': params}

  def samples(params: Any, frozen: Any, cond: Cond, key: Key[Array, ''], size: int) -> Array:
    return generated(d.denoiser({NET: weights(params)}, frozen), d.process({}), cond, key, (size, *d.shape), times)

  def judge(params: Any, frozen: Any, x_u: Array, u: Array, cond: Cond) -> Float[Array, ' b']:
    tokens = hidden_tokens(net, fake_of(params, frozen), x_u, d.process({}).network_time(u), cond, depth)
    head = params[HEAD]
    return (tokens.mean(axis=1) @ head['kernel'])[:, 0] + head['bias']

  def generator_loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    draw_key, time_key, noise_key, encode_key = jax.random.split(key, 4)
    cond, without = condition_of(d, frozen, batch, encode_key)
    x = samples(params, frozen, cond, draw_key, len(batch['image']))
    u = noise_times(time_key, len(x))
    x_u = corrupt(d.process({}), x, noise_like(x, noise_key), u)
    real = teacher_of(d, frozen, without, guide_teacher)(x_u, u, cond).x0
    fake = d.denoiser({NET: fake_of(params, frozen)}, frozen)(x_u, u, cond).x0
    value = matching(x, *jax.tree.map(jax.lax.stop_gradient, (real, fake)))
    metrics = {'apart': jnp.mean(jnp.abs(fake - real))}
    if adversary:
      metrics['adversary'] = jnp.mean(jax.nn.softplus(-judge(params, frozen, x_u, u, cond)))
      value += adversary * metrics['adversary']
    return value, Aux(metrics)

  def fake_loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    draw_key, time_key, noise_key, encode_key = jax.random.split(key, 4)
    cond, _ = condition_of(d, frozen, batch, encode_key)
    x = jax.lax.stop_gradient(samples(params, frozen, cond, draw_key, len(batch['image'])))
    u, noise, judged = noise_times(time_key, len(x)), noise_like(x, noise_key), space(d.process({}))
    x_u = corrupt(d.process({}), x, noise, u)
    prediction = d.denoiser({NET: fake_of(params, frozen)}, frozen)(x_u, u, cond)
    perfect = judged.predict(judged.target(x, noise, u), x_u, u)
    return jnp.mean(squared_error(judged, prediction, perfect, u)), Aux()  # Eq. 2

  def adversary_loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Float[Array, ''], Aux]:
    draw_key, time_key, noise_key, encode_key = jax.random.split(key, 4)
    cond, _ = condition_of(d, frozen, batch, encode_key)
    real = d.encode(frozen, batch['image'].astype(jnp.float32))
    fake = jax.lax.stop_gradient(samples(params, frozen, cond, draw_key, len(real)))
    u = noise_times(time_key, len(real))
    noise = noise_like(real, noise_key)
    of_fake, of_real = (judge(params, frozen, corrupt(d.process({}), x, noise, u), u, cond) for x in (fake, real))
    value = jnp.mean(jax.nn.softplus(of_fake) + jax.nn.softplus(-of_real))  # Eq. 3
    return value, Aux({'right': jnp.mean((of_real > 0) & (of_fake < 0))})

  phases = [Phase('generator', NET, generator_loss, every), Phase(FAKE, FAKE, fake_loss)]
  if adversary:
    phases.append(Phase('adversary', HEAD, adversary_loss))
  return objective._replace(init=init, phases=tuple(phases), sample=sampled(student), denoising=student)


def matching(x: Float[Array, 'b ...'], real: Float[Array, 'b ...'], fake: Float[Array, 'b ...']) -> Float[Array, '']:
  """The first term of Eq. 1; `real` and `fake` are constants."""
  axes = tuple(range(1, x.ndim))
  scale = jnp.mean(jnp.abs(jax.lax.stop_gradient(x) - real), axis=axes)
  g = (fake - real) / expand(jnp.maximum(scale, 1e-5), x)
  return 0.5 * jnp.mean((x - jax.lax.stop_gradient(x - g)) ** 2)


def generated(
  denoise: Any, process: Process, cond: Cond, key: Key[Array, ''], shape: tuple[int, ...], times: Sequence[float]
) -> Float[Array, 'b ...']:
  """x = G(x_t, t_k) at a random k, from x_t that the generator came to; only the last call is differentiated."""
  which_key, key = jax.random.split(key)
  which, at = jax.random.randint(which_key, (), 0, len(times)), jnp.asarray(times, jnp.float32)
  like = jnp.zeros(shape)
  first = process.sigma(jnp.float32(1)) * noise_like(like, key)

  def step(i: Array, x: Array) -> Array:
    x0 = denoise(x, jnp.full(shape[0], at[i]), cond).x0
    again = noise_like(like, jax.random.fold_in(key, i + 1))
    return jax.lax.stop_gradient(corrupt(process, x0, again, jnp.full(shape[0], at[i + 1])))

  x = first
  for i in range(len(times) - 1):
    x = jax.lax.cond(i < which, step, lambda i, x: x, i, x)
  return denoise(jax.lax.stop_gradient(x), jnp.full(shape[0], at[which]), cond).x0


def fake_of(params: dict[str, Any], frozen: Any) -> Any:
  """The weights of the fake model."""
  return jax.tree.map(lambda base, more: base.astype(more.dtype) + more, weights(frozen), params[FAKE])


def hidden_tokens(
  net: nn.Module, params: Any, x: Array, network_time: Array, cond: Cond, depth: int
) -> Float[Array, 'b l d']:
  """The tokens after block `depth` of the network's stack, counted from 0."""
  _, kept = net.apply({'params': params}, x, network_time, cond, train=False, mutable=['states'])
  states: Any = kept['states'][_STACK]
  states = states[0] if isinstance(states, tuple) else states  # MMDiT has two streams; the first is the image's
  return states[depth].astype(jnp.float32)


def _tokens(net: nn.Module, params: Any, d: Any, frozen: Any, batch: dict[str, Any]) -> Any:
  """Shapes of the network's tokens."""

  def run(params: Any, frozen: Any, batch: Any) -> Array:
    cond, _ = condition_of(d, frozen, batch, jax.random.key(0))
    size = len(batch['image'])
    return hidden_tokens(net, params, jnp.zeros((size, *d.shape)), jnp.zeros(size), cond, 0)

  return jax.eval_shape(run, params, frozen, dict(batch))
