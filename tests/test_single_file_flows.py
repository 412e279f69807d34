"""Checkpoints of Stable Diffusion 3 and Flux in one file: the transformers are those of diffusers' folders."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxgen.models.mmdit import MMDiT
from jaxgen.pretrained import layout, mmdit, mmdit_original, networks, safetensors_file, single_file
from jaxgen.pretrained.layout import Meta
from jaxgen.pretrained.state_dict import flat_shapes

NETS = {
  'sd3.5': MMDiT(patch=2, depth=3, width=64, heads=1, dual=1, qk_norm=True, table=(6, 64)),
  'flux': MMDiT(patch=2, depth=2, width=64, heads=2, single=2, qk_norm=True, rope=(4, 14, 14), guidance=True),
}
FUSED = (  # tensors of diffusers that are one there, by the rows; `{}` of both names is the same
  ('transformer_blocks.{}.attn.to_{q,k,v}', 'joint_blocks.{}.x_block.attn.qkv', 'double_blocks.{}.img_attn.qkv'),
  (
    'transformer_blocks.{}.attn.add_{q,k,v}_proj',
    'joint_blocks.{}.context_block.attn.qkv',
    'double_blocks.{}.txt_attn.qkv',
  ),
  ('transformer_blocks.{}.attn2.to_{q,k,v}', 'joint_blocks.{}.x_block.attn2.qkv', ''),
)
SD3 = {
  'attn.to_out.0': 'x_block.attn.proj',
  'attn.to_add_out': 'context_block.attn.proj',
  'attn.norm_q': 'x_block.attn.ln_q',
  'attn.norm_k': 'x_block.attn.ln_k',
  'attn.norm_added_q': 'context_block.attn.ln_q',
  'attn.norm_added_k': 'context_block.attn.ln_k',
  'attn2.to_out.0': 'x_block.attn2.proj',
  'attn2.norm_q': 'x_block.attn2.ln_q',
  'attn2.norm_k': 'x_block.attn2.ln_k',
  'norm1.linear': 'x_block.adaLN_modulation.1',
  'norm1_context.linear': 'context_block.adaLN_modulation.1',
  'ff.net.0.proj': 'x_block.mlp.fc1',
  'ff.net.2': 'x_block.mlp.fc2',
  'ff_context.net.0.proj': 'context_block.mlp.fc1',
  'ff_context.net.2': 'context_block.mlp.fc2',
}
FLUX = {
  'attn.to_out.0': 'img_attn.proj',
  'attn.to_add_out': 'txt_attn.proj',
  'attn.norm_q': 'img_attn.norm.query_norm',
  'attn.norm_k': 'img_attn.norm.key_norm',
  'attn.norm_added_q': 'txt_attn.norm.query_norm',
  'attn.norm_added_k': 'txt_attn.norm.key_norm',
  'norm1.linear': 'img_mod.lin',
  'norm1_context.linear': 'txt_mod.lin',
  'ff.net.0.proj': 'img_mlp.0',
  'ff.net.2': 'img_mlp.2',
  'ff_context.net.0.proj': 'txt_mlp.0',
  'ff_context.net.2': 'txt_mlp.2',
}
SINGLE = {'norm.linear': 'modulation.lin', 'proj_out': 'linear2', 'attn.norm_q': 'norm.query_norm'}
SINGLE |= {'attn.norm_k': 'norm.key_norm'}
ENDS = {
  'time_text_embed.timestep_embedder.linear_1': ('t_embedder.mlp.0', 'time_in.in_layer'),
  'time_text_embed.timestep_embedder.linear_2': ('t_embedder.mlp.2', 'time_in.out_layer'),
  'time_text_embed.text_embedder.linear_1': ('y_embedder.mlp.0', 'vector_in.in_layer'),
  'time_text_embed.text_embedder.linear_2': ('y_embedder.mlp.2', 'vector_in.out_layer'),
  'time_text_embed.guidance_embedder.linear_1': ('', 'guidance_in.in_layer'),
  'time_text_embed.guidance_embedder.linear_2': ('', 'guidance_in.out_layer'),
  'context_embedder': ('context_embedder', 'txt_in'),
  'pos_embed.proj': ('x_embedder.proj', ''),
  'x_embedder': ('', 'img_in'),
  'proj_out': ('final_layer.linear', 'final_layer.linear'),
  'norm_out.linear': ('final_layer.adaLN_modulation.1', 'final_layer.adaLN_modulation.1'),
}


def _swapped(tensor):
  """diffusers has (scale, shift) where the original code has (shift, scale)."""
  return np.concatenate(np.split(tensor, 2)[::-1])


def _original(tensors, *, flux, depth):
  """The original code's tensors of those in a folder of diffusers."""
  made = {}
  for name, tensor in tensors.items():
    module, _, ending = name.rpartition('.')
    block = re.match(r'(single_)?transformer_blocks\.(\d+)\.(.*)', module)
    if name == 'pos_embed.pos_embed':
      made['pos_embed'] = tensor
    elif not block:
      there = f'{ENDS[module][flux]}.{ending}'
      made[there] = _swapped(tensor) if module == 'norm_out.linear' else tensor
    elif block[1] and block[3] in ('attn.to_q', 'attn.to_k', 'attn.to_v', 'proj_mlp'):
      if block[3] == 'proj_mlp':
        parts = [f'single_transformer_blocks.{block[2]}.{part}' for part in ('attn.to_q', 'attn.to_k', 'attn.to_v')]
        rows = [tensors[f'{part}.{ending}'] for part in parts] + [tensor]
        made[f'single_blocks.{block[2]}.linear1.{ending}'] = np.concatenate(rows)
    elif re.search(r'attn2?\.(to_[qkv]|add_[qkv]_proj)$', module):
      for pattern, *there in FUSED:
        if module == pattern.format(block[2], **{'q,k,v': 'q'}):
          rows = [tensors[f'{pattern.format(block[2], **{"q,k,v": part})}.{ending}'] for part in 'qkv']
          made[f'{there[flux].format(block[2])}.{ending}'] = np.concatenate(rows)
    else:
      table = SINGLE if block[1] else FLUX if flux else SD3
      start = 'single_blocks' if block[1] else 'double_blocks' if flux else 'joint_blocks'
      ending = 'scale' if flux and 'norm_' in block[3] else ending
      last = not flux and block[3] == 'norm1_context.linear' and int(block[2]) == depth - 1
      made[f'{start}.{block[2]}.{table[block[3]]}.{ending}'] = _swapped(tensor) if last else tensor
  return made


