"""StyleGAN2 weights of the published PyTorch code to Flax variables and back, bit for bit.

The published files are pickles that hold code, which is never run here: take their state dicts (`G_ema`, `D`) where
that code is trusted and save them as plain arrays (arrays.py). The variables of a generator are its parameters,
the mean of w ('statistics') and its constant noise ('noise'); a discriminator has parameters alone. The fixed filters
among the tensors have to be the [1, 3, 3, 1] that the networks here compute with.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from jaxgen import npz_file
from jaxgen.models.layers.styles import StyleGenerator
from jaxgen.models.stylegan2 import StyleGAN2Discriminator, Synthesis, sizes
from jaxgen.pretrained import safetensors_file
from jaxgen.pretrained.arrays import read
from jaxgen.pretrained.layout import Layout
from jaxgen.pretrained.state_dict import Leaf, Leaves, Shape, to_flax
from jaxgen.typing import Params

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


def is_file(path: str | os.PathLike) -> bool:
  """Whether a file of plain arrays holds a generator, under `G.`, `G_ema.`, `G/`, `G_ema/` or as it is."""
  path = epath.Path(path)
  if path.suffix == '.safetensors':
    names: Iterable[str] = safetensors_file.lazily(path)
  elif path.suffix == '.npz':
    names = npz_file.names(path)
  else:
    return False
  return _prefix(names, 'G_ema', 'G') is not None


def params_like(path: str | os.PathLike, params: Mapping[str, Params]) -> dict[str, Params]:
  """The parameters of a file of state dicts, of networks of the same shapes; those that the file has.

  The mean of w and the constant noise are no parameters, and are left out.

  Args:
    path: a file of plain arrays: the generator's as for `is_file`, the discriminator's under `D.` or `D/`.
    params: by network, 'generator' and perhaps 'discriminator'.
  """
  arrays, made = read(path), {}
  for name, prefixes, names in (
    ('generator', ('G_ema', 'G'), _GENERATOR),
    ('discriminator', ('D',), _DISCRIMINATOR),
  ):
    prefix = _prefix(arrays, *prefixes)
    if name not in params or prefix is None:
      continue
    if name == 'discriminator':
      side = max(int(key[1:]) for key in params[name] if re.fullmatch(r'b\d+', key))
      names = (*names, ('params/from_rgb/', f'b{side}.fromrgb.'))
    leaves = _leaves({'params': params[name]}, names)
    own = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    wrong = [key for key, array in own.items() if key.endswith(_FILTERS) and not np.allclose(array, _FILTER, atol=1e-6)]
    if wrong:
      raise ValueError(f'{path}: {wrong[0]} is not the filter [1, 3, 3, 1] that jaxgen computes with')
    state = (_FILTERS, 'w_avg', 'noise_const')
    own = {key: array for key, array in own.items() if not key.endswith(state)}
    made[name] = to_flax(leaves, own, network=f'{path} ({name})')['params']
  return made


def _prefix(names: Iterable[str], *prefixes: str) -> str | None:
  """What stands before the names of a network; None where it is not there."""
  names = list(names)
  marks = ('synthesis.b4.const',) if 'G' in prefixes else ('b4.out.weight',)
  tried = [f'{prefix}{between}' for prefix in prefixes for between in './'] + ['']
  return next((prefix for prefix in tried if any(f'{prefix}{mark}' in names for mark in marks)), None)


def _synthesis(net: StyleGenerator) -> Synthesis:
  if not isinstance(net.synthesis, Synthesis):
    raise ValueError(f'the published weights are of StyleGAN2, not of {type(net.synthesis).__name__}')
  return net.synthesis


def _generator(net: StyleGenerator) -> Leaves:
  z, cond, keys = (
    jnp.zeros((1, net.z_width)),
    {'label': jnp.zeros(1, jnp.int32)},
    jax.random.split(jax.random.key(0), 1),
  )
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
    tensor_shape = (tensor_shape[0], int(np.prod(tensor_shape[1:])))  # features, rows, columns
  return Leaf((name,), shape, order, tensor_shape)
