"""Prompt-to-Prompt: another prompt for an image, whose layout stays (Hertz et al. 2022).

Rows 2i and 2i + 1 of a batch are a source and its target, of the same noise. In the first share `cross` of time the
target takes over the source's attention to the tokens that both prompts have, in the first share `itself` its attention
among the image's own tokens (models/layers/attention_edit.py). Guidance calls the network twice, and edits the
conditional call only:

  (1)  D_w = D(null) + w (D(cond, edited) - D(null))

Both images start from the same noise, and then each goes its own way. Needs a network that takes
cond['attention_edit']: a U-Net with transformers, PixArt or MMDiT.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen.generation.local_blend import Blend, blended
from jaxgen.models.layers.attention_edit import Edit, Edits
from jaxgen.objectives.base import Denoising, SampleFn, sample_from, split_keys
from jaxgen.processes.process import Denoiser, Prediction, Process, image_noise
from jaxgen.samplers.guidance import extrapolated, replaced
from jaxgen.samplers.sampler import Guide, Without
from jaxgen.typing import Array, Cond, Float, Key


def aligned(source: Sequence[int], target: Sequence[int], *, weights: Mapping[int, float] | None = None) -> Edit:
  """The edit between two prompts, as arrays for the two rows.

  Tokens that both have keep the source's maps; a word in the place of another takes over its map, shared out where the
  two have different numbers of tokens; a word that is new keeps its own.

  Args:
    source, target: token ids of the two rows, with start, end and padding.
    weights: factors of the target's tokens, by place: more than 1 strengthens a word, less weakens it.
  """
  if len(source) != len(target):
    raise ValueError(f'rows of {len(source)} and {len(target)} tokens; both must be padded to one length')
  k = len(target)
  mapping, blend, scale = np.zeros((k, k), np.float32), np.ones(k, np.float32), np.ones(k, np.float32)
  matcher = difflib.SequenceMatcher(None, list(source), list(target), autojunk=False)
  for kind, i1, i2, j1, j2 in matcher.get_opcodes():
    if kind == 'equal':
      mapping[np.arange(i1, i2), np.arange(j1, j2)] = 1
    elif kind == 'replace':
      mapping[i1:i2, j1:j2] = 1 / (j2 - j1)
    else:
      blend[j1:j2] = 0
  for place, factor in (weights or {}).items():
    if not 0 <= place < k:
      raise ValueError(f'the weight of token {place} is given; the prompt has the tokens 0 to {k - 1}')
    scale[place] = factor
  rows = (np.zeros(k), blend), (np.eye(k), mapping), (np.ones(k), scale)
  return Edit(*(jnp.asarray(np.stack(pair), jnp.float32) for pair in rows))


def edited_prompts(
  edit: Edit, *, scale: float, cross: float = 0.8, itself: float = 0.4, blend: Blend | None = None
) -> Guide:
  """Eq. 1, for the `guide` of an objective, in the place of classifier-free guidance.

  Args:
    edit: arrays of all rows, from `aligned`, or of one pair for all of them.
    scale: w.
    cross, itself: shares of time, from t = 1, in which the attention to the prompt and to the image is edited.
    blend: changes the image only where the words are (local_blend.py).
  """
  for name, share in (('cross', cross), ('itself', itself)):
    if not 0 <= share <= 1:
      raise ValueError(f'{name} is {share}; it is a share of time, from 0 (never) to 1 (always)')

  def guide(denoise: Denoiser, process: Process, without: Without) -> Denoiser:
    del process

    def edited(x_t: Float[Array, 'b ...'], t: Float[Array, ' b'], cond: Cond) -> Prediction:
      more: Any = {'attention_edit': _at(edit, t, cross=cross, itself=itself)}
      made = denoise(x_t, t, {**cond, **more})
      if scale != 1:
        weight = jnp.full((len(x_t), *[1] * (x_t.ndim - 1)), scale, jnp.float32)
        made = extrapolated([denoise(x_t, t, replaced(cond, without(()))), made], [weight], x_t, t)
      return made if blend is None else blended(made, x_t, t, {**cond, **more}, blend)

    return edited

  return guide


def _at(edit: Edit, t: Float[Array, ' b'], *, cross: float, itself: float) -> Edits:
  """The edits of this time, for all rows."""
  rows = len(t)
  if rows % 2:
    raise ValueError(f'{rows} rows; Prompt-to-Prompt wants pairs of a source and its target')
  arrays = [jnp.asarray(array) for array in edit]
  blend, mapping, scale = (jnp.tile(a, (rows // len(a), *[1] * (a.ndim - 1))) for a in arrays)
  now = (t >= 1 - cross).astype(jnp.float32)[:, None]
  odd = (jnp.arange(rows) % 2).astype(jnp.float32)
  return Edits(
    prompt=Edit(blend * now, mapping, scale), itself=Edit((odd * (t >= 1 - itself).astype(jnp.float32))[:, None])
  )


def prompt_to_prompt(
  d: Denoising,
  edit: Edit,
  *,
  scale: float,
  cross: float = 0.8,
  itself: float = 0.4,
  blend: Blend | None = None,
  after: Sequence[Guide] = (),
) -> SampleFn:
  """`(params, frozen, cond, keys) -> images`, pairs of a source and its target, which have the source's key.

  Args:
    d: parts of an objective's sampling; its own `guide` is not used.
    edit, scale, cross, itself, blend: as for `edited_prompts`.
    after: what wraps the edited denoiser, such as `clip()`.
  """
  guided = d._replace(guide=(edited_prompts(edit, scale=scale, cross=cross, itself=itself, blend=blend), *after))

  def sample(params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    keys = jnp.repeat(keys[::2], 2, axis=0)
    return sample_from(guided, params, frozen, cond, image_noise(split_keys(keys)[0], d.shape), keys)

  return sample
