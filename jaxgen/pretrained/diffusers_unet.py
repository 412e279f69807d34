"""UNet2DModel and UNet2DConditionModel from and to diffusers' folders: the U-Nets of models/unet.py under their names.

Those that read text in their own softmax are DALL-E 2's decoder and DeepFloyd IF's stages, whose further entries are
read by imagen_unet.py.

What differs from the original code (unet.py) is the names, and that queries, keys and values are three tensors.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from jaxgen.models.layers.embedding import ddpm_timestep_embedding, timestep_embedding
from jaxgen.models.unet import Stage, Style, UNet, decoder, depths, encoder, heads_of, middle
from jaxgen.pretrained import folder, imagen_unet, state_dict
from jaxgen.pretrained.imagen_unet import ACTIVATIONS
from jaxgen.pretrained.layout import Layout, Meta
from jaxgen.pretrained.state_dict import (
  Leaf,
  Modules,
  Shape,
  conv,
  conv_1x1,
  from_heads,
  leaf_of,
  linear,
  table,
  to_heads,
)
from jaxgen.pretrained.unet import shapes, transformer
from jaxgen.typing import Array, Params

CLASSES = ('UNet2DModel', 'UNet2DConditionModel')
_TIMES: dict[tuple[bool, int], Callable[[Array, int], Array]] = {  # (flip_sin_to_cos, freq_shift) -> features of a time
  (True, 0): timestep_embedding,
  (False, 1): ddpm_timestep_embedding,
}
_PADDINGS = {1: (1, 1), 0: (0, 1)}  # downsample_padding -> Style.half_padding
_FREQUENCIES = 16.0  # deviation of the frequencies of diffusers' Fourier features
_ONE_FOR_ALL = ('layers_per_block', 'cross_attention_dim')  # levels
_ENDS: Modules = {
  'time_embed/in': ('time_embedding.linear_1', linear),
  'time_embed/out': ('time_embedding.linear_2', linear),
  'label_embed/table': ('class_embedding', table),
  'vector_embed/in': ('add_embedding.linear_1', linear),
  'vector_embed/out': ('add_embedding.linear_2', linear),
  'level_embed/in': ('class_embedding.linear_1', linear),
  'level_embed/out': ('class_embedding.linear_2', linear),
  'text_in': ('encoder_hid_proj', linear),
  'text_pool/norm_in': ('add_embedding.norm1', table),
  'text_pool/query': ('add_embedding.pool.q_proj', to_heads),
  'text_pool/key': ('add_embedding.pool.k_proj', to_heads),
  'text_pool/value': ('add_embedding.pool.v_proj', to_heads),
  'text_pool/proj': ('add_embedding.proj', linear),
  'text_pool/norm_out': ('add_embedding.norm2', table),
  'conv_in': ('conv_in', conv),
  'norm_out': ('conv_norm_out', table),
  'conv_out': ('conv_out', conv),
}
_ATTENTION: Modules = {'norm': ('group_norm', table), 'qkv': ('', to_heads), 'out': ('to_out.0', from_heads)}
_JOINED: Modules = {
  'norm': ('group_norm', table),
  'attention/qkv': ('', to_heads),
  'attention/out': ('to_out.0', from_heads),
  'text_key': ('add_k_proj', to_heads),
  'text_value': ('add_v_proj', to_heads),
  'text_norm': ('norm_cross', table),
}
_ALONE: Modules = {
  'norm': ('group_norm', table),
  'attention/query': ('to_q', to_heads),
  'attention/key': ('add_k_proj', to_heads),
  'attention/value': ('add_v_proj', to_heads),
  'attention/out': ('to_out.0', from_heads),
  'text_norm': ('norm_cross', table),
}
_BLOCK: Modules = {
  'norm_in': ('norm1', table),
  'conv_in': ('conv1', conv),
  'modulation': ('time_emb_proj', to_heads),
  'norm_out': ('norm2', table),
  'conv_out': ('conv2', conv),
  'skip': ('conv_shortcut', conv_1x1),
}


def read(config: folder.Config, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of a folder of diffusers with this configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  folder.require(config, 'block_out_channels', 'down_block_types')
  net = network(config, dtype=dtype)
  for entry in ('addition_time_embed_dim', 'projection_class_embeddings_input_dim'):
    if config.get('addition_embed_type') == 'text_time' and not config.get(entry):
      raise ValueError(f'config.json has addition_embed_type {config["addition_embed_type"]} and names no {entry}')
  return _layout(net, config)


def write(net: UNet, params: Params, meta: Meta) -> Layout:
  """The layout of a network to be written as diffusers does.

  `meta.config` may have the side of its images, `sample_size`, and `use_linear_projection`: a transformer's first and
  last layers are linear layers in the folder, not convolutions.

  Raises:
    ValueError: diffusers has no such network.
  """
  return _layout(net, {'sample_size': 32} | dict(meta.config) | configuration(net, params, meta.config))


def _layout(net: UNet, config: folder.Config) -> Layout:
  channels, projection = config.get('in_channels', 3), bool(config.get('use_linear_projection'))
  concat = concatenated(config)
  vector = config.get('projection_class_embeddings_input_dim') or 0
  made = shapes(net, channels - concat, _text_width(config), concat=concat, vector=vector)
  modules = _modules(net, linear if projection else conv_1x1)
  return Layout(net, {path: _leaf(path, shape, modules) for path, shape in made.items()}, config)


def concatenated(config: Mapping[str, Any]) -> int:
  """Channels that the network reads beside its image: an inpainting model's 5, an upsampler's 3."""
  if _is_joined(config) and config.get('class_embed_type') == 'timestep':
    return config.get('in_channels', 4) // 2  # its output has a variance
  default = 4 if _reads_text(config) else 3
  return max(config.get('in_channels', default) - (config.get('out_channels') or default), 0)


def _reads_text(config: Mapping[str, Any]) -> bool:
  return config['_class_name'] == 'UNet2DConditionModel'


def _is_joined(config: Mapping[str, Any]) -> bool:
  return _reads_text(config) and config.get('mid_block_type') == 'UNetMidBlock2DSimpleCrossAttn'


def network(config: Mapping[str, Any], *, dtype: Any = jnp.float32) -> UNet:
  """The network of a configuration.

  Raises:
    ValueError: jaxgen has no such network.
  """
  text = _reads_text(config)
  joined = _is_joined(config)
  lists = [name for name in _ONE_FOR_ALL[joined:] if isinstance(config.get(name), list)]
  if lists:
    raise ValueError(
      f'this {config["_class_name"]} is not one that jaxgen has: {lists[0]} is {config[lists[0]]}, wanted one number'
    )
  features = config['block_out_channels']
  channels = config.get('in_channels', 4 if text else 3) - concatenated(config)
  width = features[0]
  attends = tuple('Attn' in kind for kind in config['down_block_types'])
  in_blocks = 'ResnetDownsampleBlock2D' in config['down_block_types']  # whose type says how they change size
  resnet = joined or (not text and (in_blocks or config.get('downsample_type', 'conv') == 'resnet'))
  scale_shift = config.get('resnet_time_scale_shift', 'default') == 'scale_shift'
  fourier = not text and config.get('time_embedding_type') == 'fourier'
  groups, doubled = config.get('norm_num_groups', 32), config.get('out_channels') == 2 * channels
  attending = any(attends) or bool(config.get('add_attention', True))
  folder.expect(
    config,
    _UNSUPPORTED
    | _block_types(attends, text=text, resnet=resnet, joined=joined)
    | {
      'class_embed_type': config.get('class_embed_type') if joined else None,
      'cross_attention_norm': config.get('cross_attention_norm') if joined else None,
      'add_attention': True if text else config.get('add_attention', True),
      'time_embedding_type': 'fourier' if fourier else 'positional',
      'addition_embed_type': None if joined or not text else config.get('addition_embed_type') and 'text_time',
      'out_channels': channels * (1 + doubled),
      'time_embedding_dim': config.get('time_embedding_dim') and 4 * width,
      'attn_norm_num_groups': groups if scale_shift and attending else config.get('attn_norm_num_groups') and groups,
      'resnet_time_scale_shift': 'scale_shift' if scale_shift else 'default',
      'upsample_type': 'resnet' if resnet and any(attends) else config.get('upsample_type') if in_blocks else 'conv',
    }
    | (imagen_unet.entries(config) if joined else {}),
  )
  times = (config.get('flip_sin_to_cos', True), config.get('freq_shift', 0))
  padding = config.get('downsample_padding', 1)
  if times not in _TIMES or padding not in _PADDINGS:
    raise ValueError(
      f'this {config["_class_name"]} is not one that jaxgen has: (flip_sin_to_cos, freq_shift) are {times}, wanted one '
      f'of {list(_TIMES)}; downsample_padding is {padding}, wanted one of {list(_PADDINGS)}'
    )
  return UNet(
    width=width,
    multipliers=tuple(_ratio(size, width) for size in features),
    blocks=tuple(blocks) if isinstance(blocks := config.get('layers_per_block', 2), list) else blocks,
    attention=tuple(level for level, attend in enumerate(attends) if attend),
    transformer=_depths(config, attends) if text and not joined else 0,
    joined=joined,
    text_norm=joined and config.get('cross_attention_norm') == 'group_norm',
    level=joined and config.get('class_embed_type') == 'timestep',
    size_features=config.get('addition_time_embed_dim') or 0 if config.get('addition_embed_type') == 'text_time' else 0,
    num_classes=config.get('num_class_embeds') or 0,
    fourier=_FREQUENCIES if fourier else 0.0,
    middle_attention=bool(config.get('add_attention', True)),
    learn_sigma=doubled,
    dropout=config.get('dropout', 0.0),
    groups=groups,
    style=Style(
      scale_shift,
      resnet,
      _PADDINGS[padding],
      _TIMES[times],
      config.get('norm_eps', 1e-5),
      ACTIVATIONS[config.get('act_fn', 'silu')],
      config.get('resnet_out_scale_factor', 1.0),
    ),
    dtype=dtype,
    **(imagen_unet.options(config, width) if joined else {}),
    **_heads(config, features, text=text and not joined),
  )


def configuration(net: UNet, params: Params, more: Mapping[str, Any]) -> folder.Config:
  """The inverse of `network`; channels and the text's width are those of the parameters; `more` is as in `Meta`."""
  style, text = net.style, bool(net.transformer) or net.joined
  features = [int(m * net.width) for m in net.multipliers]
  seen, made = params['conv_in']['kernel'].shape[2], params['conv_out']['kernel'].shape[3]
  times = {make: flags for flags, make in _TIMES.items()}[style.time_features]
  paddings = {padding: number for number, padding in _PADDINGS.items()}
  if net.patch > 1:
    raise ValueError(f'diffusers has no U-Net that reads patches, and this one has patch={net.patch}')
  alone = text and not net.joined
  if features[0] != net.width or (alone and (style.scale_shift or style.resize_in_blocks)):
    raise ValueError('diffusers has no U-Net whose first level is not one width wide, or of this style with text')
  of_joined = (style.skip_scale != 1, style.act is not ACTIVATIONS['silu'], net.time_width, net.text_features)
  if not net.joined and any((*of_joined, net.pool_heads, isinstance(net.blocks, tuple))):
    raise ValueError('what DeepFloyd IF adds to a U-Net is written only with `joined` attention to the text')
  attends = tuple(level in net.attention for level in range(len(features)))
  config = {
    **_block_types(attends, text=text, resnet=style.resize_in_blocks, joined=net.joined),
    'in_channels': seen,
    'out_channels': made,
    'block_out_channels': features,
    'layers_per_block': list(net.blocks) if isinstance(net.blocks, tuple) else net.blocks,
    'norm_num_groups': net.groups,
    'norm_eps': style.eps,
    'act_fn': {act: name for name, act in ACTIVATIONS.items()}[style.act],
    'dropout': net.dropout,
    'flip_sin_to_cos': times[0],
    'freq_shift': times[1],
    'downsample_padding': paddings[style.half_padding],
    'num_class_embeds': net.num_classes or None,
    'resnet_time_scale_shift': 'scale_shift' if style.scale_shift else 'default',
  }
  used = (*attends[:-1], attends[-1] or net.middle_attention)
  heads = [heads_of(net, level) if attend else 1 for level, attend in enumerate(used)]
  if net.joined:
    kept = {'class_embed_type': more.get('class_embed_type')}  # 'identity': it reads a vector
    return config | kept | imagen_unet.configuration(net, params, features, heads, used)
  if text:
    return config | {
      '_class_name': 'UNet2DConditionModel',
      'attention_head_dim': net.heads if isinstance(net.heads, int) and not net.head_size else heads,  # their number
      'transformer_layers_per_block': list(made) if len(set(made := depths(net))) > 1 else made[0],
      'cross_attention_dim': _cross_width(params),
      'use_linear_projection': bool(more.get('use_linear_projection')),
      **_vector(net, params),
    }
  sizes = {size // number for size, number, attend in zip(features, heads, used, strict=True) if attend}
  if len(sizes) > 1 and max(heads) > 1:
    raise ValueError(f'diffusers has one size of heads for all levels, this network {sorted(sizes)}; set head_size')
  resize = 'resnet' if style.resize_in_blocks else 'conv'
  return config | {
    '_class_name': 'UNet2DModel',
    'attention_head_dim': sizes.pop() if len(sizes) == 1 else None if sizes else net.head_size,  # None: one head
    'attn_norm_num_groups': net.groups if style.scale_shift else None,
    'add_attention': net.middle_attention,
    'time_embedding_type': 'fourier' if net.fourier else 'positional',
    'downsample_type': resize,
    'upsample_type': resize,
  }


_UNSUPPORTED = {
  'act_fn': 'silu',
  'center_input_sample': False,
  'class_embed_type': None,
  'class_embeddings_concat': False,
  'conv_in_kernel': 3,
  'conv_out_kernel': 3,
  'dual_cross_attention': False,
  'encoder_hid_dim': None,
  'encoder_hid_dim_type': None,
  'mid_block_scale_factor': 1,
  'only_cross_attention': False,
  'resnet_out_scale_factor': 1.0,
  'resnet_skip_time_act': False,
  'time_cond_proj_dim': None,
  'time_embedding_act_fn': None,
  'timestep_post_act': None,
}


def _block_types(attends: tuple[bool, ...], *, text: bool, resnet: bool, joined: bool = False) -> dict[str, Any]:
  attention = 'SimpleCrossAttn' if joined else 'CrossAttn' if text else 'Attn'
  plain = ('ResnetDownsampleBlock2D', 'ResnetUpsampleBlock2D') if resnet else ('DownBlock2D', 'UpBlock2D')
  return {
    'down_block_types': [f'{attention}DownBlock2D' if attend else plain[0] for attend in attends],
    'mid_block_type': f'UNetMidBlock2D{attention}' if text else 'UNetMidBlock2D',
    'up_block_types': [f'{attention}UpBlock2D' if attend else plain[1] for attend in reversed(attends)],
  }


def _heads(config: Mapping[str, Any], features: list[int], *, text: bool) -> dict[str, Any]:
  """UNet's `heads` or `head_size`. In UNet2DConditionModel `attention_head_dim` is the number of heads."""
  value = config.get('attention_head_dim', 8)
  if not text:
    return {'head_size': value} if value else {'heads': 1}
  if isinstance(value, int):
    return {'heads': value}
  sizes = {size // number for size, number in zip(features, value, strict=True)}
  return {'head_size': sizes.pop()} if len(sizes) == 1 else {'heads': tuple(value)}


def _depths(config: Mapping[str, Any], attends: tuple[bool, ...]) -> int | tuple[int, ...]:
  """Depths of the transformers; 0 for a level without, but for the last level, whose depth is the middle's too."""
  given = config.get('transformer_layers_per_block', 1)
  if isinstance(given, int):
    return given
  last = len(given) - 1
  made = tuple(
    depth if attend or level == last else 0 for level, (depth, attend) in enumerate(zip(given, attends, strict=True))
  )
  return made[0] if len(set(made)) == 1 else made


def _vector(net: UNet, params: Params) -> folder.Config:
  if not net.size_features:
    return {}
  return {
    'addition_embed_type': 'text_time',
    'addition_time_embed_dim': net.size_features,
    'projection_class_embeddings_input_dim': params['vector_embed']['in']['kernel'].shape[0],
  }


def _ratio(size: int, width: int) -> float:
  return size // width if size % width == 0 else size / width


def _text_width(config: Mapping[str, Any]) -> int:
  if not _reads_text(config):
    return 0
  return config.get('encoder_hid_dim') or config.get('cross_attention_dim', 1280)


def _cross_width(params: Params) -> int:
  return params['middle_0_attention']['block_0']['cross']['key']['kernel'].shape[0]


def _leaf(path: str, shape: Shape, modules: Modules) -> Leaf:
  if path == 'time_fourier/frequencies':
    return Leaf(('time_proj.weight',), shape, (0,), shape)
  if path == 'text_pool/query_row':
    return Leaf(('add_embedding.pool.positional_embedding',), shape, (0,), (1, *shape))
  module, _, parameter = path.rpartition('/')
  name, _ = modules[module]
  if not path.endswith(('attention/qkv/kernel', 'attention/qkv/bias')):
    return leaf_of(path, shape, modules)
  ending = 'weight' if parameter == 'kernel' else 'bias'
  names = tuple(f'{name}.{part}.{ending}' for part in ('to_q', 'to_k', 'to_v'))
  if parameter == 'bias':
    return Leaf(names, shape, (0, 1), (shape[1] * shape[2],), apart=(0,))
  return Leaf(names, shape, to_heads.order, (shape[2] * shape[3], shape[0]), apart=(1,))


def _modules(net: UNet, projection: state_dict.Order) -> Modules:
  modules = dict(_ENDS)
  plain = _ATTENTION if not net.joined else _ALONE if net.text_alone else _JOINED
  modules |= _stages(encoder(net), projection, plain, 'encoder', 'down_blocks.{}', 'downsamplers')
  modules |= _stages(decoder(net), projection, plain, 'decoder', 'up_blocks.{}', 'upsamplers')
  return modules | _stages(middle(net), projection, plain, 'middle', 'mid_block', '')


def _stages(
  stages: list[Stage], projection: state_dict.Order, plain: Modules, path: str, block: str, resize: str
) -> Modules:
  """The modules of the encoder, decoder or middle; a change of size ends a block of diffusers."""
  modules: Modules = {}
  level = blocks = attentions = 0
  for i, stage in enumerate(stages):
    here = block.format(level)
    if stage.block:
      modules |= _under(f'{path}_{i}_block', f'{here}.resnets.{blocks}', _BLOCK)
      blocks += 1
    if stage.attention:
      attention = transformer(stage.transformer, projection) if stage.transformer else plain
      modules |= _under(f'{path}_{i}_attention', f'{here}.attentions.{attentions}', attention)
      attentions += 1
    if stage.resize:
      modules |= _under(f'{path}_{i}_resize', f'{here}.{resize}.0', _BLOCK)
      modules[f'{path}_{i}_resize'] = (f'{here}.{resize}.0.conv', conv)
      level, blocks, attentions = level + 1, 0, 0
  return modules


def _under(path: str, name: str, modules: Modules) -> Modules:
  return {f'{path}/{module}': (f'{name}.{other}'.rstrip('.'), layout) for module, (other, layout) in modules.items()}
