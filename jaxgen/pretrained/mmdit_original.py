"""MMDiT's weights in the original code's names, as checkpoints of Stable Diffusion 3 and of Flux in one file have them.

Queries, keys and values are one tensor there, and in Flux's single blocks the first layer of the MLP too. Sizes are
those of the tensors. Stable Diffusion 3's table of positions is computed here.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen.models.mmdit import MMDiT
from jaxgen.pretrained.layout import Layout
from jaxgen.pretrained.mmdit import patch_leaf
from jaxgen.pretrained.state_dict import (
  Leaf,
  Module,
  Shape,
  Tensors,
  flat_shapes,
  from_heads,
  kernel,
  linear,
  stack_leaf,
  table,
  to_heads,
  to_qkv,
  vector,
)

_SD3_HEAD = 64
_SPAN = 64  # positions over Stable Diffusion 3's table
_FLUX, _SD3 = 'double_blocks.0.img_attn.qkv.weight', 'joint_blocks.0.x_block.attn.qkv.weight'


def _stream(here: str, there: str, *, norms: tuple[str, str], mlp: tuple[str, str]) -> dict[str, Module]:
  """The modules of one stream of a joint block."""
  return {
    f'attention/{here}_qkv': Module((f'{there}.qkv',), to_qkv),
    f'attention/{here}_out': Module((f'{there}.proj',), from_heads),
    f'attention/{here}_q_norm': Module((f'{there}.{norms[0]}',), table),
    f'attention/{here}_k_norm': Module((f'{there}.{norms[1]}',), table),
    f'{here}_mlp/in': Module((mlp[0],), linear),
    f'{here}_mlp/out': Module((mlp[1],), linear),
  }


def _sd3_stream(here: str, block: str) -> dict[str, Module]:
  mlp = (f'{block}.mlp.fc1', f'{block}.mlp.fc2')
  made = _stream(here, f'{block}.attn', norms=('ln_q', 'ln_k'), mlp=mlp)
  return made | {f'{here}/modulation': Module((f'{block}.adaLN_modulation.1',), to_heads)}


def _flux_stream(here: str, start: str) -> dict[str, Module]:
  norms, mlp = ('norm.query_norm', 'norm.key_norm'), (f'{start}_mlp.0', f'{start}_mlp.2')
  made = _stream(here, f'{start}_attn', norms=norms, mlp=mlp)
  return made | {f'{here}/modulation': Module((f'{start}_mod.lin',), to_heads)}


_JOINT = {
  **_sd3_stream('image', 'x_block'),
  **_sd3_stream('text', 'context_block'),
  'image_attention/qkv': Module(('x_block.attn2.qkv',), to_qkv),
  'image_attention/out': Module(('x_block.attn2.proj',), from_heads),
  'image_attention/q_norm': Module(('x_block.attn2.ln_q',), table),
  'image_attention/k_norm': Module(('x_block.attn2.ln_k',), table),
}
_DOUBLE = {**_flux_stream('image', 'img'), **_flux_stream('text', 'txt')}
_SINGLE = {
  'modulation': Module(('modulation.lin',), to_heads),
  'qkv': Module(('linear1.qkv',), to_qkv),
  'q_norm': Module(('norm.query_norm',), table),
  'k_norm': Module(('norm.key_norm',), table),
  'in': Module(('linear1.mlp',), linear),
  'out': Module(('linear2',), linear),
}
_SD3_ENDS = {
  'time_embed/in': ('t_embedder.mlp.0', linear),
  'time_embed/out': ('t_embedder.mlp.2', linear),
  'pooled_embed/in': ('y_embedder.mlp.0', linear),
  'pooled_embed/out': ('y_embedder.mlp.2', linear),
  'text_embed': ('context_embedder', linear),
  'final/modulation': ('final_layer.adaLN_modulation.1', to_heads),
}
_FLUX_ENDS = {
  'time_embed/in': ('time_in.in_layer', linear),
  'time_embed/out': ('time_in.out_layer', linear),
  'pooled_embed/in': ('vector_in.in_layer', linear),
  'pooled_embed/out': ('vector_in.out_layer', linear),
  'guidance_embed/in': ('guidance_in.in_layer', linear),
  'guidance_embed/out': ('guidance_in.out_layer', linear),
  'text_embed': ('txt_in', linear),
  'final/modulation': ('final_layer.adaLN_modulation.1', to_heads),
}
_PATCH_NAMES = {  # in diffusers' folders -> here
  False: {'pos_embed.proj': 'x_embedder.proj', 'proj_out': 'final_layer.linear'},
  True: {'x_embedder': 'img_in', 'proj_out': 'final_layer.linear'},
}


def is_flux(tensors: Mapping[str, Any], prefix: str) -> bool:
  """Whether the transformer under a prefix is Flux's."""
  return prefix + _FLUX in tensors


def is_mmdit(tensors: Mapping[str, Any], prefix: str) -> bool:
  """Whether there is a transformer of Stable Diffusion 3 or of Flux under a prefix."""
  return prefix + _SD3 in tensors or is_flux(tensors, prefix)


