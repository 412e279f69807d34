"""The train steps that are compared with other programs', as experiments on one batch that never changes."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen import ema, sharding
from jaxgen.experiment import Experiment
from jaxgen.models.dit import dit
from jaxgen.models.layers import remat
from jaxgen.models.mmdit import MMDiT
from jaxgen.models.stylegan2 import StyleGAN2Discriminator, stylegan2_generator
from jaxgen.models.unet import DDPM, DDPM_SIZES, UNet
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.objectives.gan import losses as gan_losses
from jaxgen.objectives.gan import regularizers
from jaxgen.objectives.gan.gan import gan
from jaxgen.optimizers import lazy_adam

BATCH_SIZE = 16
STYLEGAN2_FEATURES = 128


class FixedBatch(NamedTuple):
  """Data for a benchmark: the same batch for ever, made once; a stand-in for a loader."""

  batch: dict[str, np.ndarray]

  @property
  def identity(self) -> dict[str, Any]:
    return {'dataset': 'fixed batch', 'batch_size': len(next(iter(self.batch.values())))}

  @property
  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in self.batch.items()}

  @property
  def specs(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
    return [self.spec]

  def iterate(self, start_step: int, sharding: jax.sharding.Sharding) -> Iterator[dict[str, jax.Array]]:
    batch = jax.device_put(self.batch, sharding)
    while True:
      yield batch


def dit_s4(*, batch_size: int = BATCH_SIZE, size: str = 'S/4') -> Experiment:
  """The train step that is compared with the public PyTorch DiT's: float32, 32x32x4 latents, eps, AdamW, EMA."""
  net = dit(size, num_classes=1000, learn_sigma=True, remat=remat.policy('dots'))
  return eps_step(net, (batch_size, 32, 32, 4), optax.adamw(1e-4, weight_decay=0.0), num_classes=1000)


def unet_cifar10(*, batch_size: int = BATCH_SIZE) -> Experiment:
  """The train step that is compared with a PyTorch U-Net's: DDPM's of CIFAR-10 at half the width, float32, Adam."""
  net = UNet(**DDPM_SIZES['cifar10']._replace(width=64, dropout=0.0)._asdict(), style=DDPM)
  return eps_step(net, (batch_size, 32, 32, 3), optax.adam(2e-4))


def mmdit(*, batch_size: int = BATCH_SIZE) -> Experiment:
  """The train step that is compared with diffusers' SD3 transformer: float32, 32x32x4 latents, 77 tokens, AdamW."""
  net = MMDiT(patch=2, depth=6, width=384, heads=6, table=(96, 16))
  draw = np.random.default_rng(0)
  cond = {'text': draw.standard_normal((batch_size, 77, 512), np.float32)}
  cond['pooled'] = draw.standard_normal((batch_size, 512), np.float32)
  return eps_step(net, (batch_size, 32, 32, 4), optax.adamw(1e-4, weight_decay=0.0), cond=cond)


def stylegan2(*, batch_size: int = BATCH_SIZE, max_features: int = STYLEGAN2_FEATURES) -> Experiment:
  """The train step that is compared with the public PyTorch StyleGAN2's: float32, 32x32, without labels or ADA.

  Configuration F with lazy R1 and path lengths, style mixing, lazy Adam and EMA, but no layer of either network has
  more than `max_features`; 512 are published, with 16 times the work.
  """
  image = np.random.default_rng(0).uniform(-1, 1, (batch_size, 32, 32, 3)).astype(np.float32)
  r1, path_length = 16, 4  # steps between two of each
  adam = partial(lazy_adam, 0.0025, b1=0.0, b2=0.99)
  return Experiment(
    objective=gan(
      stylegan2_generator(32, max_features=max_features),
      StyleGAN2Discriminator(max_features=max_features),
      latent=512,
      loss=gan_losses.non_saturating,
      generator_penalties=(regularizers.path_length(2.0, every=path_length),),
      discriminator_penalties=(regularizers.r1(0.0002 * 32**2 / batch_size, every=r1),),
    ),
    optimizers={'generator': adam(every=path_length), 'discriminator': adam(every=r1)},
    averages={'generator': ema.Average('generator', ema.half_life(5_000.0, batch_size=batch_size, ramp=0.05))},
    data=FixedBatch({'image': image}),
    steps=1,
    mesh=sharding.make_mesh(data=1, devices=jax.devices()[:1]),
  )


def eps_step(
  net: nn.Module,
  shape: tuple[int, ...],
  optimizer: optax.GradientTransformation,
  *,
  num_classes: int = 0,
  cond: Mapping[str, np.ndarray] = {},
) -> Experiment:
  """One batch of that shape, for ever; the loss is the mean squared error of eps in the first channels.

  Args:
    net: the network.
    shape: shape of the images or latents, b h w c.
    optimizer: its optimizer.
    num_classes: number of labels; 0 for none.
    cond: other conditions, arrays with the batch's axis in front.
  """
  draw = np.random.default_rng(0)
  batch = {
    'image': draw.standard_normal(shape, np.float32),
    'eps': draw.standard_normal(shape, np.float32),
    't': draw.integers(0, 1000, shape[0]).astype(np.float32),
    'label': draw.integers(0, num_classes or 1, shape[0], np.int32),
    **cond,
  }
  fields = ('label', *cond)

  def apply(variables, batch, **kwargs) -> Any:
    return net.apply(
      variables, batch['image'], batch['t'], {name: batch[name] for name in fields}, train=True, **kwargs
    )

  def init(key, frozen, batch):
    made = net.init(key, batch['image'], batch['t'], {name: batch[name] for name in fields})
    return {'params': {'net': made['params']}}

  def loss(params, state, frozen, batch, key):
    error = apply({'params': params['net']}, batch, rngs={'dropout': key})[..., : shape[-1]] - batch['eps']
    return jnp.mean(jnp.square(error)), Aux()

  return Experiment(
    objective=Objective(init, (Phase('net', 'net', loss),), _no_samples),
    optimizers={'net': optimizer},
    averages={'net': ema.Average('net', ema.constant(0.9999))},
    data=FixedBatch(batch),
    steps=1,
    mesh=sharding.make_mesh(data=1, devices=jax.devices()[:1]),
  )


def _no_samples(params, frozen, cond, keys):
  raise ValueError('the benchmark of a train step makes no images')
