"""IP-Adapter: an image as a prompt, seen by keys and values of its own (Ye et al. 2023).

What is trained is `params['ip_adapter']`: the keys and values beside the text's in each cross-attention
(models/layers/transformer.py) and the projection of the image's features (models/image_prompt.py). Files are those of
the authors: {'image_proj': {...}, 'ip_adapter': {'1.to_k_ip.weight': ..., '1.to_v_ip.weight': ..., '3...'}}, flat in
.safetensors, whose odd numbers count the cross-attentions of the encoder, the decoder and the middle, in this order.

Without an image, a basic adapter sees zeros for its embedding, which are projected; the plus adapter sees the
patches of an image of zeros.
"""

import os
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from jaxgen.adapters.added import Added
from jaxgen.adapters.beside import beside
from jaxgen.models.image_prompt import ImageProjection, Resampler
from jaxgen.models.unet import Stage, UNet, decoder, encoder, middle
from jaxgen.pretrained import safetensors_file, state_dict, torch_file
from jaxgen.pretrained.state_dict import Leaf, Leaves, kernel, linear, to_heads, to_qkv, vector
from jaxgen.typing import Params

NAME = 'ip_adapter'
PROJECTION = 'image_projection'  # the key of the projection among the objective's parameters
Projection = ImageProjection | Resampler


class IPAdapter(NamedTuple):
  """An adapter that was read.

  Attributes:
    projection: the network of the projection.
    params: its parameters.
    net: what is added to the U-Net's tree.
  """

  projection: Projection
  params: Params
  net: Params


def ip_adapter(*, base: tuple[str, ...] = ('net',)) -> Added:
  """The adapter of an objective whose conditioner makes cond['image_prompt'] by params['image_projection']."""
  return beside(rf'^{PROJECTION}/|/image_(key|value)(_norm)?/(kernel|scale)$', name=NAME, base=base)


def attentions(net: UNet) -> list[str]:
  """The paths of the cross-attentions, in the order of the files."""
  stages = {'encoder': encoder(net), 'decoder': decoder(net), 'middle': middle(net)}
  return [
    f'{part}_{i}_attention/block_{j}'
    for part, each in stages.items()
    for i, stage in enumerate(each)
    if stage.attention
    for j in range(depth_of(net, stage))
  ]


def depth_of(net: UNet, stage: Any) -> int:
  """The depth of a stage's transformer."""
  del net
  return stage.transformer


