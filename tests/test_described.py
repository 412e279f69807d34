"""What a model holds of its data: the model opens where the data are not, and nothing is trained on it."""

import io
import json
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxgen import data, distributed, library
from jaxgen.cli.main import main
from jaxgen.data import described, sources

CONFIG = """
from jaxgen import data
from jaxgen.data.loader import Loader
from tests import tiny_config


def get_config():
  c = tiny_config.get_config()
  c.dataset = ''
  return c


def build(c):
  return tiny_config.build(c)._replace(data=Loader(data.source(c.dataset, resolution=4), batch_size=8, seed=0))
"""


def png(value: int) -> bytes:
  file = io.BytesIO()
  Image.new('RGB', (4, 4), (value, value, value)).save(file, 'PNG')
  return file.getvalue()


def made(kind: str, place) -> str:
  """A source of 20 pictures: of two classes, or (webdataset) with labels and captions."""
  place.mkdir()
  match kind:
    case 'folder' | 'zip':
      for i in range(20):
        file = place / 'mine' / 'ab'[i % 2] / f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(i))
        file.with_suffix('.txt').write_text(f'picture {i}')
      if kind == 'folder':
        return f'folder:{place}/mine'
      with zipfile.ZipFile(place / 'mine.zip', 'w') as archive:
        for file in sorted((place / 'mine').rglob('*.*')):
          archive.write(file, file.relative_to(place / 'mine'))
      return f'zip:{place}/mine.zip'
    case 'npz':
      images = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
      np.savez(place / 'mine.npz', arr_0=images, arr_1=np.arange(20) % 2)
      return f'npz:{place}/mine.npz'
    case 'parquet':
      parquet = pytest.importorskip('pyarrow.parquet')
      import pyarrow

      columns = {'image': list(map(png, range(20))), 'label': [i % 2 for i in range(20)]}
      parquet.write_table(pyarrow.table(columns), place / 'mine.parquet')
      return f'parquet:{place}/mine.parquet'
    case _:
      with tarfile.open(place / 'mine.tar', 'w') as archive:
        for i in range(20):
          for suffix, content in (
            ('png', png(i)),
            ('json', json.dumps({'label': i % 2, 'caption': f'c {i}'}).encode()),
          ):
            member = tarfile.TarInfo(f'{i:02d}.{suffix}')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
      return f'webdataset:{place}/mine.tar'


@pytest.mark.parametrize('kind', ['folder', 'zip', 'npz', 'parquet', 'webdataset'])
def test_a_dataset_that_is_gone_is_opened_from_the_notes(kind, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'home'))
  spec = made(kind, tmp_path / 'source')

  def opened():
    pair = sources.train_and_test(spec, resolution=4)
    return data.source(spec, resolution=4), *pair, sources.held_out_split(spec, resolution=4)

  def small(record):
    return {
      name: value if isinstance(value, str) else value.tolist() for name, value in record.items() if name != 'image'
    }

  with described.recorded() as notes:
    real = opened()
    records = [[dataset.read(i) for i in range(2)] for dataset in real[:3]]
  described.write(tmp_path, notes)
  assert b'NaN' not in (tmp_path / described.FILE).read_bytes()
  shutil.rmtree(tmp_path / 'source')
  shutil.rmtree(tmp_path / 'home', ignore_errors=True)
  sources._say.cache_clear()
  with pytest.raises(FileNotFoundError):  # a run that trains never sees the notes
    data.source(spec, resolution=4)
  with described.replayed(tmp_path):
    again = opened()
    assert again[3] is real[3] is None
    for before, after, read in zip(real[:3], again[:3], records, strict=True):
      assert (after.name, after.split, after.num_examples) == (before.name, before.split, before.num_examples)
      assert (after.class_names, after.fingerprint) == (before.class_names, before.fingerprint)
      for i in range(2):
        assert small(after.read(i)) == small(read[i])
        assert after.read(i)['image'].shape == (4, 4, 3) and np.isnan(after.read(i)['image']).all()
      last = min(7, after.num_examples - 1)
      assert small(after.read(last)) in (small(read[0]), small(read[1]))  # of those that were read
    with pytest.raises(FileNotFoundError):
      data.source(spec, resolution=8)
  assert 'is not here; what the model holds of it is used' in capsys.readouterr().err


@pytest.mark.parametrize('text', ['{"[\\"a\\", \\"train\\", 0]"', '{"[\\"npz:x\\", \\"train\\", 0]": {"name": 3}}'])
def test_damaged_notes_are_one_line(text, tmp_path):
  (tmp_path / described.FILE).write_text(text)
  with pytest.raises(ValueError, match=r'data\.json is damaged.*export the model again'), described.replayed(tmp_path):
    data.source('npz:x')


def test_a_model_samples_where_its_pictures_are_not(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'home'))
  monkeypatch.setattr(distributed, 'start', lambda *_: None)
  monkeypatch.chdir(tmp_path)
  spec = made('folder', tmp_path / 'source').replace(f'{tmp_path}/', '')
  (tmp_path / 'own.py').write_text(CONFIG)
  code = ['--config', 'own.py']
  library.train('own.py', 'run', {'dataset': spec})
  assert main(['export', 'run', '--out', 'model', '--format', 'jaxgen', *code]) == 0
  draw = ['sample', '--weights', 'model', '--num', '4', *code]
  assert main([*draw, '--out', 'here.png', '--label', 'all']) == 0
  shutil.rmtree('source')
  shutil.rmtree('home')
  assert main([*draw, '--out', 'there.png', '--label', 'all']) == 0
  assert main([*draw, '--out', 'data.png']) == 0  # labels as in the training data
  assert (tmp_path / 'here.png').read_bytes() == (tmp_path / 'there.png').read_bytes()
  assert main(['export', 'run', '--out', 'model', '--format', 'jaxgen', *code]) == 2  # of a run, with its data alone
  assert 'there is no folder source/mine' in capsys.readouterr().err
  with pytest.raises(FileNotFoundError, match='there is no folder source/mine'):
    library.train('own.py', 'more', {'dataset': spec})
