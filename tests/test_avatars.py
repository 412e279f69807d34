"""avatars: captions are true, held-out pairs are in no picture of train, and a killed preparation goes on."""

import collections
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from jaxgen import data
from jaxgen.data import licences
from jaxgen.data.datasets import avatars, avatars32, avatars_styles, avatars_subject
from jaxgen.data.datasets.avatars_captions import attributes_in, caption
from jaxgen.data.datasets.avatars_segments import PARTS, segments
from jaxgen.data.datasets.avatars_styles import STYLES, VOCABULARY
from jaxgen.data.job import Job

ALL = [(split, number) for split in avatars.SPLITS for number in range(36)]
SMALL = avatars.Options(styles=('micah', 'fun-emoji'), size=32, number=20)


def words(split: str, number: int, options: avatars.Options = avatars.DEFAULT) -> dict[str, str]:
  return dict(avatars.record_choice(options, split, number)[1].words)


def test_words_and_numbers_are_inverse():
  for split, number in ALL:
    found = words(split, number)
    assert avatars.decode_words(avatars.encode_words(found)) == found
    assert found.keys() <= set(VOCABULARY)


@pytest.mark.parametrize('style', STYLES.values(), ids=STYLES)
def test_every_variant_and_colour_is_in_the_definition(style):
  pytest.importorskip('dicebear_styles')
  found = avatars.definition(style.name)
  for part in style.parts:
    for variants in (variant for table in part.words.values() for variant in table.values()):
      for variant in variants:
        each = variant if isinstance(variant, tuple) else (variant,)
        for component, name in zip(part.components, each, strict=True):
          assert name is None or name in found['components'][component]['variants'], (component, name)
          if name is None or part.absent:
            assert 'probability' in found['components'][component], component
  for tint in style.tints.values():
    assert set(tint.colors) <= {*found['colors'], 'background'}
  options = {f'{component}Variant' for component in found['components']}
  options |= {f'{component}Probability' for component in found['components']}
  options |= {f'{color}Color' for color in found['colors']}
  assert style.fixed.keys() <= options


def test_default_styles_have_a_public_licence():
  pytest.importorskip('dicebear_styles')
  licences = {avatars.provenance(style.name)['licence'] for style in avatars_styles.DEFAULT}
  assert licences == {'CC0-1.0', 'CC-BY-4.0'}
  assert avatars.provenance('avataaars')['licence'].startswith('LicenseRef-')


def test_held_out_pairs_are_in_test_alone_and_seen_pairs_in_train():
  options = avatars.Options(number=600)
  pairs = collections.defaultdict(set)
  for split in avatars.SPLITS:
    for number in range(options.number if split == 'train' else 60):
      style, choice = avatars.record_choice(options, split, number)
      pairs[split].add((style.name, avatars.bound_pair(style, choice.words)))
  assert not pairs['train'] & pairs['test']
  assert pairs['seen'] <= pairs['train']
  assert {name for name, _ in pairs['test']} == set(options.styles)


def test_without_held_out_pairs_train_has_those_of_test():
  pairs = {}
  for hold_out in (True, False):
    options = avatars.Options(number=600, hold_out=hold_out)
    choices = [avatars.record_choice(options, 'train', number) for number in range(600)]
    pairs[hold_out] = [avatars.held_out(style, avatars.bound_pair(style, choice.words)) for style, choice in choices]
  assert not any(pairs[True])
  assert 0.05 < np.mean(pairs[False]) < 0.2
  assert avatars.Options(size=32, seed=1, hold_out=False).name == 'avatars_32px_seed1_all_pairs'


def test_a_prompt_asks_for_what_it_names():
  found = {'style': 'micah', 'hair': 'long', 'hair_color': 'red', 'glasses': 'none', 'mouth': 'smile'}
  numbers = avatars.encode_words(found)
  assert avatars.decode_words(attributes_in(numbers, 'a smiling woman with long red hair')) == {
    name: found[name] for name in ('hair', 'hair_color', 'mouth')
  }
  assert 'style' in avatars.decode_words(attributes_in(numbers, 'a smiling hand-drawn woman with long red hair'))


def test_hidden_and_clashing_attributes():
  for number in range(600):
    found = words('train', number)
    assert found.get('hat', 'none') == 'none' or 'hair' not in found
    assert not (found.get('glasses') == 'sunglasses' and 'eyes' in found)
    assert found.get('hair') != 'bald' or 'hair_color' not in found
    if 'background' in found:
      assert found['background'] not in (found.get('hair_color'), found.get('clothes_color'), found.get('color'))


def test_caption_names_only_what_is_there():
  """Every colour of a caption is the colour of something in the picture, and a full caption names each attribute."""
  colors = {word for name, found in VOCABULARY.items() if name.endswith('color') for word in found} - {'none'}
  for number in range(400):
    found = words('train', number)
    numbers = avatars.encode_words(found)
    text = caption(numbers, np.random.default_rng(number))
    counts = collections.Counter(text.replace(',', ' ').replace('-', ' ').split())
    have = collections.Counter(
      word for name, word in found.items() if name in ('skin', 'background') or 'color' in name
    )
    assert all(counts[color] <= have[color] for color in colors), (text, found)
    full = caption(numbers, np.random.default_rng(number), keep=1.0)
    assert all(found[name] in full for name in ('hair_color', 'skin', 'clothes_color', 'color') if name in found), full
    assert text == caption(numbers, np.random.default_rng(number))


