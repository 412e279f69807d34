"""StyleGAN2 weights of the published PyTorch code to Flax variables and back, bit for bit.

The published files are pickles that hold code, which is never run here: take their state dicts (`G_ema`, `D`) where
that code is trusted and save them as plain arrays (arrays.py). The variables of a generator are its parameters,
the mean of w ('statistics') and its constant noise ('noise'); a discriminator has parameters alone. The fixed filters
among the tensors have to be the [1, 3, 3, 1] that the networks here compute with.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen.models.layers.styles import StyleGenerator
from jaxgen.models.stylegan2 import StyleGAN2Discriminator, Synthesis, sizes
from jaxgen.pretrained.layout import Layout
from jaxgen.pretrained.state_dict import Leaf, Leaves, Shape

_FILTER = np.outer((1, 3, 3, 1), (1, 3, 3, 1)).astype(np.float32) / 64
_FILTERS = 'resample_filter'

# Path of a variable here -> name of its tensor, the first that matches.
_GENERATOR = (
  (r'params/mapping/dense_(\d+)/', r'mapping.fc\1.'),
  (r'params/mapping/embed/', 'mapping.embed.'),
  (r'params/synthesis/const', 'synthesis.b4.const'),
  (r'params/synthesis/(b\d+)_to_rgb/', r'synthesis.\1.torgb.'),
  (r'params/synthesis/(b\d+)_(conv\d)/', r'synthesis.\1.\2.'),
  (r'statistics/w_mean', 'mapping.w_avg'),
  (r'noise/synthesis/(b\d+)_(conv\d)/constant', r'synthesis.\1.\2.noise_const'),
)
_DISCRIMINATOR = (
  (r'params/mapping/dense_(\d+)/', r'mapping.fc\1.'),
  (r'params/mapping/embed/', 'mapping.embed.'),
  (r'params/(b\d+)/', r'\1.'),
  (r'params/conv/', 'b4.conv.'),
  (r'params/dense/', 'b4.fc.'),
  (r'params/out/', 'b4.out.'),
)


def generator(net: StyleGenerator) -> Layout:
  """The layout of a generator's state dict; its tree is of variables: {'params', 'statistics', 'noise'}."""
  leaves = _generator(net)
  names = [leaf.names[0] for leaf in leaves.values()]
  places = [f'synthesis.b{size}' for size in sizes(_synthesis(net).resolution)]
  places += [name.removesuffix('.noise_const') for name in names if name.endswith('.noise_const')]
  return Layout(net, leaves, {}, fixed={f'{place}.{_FILTERS}': _FILTER for place in places})


def discriminator(net: StyleGAN2Discriminator, *, resolution: int, channels: int = 3) -> Layout:
  """The layout of a discriminator's state dict, for images of that size; its tree is of variables: {'params'}."""
  leaves = _discriminator(net, resolution, channels)
  weights = [leaf.names[0] for leaf in leaves.values() if len(leaf.tensor_shape) == 4]
  places = [f'b{size}' for size in sizes(resolution)[1:]] + [name.removesuffix('.weight') for name in weights]
  return Layout(net, leaves, {}, fixed={f'{place}.{_FILTERS}': _FILTER for place in places})


def _synthesis(net: StyleGenerator) -> Synthesis:
  if not isinstance(net.synthesis, Synthesis):
    raise ValueError(f'the published weights are of StyleGAN2, not of {type(net.synthesis).__name__}')
  return net.synthesis


def _generator(net: StyleGenerator) -> Leaves:
  z, cond, keys = jnp.zeros((1, net.width)), {'label': jnp.zeros(1, jnp.int32)}, jax.random.split(jax.random.key(0), 1)
  shapes = jax.eval_shape(lambda key: net.init(key, z, cond, keys=keys), jax.random.key(0))
  return _leaves(shapes, _GENERATOR)


def _discriminator(net: StyleGAN2Discriminator, resolution: int, channels: int) -> Leaves:
  images, cond = jnp.zeros((1, resolution, resolution, channels)), {'label': jnp.zeros(1, jnp.int32)}
  shapes = jax.eval_shape(lambda key: net.init(key, images, cond), jax.random.key(0))
  return _leaves(shapes, (*_DISCRIMINATOR, ('params/from_rgb/', f'b{resolution}.fromrgb.')))


def _leaves(shapes: Any, names: tuple[tuple[str, str], ...]) -> Leaves:
  flat: dict[str, Any] = traverse_util.flatten_dict(shapes, sep='/')
  return {path: _leaf(path, leaf.shape, names) for path, leaf in flat.items()}


def _leaf(path: str, shape: Shape, names: tuple[tuple[str, str], ...]) -> Leaf:
  pattern, replacement = next(pair for pair in names if re.match(pair[0], path))
  name = re.sub(pattern, replacement, path).replace('/', '.').replace('kernel', 'weight')
  order = tuple(range(len(shape)))
  if path.endswith('kernel'):
    order = (3, 2, 0, 1) if len(shape) == 4 else (1, 0)
  elif len(shape) == 3:
    order = (2, 0, 1)  # the constant at 4x4
  tensor_shape = tuple(shape[axis] for axis in order)
  if path == 'params/dense/kernel':
    tensor_shape = (tensor_shape[0], int(np.prod(tensor_shape[1:])))  # of features, rows, columns
  return Leaf((name,), shape, order, tensor_shape)
