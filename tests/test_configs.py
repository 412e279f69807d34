"""Every config builds, its state has shapes and places, and its step traces; none is run here."""

import pathlib

import jax
import numpy as np
import pytest

from jaxgen import sharding
from jaxgen.cli.config import available_configs, load_config
from jaxgen.experiment import as_stages
from jaxgen.frozen import shapes
from jaxgen.models.layers import stack
from jaxgen.train import abstract_state, place_frozen
from jaxgen.train_state import sampling_params
from jaxgen.train_step import make_train_step
from tests.toys import write_pairs

CONFIGS = sorted(path.stem for path in (pathlib.Path(__file__).parents[1] / 'configs').glob('*.py'))
PARAMETERS = {
  'dit_xl2_imagenet256': 674_834_720,
  'dit_xl2_imagenet512': 674_834_720,
  'sd15_finetune': 859_520_964,
  'sdxl_finetune': 2_567_463_684,
  'sd3_medium_finetune': 2_028_328_000,
  'flux_dev_finetune': 11_901_408_320,
  'flux_schnell_finetune': 11_891_178_560,
}
SYNTHETIC = {  # noise stands for their data
  *('dit_xl2_imagenet512', 'celeba_dcgan', 'celebahq_progan', 'cifar10_r3gan', 'cifar10_stylegan2_ada'),
  *('ffhq256_stylegan2', 'cifar10_ddpm', 'cifar10_edm', 'imagenet64_adm'),
}
ON_LATENTS = {  # the side of their images
  **dict.fromkeys(('emoji_latent_dit', 'emoji_ldm'), 32),
  **dict.fromkeys(('dit_xl2_imagenet256', 'dit_xl2_imagenet256_flow', 'imagenet256_ldm'), 256),
  'dit_xl2_imagenet512': 512,
}
WITHOUT_HELD_OUT = {
  *SYNTHETIC,
  'sd15_finetune',
  'sdxl_finetune',
  'sd3_medium_finetune',
  'flux_dev_finetune',
  'flux_schnell_finetune',
}
LONG = {  # to trace
  *(SYNTHETIC - {'dit_xl2_imagenet512'}),
  *('emoji_progressive', 'emoji_classifier', 'emoji_reflow', 'emoji_one_step', 'emoji_adversarial'),
  *('fashion_mnist_dcgan', 'fashion_mnist_r3gan', 'fashion_mnist_stylegan2', 'emoji_r3gan', 'emoji_vdm', 'emoji_unet'),
  *('emoji_ldm', 'emoji_vqgan', 'imagenet256_ldm', 'emoji_stylegan2', 'stacked_digits_dcgan'),
  *('avatars_dmd', 'avatars_dpo', 'avatars_grpo', 'avatars_nft', 'avatars_repa'),
  *('dit_xl2_imagenet256_flow', 'fashion_mnist_unet', 'fashion_mnist_adversarial', 'sd15_finetune'),
  *('sdxl_finetune', 'sd3_medium_finetune', 'flux_dev_finetune', 'flux_schnell_finetune'),
}


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """Stands for the datasets that do not come with jaxgen, in their own formats."""
  import tensorflow_datasets as tfds

  from jaxgen.data import prepare
  from jaxgen.data.datasets import fashion_mnist, mnist

  folder = tmp_path_factory.mktemp('home') / 'data'
  clothes = tmp_path_factory.mktemp('idx')
  rng = np.random.default_rng(0)
  for prefix in ('train', 't10k'):
    images = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = np.arange(40, dtype=np.uint8) % 10
    for name, values in ((f'{prefix}-images-idx3-ubyte', images), (f'{prefix}-labels-idx1-ubyte', labels)):
      head = bytes([0, 0, 8, values.ndim]) + b''.join(n.to_bytes(4, 'big') for n in values.shape)
      (clothes / name).write_bytes(head + values.tobytes())
  for recipe in (fashion_mnist.RECIPE, mnist.RECIPE):
    prepare(recipe, source=clothes, data_dir=folder)

  class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    pkg_dir_path = pathlib.Path(__file__).parent
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = {
        'image': tfds.features.Tensor(shape=(8, 8, 3), dtype=np.uint8),
        'label': tfds.features.ClassLabel(num_classes=1000),
      }
      return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      rows = [(i, {'image': np.full((8, 8, 3), i, np.uint8), 'label': i}) for i in range(4)]
      return {'train': iter(rows), 'validation': iter(rows)}

    def _generate_examples(self):
      raise AssertionError

  Pictures(data_dir=folder, file_format='array_record').download_and_prepare()
  write_pairs(folder)
  _latents(folder)
  _lpips(folder.parent / 'weights' / 'lpips.safetensors')
  return folder


