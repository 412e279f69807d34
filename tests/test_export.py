"""`jaxgen export`, and what a StyleGAN is used for: on models that were saved untrained."""

import functools
import json
import pathlib
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image
from safetensors.numpy import load_file

from jaxgen import animation, export, init_from, library, model_folder, sample, stage_setup
from jaxgen.checkpoint import Checkpoints, Policy
from jaxgen.cli import config as configs
from jaxgen.cli import edit
from jaxgen.cli.main import main
from jaxgen.experiment import as_stages
from jaxgen.models.autoencoder import AutoencoderKL
from jaxgen.models.dit import DiT
from jaxgen.models.unet import DDPM, UNet
from jaxgen.objectives.base import Objective
from jaxgen.objectives.conditioning import labels
from jaxgen.objectives.diffusion.diffusion import diffusion
from jaxgen.objectives.latent import latent
from jaxgen.pretrained import autoencoder, published, schedulers
from jaxgen.processes import parameterisation, times
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.processes.vp import vp_cosine, vp_linear
from jaxgen.run import identity
from jaxgen.samplers import grids
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.sampler import Sampler

TESTS = pathlib.Path(__file__).parent
DENOISER, STYLES = TESTS / 'tiny_diffusion.py', TESTS / 'tiny_styles.py'


@pytest.fixture(scope='module', autouse=True)
def one_process():
  from jaxgen import distributed

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(distributed, 'start', lambda *_: None)
    yield


def untrained(path, folder):
  """The folder of a run that is saved before its first step."""
  config, module = configs.load_config(path)
  stage = as_stages(module.build(config))[0]
  about = configs.record(config, module)
  checkpoints = Checkpoints(folder / 'checkpoints', Policy())
  checkpoints.save(stage_setup.initial_state(stage, stage_setup.abstract_state(stage)), identity(stage, about))
  checkpoints.wait()
  checkpoints.close()
  (folder / 'config.json').write_text(json.dumps(about, default=repr))
  return folder


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """A run of a denoiser, and its export with a program."""
  folder = untrained(DENOISER, tmp_path_factory.mktemp('runs') / 'denoiser')
  (folder / 'metrics.jsonl').write_text('{"step": 0, "fid_256": 12.5}\n{"step": 9, "fid_256": 1.0}\n')
  (folder / 'protocols.json').write_text('{"fid_256": {"samples": 256, "reference_hash": "x"}}')
  out = folder.parent / 'made'
  options = ('--config', str(DENOISER), '--num', '8', '--stablehlo', '--platforms', 'cpu')
  assert main(['export', str(folder), '--out', str(out), *options]) == 0
  return folder, out


def test_the_program_makes_the_runs_samples_without_jaxgen(exported):
  folder, out = exported
  program = jax.export.deserialize(bytearray((out / 'sampler.stablehlo').read_bytes()))
  labels = np.arange(8, dtype=np.int32) % 2
  images = program.call(load_file(out / 'sampler.safetensors'), {'label': labels}, np.uint32(3))
  config, module = configs.load_run(folder, config=DENOISER)
  trained = sample.restore(module.build(config), folder)
  np.testing.assert_array_equal(images, sample.sample(trained, {'label': labels}, num=8, seed=3))


def test_the_card_says_what_it_is_and_how_good_at_that_step(exported):
  _, out = exported
  card = (out / 'README.md').read_text()
  assert card.startswith('---\nlibrary_name: jaxgen\n')
  assert '2 records of flat (train)' in card
  assert '| fid_256 | 12.5 | samples 256 |' in card
  assert "program.call(arrays, {'label': np.zeros([8], np.int32)}, np.uint32(0))" in card
  assert (out / 'samples.png').exists()
  network = json.loads((out / 'net' / 'config.json').read_text())
  assert network['network'] == 'Pull'
  assert load_file(out / 'net' / 'model.safetensors')['level'].tolist() == [np.float32(0.2)] * 2


def test_a_folder_of_other_files_is_refused(exported, tmp_path, capsys):
  (tmp_path / 'mine.txt').write_text('x')
  assert main(['export', str(exported[0]), '--out', str(tmp_path)]) == 2
  assert 'holds files that are no export of jaxgen' in capsys.readouterr().err


@pytest.fixture(scope='module')
def packed(exported):
  """The same run as a folder that opens as it does, under the name of a model that comes with jaxgen."""
  folder, _ = exported
  out = folder.parent / 'shipped' / 'tiny'
  options = ('--format', 'jaxgen', '--config', str(DENOISER), '--num', '2', '--out', str(out))
  assert main(['export', str(folder), *options, '--config.steps=9']) == 0
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(model_folder, 'SHIPPED', out.parent)
    yield out


