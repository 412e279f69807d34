"""Generative adversarial networks: a generator and a discriminator, each minimising a loss of its own.

  (1)  L_G = E g(D(T(x)), D(T(G(z))))  + penalties,   z ~ N(0, 1)
  (2)  L_D = E d(D(T(x)), D(T(G(z))))  + penalties,   G held fixed

with (d, g) one of losses.py, penalties of regularizers.py and T an augmentation of augmentation.py, applied to all
images that the discriminator sees. Each is a phase: first the generator's, then the discriminator's, lazy penalties
after the phase of their network. Goodfellow et al. 2014, "Generative Adversarial Nets".

Networks are Flax modules, `generator(z, cond, *, keys, train) -> images` and `discriminator(images, cond, *, train) ->
logits`, one for each image or several. Their collections besides parameters (running statistics, the mean
of w, power iterations) are `state.extra['generator']` and `['discriminator']`; the phase that trains a network updates
its own. Statistics over the batch are global under jit: those of all devices.

Projected (Sauer et al. 2021, "Projected GANs Converge Faster"): the discriminator sees a frozen network's features in
place of images, which small changes do not fool.

Unrolled (Metz et al. 2017): the generator's loss is against the discriminator after k more updates of Eq. 2 by its
optimizer, on the same images, and is differentiated through them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgen import sharding
from jaxgen.objectives.base import Aux, LossFn, Objective, Phase
from jaxgen.objectives.conditioning import always
from jaxgen.objectives.gan.augmentation import Augmentation, no_augmentation
from jaxgen.objectives.gan.losses import GanLoss, heuristics
from jaxgen.objectives.gan.regularizers import DiscriminatorPenalty, GeneratorPenalty
from jaxgen.objectives.weight_map import check_no_map
from jaxgen.processes.process import image_noise
from jaxgen.typing import Array, Batch, Cond, Float, Key

Extra = dict[str, Any]


class Unroll(NamedTuple):
  """How far the generator looks ahead.

  Attributes:
    steps: k above.
    optimizer: the discriminator's, which continues from its state. Adam has derivatives only with an `eps_root`
      above 0.
  """

  steps: int
  optimizer: optax.GradientTransformation


class Backbone(NamedTuple):
  """A frozen network before the discriminator.

  Attributes:
    apply: `(frozen, images) -> input of the discriminator`, any tree.
    shapes: images to a tree of arrays of those shapes; their values do not matter.
  """

  apply: Callable[[Any, Array], Any]
  shapes: Callable[[Array], Any]


no_backbone = Backbone(lambda frozen, images: images, lambda images: images)


class Game(NamedTuple):
  """The networks as functions of parameters and state.

  Attributes:
    generator, discriminator: Flax modules.
    latent: size of z.
    cond: the entries of a batch that both networks see.
    scheduled: step -> further entries of the condition.
    augmentation: T.
    backbone: see Backbone.
    frozen: its networks, within a loss.
  """

  generator: nn.Module
  discriminator: nn.Module
  latent: int
  cond: tuple[str, ...]
  scheduled: Callable[[Array], Cond]
  augmentation: Augmentation
  backbone: Backbone
  frozen: Any = None

  def condition(self, batch: dict[str, Any]) -> Cond:
    """The entries of a batch that the networks see."""
    missing = sorted(set(self.cond) - set(batch))
    if missing:
      raise ValueError(f'cond names {missing}, which the batch does not have; it has {sorted(batch)}')
    return {name: batch[name] for name in self.cond}

  def latents(self, keys: Key[Array, ' b']) -> tuple[Float[Array, 'b z'], Key[Array, ' b']]:
    """z of each image, and a key for the generator's other randomness."""
    z_keys, other = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    return sharding.split_batch(image_noise(z_keys, (self.latent,))), sharding.split_batch(other)

  def fake(self, params: Any, extra: Extra, cond: Cond, key: Key[Array, ''], num: int) -> tuple[Array, Any]:
    """Images of the training generator, and its collections after them."""
    z, keys = self.latents(jax.random.split(key, num))
    variables = {'params': params['generator'], **extra['generator']}
    return self.generator.apply(variables, z, cond, keys=keys, train=True, mutable=list(extra['generator']))

  def judge(
    self, params: Any, extra: Extra, step: Array, images: Array, cond: Cond, key: Key[Array, '']
  ) -> tuple[Array, Any]:
    """Logits of images, augmented first, and the discriminator's collections after them."""
    images = self.augmentation.apply(extra['augmentation'], step, images, key)
    seen = self.backbone.apply(self.frozen, images)
    variables = {'params': params['discriminator'], **extra['discriminator']}
    return self.discriminator.apply(variables, seen, cond, train=True, mutable=list(extra['discriminator']))


