"""Models in diffusers' folders, in and out; the numbers are diffusers' own (diffusers_models.py made the files)."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.autoencoder import AutoencoderKL
from jaxgen.models.dit import DiT
from jaxgen.models.latents import Scaling
from jaxgen.models.vq import VQModel
from jaxgen.pretrained import autoencoder, folder, layout, networks, safetensors_file, schedulers
from jaxgen.processes import parameterisation

GOLDEN = pathlib.Path(__file__).parent / 'golden'
PEER = pathlib.Path(__file__).parent / 'diffusers_models.py'
MODELS = ('autoencoder_kl', 'vq_model', 'unet', 'unet_resnet', 'unet_fourier', 'unet_heads', 'unet_condition')


class Case(NamedTuple):
  """A model of diffusers, as a folder and as loaded from it."""

  kind: str
  folder: pathlib.Path
  arrays: dict[str, np.ndarray]
  tensors: dict[str, np.ndarray]
  loaded: Any


def _write(kind, path):
  """The folder that diffusers would have written."""
  with np.load(GOLDEN / f'diffusers_{kind}.npz') as file:
    arrays = dict(file)
  tensors = {name[3:]: np.float32(array) for name, array in arrays.items() if name.startswith('sd/')}
  folder.write(path, json.loads(str(arrays['config'])), tensors)
  return arrays, tensors


@pytest.fixture(params=MODELS, scope='module')
def case(request, tmp_path_factory) -> Case:
  path = tmp_path_factory.mktemp(request.param)
  arrays, tensors = _write(request.param, path)
  return Case(request.param, path, arrays, tensors, networks.load(path))


def _nhwc(array):
  return jnp.asarray(array).transpose(0, 2, 3, 1)


def _close(ours, theirs):
  np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs, atol=1e-4, rtol=0)


def _answers(case):
  """What the model says of the file's input, compiled as one program."""
  net, params, x = case.loaded.net, {'params': case.loaded.params}, _nhwc(case.arrays['x'])
  if case.kind == 'autoencoder_kl':

    def run(params, x):
      gaussian = net.apply(params, x, method='encode')
      return {
        'mean': gaussian.mean,
        'logvar': gaussian.log_variance,
        'image': net.apply(params, gaussian.mean, method='decode'),
      }
  elif case.kind == 'vq_model':

    def run(params, x):
      z = net.apply(params, x, method='encode')
      index = net.apply(params, z, method='quantize').index
      return {'z': z, 'index': index[..., None], 'image': net.apply(params, z, method='restore')}
  else:
    cond = {
      name: jnp.asarray(case.arrays[key]) for name, key in (('label', 'y'), ('text', 'text')) if key in case.arrays
    }

    def run(params, x):
      return {'out': net.apply(params, x, jnp.asarray(case.arrays['t']), cond)}

  return jax.jit(run)(params, x)


def test_answers_are_those_of_diffusers(case):
  for name, ours in _answers(case).items():
    theirs = case.arrays[name]
    _close(ours, theirs[:, None] if name == 'index' else theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('kind', 'count'),
  [
    ('autoencoder_kl', 83_653_863),
    ('vq_model', 55_322_782),
    ('unet', 113_673_219),
    ('unet_condition', 859_520_964),
  ],
)
def test_published_sizes_answer_as_in_diffusers(kind, count, tmp_path):
  """Full widths on images of 128x128, or latents of 64x64; SD 1.5's U-Net takes 8 GB of memory and of the disk."""
  python = os.environ.get('JAXGEN_PARITY_PYTHON', sys.executable)
  if subprocess.run([python, '-c', 'import torch, diffusers'], capture_output=True, check=False).returncode:
    pytest.skip(f'{python} has not torch and diffusers (the `parity` extra); JAXGEN_PARITY_PYTHON may name another')
  subprocess.run([python, PEER, '--published', tmp_path, kind], check=True, timeout=3000)
  loaded = networks.load(tmp_path, put=lambda _, array: jax.device_put(array))
  assert sum(leaf.size for leaf in jax.tree.leaves(loaded.params)) == count
  with np.load(tmp_path / 'answers.npz') as file:
    arrays = dict(file)
  for name, ours in _answers(Case(kind, tmp_path, arrays, {}, loaded)).items():
    theirs = arrays[name]
    if name == 'index':
      np.testing.assert_array_equal(ours[..., 0], theirs)
      continue
    error = np.abs(ours.transpose(0, 3, 1, 2) - theirs)
    print(f'{kind} {name}: {error.max() / np.abs(theirs).max():.1e} of the largest value of {theirs.shape}')
    assert error.max() <= 1e-4 * np.abs(theirs).max()