def test_a_model_in_half_precision_draws_as_its_run(exported, packed, tmp_path, capsys):
  folder, _ = exported
  labels = {'label': np.arange(4, dtype=np.int32) % 2}
  run, model = (library.load_run(path, config=DENOISER) for path in (folder, 'jaxgen/tiny'))
  assert run.params['net']['level'] != pytest.approx(np.float32(np.float16(0.2)), abs=1e-8)
  assert model.params['net']['level'].tolist() == [np.float32(np.float16(0.2))] * 2
  assert model.step == run.step
  wanted = sample.sample(run.trained, labels, num=4, seed=3).astype(int)
  out = str(tmp_path / 'grid')
  options = ('--config', str(DENOISER), '--label', '0', '--label', '1', '--num', '4', '--seed', '3', '--steps', '4')
  assert main(['sample', '--weights', 'jaxgen/tiny', '--out', out, *options[:-2]]) == 0
  assert capsys.readouterr().out == f'4 images of jaxgen/tiny in {out}\n'
  got = np.stack([np.asarray(Image.open(f'{out}/{i:06d}.png')) for i in range(4)])
  assert np.abs(got - wanted).max() <= 1
  card = (packed / 'README.md').read_text()
  assert 'jaxgen sample --weights .' in card
  assert json.loads((packed / 'config.json').read_text())['config']['steps'] == 9  # as the command line changed it
  np.testing.assert_array_equal(init_from.read(packed)['net']['level'], np.float16([0.2, 0.2]))


def test_models_that_are_not_what_they_should_be_are_told_in_one_line(packed, tmp_path, capsys):
  def error(*argv):
    assert main([*argv, '--out', str(tmp_path / 'x.png')]) == 2
    return capsys.readouterr().err

  assert "no model 'jaxgen/none' comes with jaxgen; there are: jaxgen/tiny" in error(
    'sample', '--weights', 'jaxgen/none'
  )
  assert '--tile is for published generators' in error('sample', '--weights', 'jaxgen/tiny', '--tile', '8')
  assert 'has no field' in error('sample', '--weights', 'jaxgen/tiny', '--config', str(DENOISER), '--steps', '4')
  config, module = configs.load_run(packed, config=DENOISER)
  stage = as_stages(module.build(config))[0]
  with pytest.raises(ValueError, match='one set of weights, so no step 4'):
    sample.restore(stage, packed, step=4)
  abstract = stage_setup.abstract_state(stage)
  with pytest.raises(ValueError, match='other captions or another vocabulary'):
    model_folder.restore(packed, abstract, transform='other words')
  wider = abstract.replace(params={'net': {'level': jax.ShapeDtypeStruct((3,), np.float32)}})
  with pytest.raises(ValueError, match=r'1 arrays differ, such as net/level'):
    model_folder.restore(packed, wider, transform='')
  with pytest.raises(ValueError, match=r'net/level has numbers up to 7e\+04'):
    model_folder.write(tmp_path, {'net': {'level': np.float32([7e4])}}, step=0, transform='')


SHIPPED = model_folder.SHIPPED


@pytest.mark.parametrize('name', model_folder.shipped())
def test_what_comes_with_jaxgen_draws(name, monkeypatch):
  monkeypatch.setattr(model_folder, 'SHIPPED', SHIPPED)  # `packed` stands in for it
  run = library.load_run(name)
  assert run.sample(1).std() > 1


def _trained(objective: Objective, frozen: Any = MappingProxyType({})) -> sample.Trained:
  config, module = configs.load_config(DENOISER)
  stage = as_stages(module.build(config))[0]._replace(objective=objective)
  batch = {'image': jnp.zeros((1, 8, 8, 3)), 'label': jnp.zeros(1, jnp.int32)}
  if 'autoencoder' in frozen:
    batch['image'] = jnp.zeros((1, 4, 4, 2))
  params = _noisy(objective.init(jax.random.key(0), {}, batch)['params'])
  state = sample.TrainState(np.int32(7), np.int32(0), params, {}, {}, {})
  return sample.Trained(stage, state, frozen)


def _noisy(params: Any) -> Any:
  """Parameters moved a little, so that none is zero."""
  noise = np.random.default_rng(1).standard_normal
  return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.02 * noise(leaf.shape, np.float32), params)


def _unet(process, predicts) -> Objective:
  return diffusion(
    UNet(width=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, style=DDPM),
    process,
    shape=(8, 8, 3),
    parameterisation=predicts,
    times=times.uniform(),
    sampler=Sampler(ddim, grids.uniform(2)),
  )