def layout(tensors: Tensors, *, prefix: str = '', dtype: Any = jnp.float32) -> Layout:
  """The layout of the transformer whose tensors have `prefix`.

  Raises:
    ValueError: a tensor that says its size is missing.
  """
  shapes = {
    name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(prefix)
  }
  flux = is_flux(tensors, prefix)
  try:
    net = _flux(shapes, dtype) if flux else _sd3(shapes, dtype)
    seen = math.prod(shapes['img_in.weight' if flux else 'x_embedder.proj.weight'][1:])
    text = shapes['txt_in.weight' if flux else 'context_embedder.weight'][1]
    pooled = shapes['vector_in.in_layer.weight' if flux else 'y_embedder.mlp.0.weight'][1]
  except KeyError as error:
    raise ValueError(f'the checkpoint has a transformer under {prefix!r}, but no {error}') from error
  cond = {'text': jnp.zeros((1, 1, text)), 'pooled': jnp.zeros((1, pooled)), 'guidance': jnp.zeros(1)}
  x = jnp.zeros((1, net.patch, net.patch, seen // net.patch**2))
  made = flat_shapes(net.init, x, jnp.zeros(1), cond)
  leaves = {path: _leaf(net, path, shape) for path, shape in made.items()}
  return Layout(net, leaves, {'sample_size': 2 * _SPAN}, own=lambda tensors: _own(tensors, prefix, net))


def _sd3(shapes: Mapping[str, Shape], dtype: Any) -> MMDiT:
  width, _, patch, _ = shapes['x_embedder.proj.weight']
  return MMDiT(
    patch=patch,
    depth=_count(shapes, 'joint_blocks.{}.x_block.attn.qkv.weight'),
    width=width,
    heads=max(width // _SD3_HEAD, 1),
    dual=_count(shapes, 'joint_blocks.{}.x_block.attn2.qkv.weight'),
    qk_norm='joint_blocks.0.x_block.attn.ln_q.weight' in shapes,
    table=(math.isqrt(shapes['pos_embed'][1]), _SPAN),
    dtype=dtype,
  )


def _flux(shapes: Mapping[str, Shape], dtype: Any) -> MMDiT:
  width, (size,) = shapes['img_in.weight'][0], shapes['double_blocks.0.img_attn.norm.query_norm.scale']
  side = (size - size // 8) // 2
  return MMDiT(
    patch=2,
    depth=_count(shapes, 'double_blocks.{}.img_attn.qkv.weight'),
    width=width,
    heads=width // size,
    single=_count(shapes, 'single_blocks.{}.linear1.weight'),
    qk_norm=True,
    rope=(size // 8, side, side),
    guidance='guidance_in.in_layer.weight' in shapes,
    dtype=dtype,
  )


def _count(shapes: Mapping[str, Shape], name: str) -> int:
  return next(i for i in range(len(shapes) + 1) if name.format(i) not in shapes)


def _leaf(net: MMDiT, path: str, shape: Shape) -> Leaf:
  stack, _, within = path.partition('/')
  joint, modules = ('double_blocks.{}', _DOUBLE) if net.rope else ('joint_blocks.{}', _JOINT)
  if stack in ('dual_blocks', 'blocks'):
    start = net.dual if stack == 'blocks' else 0
    return stack_leaf(within, shape, blocks=joint, modules=modules, start=start)
  if stack == 'single_blocks':
    return stack_leaf(within, shape, blocks='single_blocks.{}', modules=_SINGLE)
  if stack == 'last_block':
    return stack_leaf(within, (1, *shape), blocks=joint, modules=modules, start=net.depth - 1).of_one()
  module, _, parameter = path.rpartition('/')
  ending = 'bias' if parameter == 'bias' else 'weight'
  if module in ('patch_embed', 'final/linear'):
    leaf = patch_leaf(net, module, shape, ending)
    name = leaf.names[0].removesuffix(f'.{ending}')
    return leaf._replace(names=(f'{_PATCH_NAMES[bool(net.rope)][name]}.{ending}',))
  name, order = (_FLUX_ENDS if net.rope else _SD3_ENDS)[module]
  return vector(f'{name}.bias', shape) if parameter == 'bias' else kernel(f'{name}.weight', shape, order)


def _own(tensors: Tensors, prefix: str, net: MMDiT) -> Tensors:
  """The transformer's tensors, of which fused ones are cut, under the names of the leaves."""
  made = {}
  for name, tensor in tensors.items():
    if not name.startswith(prefix) or name == f'{prefix}pos_embed':
      continue
    name = name.removeprefix(prefix)
    if name.startswith('single_blocks.') and '.linear1.' in name:
      before, ending = name.split('.linear1.')
      made[f'{before}.linear1.qkv.{ending}'] = Rows(tensor, 0, 3 * net.width)
      made[f'{before}.linear1.mlp.{ending}'] = Rows(tensor, 3 * net.width, tensor.shape[0])
    else:
      made[name.replace('_norm.scale', '_norm.weight')] = tensor
  return made


class Rows:
  """Some rows of a tensor that is read when an array of them is made."""

  def __init__(self, tensor: Any, start: int, stop: int):
    self._tensor, self._rows = tensor, slice(start, stop)
    self.shape = (stop - start, *tensor.shape[1:])

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.asarray(np.asarray(self._tensor)[self._rows], dtype)
