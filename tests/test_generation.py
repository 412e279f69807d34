"""Images from images, and looking on: each way to draw, as functions and through the program."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen import distributed, sample, sharding
from jaxgen.cli import main as program
from jaxgen.evaluators.generate import make_generate
from jaxgen.generation import edit, inpaint, interpolate, invert, stop
from jaxgen.objectives.base import sampled
from jaxgen.samplers import grids, preview
from jaxgen.samplers.guidance import Term, guided
from tests import tiny_config, tiny_diffusion

CONFIG = 'tests/tiny_diffusion.py'
PARTS = tiny_diffusion.objective().denoising
PARAMS = {'net': {'level': jnp.array([-0.3, 0.4])}}
KEYS = jax.random.split(jax.random.key(0), 64)
LABELS = {'label': jnp.arange(64) % 2}
IMAGES = np.tanh(np.random.default_rng(0).standard_normal((64, 4, 4, 3), np.float32))


def _draw(way, n=64, label=LABELS['label'], **inputs):
  inputs = {name: value[:n] for name, value in inputs.items()}
  return np.asarray(jax.jit(way)(PARAMS, {}, {'label': label[:n]}, KEYS[:n], **inputs))


def _half():
  return np.tile(np.float32([1, 1, 0, 0])[:, None, None], (64, 1, 4, 1))


WAYS = {
  'sampled': (sampled(PARTS), {}),
  'edited': (edit.edited(PARTS, strength=0.5), {'image': IMAGES}),
  'inpainted': (inpaint.inpainted(PARTS, repeats=2), {'image': IMAGES, 'mask': _half()}),
  'interpolated': (
    interpolate.interpolated(PARTS, KEYS[3], KEYS[5]),
    {'weight': np.linspace(0, 1, 64, dtype=np.float32)},
  ),
}


@pytest.mark.parametrize(
  'name', ['sampled', *(pytest.param(name, marks=pytest.mark.slow) for name in WAYS if name != 'sampled')]
)
def test_an_image_is_the_same_in_batches_of_1_7_and_64(name):
  way, inputs = WAYS[name]
  all_64 = _draw(way, **inputs)
  for n in (1, 7):
    np.testing.assert_allclose(_draw(way, n, **inputs), all_64[:n], atol=1e-5)


def test_the_objective_samples_by_its_parts():
  sample = tiny_diffusion.objective().sample
  np.testing.assert_array_equal(_draw(sample), _draw(WAYS['sampled'][0]))


def test_strength_is_how_much_of_an_image_is_lost():
  kept = []
  for strength in (0.05, 0.5, 1.0):
    got = _draw(edit.edited(PARTS, strength=strength), image=IMAGES)
    kept.append(np.corrcoef(got.ravel(), IMAGES.ravel())[0, 1])
  assert kept[0] > 0.8 > kept[1] > 0.3 > abs(kept[2])


def test_what_the_mask_keeps_is_kept_and_the_rest_is_drawn():
  way, inputs = WAYS['inpainted']
  got = _draw(way, **inputs)
  np.testing.assert_allclose(got[:, :2], IMAGES[:, :2], atol=1e-5)
  assert abs(np.corrcoef(got[:, 2:].ravel(), IMAGES[:, 2:].ravel())[0, 1]) < 0.2


def test_interpolation_ends_at_the_two_keys_images():
  way, inputs = WAYS['interpolated']
  got = _draw(way, label=jnp.ones(64, jnp.int32), **inputs)
  ends = np.asarray(sampled(PARTS)(PARAMS, {}, {'label': jnp.ones(2, jnp.int32)}, KEYS[jnp.array([3, 5])]))
  np.testing.assert_allclose(got[[0, -1]], ends, atol=1e-4)
  steps = np.abs(np.diff(got, axis=0)).max(axis=(1, 2, 3))
  assert steps.max() < 0.2 < np.abs(ends[0] - ends[1]).max()


def test_an_inverted_image_comes_back():
  error = lambda repeats: np.abs(  # noqa: E731
    _draw(invert.reconstructed(PARTS, repeats=repeats), image=0.5 * IMAGES) - 0.5 * IMAGES
  ).max()
  assert error(30) < 1e-3 < error(0) < 0.5


def test_stopping_early_gives_what_the_network_saw_there():
  shown = []
  parts = stop.stopped(PARTS, 0.3)._replace(show=lambda t, x0: shown.append((t[0], x0)))
  got = _draw(sampled(parts))
  jax.effects_barrier()
  np.testing.assert_allclose([t for t, _ in shown], [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.3], atol=1e-6)
  np.testing.assert_allclose(shown[-1][1], got, atol=1e-6)
  for at in (0.0, 1.0):
    with pytest.raises(ValueError, match=re.escape(f'the stop is at {at}; it must be after 0')):
      grids.stopped(grids.uniform(4), at)


def test_previews_come_from_several_devices_and_guidance_is_seen_from_above_or_below():
  """Over guidance x0 is the guided one; under it, the pair of each image."""
  above, below = [], []
  guide = partial(guided, terms=[Term({'label': 0}, 3.0)])
  mesh = sharding.make_mesh()
  for seen, way in (
    (above, lambda denoise, *_: preview.watched(guide(denoise), lambda t, x0: above.append(x0))),
    (below, lambda denoise, *_: guide(preview.watched(denoise, lambda t, x0: below.append(x0)))),
  ):
    generate = make_generate(sampled(PARTS._replace(guide=(way,))), mesh=mesh, batch_size=16)
    ((images, _),) = generate(PARAMS, {}, {'label': np.arange(16) % 2}, seed=0, num=16)
    jax.block_until_ready(images)
    jax.effects_barrier()
    assert len(seen) == tiny_diffusion.STEPS
  np.testing.assert_allclose(above[-1].clip(-1, 1), images, atol=1e-5)
  pairs = below[-1].reshape(16, 2, 4, 4, 3)
  np.testing.assert_allclose(pairs[:, 1] + 3 * (pairs[:, 0] - pairs[:, 1]), above[-1], atol=1e-4)


def test_a_sampler_that_is_told_to_stop_calls_the_network_no_more():
  shown = []
  denoise = PARTS.denoiser(PARAMS, {})
  watched = preview.watched(denoise, lambda t, x0: shown.append(t[0]), go_on=lambda: len(shown) < 3)
  solve, times = PARTS.sampler
  cond = {'label': LABELS['label'][:2]}
  run = jax.jit(lambda x: solve(watched, tiny_diffusion.PROCESS, x, times, cond=cond, keys=KEYS[:2]))
  run(jnp.zeros((2, 4, 4, 3)))
  jax.effects_barrier()
  np.testing.assert_allclose(shown, [1, 0.875, 0.75])


def test_what_does_not_denoise_says_what_it_can():
  stage = tiny_config.build(tiny_config.get_config())
  with pytest.raises(ValueError, match=r'cannot be edited, inpainted, .* they are sampled from noise alone'):
    sample.denoising(sample.Trained(stage, None, {}))


# Through the program


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  monkeypatch = pytest.MonkeyPatch()
  monkeypatch.setattr(distributed, 'start', lambda *_: None)  # these tests have a backend already
  yield _run(tmp_path_factory.mktemp('runs') / 'tiny')
  monkeypatch.undo()


def _run(folder):
  assert program.main(['train', '--config', CONFIG, '--workdir', str(folder)]) == 0
  return folder


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """An image of 8x8, to be read at 4x4, and a mask of its lower half."""
  folder = tmp_path_factory.mktemp('files')
  image = np.random.default_rng(1).integers(60, 190, (4, 4, 3), np.uint8).repeat(2, 0).repeat(2, 1)
  Image.fromarray(image).save(folder / 'image.png')
  Image.fromarray(np.repeat(np.uint8([0, 255]), 4)[:, None].repeat(8, 1)).save(folder / 'mask.png')
  return folder


@functools.cache
def _picture(path):
  return np.asarray(Image.open(path)).astype(float)


def _sample(trained, out, *options):
  argv = ['sample', '--run', trained, '--out', out, '--num', 8, '--label', 'light', *options]
  assert program.main([str(word) for word in argv]) == 0
  return [_picture(path) for path in sorted(out.glob('*.png'))]


def test_a_file_is_edited_inpainted_and_found_again(trained, files, tmp_path):
  image = _picture(files / 'image.png')[::2, ::2]
  near = _sample(trained, tmp_path / 'near', '--edit', files / 'image.png', '--strength', 0.02)
  assert len(near) == 8
  assert min(np.corrcoef(each.ravel(), image.ravel())[0, 1] for each in near) > 0.95
  filled = _sample(trained, tmp_path / 'fill', '--inpaint', files / 'image.png', '--mask', files / 'mask.png')
  assert max(np.abs(each - image)[:2].max() for each in filled) <= 1
  assert np.std([each[2:] for each in filled], axis=0).mean() > 1
  found = _sample(trained, tmp_path / 'found', '--invert', files / 'image.png', '--repeats', 30)
  assert max(np.abs(each - image).max() for each in found) <= 1


@pytest.mark.slow
def test_interpolation_and_previews_are_of_the_seeds_own_images(trained, tmp_path):
  first = _sample(trained, tmp_path / 'first', '--previews', tmp_path / 'seen')
  last = _sample(trained, tmp_path / 'last', '--seed', 7)
  way = _sample(trained, tmp_path / 'way', '--interpolate', 7)
  assert np.abs(way[0] - first[0]).max() <= 1
  assert np.abs(way[-1] - last[0]).max() <= 1
  names = sorted(path.name for path in (tmp_path / 'seen').iterdir())
  assert names[0] == '0000_t1.000.png'
  assert names[-1] == '0007_t0.125.png'
  stopped = _sample(trained, tmp_path / 'stopped', '--until', 0.125)
  np.testing.assert_allclose(stopped, first, atol=1)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (('--inpaint', 'a.png'), '--inpaint and --mask go together'),
    (('--repeats', '3'), '--repeats is for --inpaint or --invert'),
    (('--edit', 'nowhere.png'), 'nowhere.png'),
    (('--until', '2'), 'the stop is at 2.0; it must be after 0 and before the first time, 1'),
  ],
)
def test_what_cannot_be_says_why(trained, tmp_path, capsys, options, message):
  assert program.main(['sample', '--run', str(trained), '--out', str(tmp_path / 'a'), *options]) == 2
  assert message in capsys.readouterr().err
