"""Published generators without their weights: for plans, and to time a step, where only shapes matter.

blank('sd15'), blank('sdxl'), blank('sd3-medium'), blank('flux-dev'), blank('flux-schnell')
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen.data.tokenizers import Tokenizer
from jaxgen.models import mmdit, unet
from jaxgen.models.clip import CLIPText, exact_gelu
from jaxgen.models.t5 import t5_encoder
from jaxgen.pretrained import autoencoder, schedulers
from jaxgen.pretrained.layout import Meta, Pretrained
from jaxgen.pretrained.pipeline import Pipeline
from jaxgen.pretrained.state_dict import flat_shapes

_START, _END = 49406, 49407
_BETAS = {
  'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'beta_end': 0.012, 'num_train_timesteps': 1000,
  'steps_offset': 1,
}  # fmt: skip
_FLOW = {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'num_train_timesteps': 1000}


def blank(name: str, *, dtype: Any = jnp.float32) -> Pipeline:
  """A published generator with zeros for its weights, which take no memory before they are placed.

  Its tokenizers know no words: every text has the ids of an empty one.

  Args:
    name: 'sd15', 'sdxl', 'sd3-medium', 'flux-dev' or 'flux-schnell'.
    dtype: dtype of the activations of the denoiser and the text encoders.
  """
  if name not in KINDS:
    raise ValueError(f'there is no blank generator {name!r}; wanted one of {", ".join(KINDS)}')
  return KINDS[name](dtype)


def _sd15(dtype: Any) -> Pipeline:
  net = unet.stable_diffusion('1.5', dtype=dtype)
  components = {
    'unet': _unet(net, {'text': jnp.zeros((1, 77, 768))}, side=64),
    'vae': _vae('sd-f8'),
    'text_encoder': _clip_l(dtype),
  }
  scheduler = {'_class_name': 'PNDMScheduler', 'set_alpha_to_one': False, 'skip_prk_steps': True} | _BETAS
  return _pipeline('StableDiffusionPipeline', components, scheduler, {'tokenizer': _clip_tokens()})


def _sdxl(dtype: Any) -> Pipeline:
  net = unet.stable_diffusion('xl', dtype=dtype)
  cond = {'text': jnp.zeros((1, 77, 2048)), 'pooled': jnp.zeros((1, 1280)), 'size': jnp.zeros((1, 6))}
  components = {
    'unet': _unet(net, cond, side=128),
    'vae': _vae('sdxl-f8'),
    'text_encoder': _clip_l(dtype),
    'text_encoder_2': _clip_big_g(dtype),
  }
  scheduler = {'_class_name': 'EulerDiscreteScheduler', 'timestep_spacing': 'leading'} | _BETAS
  tokenizers = {'tokenizer': _clip_tokens(), 'tokenizer_2': _clip_tokens()._replace(pad=0)}
  return _pipeline('StableDiffusionXLPipeline', components, scheduler, tokenizers)


def _sd3_medium(dtype: Any) -> Pipeline:
  net = mmdit.mmdit('sd3-medium', dtype=dtype)
  components = {
    'transformer': _transformer(net, text=4096, pooled=2048),
    'vae': _vae('sd3-f8'),
    'text_encoder': _clip_l(dtype, projection=768),
    'text_encoder_2': _clip_big_g(dtype),
    'text_encoder_3': _t5(dtype),
  }
  tokenizers = {'tokenizer': _clip_tokens(), 'tokenizer_2': _clip_tokens()._replace(pad=0), 'tokenizer_3': _t5_tokens()}
  return _pipeline('StableDiffusion3Pipeline', components, _FLOW | {'shift': 3.0}, tokenizers)


def _flux(name: str, dtype: Any) -> Pipeline:
  net = mmdit.mmdit(name, dtype=dtype)
  components = {
    'transformer': _transformer(net, text=4096, pooled=768),
    'vae': _vae('flux-f8'),
    'text_encoder': _clip_l(dtype),
    'text_encoder_2': _t5(dtype),
  }
  moving = {'use_dynamic_shifting': True, 'shift': 3.0, 'base_shift': 0.5, 'max_shift': 1.15}
  scheduler = _FLOW | (moving if net.guidance else {'use_dynamic_shifting': False, 'shift': 1.0})
  tokenizers = {'tokenizer': _clip_tokens(), 'tokenizer_2': _t5_tokens()}
  return _pipeline('FluxPipeline', components, scheduler, tokenizers)


KINDS: Mapping[str, Callable[[Any], Pipeline]] = {
  'sd15': _sd15,
  'sdxl': _sdxl,
  'sd3-medium': _sd3_medium,
  'flux-dev': lambda dtype: _flux('flux-dev', dtype),
  'flux-schnell': lambda dtype: _flux('flux-schnell', dtype),
}


def _pipeline(
  kind: str, components: dict[str, Pretrained], scheduler: dict[str, Any], tokenizers: dict[str, Tokenizer]
) -> Pipeline:
  return Pipeline(components, tokenizers, schedulers.read(scheduler), {'_class_name': kind})


def _unet(net: unet.UNet, cond: dict[str, Any], *, side: int) -> Pretrained:
  return Pretrained(net, _zeros(net, jnp.zeros((1, 64, 64, 4)), jnp.zeros(1), cond), Meta({'sample_size': side}))


def _transformer(net: mmdit.MMDiT, *, text: int, pooled: int) -> Pretrained:
  cond = {'text': jnp.zeros((1, 7, text)), 'pooled': jnp.zeros((1, pooled)), 'guidance': jnp.zeros(1)}
  params = _zeros(net, jnp.zeros((1, 8, 8, 16)), jnp.zeros(1), cond)
  return Pretrained(net, params, Meta({'sample_size': 128}))


def _vae(name: str) -> Pretrained:
  made = autoencoder.blank(name)
  return Pretrained(made.net, made.params, Meta(scaling=made.scaling))


def _clip_l(dtype: Any, *, projection: int = 0) -> Pretrained:
  return _text(CLIPText(768, 12, 12, projection, dtype=dtype))


def _clip_big_g(dtype: Any) -> Pretrained:
  return _text(CLIPText(1280, 32, 20, 1280, activation=exact_gelu, dtype=dtype))


def _t5(dtype: Any) -> Pretrained:
  return _text(t5_encoder('xxl', dtype=dtype))


def _text(net: Any) -> Pretrained:
  return Pretrained(net, _zeros(net, jnp.zeros((1, 77), jnp.int32)))


def _clip_tokens() -> Tokenizer:
  return Tokenizer('no vocabulary', lambda text: [], 77, _START, _END, _END, _END + 1, 'blank')


def _t5_tokens() -> Tokenizer:
  return Tokenizer('no vocabulary', lambda text: [], 512, None, 1, 0, 32128, 'blank')


def _zeros(net: Any, *inputs: Any) -> dict[str, Any]:
  flat = {path: np.broadcast_to(np.float32(0), shape) for path, shape in flat_shapes(net.init, *inputs).items()}
  return traverse_util.unflatten_dict(flat, sep='/')