def leaves(net: UNet, projection: Projection, *, tokens_width: int, features: int) -> Leaves:
  """Where the parameters of an adapter are in its file.

  Args:
    net: the U-Net.
    projection: its projection.
    tokens_width: features of a token.
    features: features of what is projected.
  """
  found = {f'{PROJECTION}/{path}': leaf for path, leaf in _projection(projection, features).items()}
  stages = _stages(net)
  for number, path in enumerate(attentions(net)):
    stage = stages[path.partition('/')[0]]
    shape = (tokens_width, stage.heads, stage.features // stage.heads)
    for ours, theirs in (('image_key', 'to_k_ip'), ('image_value', 'to_v_ip')):
      found[f'net/{path}/{ours}/kernel'] = kernel(f'ip_adapter.{2 * number + 1}.{theirs}.weight', shape, to_heads)
  return found


def _stages(net: UNet) -> dict[str, Stage]:
  """The stages with attention, by the name of that."""
  stages = {'encoder': encoder(net), 'decoder': decoder(net), 'middle': middle(net)}
  return {f'{part}_{i}_attention': stage for part, each in stages.items() for i, stage in enumerate(each)}


def _projection(net: Projection, features: int) -> Leaves:
  head = 'image_proj.'
  if isinstance(net, ImageProjection):
    out = net.tokens * net.width
    return {
      'proj/kernel': kernel(f'{head}proj.weight', (features, out), linear),
      'proj/bias': vector(f'{head}proj.bias', (out,)),
      'norm/scale': vector(f'{head}norm.weight', (net.width,)),
      'norm/bias': vector(f'{head}norm.bias', (net.width,)),
    }
  d, heads = net.width, (net.heads, net.head_size)
  found: dict[str, Leaf] = {'latents': Leaf((f'{head}latents',), (net.queries, d), (0, 1), (1, net.queries, d))}
  for ours, theirs, shape in (('in', 'proj_in', (features, d)), ('out', 'proj_out', (d, net.features))):
    found[f'{ours}/kernel'] = kernel(f'{head}{theirs}.weight', shape, linear)
    found[f'{ours}/bias'] = vector(f'{head}{theirs}.bias', shape[1:])
  norms = {'norm_out': ('norm_out', net.features)}
  for i in range(net.depth):
    here, there = f'layer_{i}', f'{head}layers.{i}'
    norms |= {f'{here}_norm1': (f'layers.{i}.0.norm1', d), f'{here}_norm2': (f'layers.{i}.0.norm2', d)}
    norms |= {f'{here}_norm_mlp': (f'layers.{i}.1.0', d)}
    found[f'{here}_query/kernel'] = kernel(f'{there}.0.to_q.weight', (d, *heads), to_heads)
    found[f'{here}_key_value/kernel'] = kernel(f'{there}.0.to_kv.weight', (d, 2, *heads), to_qkv)
    found[f'{here}_out/kernel'] = kernel(f'{there}.0.to_out.weight', (*heads, d), state_dict.from_heads)
    found[f'{here}_mlp_in/kernel'] = kernel(f'{there}.1.1.weight', (d, 4 * d), linear)
    found[f'{here}_mlp_out/kernel'] = kernel(f'{there}.1.3.weight', (4 * d, d), linear)
  for ours, (theirs, size) in norms.items():
    found[f'{ours}/scale'] = vector(f'{head}{theirs}.weight', (size,))
    found[f'{ours}/bias'] = vector(f'{head}{theirs}.bias', (size,))
  return found


def read(path: str | os.PathLike, net: UNet) -> IPAdapter:
  """The adapter of a file.

  Args:
    path: .safetensors or .bin; nothing in it is run.
    net: the U-Net that it is for.

  Raises:
    ValueError: it is none, or of another U-Net; every tensor that does not fit is listed.
  """
  tensors = _tensors(path)
  projection, tokens_width, features = _projection_of(tensors, str(path))
  found = leaves(net, projection, tokens_width=tokens_width, features=features)
  tree = state_dict.to_flax(found, tensors, network='IP-Adapter', put=lambda _, array: np.asarray(array, np.float32))
  return IPAdapter(projection, tree[PROJECTION], tree['net'])


def _tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
  if str(path).endswith('.safetensors'):
    return safetensors_file.read(path)
  content = torch_file.read(path)
  parts: dict[str, Any] = {}
  if isinstance(content, dict):
    parts = {name: content.get(name) for name in ('image_proj', 'ip_adapter')}
  if not parts or not all(isinstance(part, dict) for part in parts.values()):
    raise ValueError(f'{path} is no IP-Adapter; wanted a file with image_proj and ip_adapter')
  return {f'{head}.{name}': array for head, part in parts.items() for name, array in part.items()}


def _projection_of(tensors: dict[str, Any], source: str) -> tuple[Projection, int, int]:
  """The projection that a file's shapes are of, the width of a token, and that of what is projected."""
  shapes = {name: tuple(array.shape) for name, array in tensors.items()}
  keys = [shape for name, shape in shapes.items() if name.endswith('.to_k_ip.weight')]
  if not keys:
    raise ValueError(f'{source} is no IP-Adapter: it has no to_k_ip')
  width = keys[0][1]
  if 'image_proj.proj.weight' in shapes:
    out, features = shapes['image_proj.proj.weight']
    return ImageProjection(out // width, width), width, features
  if 'image_proj.latents' not in shapes:
    raise ValueError(f'{source} has an image_proj that jaxgen has not; it has ImageProjModel and Resampler')
  _, queries, d = shapes['image_proj.latents']
  inner, head_size = shapes['image_proj.layers.0.0.to_q.weight'][0], 64
  depth = len({name.split('.')[2] for name in shapes if name.startswith('image_proj.layers.')})
  size = head_size if inner % head_size == 0 else inner
  net = Resampler(queries, width, d, depth, inner // size, size)
  return net, width, shapes['image_proj.proj_in.weight'][1]


def write(path: str | os.PathLike, net: UNet, projection: Projection, tree: Params) -> None:
  """Writes .safetensors.

  Args:
    path: path of the file.
    net: the U-Net.
    projection: the projection's network.
    tree: `params['ip_adapter']`.
  """
  flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep='/')
  features = flat[f'{PROJECTION}/{"proj" if isinstance(projection, ImageProjection) else "in"}/kernel'].shape[0]
  width = next(leaf.shape[0] for name, leaf in flat.items() if name.endswith('image_key/kernel'))
  found = leaves(net, projection, tokens_width=width, features=features)
  safetensors_file.write(path, state_dict.to_torch(found, tree), metadata={'format': 'pt'})