def test_no_tensor_of_the_golden_files_is_at_its_start(case):
  for name, tensor in case.tensors.items():
    assert np.std(tensor) > 0, name


def kept(config):
  """Of a configuration, what neither the network nor its parameters say."""
  return {name: value for name, value in config.items() if name in ('sample_size', 'use_linear_projection')}


def test_a_folder_comes_back_bit_for_bit_and_says_the_same_of_the_model(case, tmp_path):
  loaded = case.loaded
  networks.save(loaded._replace(meta=loaded.meta._replace(config=kept(loaded.meta.config))), tmp_path)
  back = safetensors_file.read(tmp_path / f'{folder.STEM}.safetensors')
  assert back.keys() == case.tensors.keys()
  for name, tensor in case.tensors.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)
  old, new = (json.loads((path / 'config.json').read_text()) for path in (case.folder, tmp_path))
  own = {
    name: value for name, value in new.items() if name in old and name not in ('sample_size', '_diffusers_version')
  }
  # An entry that diffusers fills with a default that means nothing to this model may differ.
  assert own == {name: old[name] for name in own}
  again = networks.load(tmp_path)
  assert again.net == loaded.net
  jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


def test_every_problem_of_a_folder_is_listed(case, tmp_path):
  names = sorted(case.tensors)
  broken = dict(case.tensors, extra=np.zeros(3, np.float32))
  del broken[names[0]]
  broken[names[1]] = np.zeros((7, 7), np.float32)
  folder.write(tmp_path, json.loads(str(case.arrays['config'])), broken)
  with pytest.raises(ValueError) as error:
    networks.load(tmp_path)
  message = str(error.value)
  assert f'missing: {names[0]} {case.tensors[names[0]].shape}' in message
  assert 'unexpected: extra (3,)' in message
  assert f'misshapen: {names[1]} is (7, 7), wanted {case.tensors[names[1]].shape}' in message


def test_a_scaling_is_kept_in_the_folder(tmp_path):
  path = tmp_path / 'in'
  _write('autoencoder_kl', path)
  loaded = autoencoder.load(path)
  np.testing.assert_array_equal(loaded.scaling.shift, [0.25] * 3)
  np.testing.assert_array_equal(loaded.scaling.scale, [0.5] * 3)
  own = Scaling(np.float32([0.1, -0.2, 0.3]), np.float32([1.5, 0.7, 2]))
  hash_of_weights = autoencoder.save(tmp_path / 'out', loaded.net, loaded.params, own)
  again = autoencoder.load(tmp_path / 'out')
  np.testing.assert_array_equal(again.scaling.shift, own.shift)
  np.testing.assert_allclose(again.scaling.scale, own.scale, rtol=1e-7)
  assert again.hash == loaded.hash == hash_of_weights
  other = jax.tree.map(lambda leaf: leaf + 1, loaded.params)
  assert autoencoder.save(tmp_path / 'other', loaded.net, other, own) != loaded.hash


def test_former_names_half_precision_and_shards_are_read(tmp_path):
  arrays, tensors = _write('autoencoder_kl', tmp_path / 'new')
  former = {new: old for old, new in autoencoder._FORMER.items()}

  def rename(name):
    for new, old in former.items():
      name = name.replace(f'.{new}.', f'.{old}.') if '.attentions.' in name else name
    return name

  old = {rename(name): np.float16(tensor) for name, tensor in tensors.items()}
  assert old.keys() != tensors.keys()
  folder.write(tmp_path / 'old', json.loads(str(arrays['config'])), old)
  names = sorted(old)
  index = {}
  for i, part in enumerate((names[::2], names[1::2])):
    file = f'{folder.STEM}-{i}.safetensors'
    safetensors_file.write(tmp_path / 'old' / file, {name: old[name] for name in part}, metadata={})
    index |= dict.fromkeys(part, file)
  (tmp_path / 'old' / f'{folder.STEM}.safetensors').unlink()
  (tmp_path / 'old' / f'{folder.STEM}.safetensors.index.json').write_text(json.dumps({'weight_map': index}))
  new, loaded = (autoencoder.load(tmp_path / name) for name in ('new', 'old'))
  jax.tree.map(np.testing.assert_array_equal, loaded.params, new.params)