@pytest.mark.parametrize(
  ('found', 'said'),
  [
    ({'style': 'micah', 'hair': 'long', 'hair_color': 'red', 'glasses': 'glasses'}, ('long red hair', 'glasses')),
    ({'style': 'voxel-art', 'hair': 'bald', 'skin': 'dark', 'glasses': 'none'}, ('bald',)),
    ({'style': 'voxel-art', 'hat': 'beanie', 'hat_color': 'orange'}, ('orange beanie',)),
    ({'style': 'dylan', 'hair': 'afro', 'hair_color': 'orange'}, ('an orange afro',)),
    ({'style': 'critters', 'eyes': 'three', 'top': 'horns', 'top_color': 'blue'}, ('three eyes', 'blue horns')),
    (
      {'style': 'sprouts', 'plant': 'tulip', 'top_color': 'red', 'color': 'blue', 'body': 'round'},
      ('red tulip', 'blue pot'),
    ),
    (
      {'style': 'planets', 'color': 'red', 'surface': 'striped', 'ring': 'thick', 'moons': 'two'},
      ('two moons', 'thick ring'),
    ),
    ({'style': 'voxel-bot', 'color': 'orange', 'chest': 'heart'}, ('heart on its chest', 'orange')),
    ({'style': 'fun-emoji', 'color': 'yellow', 'accessory': 'face mask'}, ('face mask', 'yellow emoji')),
  ],
)
def test_captions(found, said):
  for seed in range(20):
    text = caption(avatars.encode_words(found), np.random.default_rng(seed), keep=1.0)
    assert all(part in text for part in said), text
    assert ' a orange' not in text
    assert '  ' not in text


def test_a_man_has_a_beard_and_a_woman_has_none():
  for number in range(600):
    found = words('train', number)
    text = (
      caption(avatars.encode_words(found), np.random.default_rng(number), keep=1.0).split(' with ')[0].split(',')[0]
    )
    if text.endswith(' man'):
      assert found['facial_hair'] != 'none', (text, found)
    if text.endswith('woman'):
      assert found.get('facial_hair', 'none') == 'none'


def test_preparation(tmp_path, monkeypatch):
  """Pictures, attributes and provenance come back; parts that an earlier run left are not drawn again."""
  pytest.importorskip('dicebear')
  pytest.importorskip('resvg_py')
  monkeypatch.setattr(avatars.concurrent.futures, 'ProcessPoolExecutor', _Inline)
  path = data.prepare_avatars(SMALL, data_dir=tmp_path)
  dataset = data.avatars('train', options=SMALL, data_dir=tmp_path)
  assert dataset.num_examples == 20
  assert not list(tmp_path.glob('*.parts'))
  style, choice = avatars.record_choice(SMALL, 'train', 0)
  drawn = avatars.draw(style, choice, size=32, seed='0 train 0')
  records = [dataset.read(i) for i in range(20)]
  same = [r for r in records if np.array_equal(np.round((r['image'] + 1) * 127.5), drawn)]
  assert len(same) == 1
  assert avatars.decode_words(same[0]['attributes']) == choice.words
  assert {(r['style'], r['licence']) for r in records} == {('micah', 'CC-BY-4.0'), ('fun-emoji', 'CC-BY-4.0')}
  assert dataset.class_names == SMALL.styles

  monkeypatch.setattr(avatars, '_PART', 8)
  parts = avatars.recipe(SMALL, data_dir=tmp_path)
  first = parts.examples(None)['train']
  for _ in range(9):  # two of three parts are there, as after a kill
    next(first)
  first.close()
  calls = []
  draw = avatars.draw
  monkeypatch.setattr(avatars, 'draw', lambda *args, **options: calls.append(0) or draw(*args, **options))
  again = data.prepare_avatars(SMALL, data_dir=tmp_path, overwrite=True)
  assert again == path
  assert len(calls) == 4 + 2 + 2  # the last part of train, and the other splits
  other = data.avatars('train', options=SMALL, data_dir=tmp_path)
  assert other.fingerprint == dataset.fingerprint


