"""Edits of attention's weights that keep an image's layout while its prompt changes.

Rows 2i and 2i + 1 of a batch are a source and its target. With M the weights of the target and M* those of the source,

  M' = scale (blend (M* mapping) + (1 - blend) M)                                    (1)    attention to the prompt
  M' = blend M* + (1 - blend) M                                                      (2)    self-attention

`mapping` maps tokens of the source's prompt to those of the target's, `blend` says how much of the source is
kept, per token, and `scale` makes a token count more or less. Where text and image share one softmax (MMDiT), the rows
of the image's tokens are edited, Eq. 1 in the text's columns, Eq. 2 in the image's own, and divided by their sum before
the scale, so that they stay weights. Hertz et al. 2022, "Prompt-to-Prompt Image Editing with
Cross Attention Control": the steps at which an edit holds are a matter of the arrays, which a sampler changes by step.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxgen.typing import Array, Float


class Edit(NamedTuple):
  """The arrays of Eq. 1 or Eq. 2, one for each target or for each row; all that are None change nothing.

  Attributes:
    blend: 0 keeps the target's weights, 1 takes the source's; `b k` by token of the prompt, or `b 1`.
    mapping: map from the source's tokens to the target's; None for the identity.
    scale: factor of each token's weight.
  """

  blend: Float[Array, 'b #k']
  mapping: Float[Array, 'b k k'] | None = None
  scale: Float[Array, 'b k'] | None = None


class Edits(NamedTuple):
  """The value of `cond['attention_edit']`: edits of a network's attention to the prompt, and of its self-attention."""

  prompt: Edit | None = None
  itself: Edit | None = None


def edited(weights: Float[Array, 'b n l k'], edit: Edit) -> Float[Array, 'b n l k']:
  """Eqs. 1 and 2; a source's own row has a blend of 0 and a scale of 1.

  Raises:
    ValueError: the rows are not pairs.
  """
  rows = len(weights)
  if rows % 2:
    raise ValueError(f'an attention edit got {rows} rows; it wants pairs of a source and its target')
  source = jnp.repeat(weights[::2], 2, axis=0)
  if edit.mapping is not None:
    source = jnp.einsum('bnlj,bjk->bnlk', source, edit.mapping)
  blend = edit.blend[:, None, None]  # b 1 1 k
  result = blend * source + (1 - blend) * weights
  return result if edit.scale is None else edit.scale[:, None, None] * result


def edited_joint(weights: Float[Array, 'b n m m'], edits: Edits, *, tokens: int) -> Float[Array, 'b n m m']:
  """Eqs. 1 and 2 in one softmax over the text's `tokens` and then the image's; the rows of the text stay."""
  text, own = jnp.split(weights[:, :, tokens:], [tokens], axis=-1)
  scale = None
  if edits.prompt is not None:
    text, scale = edited(text, edits.prompt._replace(scale=None)), edits.prompt.scale
  if edits.itself is not None:
    own = edited(own, edits.itself)
  total = text.sum(axis=-1, keepdims=True) + own.sum(axis=-1, keepdims=True)
  text, own = text / total, own / total
  text = text if scale is None else scale[:, None, None] * text
  return jnp.concatenate([weights[:, :, :tokens], jnp.concatenate([text, own], axis=-1)], axis=2)
