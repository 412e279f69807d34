"""Entries of diffusers' configurations of U-Nets that read text in their own softmax: DALL-E 2's decoder and the stages
of DeepFloyd IF. diffusers_unet.py reads and writes the rest.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxgen.models.clip import exact_gelu
from jaxgen.models.unet import UNet
from jaxgen.typing import Params

ACTIVATIONS = {'silu': nn.silu, 'gelu': exact_gelu}


def entries(config: Mapping[str, Any]) -> dict[str, Any]:
  """What is wanted of the entries that DeepFloyd IF's stages have."""
  act, alone, pooled = config.get('act_fn', 'silu'), config.get('only_cross_attention', False), 'addition_embed_type'
  skips = bool(config.get('resnet_skip_time_act'))
  return {
    'act_fn': act if act in ACTIVATIONS else 'gelu',
    'only_cross_attention': bool(alone),
    'mid_block_only_cross_attention': alone if config.get('mid_block_only_cross_attention') is not None else None,
    pooled: 'text' if config.get(pooled) else None,
    'encoder_hid_dim': config.get('encoder_hid_dim'),
    'encoder_hid_dim_type': 'text_proj' if config.get('encoder_hid_dim') else None,
    'resnet_skip_time_act': skips,
    'time_embedding_act_fn': act if skips else None,  # once for all blocks, or in each: the same
    'time_embedding_dim': config.get('time_embedding_dim'),
    'resnet_out_scale_factor': config.get('resnet_out_scale_factor', 1.0),
    'mid_block_scale_factor': config.get('resnet_out_scale_factor', 1.0),
  }


def options(config: Mapping[str, Any], width: int) -> dict[str, Any]:
  """UNet's attributes of these entries; `width` is the network's."""
  time = config.get('time_embedding_dim') or 4 * width
  return {
    'text_alone': bool(config.get('only_cross_attention')),
    'text_features': config.get('cross_attention_dim', 1280) if config.get('encoder_hid_dim') else 0,
    'pool_heads': config.get('addition_embed_type_num_heads', 64) if config.get('addition_embed_type') else 0,
    'time_width': 0 if time == 4 * width else time,
  }


def configuration(
  net: UNet, params: Params, features: list[int], heads: list[int], used: tuple[bool, ...]
) -> dict[str, Any]:
  """Entries of a U-Net whose attention to the text is joined."""
  sizes = {size // number for size, number, attend in zip(features, heads, used, strict=True) if attend}
  if len(sizes) > 1:
    raise ValueError(f'diffusers has one size of heads for all levels, this network {sorted(sizes)}; set head_size')
  once, act = bool(net.time_width), {act: name for name, act in ACTIVATIONS.items()}[net.style.act]
  read: Any = params['middle_0_attention']
  width = (read['attention']['key'] if net.text_alone else read['text_key'])['kernel'].shape[0]
  return {
    'time_embedding_dim': net.time_width or None,
    'time_embedding_act_fn': act if once else None,
    'resnet_skip_time_act': once,
    'resnet_out_scale_factor': net.style.skip_scale,
    'mid_block_scale_factor': net.style.skip_scale,
    'only_cross_attention': net.text_alone,
    'encoder_hid_dim': params['text_in']['kernel'].shape[0] if net.text_features else None,
    'encoder_hid_dim_type': 'text_proj' if net.text_features else None,
    'addition_embed_type': 'text' if net.pool_heads else None,
    **({'addition_embed_type_num_heads': net.pool_heads} if net.pool_heads else {}),
    '_class_name': 'UNet2DConditionModel',
    'attention_head_dim': sizes.pop(),
    'cross_attention_dim': width,
    **({'class_embed_type': 'timestep'} if net.level else {}),
    'cross_attention_norm': 'group_norm' if net.text_norm else None,
  }
