"""Names that files of LoRA have for the modules of networks: diffusers', the original codes', jaxgen's own."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from jaxgen.adapters.lora import Kernel, kernels
from jaxgen.adapters.lora_file import Network, Target, own_names
from jaxgen.models.mmdit import MMDiT
from jaxgen.models.unet import UNet
from jaxgen.pretrained import networks as layouts
from jaxgen.pretrained import unet
from jaxgen.pretrained.layout import Meta
from jaxgen.pretrained.state_dict import Leaves
from jaxgen.typing import Array, Key, Params


def network(net: nn.Module | None, params: Params, known: Mapping[str, Kernel]) -> Network:
  """The names of a network's modules: those of its published layout, if it has one, then jaxgen's own.

  Args:
    net: the network; None for one that is not known.
    params: its tree, of arrays or shapes.
    known: its kernels, by path within it.
  """
  names: list[Leaves] = []
  layout = None if net is None else published_leaves(net, params)
  if layout is not None:
    names.append(layout)
  if isinstance(net, UNet) and net.transformer:
    channels, width = params['conv_in']['kernel'].shape[2], _text_width(params)
    names.append(unet.original(net, channels=channels, text_width=width).leaves)
  aliases = flux(net.width, net.depth, net.single) if isinstance(net, MMDiT) and net.single else {}
  return Network((*names, own_names(known)), aliases)


def roots(make: Callable[[Key[Array, '']], Any]) -> list[nn.Module]:
  """The networks that are called while `make` is traced."""
  found: list[nn.Module] = []

  def note(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    module = context.module
    if not module.path and context.method_name == '__call__':
      found.append(module.clone(parent=None))
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    jax.eval_shape(make, jax.random.key(0))
  return found


def networks(make: Callable[[Key[Array, '']], Any], trees: Mapping[str, Params]) -> dict[str, Network]:
  """The names of several networks, each found among those that `make` calls by its parameters.

  Args:
    make: calls the networks.
    trees: their trees by name, of arrays or shapes.
  """
  known, modules = kernels(make, of=trees), roots(make)
  found = {}
  for name, tree in trees.items():
    within = {path.removeprefix(f'{name}/'): k for path, k in known.items() if path.startswith(f'{name}/')}
    paths = set(traverse_util.flatten_dict(dict(tree), sep='/'))
    net = next((net for net in modules if set(published_leaves(net, tree) or ()) == paths), None)
    found[name] = network(net, tree, within)
  return found


def published_leaves(net: nn.Module, params: Params) -> Leaves | None:
  """Where diffusers or transformers keep a network's parameters; None where they have no such network."""
  if type(net) not in layouts.WRITERS:
    return None
  try:
    return layouts.WRITERS[type(net)](net, params, Meta()).leaves
  except (ValueError, KeyError):  # a network of its kind with parameters that it does not have
    return None


def flux(width: int, depth: int, single: int) -> dict[str, list[Target]]:
  """Modules of Flux's original code and of x-labs' files, as the tensors that diffusers has them as."""
  table: dict[str, list[Target]] = {}
  for name, other in _FLUX_ENDS.items():
    table[name] = [Target(f'{other}.weight')]
  table['final_layer.adaLN_modulation.1'] = [Target('norm_out.linear.weight', swapped=True)]
  for i in range(depth):
    here, there = f'double_blocks.{i}', f'transformer_blocks.{i}'
    for name, other in _FLUX_DOUBLE.items():
      table[f'{here}.{name}'] = [Target(f'{there}.{other}.weight')]
    for names, parts in _FLUX_QKV.items():
      targets = [Target(f'{there}.attn.{part}.weight', (j * width, (j + 1) * width)) for j, part in enumerate(parts)]
      table |= {f'{here}.{name}': targets for name in names}
  for i in range(single):
    here, there = f'single_blocks.{i}', f'single_transformer_blocks.{i}'
    rows = [(j * width, (j + 1) * width) for j in range(3)]
    qkv = [Target(f'{there}.attn.{part}.weight', row) for part, row in zip(('to_q', 'to_k', 'to_v'), rows, strict=True)]
    table[f'{here}.linear1'] = [*qkv, Target(f'{there}.proj_mlp.weight', (3 * width, 7 * width))]
    table[f'{here}.processor.qkv_lora'] = qkv
    for name, other in {
      'linear2': 'proj_out',
      'processor.proj_lora': 'proj_out',
      'modulation.lin': 'norm.linear',
    }.items():
      table[f'{here}.{name}'] = [Target(f'{there}.{other}.weight')]
  return table


_FLUX_ENDS = {
  'img_in': 'x_embedder',
  'txt_in': 'context_embedder',
  'time_in.in_layer': 'time_text_embed.timestep_embedder.linear_1',
  'time_in.out_layer': 'time_text_embed.timestep_embedder.linear_2',
  'vector_in.in_layer': 'time_text_embed.text_embedder.linear_1',
  'vector_in.out_layer': 'time_text_embed.text_embedder.linear_2',
  'guidance_in.in_layer': 'time_text_embed.guidance_embedder.linear_1',
  'guidance_in.out_layer': 'time_text_embed.guidance_embedder.linear_2',
  'final_layer.linear': 'proj_out',
}
_FLUX_DOUBLE = {
  'img_attn.proj': 'attn.to_out.0',
  'txt_attn.proj': 'attn.to_add_out',
  'processor.proj_lora1': 'attn.to_out.0',
  'processor.proj_lora2': 'attn.to_add_out',
  'img_mlp.0': 'ff.net.0.proj',
  'img_mlp.2': 'ff.net.2',
  'txt_mlp.0': 'ff_context.net.0.proj',
  'txt_mlp.2': 'ff_context.net.2',
  'img_mod.lin': 'norm1.linear',
  'txt_mod.lin': 'norm1_context.linear',
}
_FLUX_QKV = {
  ('img_attn.qkv', 'processor.qkv_lora1'): ('to_q', 'to_k', 'to_v'),
  ('txt_attn.qkv', 'processor.qkv_lora2'): ('add_q_proj', 'add_k_proj', 'add_v_proj'),
}


def _text_width(params: Any) -> int:
  return params['middle_0_attention']['block_0']['cross']['key']['kernel'].shape[0]