def test_an_unconditional_unet_is_a_pipeline_of_diffusers(tmp_path):
  trained = _trained(_unet(vp_linear(1000), parameterisation.eps))
  made = export.networks(trained, epath.Path(tmp_path))
  assert made == export.Exported({'unet': 'diffusers'}, 'DDPMPipeline')
  schedule = schedulers.load(tmp_path / 'scheduler')
  assert (schedule.beta_schedule, schedule.beta_start, schedule.beta_end) == ('linear', 1e-4, 0.02)
  back = published.load(tmp_path / 'unet')
  for ours, theirs in zip(jax.tree.leaves(trained.params['net']), jax.tree.leaves(back.params), strict=True):
    np.testing.assert_array_equal(ours, theirs)

  diffusers = pytest.importorskip('diffusers')
  torch = pytest.importorskip('torch')
  pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
  x, t = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32), np.array([3, 700])
  with torch.no_grad():
    wanted = pipeline.unet(torch.from_numpy(x), torch.from_numpy(t)).sample.numpy()
  net = trained.stage.objective.networks['net']
  got = net.apply({'params': trained.params['net']}, x.transpose(0, 2, 3, 1), t, {}, train=False)
  np.testing.assert_allclose(np.asarray(got).transpose(0, 3, 1, 2), wanted, atol=2e-5)
  process = trained.stage.objective.denoising.process({})
  alphas = np.asarray(process.alpha((jnp.arange(1000) + 1) / 1000)) ** 2
  np.testing.assert_allclose(pipeline.scheduler.alphas_cumprod.numpy(), alphas, atol=1e-6)
  assert pipeline(num_inference_steps=2, output_type='np').images.shape == (1, 8, 8, 3)


def _latent_dit(scale) -> sample.Trained:
  """A DiT of two classes on the latents of an autoencoder, both untrained."""
  net = AutoencoderKL(multipliers=(1, 1), latent=2, width=4, groups=2, blocks=0)
  params = _noisy(net.init(jax.random.key(2), jnp.zeros((1, 8, 8, 3)))['params'])
  objective = diffusion(
    DiT(patch=2, depth=1, width=8, heads=2, num_classes=2, frequency_shift=1),
    vp_linear(1000),
    shape=(4, 4, 2),
    parameterisation=parameterisation.eps,
    times=times.uniform(),
    sampler=Sampler(ddim, grids.uniform(2)),
    conditioner=labels(2),
    limit=None,
  )
  scaling = {'shift': np.zeros(2, np.float32), 'scale': np.float32(scale)}
  return _trained(latent(objective, net), {'autoencoder': {'params': params, **scaling}})


def test_a_dit_of_latents_is_a_pipeline_of_diffusers_with_its_decoder(tmp_path):
  trained = _latent_dit([0.5, 0.5])
  made = export.networks(trained, epath.Path(tmp_path))
  assert made == export.Exported({'transformer': 'diffusers', 'vae': 'diffusers'}, 'DiTPipeline')
  back = published.load(tmp_path)
  assert back.config['id2label'] == {'0': 'dark', '1': 'light'}
  assert back.autoencoder.scaling.scale.tolist() == [0.5, 0.5]
  same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  same(jax.device_get(trained.params['net']), jax.tree.map(np.asarray, back.denoiser.params))
  same(trained.frozen['autoencoder']['params'], jax.tree.map(np.asarray, back.autoencoder.params))

  diffusers = pytest.importorskip('diffusers')
  torch = pytest.importorskip('torch')
  pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path)
  pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing='trailing')
  generator = torch.Generator().manual_seed(0)
  noise = torch.randn((2, 2, 4, 4), generator=torch.Generator().manual_seed(0)).numpy().transpose(0, 2, 3, 1)
  wanted = pipeline([0, 1], 1.0, generator, num_inference_steps=2, output_type='np').images
  parts = sample.denoising(trained)
  denoise, process = parts.denoiser(trained.params, trained.frozen), parts.process(trained.params)
  cond, keys = {'label': jnp.array([0, 1])}, jax.random.split(jax.random.key(0), 2)
  x0 = ddim(denoise, process, noise, parts.sampler.times, cond=cond, keys=keys)
  got = (np.asarray(parts.decode(trained.frozen, x0)) + 1) / 2
  assert wanted.std() > 0.01
  np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_a_dit_whose_latents_have_a_scale_each_is_two_networks_and_no_pipeline(tmp_path):
  made = export.networks(_latent_dit([0.5, 0.7]), epath.Path(tmp_path))
  assert made == export.Exported({'net': 'diffusers', 'vae': 'diffusers'}, None)
  assert not (tmp_path / 'model_index.json').exists()
  assert autoencoder.load(tmp_path / 'vae').scaling.scale.tolist() == np.float32([0.5, 0.7]).tolist()


