"""InstructPix2Pix: the edited picture is generated from the original picture and an instruction.

Diffusion learns the edited picture; the network reads the picture before the edit as more channels beside x_t,
cond['concat'], and the instruction as its text. Each alone is dropped in 5% of the rows, and both in another 5%, so
that there are two scales of guidance at sampling:

  (1)  D = D(0, 0) + s_I (D(I, 0) - D(0, 0)) + s_T (D(I, T) - D(I, 0))

with I the picture, T the instruction, and zeros for no picture. On latents, the picture is encoded as its posterior's
mode, and not scaled. Brooks et al. 2023, "InstructPix2Pix: Learning to Follow Image Editing Instructions".
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np

from jaxgen.models.latents import posterior
from jaxgen.objectives.conditioning import Conditioner, Field
from jaxgen.samplers.guidance import Scale, compositional
from jaxgen.samplers.sampler import Guide
from jaxgen.typing import Array, Cond, Key

FIELD = 'before'  # the picture before the edit, in a batch: float b h w 3 in [-1, 1]
ToChannels = Callable[[Any, Array], Array]  # (frozen, pictures) -> what the network reads of them


def instructed(
  conditioner: Conditioner, *, shape: tuple[int, ...], channels: ToChannels | None = None, drop_rate: float = 0.05
) -> Conditioner:
  """The conditioner of an instruction, with a picture to edit.

  Args:
    conditioner: the text's.
    shape: shape of one image of `channels`.
    channels: makes the network's input of a picture, such as `mode_of(autoencoder)`; None for the picture itself.
    drop_rate: probability of each of the three events: no instruction, no picture, neither.
  """
  texts = conditioner.nullable

  def encode(params: dict[str, Any], frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    rest = {name: value for name, value in fields.items() if name != FIELD}
    cond = dict(conditioner.encode(params, frozen, rest, keys)) if rest else {}
    if FIELD in fields:
      picture = fields[FIELD]
      cond['concat'] = picture if channels is None else channels(frozen, picture)
    return cond

  nothing = Field({'concat': np.zeros(shape, np.float32)}, encoded=True)
  events = (texts, (FIELD,), (*texts, FIELD))
  drops = dict.fromkeys(events, drop_rate) if drop_rate else {}
  return Conditioner({**conditioner.fields, FIELD: nothing}, drops, encode, conditioner.init)


def mode_of(net: nn.Module) -> ToChannels:
  """The latents of a picture as the network reads them: the posterior's mode, not scaled.

  Args:
    net: the autoencoder, whose arrays are `frozen['autoencoder']`.
  """
  return lambda frozen, pictures: posterior(net, frozen['autoencoder'], pictures)[0]


def two_scales(conditioner: Conditioner, *, text: Scale, image: Scale, **how: Any) -> Guide:
  """Eq. 1, for the `guide` of an objective.

  Args:
    conditioner: from `instructed`.
    text: s_T.
    image: s_I.
    how: `interval` and `combine` of `compositional`.
  """
  texts = tuple(name for name in conditioner.nullable if name != FIELD)
  return compositional({(*texts, FIELD): image, texts: text}, **how)