def gan(
  generator: nn.Module,
  discriminator: nn.Module,
  *,
  latent: int,
  loss: GanLoss,
  generator_penalties: Sequence[GeneratorPenalty] = (),
  discriminator_penalties: Sequence[DiscriminatorPenalty] = (),
  augmentation: Augmentation = no_augmentation,
  backbone: Backbone = no_backbone,
  cond: tuple[str, ...] = (),
  scheduled: Callable[[Array], Cond] = lambda step: {},
  generator_every: int = 1,
  unroll: Unroll | None = None,
) -> Objective:
  """Trains two networks against each other.

  Args:
    generator, discriminator: see the module's docstring.
    latent: size of z.
    loss: a loss of gan/losses.py.
    generator_penalties, discriminator_penalties: penalties of gan/regularizers.py.
    augmentation: an augmentation of gan/augmentation.py.
    backbone: frozen features that the discriminator sees, such as `adversarial.perceptual_backbone`.
    cond: names of the batch's entries that the networks see, such as ('label',).
    scheduled: step -> further scalars of the condition by name, such as {'fade': ...}; samples are made with those of
      the last step.
    generator_every: discriminator updates for each of the generator.
    unroll: see Unroll; None does not look ahead.
  """
  game = Game(generator, discriminator, latent, cond, scheduled, augmentation, backbone)
  d_loss = _discriminator_loss(game, loss, [p for p in discriminator_penalties if p.every == 1])
  g_loss = _generator_loss(game, loss, unroll)
  lazy_g = [_lazy_generator(game, p, generator_every) for p in generator_penalties]
  lazy_d = [_lazy_discriminator(game, p) for p in discriminator_penalties if p.every > 1]

  def init(key: Key[Array, ''], frozen: Any, batch: Batch) -> dict[str, Any]:
    check_no_map(batch, 'a GAN')
    g_key, d_key, z_key = jax.random.split(key, 3)
    few = {name: jnp.zeros((1, *a.shape[1:]), a.dtype) for name, a in game.condition(batch).items()}
    few |= scheduled(jnp.int32(0))
    z, keys = game.latents(jax.random.split(z_key, 1))
    made_g = dict(generator.init(g_key, z, few, keys=keys, train=False))
    image = jnp.zeros((1, *batch['image'].shape[1:]))
    made_d = dict(discriminator.init(d_key, backbone.shapes(image), few, train=False))
    params = {'generator': made_g.pop('params'), 'discriminator': made_d.pop('params')}
    kept = {p.name: p.init() for p in generator_penalties}
    extra = {'generator': made_g, 'discriminator': made_d, 'augmentation': augmentation.init()}
    extra['scheduled'] = scheduled(jnp.int32(0))
    return {'params': params, 'extra': extra | kept}

  def sample(params: dict[str, Any], frozen: Any, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b ...']:
    z, others = game.latents(keys)
    seen = game.condition(cond) | params['extra']['scheduled']
    variables = {'params': params['generator'], **params['extra']['generator']}
    images: Any = generator.apply(variables, z, seen, keys=others, train=False)
    return jnp.clip(images.astype(jnp.float32), -1.0, 1.0)

  phases = (
    Phase('generator', 'generator', g_loss, generator_every),
    *lazy_g,
    Phase('discriminator', 'discriminator', d_loss),
    *lazy_d,
  )
  networks = {'generator': generator, 'discriminator': discriminator}
  return Objective(init, phases, sample, conditioner=always(*cond), networks=networks)


def _generator_loss(rules: Game, loss: GanLoss, unroll: Unroll | None) -> LossFn:
  """Eq. 1."""

  def generator_loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Array, Aux]:
    latent_key, fake_key, real_key, unroll_key = jax.random.split(key, 4)
    game = rules._replace(frozen=frozen)
    cond, real = game.condition(batch) | game.scheduled(state.step), batch['image'].astype(jnp.float32)
    fake, moved = game.fake(params, state.extra, cond, latent_key, len(real))
    if unroll is not None:
      params = _ahead(game, loss, unroll, params, state, (real, fake, cond), unroll_key)
    fake_logits, _ = game.judge(params, state.extra, state.step, fake, cond, fake_key)
    real_logits, _ = game.judge(params, state.extra, state.step, real, cond, real_key)
    return jnp.mean(loss.generator(real_logits, fake_logits)), Aux(
      {}, {'generator': moved, 'scheduled': game.scheduled(state.step)}
    )

  return generator_loss