def test_processes_of_a_job_draw_together(tmp_path, monkeypatch):
  """Two of them draw every part once, and the files are those that one makes."""
  drawn = []

  def make(options, split, number):
    drawn.append((split, number))
    _, choice = avatars.record_choice(options, split, number)
    return {'image': np.full((32, 32, 3), number, np.uint8), 'attributes': avatars.encode_words(choice.words)}

  monkeypatch.setattr(avatars, '_PART', 8)
  monkeypatch.setattr(avatars, 'versions', lambda: 'toy')
  monkeypatch.setattr(avatars, 'provenance', lambda name: dict.fromkeys(('style', 'licence', 'author', 'source'), name))
  monkeypatch.setattr(avatars.concurrent.futures, 'ProcessPoolExecutor', lambda *_: ThreadPoolExecutor(1))
  made = []
  for count in (1, 2):
    place, barrier = tmp_path / str(count), threading.Barrier(count)
    jobs = [Job(index, count, lambda phase, b=barrier: b.wait(60), lambda where: None) for index in range(count)]
    recipe = avatars.recipe(SMALL, data_dir=place)._replace(
      examples=lambda _, place=place: avatars.drawn(SMALL, make, place / f'{SMALL.name}.parts'), notes=dict
    )
    prepare = partial(avatars.prepare_drawn, recipe, SMALL, make, data_dir=place)
    with ThreadPoolExecutor() as pool:
      paths = list(pool.map(lambda job, prepare=prepare: prepare(job=job), jobs))
    made.append({file.name: file.read_bytes() for file in paths[0].iterdir()})
    assert len(drawn) == len(set(drawn)) == 24
    drawn.clear()
    assert not list(place.glob('*.parts'))
  assert made[0] == made[1]


def test_parts_of_a_dataset_in_a_bucket_are_in_its_mirror(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  parts = avatars.parts_folder('avatars', 'gs://mine/data')
  assert parts == tmp_path / '.cache' / 'jaxgen' / 'buckets' / 'gs' / 'mine' / 'data' / 'avatars.parts'


class _Inline(Executor):
  """An executor that runs each call when its result is asked for."""

  def __init__(self, *_):
    pass

  def submit(self, function, *args):
    return _Later(function, args)

  def shutdown(self, **_):
    pass


class _Later:
  def __init__(self, function, args):
    self._function, self._args = function, args

  def result(self):
    return self._function(*self._args)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (avatars.Options(styles=('nobody',)), "no style 'nobody'"),
    (avatars.Options(number=3), 'number 3'),
    (avatars.Options(size=8), 'size 8'),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    avatars.recipe(options)


def test_unprepared_says_the_command(tmp_path):
  with pytest.raises(
    FileNotFoundError, match='jaxgen data prepare avatars --size 32 --number 20 --styles micah,fun-emoji'
  ):
    data.avatars(options=SMALL, data_dir=tmp_path)


def test_the_packages_own_avatars():
  """avatars32 opens without preparation; its pictures, words, licences and splits are those of `avatars`."""
  splits = {split: data.avatars32(split) for split in avatars.SPLITS}
  assert [splits[split].num_examples for split in avatars.SPLITS] == [10_000, 1000, 1000]
  pairs = collections.defaultdict(set)
  for split, dataset in splits.items():
    for i in range(dataset.num_examples):
      found = avatars.decode_words(dataset.source[i]['attributes'])
      style = STYLES[found['style']]
      pairs[split].add((style.name, avatars.bound_pair(style, found)))
      assert split == 'train' or avatars.held_out(style, avatars.bound_pair(style, found)) == (split == 'test')
  assert not pairs['train'] & pairs['test']
  assert pairs['seen'] <= pairs['train']
  record = splits['train'].read(123)
  assert record['image'].shape == (32, 32, 3)
  assert record['image'].dtype == np.float32
  assert splits['train'].class_names[record['label']] == record['style']
  kept = licences.allow(splits['train'])
  assert kept.num_examples == 10_000
  notice = (avatars32.FILE.parent / 'NOTICE.avatars32').read_text(encoding='utf-8')
  assert all(line in notice for line in licences.provenance(splits['test'])['attributions'])
  with pytest.raises(ValueError, match="no split 'validation'"):
    data.avatars32('validation')


def test_a_map_of_parts_is_right_where_the_parts_are_known():
  pytest.importorskip('dicebear_styles')
  options = avatars.Options(size=32)
  style, choice = avatars.record_choice(options, 'train', 3)  # a person
  found = segments(style, choice, size=32, seed='0')
  names = [name for name in PARTS if name in style.tints]
  assert found[0, 0] == 1 + list(PARTS).index('background')
  assert {0, *(1 + list(PARTS).index(name) for name in names if name in choice.words)} >= set(found.flat)
  other = choice._replace(colors=choice.colors | dict.fromkeys(style.tints['background'].colors, '#12ab34'))
  pictures = [avatars.draw(style, each, size=32, seed='0').astype(int) for each in (choice, other)]
  moved = np.abs(pictures[0] - pictures[1]).sum(axis=-1) > 0
  assert (moved | (found != 1)).all(), 'all of the background takes its color'


def test_a_subject_is_one_person_in_several_moods():
  pytest.importorskip('dicebear_styles')
  options = avatars_subject.DEFAULT._replace(size=16)
  found = [avatars_subject.picture(options, 'train', number) for number in range(6)]
  words = [avatars.decode_words(record['attributes']) for record in found]
  fixed = [{name: word for name, word in each.items() if name not in avatars_subject.FREE} for each in words]
  assert all(each == fixed[0] for each in fixed) and 'hair_color' in fixed[0]
  assert len({each['background'] for each in words}) > 1 and len({each['mouth'] for each in words}) > 1
  style, choice = avatars_subject.person(options)
  assert avatars.held_out(style, avatars.bound_pair(style, choice.words))
