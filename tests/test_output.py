"""Old output is never taken for new, and ~ is one's home folder wherever it stands."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxgen.cli import main, output, previews, sample
from jaxgen.home import home


def images(num: int) -> np.ndarray:
  return np.random.default_rng(num).integers(0, 256, (num, 8, 8, 3), np.uint8)


def save(place: pathlib.Path, num: int) -> list[str]:
  sample._save(place, images(num), {}, names=(), words=())
  return sorted(path.name for path in place.glob('*.png'))


def test_samples_replace_the_samples_of_an_earlier_call(tmp_path):
  assert len(save(tmp_path / 's', 5)) == 5
  (tmp_path / 's' / 'notes.txt').write_text('kept')
  assert save(tmp_path / 's', 3) == ['000000.png', '000001.png', '000002.png']
  assert len((tmp_path / 's' / 'metadata.jsonl').read_text().splitlines()) == 3
  assert (tmp_path / 's' / 'notes.txt').exists()


@pytest.mark.parametrize('other', ['photo.jpg', '000009.png', 'deep/a.png'])
def test_a_folder_of_other_images_is_refused_before_anything_is_drawn(tmp_path, other):
  save(tmp_path / 's', 3)
  (tmp_path / 's' / other).parent.mkdir(exist_ok=True)
  shutil.copy(tmp_path / 's' / '000000.png', tmp_path / 's' / other)
  with pytest.raises(ValueError, match=r'holds images that are no samples of jaxgen, such as .* \(1 in all\)'):
    sample.main(['--run', str(tmp_path / 'none'), '--out', str(tmp_path / 's')])
  assert (tmp_path / 's' / other).exists() and len(list((tmp_path / 's').glob('00000?.png'))) >= 3


def test_a_metadata_file_of_somebody_else_gives_no_leave_to_delete(tmp_path):
  save(tmp_path / 's', 2)
  (tmp_path / 's' / '000000.png').rename(tmp_path / 's' / 'mine.png')
  lines = [json.dumps({'file_name': name}) for name in ('mine.png', '000001.png', '../../x.png')]
  (tmp_path / 's' / 'metadata.jsonl').write_text('\n'.join(lines))
  with pytest.raises(ValueError, match=r'such as mine\.png'):
    output.clear_samples(tmp_path / 's')
  (tmp_path / 's' / 'metadata.jsonl').write_text('damaged')
  with pytest.raises(ValueError, match=r'images that are no samples.*2 in all'):
    output.clear_samples(tmp_path / 's')


def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path):
  out = tmp_path / 'made'
  output.clear_export(out)
  (out / 'net').mkdir(parents=True)
  (out / 'README.md').write_text('---\nlibrary_name: jaxgen\n---\n')
  for name in ('sampler.stablehlo', 'net/config.json', 'net/model.safetensors'):
    (out / name).write_text('old')
  (out / 'net' / 'mine.txt').write_text('x')
  with pytest.raises(ValueError, match='no export of jaxgen, such as net'):
    output.clear_export(out)
  (out / 'net' / 'mine.txt').unlink()
  output.clear_export(out)
  assert os.listdir(out) == []
  (out / 'README.md').write_text('# mine')
  with pytest.raises(ValueError, match=r'such as README\.md'):
    output.check_export_folder(out)


def test_previews_of_an_earlier_call_are_deleted(tmp_path):
  for name in ('0000_t1.000.png', '0009_t0.100.png', 'mine.png'):
    (tmp_path / name).write_bytes(b'')
  previews.previews(tmp_path).show(np.zeros(4), np.zeros((4, 8, 8, 3), np.float32))
  assert sorted(os.listdir(tmp_path)) == ['0000_t0.000.png', 'mine.png']
  assert (tmp_path / '0000_t0.000.png').stat().st_size


@pytest.mark.parametrize('name', ['seen.gif', 'seen.png'])
def test_previews_are_an_animation_or_a_strip_of_all_images_in_time(tmp_path, name):
  watch = previews.previews(tmp_path / name)
  levels = np.array([[[0.0, 0.1], [0.2, 0.3], [0.4, 0.5]], [[0.6, 0.7], [0.8, 0.9], [0.9, 1.0]]])  # batch, call, image
  for level in levels.reshape(-1, 2):
    watch.show(np.zeros(2), np.broadcast_to(level[:, None, None, None], (2, 64, 64, 3)))
  watch.finish(3)
  picture = Image.open(tmp_path / name)
  wanted = np.round((np.array([[0.0, 0.1, 0.6], [0.2, 0.3, 0.8], [0.4, 0.5, 0.9]]) + 1) * 127.5)  # call, image
  if name == 'seen.png':
    assert np.array_equal(np.asarray(picture)[2::66, 2::66][:, :, 0], wanted.T)
    return
  assert picture.n_frames == 3
  for frame, values in enumerate(wanted):
    picture.seek(frame)
    grid = np.asarray(picture.convert('RGB'))[2::66, 2::66, 0]
    assert np.abs(grid.ravel()[:3] - values).max() <= 1
  assert picture.info['duration'] >= 1500  # the last one rests


def test_a_tilde_is_the_home_folder_behind_an_equals_sign_too(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('JAXGEN_HOME', '~/x')
  assert home() == tmp_path / 'x'
  given: list[list[str]] = []
  monkeypatch.setattr(main, '_run', lambda argv: given.append(argv) or 0)
  main.main(['train', '--workdir=~/run', '--images', '~/a', '--prompt=a ~ b', '--config.n=-1', '~'])
  assert given == [
    ['train', f'--workdir={tmp_path}/run', '--images', f'{tmp_path}/a', '--prompt=a ~ b', '--config.n=-1', '~']
  ]
