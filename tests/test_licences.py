"""Only records of the requested licences are trained on, and what is owed to their authors is kept."""

import io
import json
import tarfile

import numpy as np
import pytest

from jaxgen import data
from jaxgen.data import licences
from jaxgen.data.datasets import avatars, icons

KINDS = ('CC0-1.0', 'GPL-3.0', 'CC-BY-4.0', '', 'CC-BY-NC-4.0', 'mit')


def decode(record):
  fields = {name: value.decode() if isinstance(value, bytes) else value for name, value in record.items()}
  return fields | {'image': np.full((2, 2, 3), record['number'], np.float32)}


def dataset(num=60, stored=True):
  records = [
    {'number': i, 'licence': KINDS[i % 6].encode(), 'author': f'author {i % 12}'.encode(), 'source': b'drawings'}
    for i in range(num)
  ]
  if stored:
    return data.Dataset('mixed', 'train', records, decode, 'fingerprint')
  return data.Dataset('mixed', 'train', range(num), lambda i: decode(records[i]), 'fingerprint')


@pytest.mark.parametrize('stored', [True, False])
def test_records_of_other_licences_are_out(stored):
  kept = licences.allow(dataset(stored=stored))
  assert [int(kept.read(i)['number']) for i in range(kept.num_examples)] == [i for i in range(60) if i % 6 in (0, 2, 5)]
  assert kept.fingerprint != dataset().fingerprint
  loader = data.Loader(kept, batch_size=10, seed=0)
  numbers = {int(n) for step in range(9) for n in loader.rows(step, range(10))['number']}
  assert numbers == {i for i in range(60) if i % 6 in (0, 2, 5)}


def test_a_record_without_a_licence_is_out_unless_it_is_asked_for():
  assert licences.allow(dataset(), ['MIT']).num_examples == 10
  assert licences.allow(dataset(), ['MIT'], unlicensed=True).num_examples == 20
  everything = licences.allow(dataset(), [k for k in KINDS if k], unlicensed=True)
  assert everything.fingerprint == dataset().fingerprint


def test_nothing_left_names_what_there_is():
  with pytest.raises(
    ValueError, match=r'no record of mixed \(train\) has one of the licences OFL-1.1; there are CC0-1.0 \(10\)'
  ):
    licences.allow(dataset(), ['OFL-1.1'])


def test_provenance(tmp_path):
  kept = licences.allow(dataset(), ['CC-BY-4.0', 'CC0-1.0'])
  licences.write_provenance(tmp_path, kept)
  found = json.loads((tmp_path / 'provenance.json').read_text())
  assert found['records'] == 20
  assert found['licences'] == {'CC0-1.0': 10, 'CC-BY-4.0': 10}
  assert found['sources'] == {'drawings': 20}
  assert found['attributions'] == ['drawings; author: author 2; CC-BY-4.0', 'drawings; author: author 8; CC-BY-4.0']
  other = dataset()
  other.source[8]['author'] = b'another'
  assert licences.provenance(licences.allow(other, ['CC-BY-4.0', 'CC0-1.0']))['hash'] != found['hash']
  assert licences.provenance(licences.allow(dataset(), ['CC-BY-4.0', 'CC0-1.0']))['hash'] == found['hash']


def test_a_dataset_of_one_origin(tmp_path):
  emoji = data.emoji32('test', data_dir=tmp_path)
  with pytest.raises(ValueError, match='there are no licence'):
    licences.allow(emoji)
  named = licences.licensed(emoji, licence='Apache-2.0', author='Google', source='Noto Emoji')
  assert licences.allow(named, ['Apache-2.0']).num_examples == emoji.num_examples
  assert licences.provenance(named)['attributions'] == ['Noto Emoji; author: Google; Apache-2.0']


def test_default_avatars_are_open():
  pytest.importorskip('dicebear_styles')
  assert {avatars.provenance(name)['licence'] for name in avatars.DEFAULT.styles} <= set(licences.OPEN)
  assert avatars.provenance('avataaars')['licence'] not in licences.OPEN


def write_icons(path):
  """An archive in the form of @iconify/json with two sets of 25 icons."""
  body = '<path fill="currentColor" d="M{} 2h4v4h-4z"/>'
  files = {
    'package/collections.json': {
      'free': {'name': 'Free', 'total': 25, 'author': {'name': 'Ann', 'url': 'http://a'}, 'license': {'spdx': 'MIT'}},
      'gnu': {'name': 'Gnu', 'total': 25, 'author': {'name': 'Bob'}, 'license': {'spdx': 'GPL-3.0'}},
    },
    'package/json/free.json': {
      'icons': {f'arrow-{i:02}': {'body': body.format(i % 12)} for i in range(25)},
      'width': 16,
    },
    'package/json/gnu.json': {
      'icons': {f'horn_{i:02}': {'body': body.format(i % 12)} for i in range(25)},
      'height': 24,
    },
  }
  with tarfile.open(path, 'w:gz') as tar:
    for name, content in files.items():
      raw = json.dumps(content).encode()
      member = tarfile.TarInfo(name)
      member.size = len(raw)
      tar.addfile(member, io.BytesIO(raw))
  return path


def test_icons_are_drawn_and_filtered(tmp_path, monkeypatch):
  pytest.importorskip('resvg_py')
  path = write_icons(tmp_path / icons.ARCHIVE.file)
  with pytest.raises(ValueError, match='has sha256'):
    icons.prepare_icons(icons.Options(size=16), source=path, data_dir=tmp_path / 'data')
  monkeypatch.setattr(icons, 'check', lambda *_: None)
  icons.prepare_icons(icons.Options(size=16), source=path, data_dir=tmp_path / 'data')
  found = data.icons('train', options=icons.Options(size=16), data_dir=tmp_path / 'data')
  assert found.num_examples == 47
  kept = licences.allow(found)
  assert {kept.read(i)['licence'] for i in range(kept.num_examples)} == {'MIT'}
  assert licences.provenance(kept)['attributions'] == ['Free (http://a); author: Ann; MIT']
  record = next(r for r in map(kept.read, range(kept.num_examples)) if r['caption'] == 'arrow 04')
  assert record['image'].shape == (16, 16, 3)
  np.testing.assert_array_equal(record['image'][2:6, 4:8], -1)
  assert np.mean(record['image']) == pytest.approx(1 - 2 * 16 / 256)
  names = [icon.name for icon in icons.read(path, 10)]
  assert names == [f'arrow-{i:02}' for i in range(0, 25, 5)] + [f'horn_{i:02}' for i in range(0, 25, 5)]