@pytest.mark.parametrize(
  ('process', 'predicts', 'wanted'),
  [
    (vp_linear(1000), parameterisation.v, ('linear', 'v_prediction')),
    (vp_cosine(1000), parameterisation.x0, ('squaredcos_cap_v2', 'sample')),
    (vp_cosine(), parameterisation.eps, None),  # of continuous times
    (rectified_flow(), parameterisation.velocity, None),
  ],
)
def test_a_schedule_is_known_by_its_numbers(process, predicts, wanted):
  parts = _unet(process, predicts).denoising
  found = export.schedule_of(parts, {})
  assert (found and (found.beta_schedule, found.prediction_type)) == wanted


@pytest.fixture(scope='module')
def styles(tmp_path_factory):
  return untrained(STYLES, tmp_path_factory.mktemp('styles') / 'run')


def _run(command, styles, out, *options):
  return main([command, '--run', str(styles), '--config', str(STYLES), '--out', str(out), *options])


def test_mixing_has_both_parents_at_its_ends(styles, tmp_path):
  for layer, parent in ((0, 'column'), (4, 'row')):
    out = tmp_path / f'{layer}.png'
    assert _run('mix', styles, out, '--coarse', '0,1', '--fine', '5-6', '--layer', str(layer)) == 0
    cells = _cells(out, 3)
    assert cells[1][1].tolist() == (cells[0][1] if parent == 'column' else cells[1][0]).tolist()
    assert (cells[1][1] != cells[2][2]).any()


def _cells(path, columns):
  """The images of a grid, by row and column."""
  picture = np.asarray(Image.open(path))
  side = (picture.shape[1] - 2) // columns
  return [
    [picture[2 + r * side : (r + 1) * side, 2 + c * side : (c + 1) * side] for c in range(columns)]
    for r in range((picture.shape[0] - 2) // side)
  ]


def test_at_psi_0_all_images_are_the_mean(styles, tmp_path):
  assert _run('truncate', styles, tmp_path / 'psi.png', '--seeds', '0-2', '--psi', '1,0', '--label', 'light') == 0
  picture = np.asarray(Image.open(tmp_path / 'psi.png'))[:, -(3 * 66 + 2) :]
  bottom = [picture[-66:-2, 2 + 66 * i : 66 * (i + 1)] for i in range(3)]
  assert (bottom[0] == bottom[1]).all()
  assert (picture[2:66, 2:66] != picture[2:66, 68:132]).any()


def test_a_walk_is_an_animation_of_its_frames(styles, tmp_path):
  assert _run('walk', styles, tmp_path / 'walk.webp', '--seeds', '0,1', '--frames', '3') == 0
  assert Image.open(tmp_path / 'walk.webp').n_frames == 6


def test_a_projection_leaves_its_latents(styles, tmp_path):
  Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / 'target.png')
  options = ('--distance', 'pixels', '--steps', '3', '--samples', '16', str(tmp_path / 'target.png'))
  assert _run('project', styles, tmp_path / 'found', *options) == 0
  found = np.load(tmp_path / 'found' / 'latents.npz')
  assert found['ws'].shape == (4, 8)
  assert found['distances'].shape == (3,)
  assert (tmp_path / 'found' / 'target_and_projection.png').exists()


def test_mistakes_are_one_line(exported, styles, tmp_path, capsys):
  folder, _ = exported
  options = ['--run', str(folder), '--config', str(DENOISER), '--out', str(tmp_path / 'x.png')]
  assert main(['truncate', *options]) == 2
  assert 'has no generator; project, mix, walk and truncate are for StyleGANs' in capsys.readouterr().err
  assert _run('mix', styles, tmp_path / 'x.png', '--layer', '9') == 2
  assert 'this generator has 4 layers' in capsys.readouterr().err
  assert _run('walk', styles, tmp_path / 'x.avi') == 2
  assert '--out is' in capsys.readouterr().err


def test_a_poor_inversion_says_so():
  originals = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
  pixels = np.round((originals + 1) * 127.5).astype(np.uint8)
  worse = np.clip(pixels.astype(int) + np.where(np.arange(8) % 2, 1, -1)[:, None], 0, 255).astype(np.uint8)
  assert edit.inversion_message(worse, originals).startswith('PSNR of what came back: 48.')
  poor = edit.inversion_message(np.stack([pixels[0], pixels[0]]), originals)
  assert 'the inversion is poor' in poor
  assert 'dB, ' in poor


def test_an_mp4_plays_in_full(tmp_path):
  ffmpeg = pytest.importorskip('imageio_ffmpeg')
  frames = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8)
  animation.write(epath.Path(tmp_path / 'x.mp4'), frames, frames_per_second=5)
  reader = ffmpeg.read_frames(str(tmp_path / 'x.mp4'))
  assert next(reader)['size'] == (256, 256)
  assert sum(1 for _ in reader) == 5
