"""Conditioners of published generators, and the fields of a batch that a prompt becomes.

  Stable Diffusion   text: the last tokens of CLIP, normed
  SDXL               text: [CLIP L, CLIP bigG] before their last blocks, not normed; pooled: bigG's projection; size:
                     (height, width, top, left, height, width) of the picture, its crop and the result
  SD3                text: the same two, padded with zeros, and behind them T5's tokens; pooled: both projections
  Flux               text: T5's tokens; pooled: CLIP L's, not projected; guidance: the scale
  PixArt             text: T5's tokens, whose padding is masked
  Z-Image            text: Qwen3's tokens of a chat that holds the prompt, before the last block; padding is masked
  DeepFloyd IF       text: T5's tokens, which were made without the padding's and have its rows
  DALL-E 2           text: the last tokens of CLIP, normed, whose padding is masked; pooled: the projection

A prompt is given as token ids, one field for each text encoder: `text`, `text_2`, `text_3`. CLIP's prompts may have
weights, `(red:1.3)`, and any length: chunks of 77 ids are encoded separately and joined along the tokens
(data/tokenizers/prompt_weights.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.data.tokenizers import Tokenizer, encode_all, weighted
from jaxgen.models.clip import TextFeatures
from jaxgen.objectives.conditioning import Conditioner, Encode, Field, labels
from jaxgen.pretrained import pipeline as pipelines
from jaxgen.pretrained.pipeline import TEXT_ENCODERS, Pipeline
from jaxgen.typing import Array, Cond, Key

FIELDS = ('text', 'text_2', 'text_3')  # one for each of TEXT_ENCODERS
_FLUX_TOKENS, _FLUX_FEW, _SD3_TOKENS, _IF_TOKENS, _QWEN_TOKENS = 512, 256, 256, 77, 512
_PIXART_TOKENS = {'PixArtAlphaPipeline': 120, 'PixArtSigmaPipeline': 300}
_AESTHETIC, _UGLY = 6.0, 2.5  # aesthetic scores of SDXL's refiner, of the condition and of its null

_TEXT_PATHS = (  # paths of the denoisers' layers that read the text first
  ('text_in',),
  ('middle_0_attention', 'block_0', 'cross', 'key'),
  ('middle_0_attention', 'text_key'),
  ('text_embed',),
  ('caption_embed', 'in'),
)

Tokenize = Callable[[Sequence[str]], Mapping[str, np.ndarray]]


class Prompts(NamedTuple):
  """How a generator takes a prompt.

  Attributes:
    conditioner: reads `frozen['text_encoder']`, ...
    tokenize: prompts to the fields of a batch.
    scale: usual guidance scale.
  """

  conditioner: Conditioner
  tokenize: Tokenize
  scale: float


def prompts_of(
  pipeline: Pipeline,
  *,
  size: tuple[int, int],
  chunks: int = 1,
  drop_rate: float = 0.0,
  guidance: float | None = None,
) -> Prompts:
  """The conditioner and the tokenizers of a generator.

  Args:
    pipeline: the generator.
    size: height and width of the images, in pixels, a condition of SDXL and PixArt.
    chunks: chunks of 77 ids in a prompt of CLIP.
    drop_rate: probability in training that an image's text is dropped.
    guidance: guidance scale, a condition of Flux.
  """
  if pipeline.kind in pipelines.UNCONDITIONAL:
    net: Any = pipeline.denoiser.net
    return Prompts(labels(net.num_classes, drop_rate=drop_rate), lambda texts: {}, 4.0 if net.num_classes else 1.0)
  if pipeline.kind in pipelines.SDXL:
    return _sdxl(pipeline, chunks, drop_rate, size)
  if pipeline.kind in pipelines.SD3:
    return _sd3(pipeline, drop_rate)
  if pipeline.kind in pipelines.FLUX:
    return _flux(pipeline, 3.5 if guidance is None else guidance)
  if pipeline.kind in pipelines.PIXART:
    return _pixart(pipeline, drop_rate, size)
  if pipeline.kind in pipelines.Z_IMAGE:
    return _z_image(pipeline, drop_rate)
  if pipeline.kind in pipelines.DEEPFLOYD:
    return _deepfloyd(pipeline, drop_rate)
  if pipeline.kind in pipelines.UNCLIP:
    return _unclip(pipeline, drop_rate)
  return _stable_diffusion(pipeline, chunks, drop_rate)


def chunks_of(pipeline: Pipeline, texts: Sequence[str]) -> int:
  """The number of chunks that CLIP needs for the longest of some prompts; 1 where a generator cuts prompts off."""
  if pipeline.kind not in (*pipelines.STABLE_DIFFUSION, *pipelines.SDXL):
    return 1
  found = [len(weighted(tokenizer, text).ids) for tokenizer in pipeline.tokenizers.values() for text in texts]
  return max(found, default=1)


def _stable_diffusion(pipeline: Pipeline, chunks: int, drop_rate: float) -> Prompts:
  texts = _clips(pipeline, 'text')

  def encode(params: Any, frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    features = texts['text'].features(frozen, fields)
    return {'text': _weigh(features.normed, fields, 'text')}

  return Prompts(_dropping(_nulls(texts, chunks), drop_rate, encode), _tokenize_clip(texts, chunks), 7.5)


def _sdxl(pipeline: Pipeline, chunks: int, drop_rate: float, size: tuple[int, int]) -> Prompts:
  texts = _clips(pipeline, 'text', 'text_2')
  scored = bool(pipeline.config.get('requires_aesthetics_score'))
  place = [*size, 0, 0, *((_AESTHETIC,) if scored else size)]

  def encode(params: Any, frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    cond: dict[str, Array] = {'size': fields['size']} if 'size' in fields else {}
    found = {name: text.features(frozen, fields, skip=1) for name, text in texts.items() if name in fields}
    if found:
      tokens = [_weigh(features.hidden, fields, name) for name, features in found.items()]
      cond |= {'text': jnp.concatenate(tokens, axis=-1), 'pooled': _first(found['text_2'].projected, chunks)}
    return cond

  fields = _nulls(texts, chunks)
  if pipeline.config.get('force_zeros_for_empty_prompt', True):
    width = sum(text.net.width for text in texts.values())
    tokens = sum(text.tokenizer.length for text in list(texts.values())[:1]) * chunks
    nothing = {'text': np.zeros((tokens, width), np.float32)}
    nothing['pooled'] = np.zeros(texts['text_2'].net.projection, np.float32)
    fields = {name: Field({} if i else nothing, encoded=True) for i, name in enumerate(fields)}
  dropped = tuple(fields)
  worse = {'size': np.asarray([*size, 0, 0, _UGLY], np.float32)}
  fields |= {'size': Field(worse, encoded=True) if scored else Field()}
  tokenize = _tokenize_clip(texts, chunks)

  def with_size(prompts: Sequence[str]) -> Mapping[str, np.ndarray]:
    return {**tokenize(prompts), 'size': np.tile(np.asarray(place, np.float32), (len(prompts), 1))}

  drops = {dropped: drop_rate} if drop_rate else {}
  return Prompts(Conditioner(fields, drops, encode), with_size, 5.0)


def _sd3(pipeline: Pipeline, drop_rate: float) -> Prompts:
  texts, tokenizers = _clips(pipeline, 'text', 'text_2'), _by_field(pipeline)
  t5 = pipeline.components.get('text_encoder_3')
  width = text_width(pipeline)
  last = tokenizers.get('text_3')
  tokenizers |= {} if last is None else {'text_3': last._replace(length=_SD3_TOKENS)}

  def encode(params: Any, frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    found = [text.features(frozen, fields, skip=1) for text in texts.values()]
    tokens = jnp.concatenate([features.hidden for features in found], axis=-1)
    tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, width - tokens.shape[-1])))
    if t5 is None:
      more = jnp.zeros((len(tokens), _SD3_TOKENS, width))
    else:
      more = _apply(t5.net, frozen['text_encoder_3'], fields['text_3'])
    pooled = jnp.concatenate([features.projected for features in found], axis=-1)
    return {'text': jnp.concatenate([tokens, more.astype(tokens.dtype)], axis=1), 'pooled': pooled}

  return Prompts(_dropping(_empty(tokenizers), drop_rate, encode), _tokenize(tokenizers), 7.0)


def _flux(pipeline: Pipeline, guidance: float) -> Prompts:
  net: Any = pipeline.denoiser.net
  texts, tokenizers = _clips(pipeline, 'text'), _by_field(pipeline)
  t5 = pipeline.components['text_encoder_2']
  length = _FLUX_TOKENS if net.guidance else _FLUX_FEW
  tokenizers |= {'text_2': tokenizers['text_2']._replace(length=length)}

  def encode(params: Any, frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    cond: dict[str, Array] = {'guidance': fields['guidance']} if 'guidance' in fields else {}
    if 'text' in fields:
      cond['pooled'] = texts['text'].features(frozen, fields).pooled
      cond['text'] = _apply(t5.net, frozen['text_encoder_2'], fields['text_2'])
    return cond

  tokenize, fields = _tokenize(tokenizers), _empty(tokenizers)

  def with_guidance(prompts: Sequence[str]) -> Mapping[str, np.ndarray]:
    scale = {'guidance': np.full(len(prompts), guidance, np.float32)} if net.guidance else {}
    return {**tokenize(prompts), **scale}

  fields |= {'guidance': Field()} if net.guidance else {}
  return Prompts(Conditioner(fields, {}, encode), with_guidance, 1.0)


def _pixart(pipeline: Pipeline, drop_rate: float, size: tuple[int, int]) -> Prompts:
  net: Any = pipeline.denoiser.net
  t5, tokenizer = pipeline.components['text_encoder'], pipeline.tokenizers['tokenizer']
  tokenizers = {'text': tokenizer._replace(length=_PIXART_TOKENS[pipeline.kind])}
  sizes = {'size': np.asarray(size, np.float32), 'aspect': np.float32(size[0] / size[1])} if net.sizes else {}

  def encode(params: Any, frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    cond: dict[str, Array] = {name: fields[name] for name in sizes if name in fields}
    if 'text' in fields:
      mask = fields['text'] != tokenizer.pad
      cond |= {'text': _apply(t5.net, frozen['text_encoder'], fields['text'], mask), 'text_mask': mask}
    return cond

  tokenize, empty = _tokenize(tokenizers), _empty(tokenizers)

  def with_sizes(prompts: Sequence[str]) -> Mapping[str, np.ndarray]:
    size_rows = {name: np.stack([value] * len(prompts)) for name, value in sizes.items()}
    return {**tokenize([text.lower().strip() for text in prompts]), **size_rows}

  conditioner = _dropping(empty, drop_rate, encode)
  fields = {**conditioner.fields, **{name: Field() for name in sizes}}
  return Prompts(conditioner._replace(fields=fields), with_sizes, 4.5)


def _deepfloyd(pipeline: Pipeline, drop_rate: float) -> Prompts:
  t5, tokenizer = pipeline.components['text_encoder'], pipeline.tokenizers['tokenizer']
  tokenizers = {'text': tokenizer._replace(length=_IF_TOKENS)}

  def encode(params: Any, frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    ids = fields['text']
    return {'text': _apply(t5.net, frozen['text_encoder'], ids, ids != tokenizer.pad)}

  tokenize, scale = _tokenize(tokenizers), 4.0 if pipeline.kind in pipelines.ENLARGERS else 7.0
  lowered = lambda prompts: tokenize([text.lower().strip() for text in prompts])  # noqa: E731
  return Prompts(_dropping(_empty(tokenizers), drop_rate, encode), lowered, scale)


def _z_image(pipeline: Pipeline, drop_rate: float) -> Prompts:
  net: Any = pipeline.components['text_encoder'].net
  tokenizer = pipeline.tokenizers['tokenizer']
  tokenizers = {'text': tokenizer._replace(length=_QWEN_TOKENS)}

  def encode(params: Any, frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    ids = fields['text']
    made: Any = net.apply({'params': frozen['text_encoder']}, ids, skip=1)
    return {'text': made, 'text_mask': ids != tokenizer.pad}

  # diffusers' guidance_scale is this one less 1: 5 there.
  return Prompts(_dropping(_empty(tokenizers), drop_rate, encode), _tokenize(tokenizers), 6.0)


def _unclip(pipeline: Pipeline, drop_rate: float) -> Prompts:
  clip, tokenizers = _clips(pipeline, 'text')['text'], _by_field(pipeline)

  def encode(params: Any, frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    features, ids = clip.features(frozen, fields), fields['text']
    end = jnp.argmax(ids == clip.net.end_of_text, axis=1)  # the first: padding may be the same id
    mask = jnp.arange(ids.shape[1])[None] <= end[:, None]
    return {'text': features.normed, 'pooled': features.projected, 'text_mask': mask}

  return Prompts(_dropping(_empty(tokenizers), drop_rate, encode), _tokenize(tokenizers), 8.0)


class _Clip(NamedTuple):
  """A CLIP text encoder, by the name of its field."""

  field: str
  component: str
  net: Any
  tokenizer: Tokenizer

  def features(self, frozen: Any, fields: Mapping[str, Array], *, skip: int = 0) -> TextFeatures:
    """Features of each chunk; tokens are joined in one row, `pooled` and `projected` have a row for each chunk."""
    ids = fields[self.field]
    rows = ids.reshape(-1, self.tokenizer.length)
    made: TextFeatures = self.net.apply({'params': frozen[self.component]}, rows, skip=skip)

    def joined(tokens: Array) -> Array:
      return tokens.reshape(len(ids), ids.shape[1], tokens.shape[-1])

    return made._replace(hidden=joined(made.hidden), normed=joined(made.normed), last=joined(made.last))


def _clips(pipeline: Pipeline, *fields: str) -> dict[str, _Clip]:
  """The CLIP text encoders of these fields that a generator has."""
  found = {}
  for field, component in zip(FIELDS, TEXT_ENCODERS, strict=True):
    if field in fields and component in pipeline.components:
      net, tokenizer = pipeline.components[component].net, _by_field(pipeline)[field]
      found[field] = _Clip(field, component, net, tokenizer)
  return found


def _by_field(pipeline: Pipeline) -> dict[str, Tokenizer]:
  named = dict(zip(pipelines.TOKENIZERS, FIELDS, strict=True))
  return {named[name]: tokenizer for name, tokenizer in pipeline.tokenizers.items()}


def _first(rows: Array, chunks: int) -> Array:
  """The row of each prompt's first chunk."""
  return rows[::chunks]


