"""Sinusoidal embeddings of time and of place, and a table of labels.

e(s)_i = cos(s w_i) and sin(s w_i),  w_i = 10000^(-i / m),  i = 0 ... m - 1        (1)    m half the width
The same with w_i = 10000^(-i / (m - 1))                                           (2)    Ho et al. 2020
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxgen.sharding import Rule
from jaxgen.typing import Array, Float, Int

# Embeddings of conditions are small, and whole on each device: were they sharded, the partitioner would move their
# result and its gradient, `b d`, between images and features, and would have to gather them.
RULES: tuple[Rule, ...] = tuple((r'(^|/)(time|label|interval)_embed/', (None,) * rank) for rank in (1, 2))


def timestep_embedding(t: Float[Array, 'b'], width: int, *, frequency_shift: int = 0) -> Float[Array, 'b d']:
  """Eq. 1 of the number `t`, cosines first, float32; `t` is of the order of 0 to 1000.

  Args:
    t: time.
    width: number of features.
    frequency_shift: 1 for the frequencies of Eq. 2.
  """
  half = width // 2
  frequencies = jnp.exp(-np.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - frequency_shift))
  angles = t.astype(jnp.float32)[:, None] * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def ddpm_timestep_embedding(t: Float[Array, 'b'], width: int) -> Float[Array, 'b d']:
  """Eq. 2 of the number `t`, sines first, float32: DDPM's."""
  half = width // 2
  frequencies = jnp.exp(-np.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - 1))
  angles = t.astype(jnp.float32)[:, None] * frequencies[None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def sincos_2d(height: int, width: int, features: int) -> np.ndarray:
  """Fixed positions of a `height` by `width` grid in row-major order, float32 [height * width, features]."""
  return sincos_at(np.arange(height), np.arange(width), features)


def sincos_at(rows: np.ndarray, columns: np.ndarray, features: int) -> np.ndarray:
  """Positions of a grid with these coordinates in row-major order, float32 [len(rows) * len(columns), features].

  A quarter of the features each: sine and cosine (Eq. 1) of the column, sine and cosine of the row.
  """
  if features % 4:
    raise ValueError(f'2-D sin-cos positions need a width divisible by 4, got {features}')
  quarter = features // 4
  frequencies = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float64) / quarter)
  row, column = np.meshgrid(rows, columns, indexing='ij')
  parts = []
  for place in (column, row):
    angles = place.reshape(-1, 1) * frequencies
    parts += [np.sin(angles), np.cos(angles)]
  return np.concatenate(parts, axis=1).astype(np.float32)


class LabelEmbedding(nn.Module):
  """A row of a table for each label; the null label is `num_classes`.

  Attributes:
    num_classes: labels are 0 to num_classes - 1.
    width: width of a row.
    null_row: the null label has a row of its own; else it adds nothing.
    table_init: initialises the table.
  """

  num_classes: int
  width: int
  null_row: bool = True
  table_init: nn.initializers.Initializer = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, label: Int[Array, 'b']) -> Float[Array, 'b d']:
    table = nn.Embed(self.num_classes + self.null_row, self.width, embedding_init=self.table_init, name='table')
    if self.null_row:
      return table(label)
    rows = table(jnp.minimum(label, self.num_classes - 1))
    return jnp.where((label < self.num_classes)[:, None], rows, 0.0)
