"""The text encoders within single-file checkpoints of Stable Diffusion 1, 2, XL and 3, by diffusers' names.

  Stable Diffusion 1    cond_stage_model.transformer.            CLIP L, transformers' names
  Stable Diffusion 2    cond_stage_model.model.                  CLIP H, OpenCLIP's names, read before the last block
  XL                    conditioner.embedders.0.transformer.     CLIP L, transformers' names
                        conditioner.embedders.1.model.           CLIP bigG, OpenCLIP's names
  XL's refiner          conditioner.embedders.0.model.           the same
  3                     text_encoders.{clip_l,clip_g,t5xxl}.transformer.    transformers' names

Sizes are those of the tensors; a head has 64 features in all of them.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from jaxgen.models import clip
from jaxgen.models.clip import CLIPText
from jaxgen.models.t5 import T5Encoder
from jaxgen.pretrained import clip as pretrained_clip
from jaxgen.pretrained import t5 as pretrained_t5
from jaxgen.pretrained.layout import Layout
from jaxgen.pretrained.state_dict import Leaves, Shape, Tensors

_HEAD = 64
_BLOCK = re.compile(r'(?:resblocks|layers|block)\.(\d+)\.')


class _Place(NamedTuple):
  """Where a checkpoint stores a text tower.

  Attributes:
    prefix: start of its tensors' names.
    component: diffusers' name for it.
    open_names: whether its tensors have OpenCLIP's names.
    activation: activation of its MLPs.
    left_out: number of last blocks that are not read; then there is no projection either.
  """

  prefix: str
  component: str
  open_names: bool = False
  activation: clip.Activation = clip.quick_gelu
  left_out: int = 0


_PLACES = (
  _Place('cond_stage_model.transformer.', 'text_encoder'),
  _Place('cond_stage_model.model.', 'text_encoder', open_names=True, activation=clip.exact_gelu, left_out=1),
  _Place('conditioner.embedders.0.transformer.', 'text_encoder'),
  _Place('conditioner.embedders.0.model.', 'text_encoder_2', open_names=True, activation=clip.exact_gelu),
  _Place('conditioner.embedders.1.model.', 'text_encoder_2', open_names=True, activation=clip.exact_gelu),
  _Place('text_encoders.clip_l.transformer.', 'text_encoder'),
  _Place('text_encoders.clip_g.transformer.', 'text_encoder_2', activation=clip.exact_gelu),
)
_T5 = 'text_encoders.t5xxl.transformer.'


def layouts(tensors: Tensors) -> dict[str, Layout]:
  """The layouts of the text encoders that a checkpoint has, by component; none raises no error."""
  found = {}
  for place in _PLACES:
    own = _under(place.prefix, tensors)
    if own:
      found[place.component] = _clip(place, own)
  own = _under(_T5, tensors)
  if own:
    found['text_encoder_3'] = _t5(own)
  return found


def _clip(place: _Place, own: Tensors) -> Layout:
  shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
  root = '' if place.open_names else 'text_model.'
  table, positions, projection, hidden = (
    ('token_embedding.weight', 'positional_embedding', 'text_projection', 'transformer.resblocks.0.mlp.c_fc.weight')
    if place.open_names
    else (
      f'{root}embeddings.token_embedding.weight',
      f'{root}embeddings.position_embedding.weight',
      'text_projection.weight',
      f'{root}encoder.layers.0.mlp.fc1.weight',
    )
  )
  vocabulary, width = _shape(shapes, table, place.prefix)
  depth = _depth(shapes) - place.left_out
  projects = projection in shapes and not place.left_out
  net = CLIPText(
    width,
    depth,
    max(1, width // _HEAD),
    projection=shapes[projection][1 if place.open_names else 0] if projects else 0,
    hidden=_shape(shapes, hidden, place.prefix)[0],
    vocabulary=vocabulary,
    context=_shape(shapes, positions, place.prefix)[0],
    end_of_text=min(vocabulary, clip.VOCABULARY) - 1,
    activation=place.activation,
  )
  leaves = (pretrained_clip.open_text_leaves if place.open_names else pretrained_clip.text_leaves)(
    net, prefix=place.prefix
  )
  return Layout(net, leaves, pretrained_clip.configuration(net), own=_own(place.prefix, leaves, depth, projects))


def _t5(own: Tensors) -> Layout:
  shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
  vocabulary, width = _shape(shapes, 'shared.weight', _T5)
  first = 'encoder.block.0.layer'
  buckets, heads = _shape(shapes, f'{first}.0.SelfAttention.relative_attention_bias.weight', _T5)
  net = T5Encoder(
    width,
    _shape(shapes, f'{first}.1.DenseReluDense.wi_0.weight', _T5)[0],
    _depth(shapes),
    heads,
    _shape(shapes, f'{first}.0.SelfAttention.q.weight', _T5)[0] // heads,
    vocabulary=vocabulary,
    buckets=buckets,
  )
  layout = pretrained_t5.layout(net, pretrained_t5.configuration(net), prefix=_T5)
  return layout._replace(own=_own(_T5, layout.leaves, net.depth, True))


def _own(prefix: str, leaves: Leaves, depth: int, projects: bool) -> Callable[[Tensors], Tensors]:
  """Selects a tower's tensors; what the tower does not read is left out, what is unknown stays and is refused."""
  wanted = {name for leaf in leaves.values() for name in leaf.names}

  def select(tensors: Tensors) -> Tensors:
    return {
      name: tensor
      for name, tensor in tensors.items()
      if name.startswith(prefix) and (name in wanted or not _unread(name.removeprefix(prefix), depth, projects))
    }

  return select


def _unread(name: str, depth: int, projects: bool) -> bool:
  block = _BLOCK.search(name)
  if block and int(block.group(1)) >= depth:
    return True
  buffers = ('position_ids', 'logit_scale', 'attn_mask', 'embed_tokens.weight')
  return name.endswith(buffers) or (name.startswith('text_projection') and not projects)


def _under(prefix: str, tensors: Tensors) -> Tensors:
  return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _depth(shapes: dict[str, Shape]) -> int:
  return 1 + max((int(match.group(1)) for name in shapes if (match := _BLOCK.search(name))), default=-1)


def _shape(shapes: dict[str, Shape], name: str, prefix: str) -> Shape:
  if name not in shapes:
    raise ValueError(f'the checkpoint has tensors under {prefix}, but no {prefix}{name}')
  return shapes[name]