def _drawn(net):
  """Random parameters of a network for 4 channels, and the network as diffusers has it."""
  cond = {'text': jnp.zeros((1, 1, 12)), 'pooled': jnp.zeros((1, 10)), 'guidance': jnp.zeros(1)}
  shapes, rng = flat_shapes(net.init, jnp.zeros((1, 2, 2, 4)), jnp.zeros(1), cond), np.random.default_rng(0)
  flat = {path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}
  params = traverse_util.unflatten_dict(flat, sep='/')
  return params, layout.tensors(mmdit.write(net, params, Meta()), params)


@pytest.mark.parametrize('name', NETS)
def test_a_file_of_the_original_code_holds_the_network_of_the_folder(name, tmp_path):
  net = NETS[name]
  params, tensors = _drawn(net)
  file = tmp_path / 'model.safetensors'
  safetensors_file.write(file, _original(tensors, flux=name == 'flux', depth=net.depth), metadata={})
  it = networks.load(file)
  assert it.net == net
  jax.tree.map(np.testing.assert_array_equal, it.params, params)


def test_a_file_without_its_text_encoders_is_refused(tmp_path):
  _, tensors = _drawn(NETS['flux'])
  original = _original(tensors, flux=True, depth=2)
  file = tmp_path / 'flux.safetensors'
  safetensors_file.write(
    file, {f'model.diffusion_model.{name}': value for name, value in original.items()}, metadata={}
  )
  assert single_file.is_checkpoint(file)
  with pytest.raises(ValueError, match='has a transformer of Flux, but not its autoencoder and text encoders'):
    single_file.load(file)


def test_a_file_that_lacks_a_tensor_names_it(tmp_path):
  _, tensors = _drawn(NETS['sd3.5'])
  original = _original(tensors, flux=False, depth=3)
  del original['joint_blocks.1.x_block.mlp.fc1.weight']
  with pytest.raises(ValueError, match=r'1 missing: joint_blocks\.1\.x_block\.mlp\.fc1\.weight'):
    layout.lazily(mmdit_original.layout(original), original, source='file')
