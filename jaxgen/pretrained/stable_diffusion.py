"""Stable Diffusion 1.5 without its weights: for plans, and to time a step, where only shapes matter."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen.data.tokenizers import Tokenizer
from jaxgen.models import unet
from jaxgen.models.clip import CLIPText
from jaxgen.pretrained import autoencoder, schedulers
from jaxgen.pretrained.layout import Meta, Pretrained
from jaxgen.pretrained.pipeline import Pipeline
from jaxgen.pretrained.state_dict import flat_shapes

_START, _END = 49406, 49407
_SCHEDULER = {
  '_class_name': 'PNDMScheduler', 'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'beta_end': 0.012,
  'num_train_timesteps': 1000, 'set_alpha_to_one': False, 'skip_prk_steps': True, 'steps_offset': 1,
}  # fmt: skip


def blank(*, dtype: Any = jnp.float32) -> Pipeline:
  """Stable Diffusion 1.5 with zeros for its weights, which take no memory before they are placed.

  Its tokenizer knows no words: every text has the ids of an empty one.

  Args:
    dtype: dtype of the activations of the U-Net and the text encoder.
  """
  tokenizer = Tokenizer('no vocabulary', lambda text: [], 77, _START, _END, _END, _END + 1, 'blank')
  net, text = unet.stable_diffusion('1.5', dtype=dtype), CLIPText(768, 12, 12, dtype=dtype)
  x, t = jnp.zeros((1, 64, 64, 4)), jnp.zeros(1)
  vae = autoencoder.blank('sd-f8')
  components = {
    'unet': Pretrained(net, _zeros(net, x, t, {'text': jnp.zeros((1, 77, 768))}), Meta({'sample_size': 64})),
    'vae': Pretrained(vae.net, vae.params, Meta(scaling=vae.scaling)),
    'text_encoder': Pretrained(text, _zeros(text, jnp.zeros((1, 77), jnp.int32))),
  }
  schedule = schedulers.read(_SCHEDULER)
  return Pipeline(components, {'tokenizer': tokenizer}, schedule, {'_class_name': 'StableDiffusionPipeline'})


def _zeros(net: Any, *inputs: Any) -> dict[str, Any]:
  flat = {path: np.broadcast_to(np.float32(0), shape) for path, shape in flat_shapes(net.init, *inputs).items()}
  return traverse_util.unflatten_dict(flat, sep='/')
