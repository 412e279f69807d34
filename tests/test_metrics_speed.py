"""Features are made as fast as PyTorch makes them: needs torch (the `parity` extra) and an idle machine."""

import jax
import numpy as np
import pytest

from jaxgen.bench.features import features_benchmark
from jaxgen.models import inception
from jaxgen.models.layers.convolution import compiler_options
from jaxgen.pretrained import safetensors_file, weights
from jaxgen.pretrained.inception import fold


@pytest.mark.slow
def test_features_take_no_longer_than_in_pytorch():
  torch = pytest.importorskip('torch')
  import torch_inception

  params = fold(safetensors_file.read(weights.get('inception')))
  peer = torch_inception.build(safetensors_file.read(weights.stored('inception')))
  x = np.random.default_rng(0).uniform(-1, 1, (16, inception.SIZE, inception.SIZE, 3)).astype(np.float32)
  x_torch = torch.from_numpy(x.transpose(0, 3, 1, 2)).to(memory_format=torch.channels_last)

  @torch.inference_mode()
  def run():
    return peer(x_torch).numpy()

  wanted = run()
  compute = jax.jit(inception.network, compiler_options=compiler_options())
  np.testing.assert_allclose(compute(params, x), wanted, rtol=1e-3, atol=1e-4)
  result = features_benchmark(params, batch_size=16, peer=run)
  print(result)
  assert result['ratio'] <= 1.05
