"""HED's soft edges: the weights of a package where it is installed, and the errors for wrong ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.hed import edges, shapes
from jaxgen.models.lpips import tree
from jaxgen.pretrained import hed, safetensors_file


def test_without_features_the_edges_are_those_of_the_biases():
  tensors = {f'hed.{name}': jnp.zeros(shape) for name, shape in shapes().items()}
  params = tree(tensors)['hed']
  for i in range(5):
    params[f'side_{i}']['bias'] = jnp.full(1, float(i))
  params['fuse'] = {'kernel': jnp.full((1, 1, 5, 1), 0.1), 'bias': jnp.full(1, -0.5)}
  made = edges(params, jnp.zeros((1, 16, 24, 3)))
  np.testing.assert_allclose(made, np.full((1, 16, 24), 1 / (1 + np.exp(-0.5))), rtol=1e-6)


def test_other_weights_are_refused(tmp_path):
  safetensors_file.write(
    tmp_path / 'it.safetensors', {'conv_0.kernel': np.zeros((3, 3, 3, 64), np.float32)}, metadata={}
  )
  with pytest.raises(ValueError, match='HED'):
    hed.read(tmp_path / 'it.safetensors')


@pytest.mark.skipif(not hed.default_path().exists(), reason='jaxgen weights get hed')
def test_edges_are_where_a_square_ends():
  image = np.full((32, 32, 3), -0.9, np.float32)
  image[8:24, 8:24] = [0.9, 0.5, -0.5]
  made = hed.load()(image)
  assert made.shape == (32, 32, 3) and made.min() >= 0 and made.max() <= 1
  border = np.concatenate([made[8:24, 8, 0], made[8:24, 23, 0]])
  assert border.mean() > 0.5 > 0.2 > made[14:18, 14:18].mean()
