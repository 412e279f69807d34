"""DALL-E 2's folders as stages, each an objective that samples as in diffusers.

  prior      words -> the embedding of an image, standardised noise to x0, undone with the mean and the deviation    (1)
  decoder    embedding and words -> a small image, with a learned variance                                           (2)
  upsampler  small image, enlarged -> image; its last step is another network's, and it reads no text                (3)

generation/cascade.py puts them in a row. Without the prior an image's own embedding is given: variations, which the
decoder makes with no words. Ramesh et al. 2022, "Hierarchical Text-Conditional Image Generation with CLIP Latents".
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.clip import CLIPVision, preprocess
from jaxgen.models.unclip import EmbeddingProjection
from jaxgen.models.unet import UNet
from jaxgen.objectives.base import Denoising, Objective, denoising_of, sampled
from jaxgen.objectives.conditioning import Conditioner, unconditional
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.embedded import EMBEDDING, of_standardised, with_embedding
from jaxgen.objectives.super_resolution import LOW, bicubic, enlarging
from jaxgen.pretrained import schedulers
from jaxgen.pretrained.layout import Pretrained
from jaxgen.pretrained.pipeline import Pipeline
from jaxgen.pretrained.sampling import Sampling, sampling
from jaxgen.pretrained.schedulers import Schedule
from jaxgen.processes import times
from jaxgen.processes.process import Denoiser, Prediction
from jaxgen.samplers.guidance import classifier_free
from jaxgen.typing import Array, Cond, Float, Key

STEPS, FEW = 25, 7  # for prior and decoder; for the upsampler
_PRIOR_SCALE = 4.0


class Part(NamedTuple):
  """A stage.

  Attributes:
    objective: what samples it.
    trees: names of the generator's networks by the keys of `params` that the objective reads.
    takes: name of the field that takes the output of the stage before; None for the first.
  """

  objective: Objective
  trees: dict[str, str]
  takes: str | None = None


def parts(pipeline: Pipeline, texts: Conditioner, *, steps: int = STEPS, guidance: float) -> list[Part]:
  """The stages of a folder.

  Args:
    pipeline: the generator.
    texts: conditioner of its prompts (prompts.py).
    steps: steps of prior and decoder.
    guidance: scale of the decoder's guidance.

  Raises:
    ValueError: the stages do not fit each other.
  """
  check(pipeline)
  has_prior = 'prior' in pipeline.components
  conditioner = texts if has_prior else wordless(texts)
  first = [Part(_prior(pipeline, texts, steps), {'net': 'prior'})] if has_prior else []
  decoder = Part(
    _decoder(pipeline, conditioner, steps, guidance),
    {'net': 'decoder', EMBEDDING: 'text_proj'},
    EMBEDDING if first else None,
  )
  return [*first, decoder, Part(_upsampler(pipeline), {'net': 'super_res_first', 'last': 'super_res_last'}, LOW)]


def _prior(pipeline: Pipeline, texts: Conditioner, steps: int) -> Objective:
  schedule = pipeline.schedules['prior_scheduler']
  made = sampling(schedule, steps=steps)
  made = made._replace(guide=(classifier_free(_PRIOR_SCALE), *made.guide))
  it = pipeline.components['prior']
  return of_standardised(_stage(it, schedule, made, (1, features_of(it)), texts, limit=None))  # Eq. 1


def _decoder(pipeline: Pipeline, texts: Conditioner, steps: int, guidance: float) -> Objective:
  projection, width = pipeline.components['text_proj'], _text_features(pipeline)
  conditioner = with_embedding(texts, projection.net, features=features_of(projection), text_width=width, drop_rate=0.0)
  made = sampling(pipeline.schedule, steps=steps)
  made = made._replace(guide=(classifier_free(guidance), *made.guide))
  side = sides(pipeline)[0]
  return _stage(pipeline.denoiser, pipeline.schedule, made, (side, side, 3), conditioner)  # Eq. 2


def _upsampler(pipeline: Pipeline) -> Objective:
  schedule, (low, side) = pipeline.schedules['super_res_scheduler'], sides(pipeline)
  conditioner = enlarging(unconditional, None, size=(side, side), low=low, up=bicubic)
  made = sampling(schedule, steps=FEW)
  first, last = (
    _stage(pipeline.components[name], schedule, made, (side, side, 3), conditioner)
    for name in ('super_res_first', 'super_res_last')
  )
  joined = ended_by(denoising_of(first), denoising_of(last))
  return first._replace(sample=sampled(joined), denoising=joined)  # Eq. 3


def _stage(
  it: Pretrained,
  schedule: Schedule,
  made: Sampling,
  shape: tuple[int, ...],
  conditioner: Conditioner,
  *,
  limit: float | None = 1.0,
) -> Objective:
  return diffusion(
    it.net,
    schedulers.process(schedule),
    shape=shape,
    parameterisation=schedulers.parameterise(schedule),
    times=times.discrete(schedule.num_train_timesteps),
    sampler=made.sampler,
    conditioner=conditioner,
    guide=made.guide,
    limit=limit,
    noise_std=made.noise_std,
  )


def ended_by(first: Denoising, last: Denoising) -> Denoising:
  """`first`, whose last step is by the network of `last`, params['last']."""
  until = float(np.mean(first.sampler.times[-3:-1]))

  def denoiser(params: dict[str, Any], frozen: Any) -> Denoiser:
    before, at_end = first.denoiser(params, frozen), last.denoiser({'net': params['last']}, frozen)

    def denoise(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
      return jax.lax.cond(t[0] > until, before, at_end, x_t, t, cond)  # a sampler's times are one for all images

    return denoise

  return first._replace(denoiser=denoiser)


def wordless(texts: Conditioner) -> Conditioner:
  """A conditioner that says no words whatever it is given, and has no fields."""

  def encode(params: dict[str, Any], frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    nulls = texts.nulls(params, frozen, texts.nullable)
    return {name: jnp.broadcast_to(value, (len(keys), *value.shape[1:])) for name, value in nulls.items()}

  return Conditioner(encode=encode)


def embeddings(encoder: Pretrained, pipeline: Pipeline, images: Float[np.ndarray, 'b h w 3']) -> np.ndarray:
  """The embeddings of images that a decoder reads, float b d.

  Args:
    encoder: CLIP's vision tower with its projection.
    pipeline: the generator.
    images: square pictures in [-1, 1].

  Raises:
    ValueError: the tower does not fit the generator.
  """
  tower: Any = encoder.net
  wanted = features_of(pipeline.components['text_proj'])
  if not isinstance(tower, CLIPVision) or tower.projection != wanted:
    made = f'a projection of {tower.projection}' if isinstance(tower, CLIPVision) else f'a {type(tower).__name__}'
    raise ValueError(f'the image encoder is {made}; this decoder reads embeddings of {wanted} features from CLIP')
  params = jax.tree.map(np.asarray, encoder.params)
  seen = preprocess(jnp.asarray(images), size=tower.size)
  made: Any = jax.jit(tower.apply)({'params': params}, seen)
  return np.asarray(made.projected)


def sides(pipeline: Pipeline) -> tuple[int, int]:
  """Sides of the decoder's image and of the upsampler's, in pixels."""
  small, large = (pipeline.components[name].meta.config.get('sample_size') for name in ('decoder', 'super_res_first'))
  if not isinstance(small, int) or not isinstance(large, int):
    raise ValueError(f'sample_size of decoder and super_res_first are {small} and {large}; wanted one number each')
  return small, large


def features_of(it: Pretrained) -> int:
  """Features of an embedding, of a prior or a projection."""
  params: Any = it.params
  return params['null' if isinstance(it.net, EmbeddingProjection) else 'mean'].shape[0]


def _text_features(pipeline: Pipeline) -> int:
  net: Any = pipeline.components['text_encoder'].net
  return net.projection


def check(pipeline: Pipeline) -> None:
  """Raises ValueError where the stages do not fit each other."""
  net: Any = pipeline.denoiser.net
  projection: Any = pipeline.components['text_proj'].net
  if not isinstance(net, UNet) or not net.joined or net.level:
    raise ValueError('the decoder is no U-Net that reads a vector, and text in its own softmax')
  features, text = features_of(pipeline.components['text_proj']), _text_features(pipeline)
  read: Any = pipeline.components['text_proj'].params
  params: Any = pipeline.denoiser.params
  encoder: Any = pipeline.components['text_encoder'].net
  pairs = [
    ('features of a token of text', encoder.width, 'that text_proj reads', read['text_embed']['kernel'].shape[0]),
    ('embeddings that the text encoder makes', text, 'that text_proj reads', read['pooled_time']['kernel'].shape[0]),
    ('features of a token of text_proj', projection.width, 'that the decoder reads',
     params['middle_0_attention']['text_key']['kernel'].shape[0]),
    ("features of text_proj's time", projection.time, "of the decoder's",
     params['time_embed']['out']['kernel'].shape[1]),
  ]  # fmt: skip
  if 'prior' in pipeline.components:
    prior: Any = pipeline.components['prior'].params
    length, places = pipeline.tokenizers['tokenizer'].length, prior['position_embed'].shape[0] - 4
    pairs += [
      ('embeddings that the prior makes', prior['mean'].shape[0], 'that text_proj reads', features),
      (
        'embeddings that the text encoder makes',
        text,
        'that the prior reads',
        prior['pooled_embed']['kernel'].shape[0],
      ),
      ('tokens of a prompt', length, 'of the prior', places),
    ]
  for what, made, other, wanted in pairs:
    if made != wanted:
      raise ValueError(f'stages do not fit: {what}: {made}, {other}: {wanted}')
  for name in ('super_res_first', 'super_res_last'):
    kernels: Any = pipeline.components[name].params
    seen, put = kernels['conv_in']['kernel'].shape[2], kernels['conv_out']['kernel'].shape[3]
    if (seen, put) != (6, 3):
      raise ValueError(f'stages do not fit: {name} reads {seen} channels and makes {put}; wanted 6 and 3')
