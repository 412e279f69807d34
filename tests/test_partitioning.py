"""The compiler splits the step of every config over a mesh without giving up on any array.

Where it finds no way from one sharding to another it gathers the whole array on every device, and says so on standard
error: `Involuntary full rematerialization`. And of a fully sharded step it sends parameters, not images.
"""

import re

import jax
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxgen import ema, sharding, stage_setup
from jaxgen.bench.programs import FixedBatch
from jaxgen.experiment import Experiment, as_stages
from jaxgen.models import unet
from jaxgen.models.dit import DiT
from jaxgen.models.layers import remat
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.plan import program as programs
from jaxgen.plan.plan import abstract_frozen
from jaxgen.processes import parameterisation, times
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.samplers import grids
from jaxgen.samplers.euler import euler
from jaxgen.samplers.sampler import Sampler
from tests import test_configs

data_dir = test_configs.data_dir
MESHES = ({'data': 2, 'fsdp': 2, 'tensor': 2}, {'data': 2, 'fsdp': 4, 'tensor': 1})
# What makes a config small, where it is not: a network's depth changes no sharding, nor does the size of a batch.
SMALLER = {
  (
    *('emoji_consistency', 'emoji_dit', 'emoji_dit_flow', 'emoji_edm', 'emoji_latent_dit', 'emoji_mean_flow'),
    *('emoji_adversarial', 'emoji_one_step', 'emoji_reflow', 'emoji_scm', 'emoji_shortcut', 'emoji_vdm'),
    *('fashion_mnist_consistency', 'fashion_mnist_dit', 'fashion_mnist_dit_flow', 'fashion_mnist_mean_flow'),
    'fashion_mnist_adversarial',
  ): {'model.depth': 2},
  ('dit_xl2_imagenet256', 'dit_xl2_imagenet256_flow', 'dit_xl2_imagenet512'): {'size': 'S/2', 'batch_size': 16},
  ('cifar10_ddpm', 'cifar10_edm', 'imagenet256_ldm', 'imagenet64_adm'): {'batch_size': 16},
  ('celeba_dcgan', 'cifar10_stylegan2_ada'): {'batch_size': 16},
  ('cifar10_r3gan',): {'batch_size': 16, 'model.widths': (128, 128, 128, 128), 'model.blocks': 1},
  ('ffhq256_stylegan2',): {'batch_size': 16, 'model.base': 4096, 'model.max_features': 128},
}


# With the share of FSDP's theory that is sent at most: modulations of a DiT stay where they are.
NETWORKS = {
  'dit': (
    DiT(patch=2, depth=3, width=64, heads=4, num_classes=7, remat=remat.policy('full')),
    0.8,
  ),
  'unet': (
    unet.UNet(width=32, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, groups=8, num_classes=7),
    1.1,
  ),
}


@pytest.mark.parametrize('name', ['dit', pytest.param('unet', marks=pytest.mark.slow)])
def test_a_fully_sharded_step_sends_parameters_and_no_activations(name):
  """Each is gathered for either pass, and its gradient is summed: here in float32, and whole."""
  net, share = NETWORKS[name]
  flow = rectified_flow()
  stage = Experiment(
    diffusion(
      net,
      flow,
      shape=(16, 16, 4),
      parameterisation=parameterisation.velocity,
      times=times.uniform(),
      sampler=Sampler(euler, grids.uniform(1)),
      conditioner=labels(7),
    ),
    {'net': optax.sgd(1e-3)},
    {'net': ema.Average('net', ema.constant(0.9))},
    FixedBatch({'image': np.zeros((64, 16, 16, 4), np.float32), 'label': np.zeros(64, np.int32)}),
    1,
    sharding.make_mesh(data=1, fsdp=8),
  )
  abstract = stage_setup.abstract_state(stage)
  program = programs.parse(stage_setup.compile_step(stage, abstract, {}).as_text())
  sent = sum(programs.sent(collective, [0] * 8)[0] for collective in programs.collectives(program, 8))
  size = 4 * sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
  print(f'{name}: {sent / 1e6:.2f} MB sent, {4 * size * 7 / 8 / 1e6:.2f} MB expected')
  assert sent < share * 4 * size * 7 / 8


@pytest.fixture
def no_cache():
  """A program that comes from the cache is not partitioned again, and nothing is said of it."""
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  yield
  jax.config.update('jax_enable_compilation_cache', True)
  compilation_cache.reset_cache()


def stages(name, mesh, data_dir):
  """Of a config, over a mesh."""
  config, module = test_configs.opened(name, data_dir, next((SMALLER[names] for names in SMALLER if name in names), {}))
  with config.unlocked():
    config.mesh.update(mesh)
  return as_stages(module.build(config))


# Their networks have no rules over `tensor`.
WITHOUT_TENSOR = {
  name for name in test_configs.CONFIGS if re.search('dcgan|progan|r3gan|stylegan2|gaussians_gan', name)
}


@pytest.mark.slow
@pytest.mark.parametrize('mesh', MESHES, ids=lambda mesh: ' x '.join(f'{axis} {size}' for axis, size in mesh.items()))
@pytest.mark.parametrize('name', test_configs.CONFIGS)
def test_no_array_is_gathered_for_want_of_a_way(name, mesh, data_dir, monkeypatch, capfd, no_cache):
  monkeypatch.setenv('JAXGEN_HOME', str(data_dir.parent))
  for stage in stages(name, mesh, data_dir):
    if name in WITHOUT_TENSOR and mesh['tensor'] > 1:
      with pytest.raises(ValueError, match='mesh tensor=2 shards no parameter'):
        stage_setup.abstract_state(stage)
    else:
      stage_setup.compile_step(stage, stage_setup.abstract_state(stage), abstract_frozen(stage))
  assert 'Involuntary full rematerialization' not in capfd.readouterr().err
