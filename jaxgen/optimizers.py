"""What optax needs to be told of Flax parameters: which are decayed, and which are matrices.

Optimizers are optax's, called plainly in the configs:

  optax.adamw(rate, weight_decay=0.01, mask=kernels)
  optax.contrib.muon(rate, muon_weight_dimension_numbers=matrices)
"""

from typing import Any

import jax
from optax.contrib import MuonDimensionNumbers


def kernels(params: Any) -> Any:
  """A mask for weight decay: True for the weights of dense and convolution layers; not biases, norms or embeddings."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def matrices(params: Any) -> Any:
  """Muon's view of a transformer: the axes that each hidden kernel multiplies and makes; None goes to Adam.

  Kernels in a module named `blocks` are stacked over depth by `nn.scan`, and each layer is a matrix of its own. The
  first and last layers, modulations and embeddings go to Adam, as Muon's authors advise (Jordan et al. 2024).
  """

  def view(path, leaf):
    names = [entry.key for entry in path]
    if names[-1] != 'kernel' or 'blocks' not in names or 'modulation' in names or leaf.ndim < 3:
      return None
    inputs = 2 if names[-2:] == ['out', 'kernel'] and 'attention' in names else 1  # heads and their size, or width
    return MuonDimensionNumbers(
      reduction_axis=tuple(range(1, 1 + inputs)), output_axis=tuple(range(1 + inputs, leaf.ndim))
    )

  return jax.tree_util.tree_map_with_path(view, params)
