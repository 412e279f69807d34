"""Pictures as conditions beside a text: for control branches, or as image prompts.

  cond[FIELD]           float b h w c, a control, as it is stored
  cond[FIELD_scale]     float b or b r, its scale; 1 in training (data/controls.py)
  cond['image_prompt']  float b m d, the tokens of an image (models/image_prompt.py), with 'image_prompt_scale', float b
                        or b n, of each block

A control has no null: guidance sees it with and without the text. `guess` mode (Zhang et al. 2023) uses it in the
conditional half of guidance only: the scale's null is then 0.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.objectives.conditioning import Conditioner, Field
from jaxgen.typing import Array, Cond, Float, Key

See = Callable[[Any, Array], Array]  # (frozen, pictures) -> features of each picture, b e or b l e
IMAGE_PROMPT, IMAGE_PROMPT_SCALE = 'image_prompt', 'image_prompt_scale'


def controlled(conditioner: Conditioner, *fields: str, guess: bool = False) -> Conditioner:
  """The conditioner with controls beside what it has.

  Args:
    conditioner: the text's.
    fields: names of the controls; 'control' alone by default.
    guess: the unconditional half of guidance is not controlled.
  """
  names = fields or ('control',)

  def encode(params: dict[str, Any], frozen: Any, given: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    mine = {name: value for name, value in given.items() if name.removesuffix('_scale') in names}
    rest = {name: value for name, value in given.items() if name not in mine}
    return {**(conditioner.encode(params, frozen, rest, keys) if rest else {}), **mine}

  more = {name: Field() for name in names}
  more |= {f'{name}_scale': Field(0.0 if guess else None) for name in names}
  return Conditioner({**conditioner.fields, **more}, conditioner.drops, encode, conditioner.init)


def prompted(conditioner: Conditioner, nothing: Float[np.ndarray, 'm d']) -> Conditioner:
  """The conditioner with the tokens of an image under 'image_prompt', and their scale.

  Args:
    conditioner: the text's.
    nothing: tokens that stand for no image.
  """
  mine = (IMAGE_PROMPT, IMAGE_PROMPT_SCALE)

  def encode(params: dict[str, Any], frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    rest = {name: value for name, value in fields.items() if name not in mine}
    encoded = conditioner.encode(params, frozen, rest, keys) if rest else {}
    return {**encoded, **{name: fields[name] for name in mine if name in fields}}

  more = {IMAGE_PROMPT: Field({IMAGE_PROMPT: nothing}, encoded=True), IMAGE_PROMPT_SCALE: Field()}
  return Conditioner({**conditioner.fields, **more}, conditioner.drops, encode, conditioner.init)


def image_prompted(
  conditioner: Conditioner,
  projection: nn.Module,
  see: See,
  *,
  features: tuple[int, ...],
  drop_rate: float = 0.05,
) -> Conditioner:
  """The conditioner with pictures under 'image_prompt', whose tokens params['image_projection'] makes: IP-Adapter.

  A picture that is dropped has features of zeros, which are projected too. Differs from Ye et al. 2023 for the plus
  adapter alone, which sees the patches of a picture of zeros.

  Args:
    conditioner: the text's.
    projection: makes tokens of features (models/image_prompt.py).
    see: a frozen image encoder.
    features: shape of the features of one picture.
    drop_rate: probability of each of the three events: no text, no picture, neither.
  """
  texts = conditioner.nullable

  def tokens(params: dict[str, Any], seen: Array) -> Array:
    made: Any = projection.apply({'params': params['image_projection']}, seen)
    return made

  def encode(params: dict[str, Any], frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    cond = {IMAGE_PROMPT_SCALE: fields[IMAGE_PROMPT_SCALE]} if IMAGE_PROMPT_SCALE in fields else {}
    rest = {name: value for name, value in fields.items() if name not in (IMAGE_PROMPT, IMAGE_PROMPT_SCALE)}
    cond |= dict(conditioner.encode(params, frozen, rest, keys)) if rest else {}
    if IMAGE_PROMPT in fields:
      cond[IMAGE_PROMPT] = tokens(params, jax.lax.stop_gradient(see(frozen, fields[IMAGE_PROMPT])))
    return cond

  def init(key: Key[Array, '']) -> dict[str, Any]:
    own, other = jax.random.split(key)
    return {
      **conditioner.init(other),
      'image_projection': projection.init(own, jnp.zeros((1, *features)))['params'],
    }

  nothing = Field(lambda params: {IMAGE_PROMPT: tokens(params, jnp.zeros((1, *features)))[0]}, encoded=True)
  events = (texts, (IMAGE_PROMPT,), (*texts, IMAGE_PROMPT))
  return Conditioner(
    {**conditioner.fields, IMAGE_PROMPT: nothing, IMAGE_PROMPT_SCALE: Field()},
    dict.fromkeys(events, drop_rate) if drop_rate else {},
    encode,
    init,
  )