def _weigh(tokens: Array, fields: Mapping[str, Array], name: str) -> Array:
  weight = fields.get(f'{name}_weight')
  return tokens if weight is None else tokens * weight[..., None].astype(tokens.dtype)


def _nulls(texts: Mapping[str, _Clip], chunks: int) -> dict[str, Field]:
  """The fields of CLIP's prompts; the null is the empty text with weights of 1."""
  made = {}
  for name, text in texts.items():
    made[name] = Field(np.tile(encode_all(text.tokenizer, [''])[0], chunks))
    made[f'{name}_weight'] = Field(np.ones(text.tokenizer.length * chunks, np.float32))
  return made


def _tokenize_clip(texts: Mapping[str, _Clip], chunks: int) -> Tokenize:
  def tokenize(prompts: Sequence[str]) -> Mapping[str, np.ndarray]:
    fields = {}
    for name, text in texts.items():
      found = [weighted(text.tokenizer, prompt, chunks=chunks) for prompt in prompts]
      fields[name] = np.stack([prompt.ids.reshape(-1) for prompt in found])
      fields[f'{name}_weight'] = np.stack([prompt.weights.reshape(-1) for prompt in found])
    return fields

  return tokenize


def _empty(tokenizers: Mapping[str, Tokenizer]) -> dict[str, Field]:
  return {name: Field(encode_all(tokenizer, [''])[0]) for name, tokenizer in tokenizers.items()}


def _tokenize(tokenizers: Mapping[str, Tokenizer]) -> Tokenize:
  return lambda prompts: {name: encode_all(tokenizer, prompts) for name, tokenizer in tokenizers.items()}


def _dropping(fields: Mapping[str, Field], rate: float, encode: Encode) -> Conditioner:
  """All of the text is dropped at once."""
  return Conditioner(fields, {tuple(fields): rate} if rate else {}, encode)


def _apply(net: Any, params: Any, *inputs: Array) -> Array:
  made: Any = net.apply({'params': params}, *inputs)
  return made


def text_width(pipeline: Pipeline) -> int:
  """Features of a token of text as the denoiser reads it."""
  tree: Any = pipeline.denoiser.params
  for path in _TEXT_PATHS:
    if path[0] in tree and (len(path) == 1 or path[1] in tree[path[0]]):
      for name in path:
        tree = tree[name]
      return tree['kernel'].shape[0]
  return 0
