"""DiTTransformer2DModel from and to diffusers' folders, by way of the original code's names (dit.py).

There every block holds a copy of the embeddings of time and label, and queries, keys and values are three tensors.
Differs from diffusers' own forward pass: its sinusoid of time ends at 10000^-1, the original's, with which the
published weights were trained, one frequency short of it; here it is the original's.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen.models.dit import DiT
from jaxgen.pretrained import dit, folder
from jaxgen.pretrained.state_dict import Shape, check
from jaxgen.typing import Params

CLASSES = ('DiTTransformer2DModel', 'Transformer2DModel')
_EMBEDDINGS = {  # one for each block there
  't_embedder.mlp.0': 'norm1.emb.timestep_embedder.linear_1',
  't_embedder.mlp.2': 'norm1.emb.timestep_embedder.linear_2',
  'y_embedder.embedding_table': 'norm1.emb.class_embedder.embedding_table',
}
_ENDS = {
  'x_embedder.proj': 'pos_embed.proj',
  'final_layer.adaLN_modulation.1': 'proj_out_1',
  'final_layer.linear': 'proj_out_2',
}
_BLOCK = {
  'adaLN_modulation.1': ('norm1.linear',),
  'attn.qkv': ('attn1.to_q', 'attn1.to_k', 'attn1.to_v'),
  'attn.proj': ('attn1.to_out.0',),
  'mlp.fc1': ('ff.net.0.proj',),
  'mlp.fc2': ('ff.net.2',),
}


class Loaded(NamedTuple):
  """A DiT of a folder, and the images it was trained on, (height, width, channels)."""

  net: DiT
  params: Params
  image_shape: tuple[int, int, int]


def load(
  path: str | os.PathLike, *, put: Callable[[str, np.ndarray], Any] | None = None, dtype: Any = jnp.float32
) -> Loaded:
  """The DiT of a folder.

  Args:
    path: the folder.
    put: `(path in the tree, float32 array) -> what to put there`, such as an array sharded over a mesh.
    dtype: of the network's activations.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: it holds another model, or one whose blocks have different embeddings; every tensor that is missing,
      unexpected or misshapen is listed.
  """
  config = folder.config(path, classes=CLASSES)
  net, image_shape = network(config, dtype=dtype)
  tensors, wanted = folder.tensors(path), dit.tensor_shapes(net, image_shape)
  check(
    tensors, {name: shape for target in _targets(wanted, net.depth) for name, shape in target.there}, network=f'{path}'
  )
  original = {dit.POSITIONS: dit.positions(net, image_shape)}
  for target in _targets(wanted, net.depth):
    parts = [np.asarray(tensors[name], np.float32) for name, _ in target.there]
    if target.copies and any(not np.array_equal(part, parts[0]) for part in parts):
      raise ValueError(f'{path}: the blocks have different {target.name}; DiT here has one for all')
    original[target.name] = parts[0] if target.copies else np.concatenate(parts)
  params = dit.from_torch(net, original, image_shape=image_shape)
  place: Callable[[str, Any], Any] = folder.float32(put)
  flat = traverse_util.flatten_dict(params, sep='/')
  return Loaded(
    net, traverse_util.unflatten_dict({p: place(p, leaf) for p, leaf in flat.items()}, sep='/'), image_shape
  )


def save(path: str | os.PathLike, net: DiT, params: Params, *, image_shape: tuple[int, int, int]) -> None:
  """Writes a folder that `load` and diffusers read."""
  tensors = {}
  original = dit.to_torch(net, params, image_shape=image_shape)
  for target in _targets(dit.tensor_shapes(net, image_shape), net.depth):
    tensor, count = original[target.name], len(target.there)
    parts = [tensor] * count if target.copies else np.split(tensor, count)
    tensors |= {name: part for (name, _), part in zip(target.there, parts, strict=True)}
  folder.write(path, configuration(net, image_shape), tensors)


def network(config: Mapping[str, Any], *, dtype: Any = jnp.float32) -> tuple[DiT, tuple[int, int, int]]:
  """The network of a configuration, and the shape of its images.

  Raises:
    ValueError: jaxgen has no such network.
  """
  channels, heads = config.get('in_channels', 4), config.get('num_attention_heads', 16)
  doubled = config.get('out_channels') == 2 * channels
  folder.expect(
    config,
    {
      'out_channels': 2 * channels if doubled else config.get('out_channels') and channels,
      'attention_bias': True,
      'activation_fn': 'gelu-approximate',
      'norm_type': 'ada_norm_zero',
      'norm_elementwise_affine': False,
    },
  )
  side = config.get('sample_size', 32)
  net = DiT(
    patch=config.get('patch_size', 2),
    depth=config.get('num_layers', 28),
    width=heads * config.get('attention_head_dim', 72),
    heads=heads,
    num_classes=config.get('num_embeds_ada_norm', 1000),
    learn_sigma=doubled,
    dtype=dtype,
  )
  return net, (side, side, channels)


def configuration(net: DiT, image_shape: tuple[int, int, int]) -> folder.Config:
  """The inverse of `network`."""
  height, width, channels = image_shape
  if height != width or not net.num_classes:
    raise ValueError("diffusers' DiT is of square images and has classes")
  return {
    '_class_name': 'DiTTransformer2DModel',
    'num_attention_heads': net.heads,
    'attention_head_dim': net.width // net.heads,
    'in_channels': channels,
    'out_channels': channels * (1 + net.learn_sigma),
    'num_layers': net.depth,
    'sample_size': height,
    'patch_size': net.patch,
    'num_embeds_ada_norm': net.num_classes,
    'activation_fn': 'gelu-approximate',
    'attention_bias': True,
    'norm_type': 'ada_norm_zero',
    'norm_elementwise_affine': False,
    'dropout': 0.0,
    'norm_num_groups': 32,
    'upcast_attention': False,
  }


class _Target(NamedTuple):
  """A tensor of the original code, and the tensors of diffusers, with shapes, that are its copies or its pieces."""

  name: str
  there: list[tuple[str, Shape]]
  copies: bool


def _targets(shapes: Mapping[str, Shape], depth: int) -> Iterator[_Target]:
  for name, shape in shapes.items():
    module, _, parameter = name.rpartition('.')
    if name == dit.POSITIONS:  # which diffusers computes
      continue
    if module in _EMBEDDINGS:
      names = [f'transformer_blocks.{i}.{_EMBEDDINGS[module]}.{parameter}' for i in range(depth)]
      yield _Target(name, [(other, shape) for other in names], copies=True)
    elif module in _ENDS:
      yield _Target(name, [(f'{_ENDS[module]}.{parameter}', shape)], copies=False)
    else:
      _, block, rest = module.split('.', 2)
      pieces = _BLOCK[rest]
      part: Shape = (shape[0] // len(pieces), *shape[1:])
      there = [(f'transformer_blocks.{block}.{piece}.{parameter}', part) for piece in pieces]
      yield _Target(name, there, copies=False)