def _discriminator_loss(rules: Game, loss: GanLoss, penalties: Sequence[DiscriminatorPenalty]) -> LossFn:
  """Eq. 2, with the penalties of every step."""

  def discriminator_loss(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Array, Aux]:
    latent_key, fake_key, real_key, *keys = jax.random.split(key, 3 + len(penalties))
    game = rules._replace(frozen=frozen)
    cond, real = game.condition(batch) | game.scheduled(state.step), batch['image'].astype(jnp.float32)
    fake = jax.lax.stop_gradient(game.fake(params, state.extra, cond, latent_key, len(real))[0])
    real_logits, moved = game.judge(params, state.extra, state.step, real, cond, real_key)
    after = state.extra | {'discriminator': moved}
    fake_logits, moved = game.judge(params, after, state.step, fake, cond, fake_key)
    total = jnp.mean(loss.discriminator(real_logits, fake_logits))
    metrics = heuristics(real_logits, fake_logits)
    for penalty, penalty_key in zip(penalties, keys, strict=True):
      value = _penalty(game, penalty, params, state, real, fake, cond, penalty_key)
      total, metrics = total + value, metrics | {penalty.name: value}
    kept = game.augmentation.update(state.extra['augmentation'], state.step, real_logits)
    metrics |= game.augmentation.metrics(kept, state.step)
    return total, Aux(metrics, {'discriminator': moved, 'augmentation': kept})

  return discriminator_loss


def _penalty(game: Game, penalty: DiscriminatorPenalty, params, state, real, fake, cond, key) -> Array:
  augment_key, value_key = jax.random.split(key)

  def judge(images: Array) -> Array:
    return game.judge(params, state.extra, state.step, images, cond, augment_key)[0]

  return jnp.mean(penalty.value(judge, real, fake, state.step, value_key))


def _lazy_discriminator(rules: Game, penalty: DiscriminatorPenalty) -> Phase:
  def lazy(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Array, Aux]:
    latent_key, penalty_key = jax.random.split(key)
    game = rules._replace(frozen=frozen)
    cond, real = game.condition(batch) | game.scheduled(state.step), batch['image'].astype(jnp.float32)
    fake = jax.lax.stop_gradient(game.fake(params, state.extra, cond, latent_key, len(real))[0])
    value = _penalty(game, penalty, params, state, real, fake, cond, penalty_key)
    return penalty.every * value, Aux({'penalty': value})

  return Phase(penalty.name, 'discriminator', lazy, penalty.every)


def _lazy_generator(game: Game, penalty: GeneratorPenalty, generator_every: int) -> Phase:
  """A phase of its own whatever its interval, since it makes a batch of its own."""

  def lazy(params, state, frozen, batch: Batch, key: Key[Array, '']) -> tuple[Array, Aux]:
    cond, num = game.condition(batch) | game.scheduled(state.step), len(batch['image'])
    z, keys = game.latents(jax.random.split(key, num))
    variables = {'params': params['generator'], **state.extra['generator']}
    each, metrics, kept = penalty.value(game.generator, variables, state.extra[penalty.name], z, cond, keys)
    value = jnp.mean(each)
    return penalty.every * value, Aux({'penalty': value, **metrics}, {penalty.name: kept})

  return Phase(penalty.name, 'generator', lazy, penalty.every * generator_every)


def _ahead(
  game: Game, loss: GanLoss, unroll: Unroll, params, state, seen: tuple[Array, Array, Cond], key: Key[Array, '']
) -> Any:
  """The parameters with the discriminator's after more updates on one batch, as a function of the fakes."""
  real, fake, cond = seen

  def discriminator_loss(subtree: Any, step_key: Key[Array, '']) -> Array:
    fake_key, real_key = jax.random.split(step_key)
    tried = params | {'discriminator': subtree}
    fake_logits, _ = game.judge(tried, state.extra, state.step, fake, cond, fake_key)
    real_logits, _ = game.judge(tried, state.extra, state.step, real, cond, real_key)
    return jnp.mean(loss.discriminator(real_logits, fake_logits))

  def update(carry: tuple[Any, Any], step_key: Key[Array, '']) -> tuple[tuple[Any, Any], None]:
    subtree, opt_state = carry
    updates, opt_state = unroll.optimizer.update(jax.grad(discriminator_loss)(subtree, step_key), opt_state, subtree)
    return (optax.apply_updates(subtree, updates), opt_state), None

  start = params['discriminator'], state.opt_state['discriminator']
  (ahead, _), _ = jax.lax.scan(update, start, jax.random.split(key, unroll.steps))
  return params | {'discriminator': ahead}
