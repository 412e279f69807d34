"""Published adapters in published generators: LoRAs, new tokens, control branches and image prompts, for sampling.

  pipeline = with_lora(pipeline, 'style.safetensors', weight=0.8)           # merged
  pipeline = with_embedding(pipeline, read('cat.safetensors'))              # '<cat>' is a word now
  pipeline = with_controls(pipeline, [controlnet.load('canny')])            # reads cond['control']
  pipeline, tokens, nothing = with_image_prompt(pipeline, 'ip-adapter.bin', encoder, images)

Each gives a generator of the same kind; its new conditions are fields of the conditioner (objectives/controlled.py).
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.adapters import ip_adapter, lora_file, lora_names
from jaxgen.adapters.beside import over
from jaxgen.adapters.textual_inversion import Embedding, check
from jaxgen.data.tokenizers.tokenizer import with_tokens
from jaxgen.models.clip import preprocess
from jaxgen.models.controlnet import Controlled, ControlNet
from jaxgen.models.image_prompt import Resampler
from jaxgen.models.unet import UNet
from jaxgen.pretrained.layout import Pretrained
from jaxgen.pretrained.pipeline import DENOISERS, TEXT_ENCODERS, TOKENIZERS, Pipeline
from jaxgen.typing import Array, Float


def with_lora(pipeline: Pipeline, path: str | os.PathLike, *, weight: float = 1.0) -> Pipeline:
  """The generator with a LoRA, LoHa, LoKr or DoRA of a file merged into its networks.

  Args:
    pipeline: the generator.
    path: .safetensors, .pt or .bin; nothing in it is run.
    weight: 1 is the file's own strength.

  Raises:
    ValueError: it is none, or of another generator.
  """
  parts = {
    ('net' if name in DENOISERS else name): name for name in (*DENOISERS, *TEXT_ENCODERS) if name in pipeline.components
  }
  named = {}
  for part, name in parts.items():
    it = pipeline.components[name]
    named[part] = lora_names.network(it.net, it.params, {})
  components = dict(pipeline.components)
  for part, updates in lora_file.assigned(lora_file.read(path), named, source=os.fspath(path)).items():
    it = components[parts[part]]
    params = lora_file.merged(it.params, updates, named[part].names, weight=weight)
    components[parts[part]] = it._replace(params=params)
  return pipeline._replace(components=components)


def with_embedding(pipeline: Pipeline, embedding: Embedding, *, source: str = 'the embedding') -> Pipeline:
  """The generator with a new token in its tokenizers and the rows of it behind its encoders' tables.

  Args:
    pipeline: the generator.
    embedding: the token.
    source: the embedding's file, for messages.

  Raises:
    ValueError: it is for another text encoder.
  """
  components, tokenizers = dict(pipeline.components), dict(pipeline.tokenizers)
  unknown = sorted(set(embedding.rows) - set(components))
  if unknown:
    there = [name for name in components if name.startswith('text_encoder')]
    raise ValueError(f'{source} is for {", ".join(embedding.rows)}; this generator has {", ".join(there) or "none"}')
  for name, rows in embedding.rows.items():
    it, tokenizer = components[name], TOKENIZERS[int(name.rpartition('_')[2]) - 1 if name[-1].isdigit() else 0]
    net: Any = it.net
    if 'token_embed' not in it.params:
      raise ValueError(f'{source}: {name} of this generator is a {type(net).__name__}; embeddings are of CLIP')
    table = np.asarray(it.params['token_embed']['embedding'])
    check(rows, width=table.shape[1], source=source)
    params = {**it.params, 'token_embed': {'embedding': np.concatenate([table, rows.astype(table.dtype)])}}
    components[name] = Pretrained(net.clone(vocabulary=len(params['token_embed']['embedding'])), params, it.meta)
    known = tokenizers[tokenizer]._replace(size=len(table))  # a table may have rows that no token has
    tokenizers[tokenizer] = with_tokens(known, {embedding.token: len(rows)})
  return pipeline._replace(components=components, tokenizers=tokenizers)


def with_controls(pipeline: Pipeline, branches: Sequence[Pretrained]) -> Pipeline:
  """The generator with control branches, which read cond['control'], cond['control_1'], ...

  Raises:
    ValueError: it has no U-Net, or a branch is of another one.
  """
  name, net, params = _unet(pipeline, 'control branches')
  made = []
  for i, branch in enumerate(branches):
    of: Any = branch.net
    same = of.net.clone(dtype=net.dtype, learn_sigma=net.learn_sigma, dropout=net.dropout, remat=net.remat)
    if same != net:
      raise ValueError(f'control branch {i + 1} is of another U-Net than this generator has: {_differing(same, net)}')
    made.append(ControlNet(net, of.hint, of.strides, field=field_of(i)))
    params = {**params, f'controls_{i}': branch.params}
  return _replaced(pipeline, name, Controlled(net, tuple(made)), params)


def field_of(number: int) -> str:
  """The field that control branch `number` reads."""
  return f'control_{number}' if number else 'control'


def with_image_prompt(
  pipeline: Pipeline, file: str | os.PathLike, encoder: Pretrained, images: Float[np.ndarray, 'b h w 3']
) -> tuple[Pipeline, Float[np.ndarray, 'b m d'], Float[np.ndarray, 'm d']]:
  """The generator with an IP-Adapter, the tokens of some images, and those of no image.

  Args:
    pipeline: the generator.
    file: the adapter's file.
    encoder: CLIP's vision tower that it was trained with.
    images: square pictures in [-1, 1].

  Raises:
    ValueError: the generator has no U-Net, or the tower's features are not those that the adapter projects.
  """
  name, net, params = _unet(pipeline, 'image prompts')
  adapter = ip_adapter.read(file, net)
  plus = isinstance(adapter.projection, Resampler)
  tower: Any = encoder.net
  read = adapter.params['in' if plus else 'proj']['kernel'].shape[0]
  made = tower.width if plus else tower.projection or tower.width
  if read != made:
    raise ValueError(
      f'the adapter projects {read} features of an image, and this image encoder makes {made}; use its own'
    )

  @jax.jit
  def tokens(tower_params: Any, params: Any, seen: Array) -> Array:
    features = tower.apply({'params': tower_params}, seen, skip=1)
    made: Any = adapter.projection.apply({'params': params}, features.hidden if plus else features.projected)
    return made

  @jax.jit
  def nothing(tower_params: Any, params: Any) -> Array:
    if plus:
      return tokens(tower_params, params, jnp.zeros((1, tower.size, tower.size, 3)))[0]
    made: Any = adapter.projection.apply({'params': params}, jnp.zeros((1, read)))
    return made[0]

  tower_params = jax.tree.map(np.asarray, encoder.params)
  seen = np.asarray(tokens(tower_params, adapter.params, preprocess(jnp.asarray(images), size=tower.size)))
  grown = _replaced(pipeline, name, net, over(params, adapter.net))
  return grown, seen, np.asarray(nothing(tower_params, adapter.params))


def _unet(pipeline: Pipeline, what: str) -> tuple[str, UNet, Any]:
  name = next(name for name in DENOISERS if name in pipeline.components)
  it = pipeline.components[name]
  if not isinstance(it.net, UNet):
    raise ValueError(f'{what} from files are of U-Nets; this generator denoises with a {type(it.net).__name__}')
  return name, it.net, it.params


def _replaced(pipeline: Pipeline, name: str, net: Any, params: Any) -> Pipeline:
  it = Pretrained(net, params, pipeline.components[name].meta)
  return pipeline._replace(components={**pipeline.components, name: it})


def _differing(one: UNet, other: UNet) -> str:
  names = ('width', 'multipliers', 'blocks', 'attention', 'heads', 'head_size', 'transformer', 'size_features', 'style')
  wrong = [name for name in names if getattr(one, name) != getattr(other, name)]
  return '; '.join(f'{name} {getattr(one, name)} and {getattr(other, name)}' for name in wrong[:2])
