"""EDM's published weights (Karras et al. 2022) to Flax parameters and back, bit for bit: DDPM++, NCSN++ and ADM.

The published files are pickles that hold code, which is never run here. Where that code is trusted (in a clone of EDM's
repository), the state dict is saved as plain arrays:

  net = pickle.load(open('edm-cifar10-32x32-cond-vp.pkl', 'rb'))['ema']
  np.savez('edm.npz', **{name: tensor.numpy() for name, tensor in net.state_dict().items()})

and `jaxgen weights convert edm.npz FOLDER --network edm-cifar10-32x32-cond-vp` checks it and writes what `load` reads.
The networks are those of `parameterisation.preconditioned(edm(), data_std=0.5)`. ADM is models/unet.py's, without a
learned variance. The filters among the tensors have to be those that the networks here resample with.
"""

import os
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.models import edm_unet
from jaxgen.models.edm_unet import EDMUNet, ddpmpp, ncsnpp
from jaxgen.models.unet import UNet, adm, blocks_of
from jaxgen.pretrained import arrays, folder, layout, state_dict
from jaxgen.pretrained import unet as pretrained_unet
from jaxgen.pretrained.layout import Layout
from jaxgen.pretrained.state_dict import (
  Leaf,
  Leaves,
  Modules,
  Order,
  Shape,
  conv,
  conv_1x1,
  flat_shapes,
  leaf_of,
  linear,
  table,
  to_heads,
)

Net = EDMUNet | UNet
CLASSES = ('EDMUNet',)
_WRAPPED = 'model.'  # before each name in the state dict of EDM's preconditioned networks
_FREQUENCIES = 'map_noise.freqs'
_FILTER = 'resample_filter'


class Published(NamedTuple):
  """A published network.

  Attributes:
    net: without the frequencies that NCSN++'s weights come with.
    resolution: side of its images.
  """

  net: Net
  resolution: int


def _of_64(net: EDMUNet, dropout: float) -> Published:
  return Published(net.clone(multipliers=(1, 2, 2, 2), attention=(2,), dropout=dropout), 64)


PUBLISHED = {
  'edm-cifar10-32x32-cond-vp': Published(ddpmpp(num_classes=10, augment=9), 32),
  'edm-cifar10-32x32-cond-ve': Published(ncsnpp(num_classes=10, augment=9), 32),
  'edm-cifar10-32x32-uncond-vp': Published(ddpmpp(augment=9), 32),
  'edm-cifar10-32x32-uncond-ve': Published(ncsnpp(augment=9), 32),
  'edm-ffhq-64x64-uncond-vp': _of_64(ddpmpp(augment=9), 0.05),
  'edm-ffhq-64x64-uncond-ve': _of_64(ncsnpp(augment=9), 0.05),
  'edm-afhqv2-64x64-uncond-vp': _of_64(ddpmpp(augment=9), 0.25),
  'edm-afhqv2-64x64-uncond-ve': _of_64(ncsnpp(augment=9), 0.25),
  'edm-imagenet-64x64-cond-adm': Published(adm(64).clone(learn_sigma=False), 64),
}

_to_features = Order((2, 0, 1), lambda shape: (shape[2], shape[0] * shape[1], 1, 1))  # heads, size of a head, out
_split = Order((2, 3, 1, 0), lambda shape: (shape[1] * shape[2] * shape[3], shape[0], 1, 1))  # in, 3, heads, size

# Module here -> (module there, layout of its kernel), within a block and its attention.
_BLOCK: Modules = {
  'norm0': ('norm0', table),
  'conv0': ('conv0', conv),
  'affine': ('affine', linear),
  'norm1': ('norm1', table),
  'conv1': ('conv1', conv),
  'skip': ('skip', conv_1x1),
  'attention/norm': ('norm2', table),
  'attention/qkv': ('qkv', _split),
  'attention/out': ('proj', _to_features),
}
_ADM_BLOCK: Modules = {
  'norm_in': ('norm0', table),
  'conv_in': ('conv0', conv),
  'modulation': ('affine', to_heads),
  'norm_out': ('norm1', table),
  'conv_out': ('conv1', conv),
  'skip': ('skip', conv_1x1),
}
_ADM_ATTENTION: Modules = {'norm': ('norm2', table), 'qkv': ('qkv', _split), 'out': ('proj', _to_features)}