def test_the_original_codes_names_go_both_ways():
  net = VQModel(multipliers=(1, 2), latent=3, codes=7, attention=(1,), width=8, groups=4, blocks=1)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
  made = autoencoder.original(net)
  tensors = layout.tensors(made, params)
  assert tensors['encoder.down.1.attn.0.q.weight'].shape == (16, 16, 1, 1)
  assert tensors['decoder.up.1.upsample.conv.weight'].shape == (16, 16, 3, 3)
  assert tensors['encoder.down.1.block.0.nin_shortcut.weight'].shape == (16, 8, 1, 1)
  back = layout.pretrained(made, tensors | {'loss.discriminator.main.0.weight': np.zeros(3)}, source='file')
  jax.tree.map(np.testing.assert_array_equal, back.params, params)


def test_a_checkpoint_of_the_original_code_becomes_a_folder(tmp_path, monkeypatch, capsys):
  from jaxgen.cli import weights as command

  net = AutoencoderKL(multipliers=(1,), latent=2, width=4, groups=2, blocks=0)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
  tensors = {
    f'first_stage_model.{name}': tensor for name, tensor in layout.tensors(autoencoder.original(net), params).items()
  }
  others = {'scale_factor': np.float32([0.5])[0], 'model.diffusion_model.out.2.bias': np.zeros(3, np.float32)}
  file = tmp_path / 'model.safetensors'
  safetensors_file.write(file, tensors | {k: np.asarray(v) for k, v in others.items()}, metadata={})
  monkeypatch.setattr(autoencoder, 'published', lambda name: net)
  assert command.main(['convert', str(file), str(tmp_path / 'out'), '--network', 'mine']) == 0
  assert str(tmp_path / 'out') in capsys.readouterr().out
  loaded = autoencoder.load(tmp_path / 'out')
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
  np.testing.assert_array_equal(loaded.scaling.scale, [0.5, 0.5])
  del others['scale_factor']  # as in Stable Diffusion's files, whose code has it
  safetensors_file.write(file, tensors | others, metadata={})
  autoencoder.convert(file, tmp_path / 'as published', 'sd3-f8')
  scaling = autoencoder.load(tmp_path / 'as published').scaling
  np.testing.assert_array_equal(scaling, np.float32([[0.0609] * 2, [1.5305] * 2]))
  monkeypatch.setattr(autoencoder, 'published', lambda name: net.clone(blocks=1))
  with pytest.raises(ValueError, match=r'16 missing: decoder\.up\.0\.block\.1.* and 11 more'):
    autoencoder.convert(file, tmp_path / 'other', 'mine')
  assert not (tmp_path / 'other').exists()
  monkeypatch.undo()
  with pytest.raises(ValueError, match=r'sd-f8, .*vq-f4'):
    autoencoder.published('kl-f5')


def test_an_autoencoder_may_have_a_convolution_after_its_latents_alone(tmp_path):
  net = AutoencoderKL((1, 1), latent=2, quant=False, post_quant=True, width=4, blocks=1, groups=2)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))['params']
  assert 'post_quant_conv' in shapes and 'quant_conv' not in shapes
  params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
  networks.save(layout.Pretrained(net, params, layout.Meta({'sample_size': 4})), tmp_path)
  config = json.loads((tmp_path / 'config.json').read_text())
  assert (config['use_quant_conv'], config['use_post_quant_conv']) == (False, True)
  loaded = networks.load(tmp_path)
  assert loaded.net.has_post_quant and not loaded.net.quant
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


@pytest.mark.parametrize('shift', [0, 1])
def test_dit_goes_both_ways_and_its_embeddings_must_agree(shift, tmp_path, caplog):
  net = DiT(patch=2, depth=2, width=16, heads=2, num_classes=3, learn_sigma=True, frequency_shift=shift)
  cond = {'label': jnp.zeros(1, int)}
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 4)), jnp.zeros(1), cond)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
  networks.save(layout.Pretrained(net, params, layout.Meta({'sample_size': 4})), tmp_path)
  loaded = networks.load(tmp_path)
  assert (loaded.net, loaded.meta.config['sample_size']) == (net, 4)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
  _edit(tmp_path, downscale_freq_shift=None)  # as diffusers writes it
  assert networks.load(tmp_path).net.frequency_shift == 0
  assert 'add "downscale_freq_shift": 1' in caplog.text
  file = tmp_path / f'{folder.STEM}.safetensors'
  tensors = safetensors_file.read(file)
  assert tensors['transformer_blocks.1.attn1.to_k.weight'].shape == (16, 16)
  name = 'transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias'
  safetensors_file.write(file, tensors | {name: tensors[name] + 1}, metadata={})
  with pytest.raises(ValueError, match=f'{name} is not equal to transformer_blocks.0'):
    networks.load(tmp_path)
  del tensors[name]
  safetensors_file.write(file, tensors, metadata={})
  with pytest.raises(ValueError, match=rf'missing: {name} \(16,\)'):
    networks.load(tmp_path)


