"""Control branches of U-Nets (models/controlnet.py): how they are trained, and their files.

`params['control']` is trained beside a frozen U-Net: the branches of a `Controlled`. They start as copies of its
encoder: `InitFrom(base, **COPY)`. Files, both ways:

  diffusers        a ControlNetModel: the U-Net's names, controlnet_cond_embedding, controlnet_down_blocks.0, ...
  the authors      one file, control_model.input_blocks.0.0, input_hint_block.0, zero_convs.0.0, middle_block_out.0
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxgen.adapters.added import Added
from jaxgen.adapters.beside import beside
from jaxgen.models.controlnet import ControlNet
from jaxgen.models.unet import UNet, encoder
from jaxgen.pretrained import diffusers_unet, folder, layout, safetensors_file, torch_file, unet
from jaxgen.pretrained.layout import Layout, Pretrained
from jaxgen.pretrained.state_dict import Leaf, Leaves, conv, conv_1x1, kernel, vector
from jaxgen.typing import Params

NAME = 'control'
CLASS = 'ControlNetModel'
# For InitFrom: a U-Net's arrays to the first branch; its hint and zero convolutions start on their own.
COPY = {
  'renamed': (('^net/', f'{NAME}/net/controls_0/'),),
  'fresh': (r'/hint/', r'/zero_\d+/'),
  'unused': (
    rf'^(?!{NAME}/)',
    r'/(decoder_\d+_|norm_out|conv_out)',
  ),
}
# The same for a transformer's (models/control_transformer.py): the first blocks of the stack.
COPY_TRANSFORMER = {
  'renamed': (('^net/', f'{NAME}/net/controls_0/net/'),),
  'fresh': (r'/hint/', r'/zero_\d+/'),
  'narrowed': (r'/blocks/',),
  'unused': (rf'^(?!{NAME}/)', r'/(final|last_block)/', r'/controls_0/net/table$'),
}
_DECODER = ('decoder_', 'norm_out/', 'conv_out/')
_PREFIX = 'control_model.'


def control(*, base: tuple[str, ...] = ('net',)) -> Added:
  """The branches of an objective whose network is a `Controlled` or a `ControlledTransformer`."""
  return beside(r'^net/controls_\d+/', name=NAME, base=base)


def leaves(net: ControlNet, of_unet: Leaves, *, channels: int = 3) -> Leaves:
  """Where diffusers keeps a branch's parameters.

  Args:
    net: the branch.
    of_unet: where it keeps the U-Net's.
    channels: channels of the control.
  """
  head = 'controlnet_cond_embedding'
  hint = {'in': f'{head}.conv_in', 'out': f'{head}.conv_out'}
  hint |= {f'conv_{i}': f'{head}.blocks.{i}' for i in range(2 * len(net.hint) - 2)}
  count = len(encoder(net.net)) + 1
  zeros = [*(f'controlnet_down_blocks.{i}' for i in range(count)), 'controlnet_mid_block']
  return _leaves(net, of_unet, hint, zeros, channels)


def original_leaves(net: ControlNet, of_unet: Leaves, *, channels: int = 3) -> Leaves:
  """Where the authors' code keeps them, without the prefix control_model."""
  convs = 2 * len(net.hint)
  hint = {
    'in': 'input_hint_block.0',
    **{f'conv_{i}': f'input_hint_block.{2 * i + 2}' for i in range(convs - 2)},
    'out': f'input_hint_block.{2 * convs - 2}',
  }
  count = len(encoder(net.net)) + 1
  zeros = [*(f'zero_convs.{i}.0' for i in range(count)), 'middle_block_out.0']
  return _leaves(net, of_unet, hint, zeros, channels)


def _leaves(net: ControlNet, of_unet: Leaves, names: Mapping[str, str], zeros: Sequence[str], channels: int) -> Leaves:
  found: dict[str, Leaf] = {path: leaf for path, leaf in of_unet.items() if not path.startswith(_DECODER)}
  first = int(net.net.multipliers[0] * net.net.width)
  hint = {'in': (channels, net.hint[0]), 'out': (net.hint[-1], first)}
  for i, (before, after) in enumerate(zip(net.hint, net.hint[1:], strict=False)):
    hint |= {f'conv_{2 * i}': (before, before), f'conv_{2 * i + 1}': (before, after)}
  for name, (ins, outs) in hint.items():
    found[f'hint/{name}/kernel'] = kernel(f'{names[name]}.weight', (3, 3, ins, outs), conv)
    found[f'hint/{name}/bias'] = vector(f'{names[name]}.bias', (outs,))
  stages = encoder(net.net)
  widths = [first, *(stage.features for stage in stages), stages[-1].features]
  for i, (name, width) in enumerate(zip(zeros, widths, strict=True)):
    found[f'zero_{i}/kernel'] = kernel(f'{name}.weight', (width, width), conv_1x1)
    found[f'zero_{i}/bias'] = vector(f'{name}.bias', (width,))
  return found


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of diffusers with this configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  folder.expect(config, {'global_pool_conditions': False, 'controlnet_conditioning_channel_order': 'rgb'})
  kinds = config['down_block_types']
  ups = [kind.replace('Down', 'Up') for kind in reversed(kinds)]
  of_unet = {**config, '_class_name': 'UNet2DConditionModel', 'up_block_types': ups}
  known = diffusers_unet.read({**of_unet, 'out_channels': config.get('in_channels', 4)}, dtype=dtype)
  assert isinstance(known.net, UNet)
  hint = tuple(config.get('conditioning_embedding_out_channels') or (16, 32, 96, 256))
  net = ControlNet(known.net, hint, strides=len(hint) - 1)
  return Layout(net, leaves(net, known.leaves, channels=config.get('conditioning_channels', 3)), config)


def load(path: str | os.PathLike, *, dtype: Any = jnp.float32) -> Pretrained:
  """The branch of a folder of diffusers."""
  return layout.load(read(folder.config(path, classes=(CLASS,)), dtype=dtype), path)


def save(path: str | os.PathLike, net: ControlNet, params: Params, config: folder.Config, of_unet: Leaves) -> None:
  """Writes a folder that diffusers loads.

  Args:
    path: path of the folder.
    net: the branch.
    params: its tree, `params['control']['net']['controls_0']`.
    config: the configuration of its U-Net in diffusers.
    of_unet: where diffusers keeps the U-Net's parameters.
  """
  if net.strides != len(net.hint) - 1:
    raise ValueError(f"diffusers' hints halve {len(net.hint) - 1} times, this one {net.strides} times")
  kept = {
    name: value for name, value in config.items() if name not in ('up_block_types', 'out_channels', 'sample_size')
  }
  made = kept | {'_class_name': CLASS, 'conditioning_embedding_out_channels': list(net.hint)}
  layout.save(Layout(net, leaves(net, of_unet), made), path, params)


def load_original(path: str | os.PathLike, net: ControlNet, *, channels: int, text_width: int) -> Pretrained:
  """The branch of one of the authors' files.

  Args:
    path: .safetensors or .pth; nothing in it is run.
    net: the branch.
    channels: channels of the images or latents that the U-Net sees.
    text_width: features of a token of text.
  """
  found = safetensors_file.read(path) if str(path).endswith('.safetensors') else torch_file.state_dict(path)
  tensors = {name.removeprefix(_PREFIX): array for name, array in found.items()}
  of_unet = unet.original(net.net, channels=channels, text_width=text_width).leaves
  return layout.pretrained(Layout(net, original_leaves(net, of_unet), {}), tensors, source=os.fspath(path))