def _latents(folder):
  """Small autoencoders with the latents' shapes of real ones, and latents of each."""
  from jaxgen.data.datasets import latents
  from jaxgen.data.job import Numbered
  from jaxgen.models.autoencoder import AutoencoderKL
  from jaxgen.models.latents import unscaled
  from jaxgen.models.vq import VQModel
  from jaxgen.pretrained import autoencoder

  small = {'width': 8, 'groups': 4, 'blocks': 1}
  for family, name, net, side in (
    ('emoji', 'emoji32_latents', AutoencoderKL(multipliers=(1, 1, 1), latent=4, **small), 8),
    ('dit_xl2', 'imagenet256_latents', AutoencoderKL(multipliers=(1, 1, 1, 1), latent=4, **small), 32),
    ('imagenet256_ldm', 'imagenet256_vq_f4_latents', VQModel(multipliers=(1, 1, 1), latent=3, codes=8, **small), 64),
  ):
    shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))['params']
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    channels = net.channels_of_latents
    digest = autoencoder.save(folder / f'{family}_autoencoder', net, params, unscaled(channels))
    classes = tuple('abcdefg') if family == 'emoji' else tuple(map(str, range(1000)))
    rows = np.float16(np.arange(16)[:, None, None, None] * np.ones((1, side, side, channels)))
    records = [{'image': row, 'std': row, 'label': i % 7} for i, row in enumerate(rows)]
    latents.write(
      latents.folder(name, folder),
      {'train': Numbered(16, lambda shards, made=records: ([made[i]] for shard in shards for i in shard))},
      like=records[0],
      identity={'autoencoder': digest},
      class_names=classes,
    )


def _lpips(path):
  """Stands for LPIPS's weights."""
  from jaxgen.models import lpips
  from jaxgen.pretrained import safetensors_file

  tensors = {name: np.zeros(shape, np.float32) for name, shape in lpips.shapes().items()}
  safetensors_file.write(path, tensors, metadata={'hash': safetensors_file.content_hash(tensors)})


def opened(name, data_dir, changes=None):
  """A config and its module, with what stands here for its data."""
  config, module = load_config(name, [f'--config.{field}={value}' for field, value in (changes or {}).items()])
  if 'data_dir' in config:
    config.data_dir = str(data_dir)
  if name in SYNTHETIC:
    config.dataset = 'synthetic'
  elif config.get('dataset') == 'imagenet2012':
    config.dataset = 'pictures'
  elif config.get('dataset') == 'emoji64':
    config.dataset = 'emoji32'  # with a border
  elif config.get('dataset') == 'avatars':
    config.dataset = 'avatars32'  # in the package
  if name == 'avatars_attributes':
    config.pictures = 0
  if name in ON_LATENTS:
    family = next(family for family in ('emoji', 'dit_xl2', 'imagenet256_ldm') if family in name)
    config.autoencoder = str(data_dir / f'{family}_autoencoder')
  return config, module


def test_all_configs_are_found():
  assert set(CONFIGS) <= set(available_configs())


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in CONFIGS]
)
def test_a_config_builds_and_its_step_traces(name, data_dir, monkeypatch):
  monkeypatch.setenv('JAXGEN_HOME', str(data_dir.parent))
  monkeypatch.setattr(stack, '_loop', stack._scan)  # as accelerators run it, and one block is traced
  config, module = opened(name, data_dir)
  assert module.__doc__.count('jaxgen train') or module.__doc__.count('launch/local train')
  assert 'esult' in module.__doc__, 'the docstring says what came out, or "not run"'
  stages = as_stages(module.build(config))
  names = {evaluator.name for evaluator in stages[0].evaluators}
  if (
    stages[0].objective.denoising and config.get('held_out') and config.held_out.every and name not in WITHOUT_HELD_OUT
  ):
    assert 'held_out' in names
  for stage in stages:
    state = abstract_state(stage)
    if name in PARAMETERS:
      assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == PARAMETERS[name]
    step = make_train_step(
      stage.objective, stage.optimizers, stage.averages, accumulate=stage.accumulate, clip_norm=stage.clip_norm
    )
    after, metrics = jax.eval_shape(step, state, shapes(stage.frozen), stage.data.spec, jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
      lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert {'loss', 'grad_norm', 'skipped'} <= {name.rpartition('/')[2] for name in metrics}
    if name in ON_LATENTS:
      _sampling_traces(stage, state, ON_LATENTS[name])
    batch = next(iter(stage.data.iterate(0, sharding.batch_sharding(stage.mesh))))
    assert batch['image'].shape[0] == stage.data.identity['batch_size']


def _sampling_traces(stage, state, side):
  keys, cond = jax.random.split(jax.random.key(0), 2), {'label': np.zeros(2, np.int32)}
  images = jax.eval_shape(stage.objective.sample, sampling_params(state), place_frozen(stage), cond, keys)
  assert images.shape == (2, side, side, 3)
  fids = [evaluator.name for evaluator in stage.evaluators if evaluator.name.startswith('fid')]
  assert fids == ([] if side == 512 else ['fid'] if side == 256 else ['fid_256'])
