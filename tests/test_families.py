"""Every family of networks over `fsdp` and `tensor` is that of one device, in its loss and its gradients."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import sharding
from jaxgen.models import (
  autoencoder,
  bert,
  clip,
  conv_classifier,
  dcgan,
  dinov2,
  edm_unet,
  mlp,
  mmdit,
  patchgan,
  pixart,
  prior,
  progan,
  projected,
  qwen3,
  r3gan,
  stylegan,
  stylegan2,
  t5,
  unclip,
  unet,
  unet_classifier,
  vq,
  z_image,
)
from jaxgen.models.concatenated import Concatenated
from jaxgen.models.control_transformer import ControlledTransformer, ControlTransformer
from jaxgen.models.controlnet import Controlled, ControlNet
from jaxgen.models.dit import DiT
from jaxgen.models.image_prompt import ImageProjection, Resampler
from jaxgen.models.rules import RULES
from jaxgen.models.text_encoder import TextEncoder

_draw = np.random.default_rng(3).standard_normal
_images, _latents = (_draw((8, 16, 16, channels), np.float32) for channels in (3, 4))
_small, _t = _latents[:, :8, :8], np.linspace(10.0, 900.0, 8).astype(np.float32)
_text, _z = _draw((8, 6, 32), np.float32), _draw((8, 16), np.float32)
_label = {'label': np.arange(8) % 7}
_fade = {'fade': np.full((8, 1, 1, 1), 0.5, np.float32)}
_prompt = {'text': _text, 'pooled': _text[:, 0], 'text_mask': np.arange(6)[None] <= np.arange(8)[:, None]}
_ids = np.random.default_rng(4).integers(1, 50, (8, 6)).astype(np.int32)
_mask = np.arange(6)[None] <= np.arange(8)[:, None]


class Family(NamedTuple):
  """A network of a family.

  Attributes:
    net: the network.
    inputs: its positional arguments.
    share: at most this share of its parameters is on each of 8 devices, with fsdp=4 and tensor=2.
    tensor: at least this many of its parameters are split over `tensor`; 0 for a family without rules of its own.
    keys: whether it takes `keys`, one for each image.
  """

  net: Any
  inputs: tuple[Any, ...]
  share: float
  tensor: int = 4
  keys: bool = False


_unet = functools.partial(unet.UNet, multipliers=(1, 3), blocks=1, attention=(1,), groups=8)
_stable = _unet(width=32, heads=2, style=unet.STABLE, transformer=1)
_pixart = pixart.PixArt(patch=2, depth=2, width=64, heads=4)
_generator = functools.partial(Family, inputs=(_z, _label), tensor=0, keys=True)
_judge = functools.partial(Family, inputs=(_images, _label), tensor=0)
FAMILIES = {
  'dit': Family(DiT(patch=2, depth=2, width=64, heads=4, num_classes=7), (_small, _t, _label), 0.45),
  'adm, an odd number of heads': Family(_unet(width=64, head_size=64, num_classes=7), (_small, _t, _label), 0.25),
  'ddpm, two heads': Family(_unet(width=32, heads=2, style=unet.DDPM), (_small, _t, {}), 0.25),
  'stable diffusion': Family(_stable, (_small, _t, {'text': _text}), 0.25),
  'mmdit': Family(mmdit.MMDiT(patch=2, depth=2, width=48, heads=4, dual=1, qk_norm=True), (_small, _t, _prompt), 0.35),
  'flux': Family(
    mmdit.MMDiT(patch=2, depth=2, width=48, heads=4, single=1, rope=(4, 4, 4)), (_small, _t, _prompt), 0.35
  ),
  'pixart': Family(_pixart, (_small, _t, _prompt), 0.45),
  'z-image': Family(
    z_image.ZImage(depth=1, width=48, heads=4, refiners=1, rope=(4, 4, 4)), (_small, _t, _prompt), 0.35
  ),
  'edm': Family(edm_unet.EDMUNet(width=32, multipliers=(1, 2), blocks=1), (_small, _t / 1000, {}), 0.25),
  'prior': Family(prior.Prior(depth=2, width=64, heads=4), (_text[:, :1], _t, _prompt), 0.45),
  'autoencoder': Family(
    autoencoder.AutoencoderKL((1, 2), 4, channels=4, width=32, blocks=1, groups=8), (_small,), 0.25
  ),
  'vq model': Family(vq.VQModel((1, 2), 4, 16, channels=4, width=32, blocks=1, groups=8), (_small,), 0.25),
  'clip': Family(
    clip.CLIP(
      clip.CLIPText(32, 2, 4, projection=16, vocabulary=64, context=8, end_of_text=49),
      clip.CLIPVision(16, 4, 32, 2, 4, projection=16),
    ),
    (_ids, _images),
    0.35,
  ),
  'bert': Family(bert.Bert(32, 64, 2, 4, vocabulary=64, context=8), (_ids, _mask), 0.35),
  't5': Family(t5.T5Encoder(32, 64, 2, 4, head_size=8, vocabulary=64), (_ids, _mask), 0.35),
  'qwen3': Family(qwen3.Qwen3(32, 64, 2, 4, 2, head_size=8, vocabulary=64), (_ids,), 0.35),
  'text encoder': Family(TextEncoder(64, 32, 2, 4), (_ids,), 0.45),
  'dinov2': Family(dinov2.DINOv2(32, 2, 4, 64, patch=4, size=16), (_images,), 0.35),
  'controlnet': Family(
    Controlled(_stable, (ControlNet(_stable, hint=(8, 16), strides=0),)),
    (_small, _t, {'text': _text, 'control': _small[..., :3], 'control_scale': np.ones(8, np.float32)}),
    0.25,
  ),
  'controlled transformer': Family(
    ControlledTransformer(_pixart, (ControlTransformer(_pixart, 1),)),
    (_small, _t, {**_prompt, 'control': _small[..., :3], 'control_scale': np.ones(8, np.float32)}),
    0.45,
  ),
  'concatenated': Family(Concatenated(_pixart), (_small, _t, {**_prompt, 'concat': _small}), 0.45),
  'image projection': Family(ImageProjection(4, 32), (_z,), 0.5, tensor=0),
  'resampler': Family(Resampler(4, 32, 32, 1, 4, head_size=8), (_text,), 0.5, tensor=0),
  'embedding projection': Family(unclip.EmbeddingProjection(32, 64), (_z, _text[:, 0], _text), 0.5, tensor=0),
  'unet classifier': Family(
    unet_classifier.UNetClassifier(7, 32, (1, 2), 1, attention=(1,), groups=8), (_small, _t, {}), 0.35
  ),
  'conv classifier': Family(conv_classifier.ConvClassifier(7), (_images, _t, {}), 0.5, tensor=0),
  'dcgan generator': _generator(dcgan.DCGANGenerator(16, width=16, num_classes=7), share=0.4),
  'dcgan discriminator': _judge(dcgan.DCGANDiscriminator(width=16, num_classes=7), share=0.5),
  'r3gan generator': _generator(r3gan.R3GANGenerator((32, 32, 32), 1, 8, num_classes=7), share=0.4),
  'r3gan discriminator': _judge(r3gan.R3GANDiscriminator((32, 32, 32), 1, 8, num_classes=7), share=0.4),
  'progan generator': _generator(progan.ProGANGenerator(16, base=256), inputs=(_z, _fade), share=0.4),
  'progan discriminator': _judge(progan.ProGANDiscriminator(base=256), inputs=(_images, _fade), share=0.4),
  'stylegan generator': _generator(stylegan.stylegan_generator(16, base=256, width=32, layers=2), share=0.4),
  'stylegan2 generator': _generator(
    stylegan2.stylegan2_generator(16, base=256, width=32, layers=2, num_classes=7), share=0.4
  ),
  'stylegan2 discriminator': _judge(stylegan2.StyleGAN2Discriminator(num_classes=7, layers=2, base=256), share=0.4),
  'patchgan': Family(patchgan.MultiScalePatchGAN(2, width=16, layers=1), (_images,), 0.4, tensor=0),
  'projected discriminator': Family(
    projected.ProjectedDiscriminator(16, num_classes=7), ((_latents, _small), _label), 1.01, tensor=0
  ),
  'mlp generator': _generator(mlp.MLPGenerator((4, 4, 3), width=32), share=0.4),
  'mlp discriminator': _judge(mlp.MLPDiscriminator(width=32), share=0.4),
  'mlp denoiser': Family(mlp.MLPDenoiser(width=32), (_small, _t, {}), 0.4, tensor=0),
}
FAST = ('adm, an odd number of heads', 'autoencoder', 'pixart')


@functools.cache
def _variables(name):
  """Parameters of a family's network, none of which is zero, and its other collections."""
  family = FAMILIES[name]
  keys = {'keys': jax.random.split(jax.random.key(5), 8)} if family.keys else {}
  shapes = jax.eval_shape(lambda key, inputs: family.net.init(key, *inputs, **keys), jax.random.key(0), family.inputs)
  draw = np.random.default_rng(1).standard_normal
  made = jax.tree.map(lambda leaf: np.asarray(0.1 * draw(leaf.shape), np.float32), shapes)
  rest = jax.tree.map(np.abs, {part: tree for part, tree in made.items() if part != 'params'})  # variances too
  return made['params'], rest, keys