def published(name: str) -> Published:
  """A published network by the name of its file."""
  if name not in PUBLISHED:
    raise ValueError(f'EDM published no {name!r}; wanted one of {", ".join(PUBLISHED)}')
  return PUBLISHED[name]


def convert(file: str | os.PathLike, path: str | os.PathLike, name: str) -> None:
  """Writes the folder of a published network from its state dict, saved as arrays.

  Raises:
    ValueError: the file is no file of arrays, or of another network.
  """
  net, resolution = published(name)
  tensors = arrays.read(file)
  if all(key.startswith(_WRAPPED) for key in tensors):
    tensors = {key.removeprefix(_WRAPPED): array for key, array in tensors.items()}
  made = original(with_frequencies(net, tensors), resolution=resolution)
  made = made._replace(config={'_class_name': CLASSES[0], 'network': name})
  if (frequencies := made.fixed.get(_FREQUENCIES)) is not None:
    made.config['frequencies'] = frequencies.tolist()
  layout.save(made, path, layout.pretrained(made, tensors, source=os.fspath(file)).params)


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder that `convert` wrote."""
  net, resolution = published(config.get('network', ''))
  net = net.clone(dtype=dtype)
  if 'frequencies' in config:
    net = net.clone(frequencies=tuple(config['frequencies']))
  elif isinstance(net, EDMUNet) and net.smooth:
    raise ValueError(f'the configuration of {config["network"]} lacks frequencies; `jaxgen weights convert` it again')
  return original(net, resolution=resolution)._replace(config=config)


def with_frequencies(net: Net, tensors: state_dict.Tensors) -> Net:
  """The network with the Fourier features that its weights were trained with, if it has any."""
  if not isinstance(net, EDMUNet) or not net.smooth or _FREQUENCIES not in tensors:
    return net
  return net.clone(frequencies=tuple(np.asarray(tensors[_FREQUENCIES]).tolist()))


def original(net: Net, *, resolution: int, channels: int = 3) -> Layout:
  """The layout of the state dict of EDM's network (not of the preconditioned one, whose names start with `model.`).

  Args:
    net: the network; of NCSN++, with the frequencies of its weights (`with_frequencies`).
    resolution: side of the images it was trained on, which is part of the tensors' names.
    channels: channels of these images.

  Raises:
    ValueError: EDM's network of this shape has other groups in its norms.
  """
  if isinstance(net, UNet):
    _check_groups(net)
  return Layout(net, _leaves(net, resolution, channels), {}, fixed=_fixed(net, resolution))


def _check_groups(net: UNet) -> None:
  """EDM's norms have min(32, features / 4) groups; models/unet.py has one number for all."""
  for multiplier in net.multipliers:
    features = int(multiplier * net.width)
    if net.groups != min(32, features // 4):
      raise ValueError(
        f"EDM's norm of {features} features has {min(32, features // 4)} groups, and this network {net.groups}; its "
        'weights would make other images. Only levels of 128 features or more can be exchanged'
      )


def _fixed(net: Net, resolution: int) -> dict[str, np.ndarray]:
  """The tensors that are not trained: of each change of size the filter, and NCSN++'s frequencies."""
  smooth = isinstance(net, EDMUNet) and net.smooth
  taps = np.asarray([1, 3, 3, 1] if smooth else [1, 1], np.float32)
  taps = np.outer(taps, taps)[None, None] / taps.sum() ** 2
  fixed = {}
  for level in range(1, len(net.multipliers)):
    down = f'enc.{_at(resolution, level)}'
    places = [f'{down}_down.conv0', f'{down}_down.skip']
    places += [f'dec.{_at(resolution, level - 1)}_up.{module}' for module in ('conv0', 'skip')]
    places += [f'{down}_aux_residual'] if smooth else []
    fixed |= {f'{place}.{_FILTER}': taps for place in places}
  if smooth:
    fixed[_FREQUENCIES] = np.asarray(net.frequencies or (), np.float32)
  return fixed


def _leaves(net: Net, resolution: int, channels: int) -> Leaves:
  if isinstance(net, UNet):
    modules, shapes = _adm(net, resolution), pretrained_unet.shapes(net, channels, 0)
  else:
    side = 2 ** (len(net.multipliers) - 1)
    cond = {'label': jnp.zeros(1, jnp.int32), 'augment': jnp.zeros((1, net.augment))}
    modules = _song(net, resolution)
    shapes = flat_shapes(net.init, jnp.zeros((1, side, side, channels)), jnp.zeros(1), cond)
  return {path: _leaf(path, shape, modules) for path, shape in shapes.items()}


def _leaf(path: str, shape: Shape, modules: Modules) -> Leaf:
  module, _, parameter = path.rpartition('/')
  name, layout = modules[module]
  if layout is _split and parameter == 'bias':
    return Leaf((f'{name}.bias',), shape, (1, 2, 0), (int(np.prod(shape)),))
  return leaf_of(path, shape, modules)


def _at(resolution: int, level: int) -> str:
  return f'{resolution >> level}x{resolution >> level}'


def _under(path: str, name: str, modules: Modules) -> Modules:
  return {f'{path}/{module}': (f'{name}.{other}', layout) for module, (other, layout) in modules.items()}


def _song(net: EDMUNet, resolution: int) -> Modules:
  """The modules of DDPM++ and NCSN++."""
  at = _at(resolution, 0)
  modules: Modules = {
    'label': ('map_label', linear),
    'augment_embed': ('map_augment', linear),
    'embed_in': ('map_layer0', linear),
    'embed_out': ('map_layer1', linear),
    'conv_in': (f'enc.{at}_conv', conv),
    'norm_out': (f'dec.{at}_aux_norm', table),
    'conv_out': (f'dec.{at}_aux_conv', conv),
  }
  for stage in (*edm_unet.encoder(net), *edm_unet.decoder(net)):
    half, level, part = stage.name.split('_')
    modules |= _under(stage.name, f'{half[:3]}.{_at(resolution, int(level))}_{part}', _BLOCK)
    residual = f'{half[:3]}.{_at(resolution, int(level))}_aux_residual', conv
    modules |= {f'{stage.name}_residual': residual, f'{stage.name}_residual/conv': residual}
  return modules


def _adm(net: UNet, resolution: int) -> Modules:
  """The modules of ADM, as EDM names them."""
  modules: Modules = {
    'time_embed/in': ('map_layer0', linear),
    'time_embed/out': ('map_layer1', linear),
    'label_embed/table': ('map_label', linear),
    'conv_in': (f'enc.{_at(resolution, 0)}_conv', conv),
    'norm_out': ('out_norm', table),
    'conv_out': ('out_conv', conv),
  }
  last, blocks = len(net.multipliers) - 1, blocks_of(net, 0)  # the same in all levels

  def stage(path: str, half: str, level: int, part: str, resize: str) -> Modules:
    name, resized = f'{half}.{_at(resolution, level)}_{part}', f'{half}.{resize}'
    found = _under(f'{path}_block', name, _ADM_BLOCK) | _under(f'{path}_attention', name, _ADM_ATTENTION)
    return found | _under(f'{path}_resize', resized, _ADM_BLOCK)

  for i in range((last + 1) * (blocks + 1)):
    level, j = divmod(i, blocks + 1)
    modules |= stage(f'encoder_{i}', 'enc', level, f'block{j}', f'{_at(resolution, level + 1)}_down')
    level = last - level
    modules |= stage(f'decoder_{i}', 'dec', level, f'block{j}', f'{_at(resolution, max(level - 1, 0))}_up')
  for i in range(2):
    modules |= stage(f'middle_{i}', 'dec', last, f'in{i}', '')
  return modules