@pytest.mark.parametrize(
  'schedule',
  [
    schedulers.Schedule(),
    schedulers.STABLE_DIFFUSION._replace(prediction_type='v_prediction', scheduler='PNDMScheduler'),
    schedulers.Schedule(50, 'squaredcos_cap_v2', prediction_type='sample', scheduler='DDPMScheduler'),
    schedulers.Schedule(1000, 'flow', 0.0, 0.0, 'flow_prediction', 'FlowMatchEulerDiscreteScheduler', 3.0),
  ],
  ids=lambda schedule: schedule.beta_schedule,
)
def test_schedules_go_both_ways(schedule, tmp_path):
  schedulers.save(tmp_path, schedule)
  loaded = schedulers.load(tmp_path)
  assert loaded._replace(more={}) == schedule
  assert not any(loaded.more.values())  # what diffusers would do by default is said: clip_sample


def test_a_schedule_is_the_process_that_diffusers_means():
  betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
  process = schedulers.process(schedulers.STABLE_DIFFUSION)
  t = jnp.array([0.001, 0.5, 1.0])
  np.testing.assert_allclose(process.alpha(t) ** 2, np.cumprod(1 - betas)[[0, 499, 999]], rtol=1e-5)
  made = schedulers.parameterisation(schedulers.STABLE_DIFFUSION)
  wanted = parameterisation.eps(process)
  x = jnp.ones((3, 2))
  np.testing.assert_allclose(made.predict(x, 2 * x, t).x0, wanted.predict(x, 2 * x, t).x0)


def _edit(path, **changes):
  config = json.loads((path / 'config.json').read_text())
  (path / 'config.json').write_text(json.dumps(config | changes))


def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'config\.json does not exist; wanted a folder'):
    autoencoder.load(tmp_path)
  _write('unet_condition', tmp_path)
  with pytest.raises(ValueError, match='is of a UNet2DConditionModel; wanted AutoencoderKL or VQModel'):
    autoencoder.load(tmp_path)
  _edit(tmp_path, addition_embed_type='text')
  with pytest.raises(ValueError, match="addition_embed_type is 'text', wanted 'text_time'"):
    networks.load(tmp_path)
  _edit(tmp_path, addition_embed_type='text_time')
  with pytest.raises(ValueError, match='text_time and names no addition_time_embed_dim'):
    networks.load(tmp_path)
  _edit(tmp_path, addition_embed_type=None, freq_shift=1)
  with pytest.raises(ValueError, match=r'\(flip_sin_to_cos, freq_shift\) are \(True, 1\)'):
    networks.load(tmp_path)
  _edit(tmp_path, freq_shift=0)
  file = tmp_path / f'{folder.STEM}.safetensors'
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(ValueError, match='cannot be read as a safetensors file'):
    networks.load(tmp_path)
  file.unlink()
  with pytest.raises(FileNotFoundError, match=r'has no diffusion_pytorch_model\.safetensors'):
    networks.load(tmp_path)
  (tmp_path / 'config.json').write_text('[]')
  with pytest.raises(ValueError, match='is no configuration of a model'):
    networks.load(tmp_path)


def test_a_pickle_with_code_in_a_folder_is_refused_and_not_run(tmp_path):
  _write('unet', tmp_path)
  (tmp_path / f'{folder.STEM}.safetensors').unlink()
  touched = tmp_path / 'touched'
  import io
  import pickle
  import zipfile

  class Bad:
    def __reduce__(self):
      return pathlib.Path.touch, (touched,)

  data = io.BytesIO()
  pickle.dump({'w': Bad()}, data, protocol=2)
  with zipfile.ZipFile(tmp_path / f'{folder.STEM}.bin', 'w') as archive:
    archive.writestr('m/data.pkl', data.getvalue())
  with pytest.raises(ValueError, match=r'no state dict: w is a .*getattr, not a tensor'):
    networks.load(tmp_path)
  assert not touched.exists()
