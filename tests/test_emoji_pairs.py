"""Edits of emoji, and emoji beside their line drawings, from archives like the real ones."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from jaxgen.data.dataset import at_resolution
from jaxgen.data.datasets import emoji64, emoji_pairs, openmoji
from jaxgen.data.sources import source

LIGHT, FAIR, MEDIUM = '1f3fb', '1f3fc', '1f3fd'


def instructions(*codes: str, vendors: tuple[str, ...] = ('google',)) -> dict[tuple[str, str], str]:
  found = emoji_pairs.pairs({vendor: list(codes) for vendor in vendors})
  return {(pair.before[1], pair.after[1]): pair.instruction for pair in found}


def test_an_instruction_names_the_one_thing_that_differs():
  cook, man, dark_man = '1f9d1-200d-1f373', '1f468-200d-1f373', '1f468-1f3ff-200d-1f373'
  found = instructions(cook, man, dark_man)
  assert found.keys() == {(cook, man), (man, cook), (man, dark_man), (dark_man, man)}  # two things are no pair
  assert found[cook, man].startswith('make it a man\n') and 'any gender' in found[man, cook]
  assert found[man, dark_man].startswith('make the skin dark\n') and 'yellow' in found[dark_man, man]
  runner, runs = '1f3c3-200d-2640', '1f3c3-200d-2640-200d-27a1'
  assert instructions(runner, runs)[runner, runs].startswith('make it face right')
  red, bald, plain = '1f469-200d-1f9b0', '1f469-200d-1f9b2', '1f469'
  assert instructions(red, bald, plain)[bald, red].startswith('make the hair red')
  assert 'bald' in instructions(red, bald)[red, bald] and 'plain' in instructions(red, plain)[red, plain]


def test_of_two_people_one_changes_the_tone():
  couple = '1f469-{}-200d-2764-200d-1f468-{}'
  one, other, both = couple.format(LIGHT, MEDIUM), couple.format(LIGHT, FAIR), couple.format(FAIR, MEDIUM)
  found = instructions(one, other, both)
  assert found[one, other] == 'make the skin of the person on the right medium-light'
  assert found[one, both] == 'make the skin of the person on the left medium-light'
  assert (other, both) not in found


def test_the_same_emoji_of_two_vendors_differ_in_style():
  found = emoji_pairs.pairs({'google': ['1f347'], 'twitter': ['1f347', '1f349']})
  assert [pair.after[0] for pair in found] == ['twitter', 'google']
  assert found[0].instruction.startswith('in the style of Twemoji')


def archive(path, wanted: emoji64.Archive, files: dict[str, bytes]) -> emoji64.Archive:
  with tarfile.open(path / wanted.file, 'w:gz') as tar:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  return wanted._replace(sha256=hashlib.sha256((path / wanted.file).read_bytes()).hexdigest())


def picture(level: int) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, 'PNG')
  return buffer.getvalue()


def test_pairs_are_prepared_from_the_archives_with_the_tones_that_pictures_show(tmp_path, monkeypatch):
  entry = {'name': 'THUMBS UP', 'unified': '1F44D', 'category': 'People & Body'}
  entry['skin_variations'] = {tone: {'unified': f'1F44D-{tone}'} for tone in emoji64.TONES}
  below = {'name': 'THUMBS DOWN', 'unified': '1F44E', 'category': 'People & Body'}  # of the other split
  codes = ['1f44d', *(f'1f44d-{tone.lower()}' for tone in emoji64.TONES)]
  shade = [240, 200, 160, 120, 80, 40]
  made = []
  for wanted in emoji64.ARCHIVES:
    levels = dict(zip(codes, shade, strict=True))
    if wanted.vendor == 'fluent':  # as in the real package
      levels[f'1f44d-{FAIR}'], levels[f'1f44d-{MEDIUM}'] = levels[f'1f44d-{MEDIUM}'], levels[f'1f44d-{FAIR}']
    if wanted.vendor == 'twitter':
      levels[f'1f44d-{LIGHT}'] = levels['1f44d']  # the same picture twice
    levels['1f44e'] = 10 * len(wanted.vendor)
    files = {f'{wanted.images}/{code}.png': picture(level) for code, level in levels.items()}
    made.append(archive(tmp_path, wanted, files | {'package/emoji.json': json.dumps([entry, below]).encode()}))
  monkeypatch.setattr(emoji64, 'ARCHIVES', tuple(made))
  monkeypatch.setattr(emoji_pairs, 'ARCHIVES', tuple(made))
  emoji_pairs.prepare_emoji_pairs(emoji_pairs.Options(8), source=tmp_path, data_dir=tmp_path / 'data')
  train, test = (source('emoji_pairs_8px', split, data_dir=str(tmp_path / 'data')) for split in ('train', 'test'))
  assert {test.read(i)['caption'][:6] for i in range(test.num_examples)} == {'in the'}  # the other one, in three styles
  tones = [record for i in range(train.num_examples) if 'skin tone to' in (record := train.read(i))['caption']]
  assert len(tones) == 3 * 30 - 2  # pairs of the same picture are left out
  level = dict(zip(('yellow', *emoji64.TONES.values()), shade, strict=True))
  for record in tones:
    tone = record['caption'].split(' to ')[1]
    wanted = level['yellow'] if record['vendor'] == 'twitter' and tone == 'light' else level[tone]
    np.testing.assert_allclose(record['image'], wanted / 127.5 - 1, atol=1e-6)
    assert record['before'].shape == (8, 8, 3) and not np.array_equal(record['before'], record['image'])


def test_line_drawings_are_controls_beside_their_pictures(tmp_path, monkeypatch):
  pytest.importorskip('resvg_py')
  disc = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><rect width="8" height="4" fill="{}"/></svg>'
  entry = {'hexcode': '1F7E5', 'annotation': 'red square', 'openmoji_author': 'A. Painter'}
  held_out = entry | {'hexcode': '1F7E9', 'annotation': 'green square'}
  files = {
    f'{openmoji.ARCHIVE.images}1F7E5.svg': disc.format('#f00').encode(),
    'package/black/svg/1F7E5.svg': disc.format('#000').encode(),
    f'{openmoji.ARCHIVE.images}1F7E9.svg': disc.format('#0f0').encode(),
    'package/black/svg/1F7E9.svg': disc.format('#000').encode(),
    'package/data/openmoji.json': json.dumps([entry, held_out, entry | {'hexcode': '0000'}]).encode(),
  }
  monkeypatch.setattr(openmoji, 'ARCHIVE', archive(tmp_path, openmoji.ARCHIVE, files))
  openmoji.prepare_openmoji(openmoji.Options(16), source=tmp_path / openmoji.ARCHIVE.file, data_dir=tmp_path / 'data')
  dataset = source('openmoji_16px', 'train', data_dir=str(tmp_path / 'data'))
  assert dataset.num_examples == 1  # what lacks a drawing is left out
  record = dataset.read(0)
  assert (record['caption'], record['licence'], record['author']) == ('red square', 'CC-BY-SA-4.0', 'A. Painter')
  np.testing.assert_allclose(record['image'][2, 2], [1, -1, -1])
  assert record['control'].min() == 0 and record['control'].max() == 1
  assert record['control'][2, 2, 0] == 1 and record['control'][12, 2, 0] == 0  # white where there is a line
  smaller, larger = at_resolution(dataset, 8).read(0), at_resolution(dataset, 32).read(0)
  assert smaller['control'].shape == (8, 8, 3) and smaller['control'].min() == 0 and smaller['control'][1, 1, 0] == 1
  assert larger['control'].shape == (32, 32, 3) and larger['control'][0, 0, 0] == 0 and larger['image'][0, 0, 0] == -1