@pytest.mark.parametrize('name', FAMILIES)
def test_rules_split_nearly_all_of_a_network(name):
  family, (params, _, _) = FAMILIES[name], _variables(name)
  places = sharding.shard_tree(params, sharding.make_mesh(data=1, fsdp=4, tensor=2), known=RULES)
  split = jax.tree.map(lambda leaf, place: np.prod(place.shard_shape(leaf.shape)), params, places)
  whole, part = (sum(jax.tree.leaves(tree)) for tree in (jax.tree.map(lambda leaf: leaf.size, params), split))
  assert part < family.share * whole
  assert sum(sharding.axes_of(place).count('tensor') for place in jax.tree.leaves(places)) >= family.tensor


@pytest.mark.parametrize(
  'name', [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_network_over_tensor_is_that_of_one_device(name):
  family, (params, rest, keys) = FAMILIES[name], _variables(name)

  def value(params, inputs, keys, rest):
    made = family.net.apply({'params': params, **rest}, *inputs, **keys)
    return sum(jnp.mean(jnp.sin(leaf)) for leaf in jax.tree.leaves(made) if jnp.issubdtype(leaf.dtype, jnp.floating))

  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  places = sharding.shard_tree(params, mesh, known=RULES)
  batch = jax.tree.map(lambda leaf: sharding.batch_sharding(mesh), (family.inputs, keys))
  split = jax.jit(
    sharding.under(mesh, jax.value_and_grad(value)), in_shardings=(places, *batch, sharding.replicated(mesh))
  )
  loss, grads = split(params, family.inputs, keys, rest)
  wanted, gradients = jax.jit(jax.value_and_grad(value))(params, family.inputs, keys, rest)
  np.testing.assert_allclose(loss, wanted, rtol=1e-5, atol=1e-7)  # a mean that may be near 0
  largest = max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(gradients))
  assert largest > 1e-4
  worst = jax.tree.map(lambda a, b: float(np.linalg.norm(np.subtract(a, b)) / largest), gradients, grads)
  assert max(jax.tree.leaves(worst)) < 1e-5, worst
