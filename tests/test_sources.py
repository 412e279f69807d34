"""What `--config.dataset` names: every kind opens, is trained on, and is refused with one line where it is damaged."""

import io
import json
import pathlib
import tarfile
import threading
import urllib.error
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from PIL import Image

from jaxgen import data
from jaxgen.cli.config import load_config
from jaxgen.data import sources
from jaxgen.data.arrays import npz_dataset
from jaxgen.data.dataset import NoSuchSplit, check_record
from jaxgen.data.datasets import webdataset
from jaxgen.data.datasets.parquet import prepare_parquet
from jaxgen.data.job import Job, Numbered
from jaxgen.data.patterns import by_split, files
from jaxgen.data.recipe import load
from jaxgen.evaluators.samples import rows_of_classes
from jaxgen.objectives.conditioning import always, labels, unconditional
from jaxgen.run import about_data
from jaxgen.sample import class_numbers

COLOURS = [(200, 10, 10), (10, 10, 200), (10, 200, 10), (250, 250, 0)]
CAPTIONS = ['red', 'blue', 'green', 'yellow']
LABELS = [0, 1, 0, 2]


def png(color, shape=(20, 24)) -> bytes:
  buffer = io.BytesIO()
  Image.new('RGB', shape[::-1], color).save(buffer, 'PNG')
  return buffer.getvalue()


def folder(place: pathlib.Path) -> pathlib.Path:
  for i, (colour, caption) in enumerate(zip(COLOURS, CAPTIONS, strict=True)):
    (place / f'class{LABELS[i]}').mkdir(parents=True, exist_ok=True)
    (place / f'class{LABELS[i]}' / f'{i}.png').write_bytes(png(colour))
    (place / f'class{LABELS[i]}' / f'{i}.txt').write_text(caption)
  return place


def tar(path: pathlib.Path, members: list) -> pathlib.Path:
  with tarfile.open(path, 'w') as file:
    for name, content in members:
      info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
      info.size = len(content)
      file.addfile(info, io.BytesIO(content))
  return path


def shard(path: pathlib.Path, indices=range(4)) -> pathlib.Path:
  members = []
  for i in indices:
    members += [(f'a/{i:04}.png', png(COLOURS[i])), (f'a/{i:04}.cls', str(LABELS[i]).encode())]
    members.append((f'a/{i:04}.txt', CAPTIONS[i].encode()))
  return tar(path, members)


def parquet_file(path: pathlib.Path, **columns) -> pathlib.Path:
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  columns = {
    'image': [{'bytes': png(colour), 'path': None} for colour in COLOURS],
    'label': LABELS,
    'text': CAPTIONS,
  } | columns
  table = pyarrow.table({name: values for name, values in columns.items() if values is not None})
  parquet.write_table(table, path, row_group_size=2)
  return path


def npz(path: pathlib.Path) -> pathlib.Path:
  pixels = np.stack([np.full((20, 20, 3), colour, np.uint8) for colour in COLOURS])
  np.savez(path, pixels, np.array(LABELS), captions=np.array(CAPTIONS))
  return path


def zipped(path: pathlib.Path) -> pathlib.Path:
  place = folder(path.with_suffix(''))
  with zipfile.ZipFile(path, 'w') as file:
    for found in sorted(place.rglob('*')):
      file.write(found, f'pictures/{found.relative_to(place)}')
  return path


KINDS = {
  'folder': lambda place: folder(place / 'pictures'),
  'zip': lambda place: zipped(place / 'pictures.zip'),
  'parquet': lambda place: parquet_file(place / 'pictures.parquet'),
  'webdataset': lambda place: shard(place / 'pictures.tar'),
  'npz': lambda place: npz(place / 'pictures.npz'),
}


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_has_images_labels_and_captions(tmp_path, kind, monkeypatch, capsys):
  path = KINDS[kind](tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  opened = [
    data.source(f'{kind}:{written}', resolution=16, data_dir=str(tmp_path / 'data'))
    for written in (path, f'~/{path.name}', path.name)
  ]
  for dataset in opened:
    records = [dataset.read(i) for i in range(dataset.num_examples)]
    found = {record['caption']: record for record in records}
    assert sorted(found) == sorted(CAPTIONS)
    assert dataset.num_classes == 3
    for caption, label, colour in zip(CAPTIONS, LABELS, COLOURS, strict=True):
      assert found[caption]['label'] == label and found[caption]['label'].dtype == np.int32
      assert found[caption]['image'].shape == (16, 16, 3) and found[caption]['image'].dtype == np.float32
      np.testing.assert_allclose(found[caption]['image'][8, 8], data.to_float(np.array([colour], np.uint8))[0])
  assert len({dataset.fingerprint for dataset in opened}) == 1
  other = data.source(f'{kind}:{path}', resolution=8, data_dir=str(tmp_path / 'data'))
  assert other.read(0)['image'].shape == (8, 8, 3) and other.fingerprint != opened[0].fingerprint
  assert 'unconditionally' not in capsys.readouterr().err
  batch = data.Loader(opened[0], batch_size=8, seed=0).rows(0, range(8))
  assert batch['image'].shape == (8, 16, 16, 3) and set(batch) == {'image', 'label'}


def test_folders_of_files_follow_links_and_take_capitals(tmp_path):
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'shards').mkdir()
  shard(tmp_path / 'elsewhere' / 'A.TAR')
  shard(tmp_path / 'shards' / '.hidden.tar')
  (tmp_path / 'shards' / 'linked').symlink_to('../elsewhere')
  assert files(str(tmp_path / 'shards'), ending='.tar') == [tmp_path / 'shards' / 'linked' / 'A.TAR']


@pytest.mark.parametrize('kind', ['folder', 'parquet', 'npz', 'webdataset'])
def test_what_changed_is_not_taken_for_what_was(tmp_path, kind):
  options = {'resolution': 8, 'data_dir': str(tmp_path / 'data')}
  path = KINDS[kind](tmp_path)
  before = data.source(f'{kind}:{path}', **options).fingerprint
  if kind == 'folder':
    (path / 'class0' / 'more.png').write_bytes(png((1, 2, 3)))
  elif kind == 'parquet':
    parquet_file(path, text=['a', 'b', 'c', 'd'])
  elif kind == 'npz':
    np.savez(path, np.zeros((4, 20, 20, 3), np.uint8))
  else:
    shard(path, range(3))
  after = data.source(f'{kind}:{path}', **options)
  assert after.fingerprint != before
  assert after.num_examples == {'folder': 5, 'webdataset': 3}.get(kind, 4)


def test_without_classes_it_says_so_and_without_a_resolution_it_asks(tmp_path, capsys):
  (tmp_path / 'flat').mkdir()
  (tmp_path / 'flat' / 'a.png').write_bytes(png(COLOURS[0]))
  dataset = data.source(f'folder:{tmp_path}/flat', resolution=8, data_dir=str(tmp_path / 'data'))
  assert dataset.num_classes == 0 and set(dataset.read(0)) == {'image'}
  assert capsys.readouterr().err == f'{tmp_path}/flat: 1 image, no classes\n'
  with pytest.raises(ValueError, match=r'say which, --config\.resolution=64'):
    data.source(f'folder:{tmp_path}/flat', data_dir=str(tmp_path / 'data'))
  with pytest.raises(FileNotFoundError, match='there is no folder'):
    data.source(f'folder:{tmp_path}/none', resolution=8, data_dir=str(tmp_path / 'data'))


def test_a_run_without_conditions_says_so_in_its_summary():
  def said(conditioner, **fields):
    dataset = data.from_arrays(np.full((4, 8, 8, 3), -1, np.float32), **fields)
    return about_data(data.Loader(dataset, batch_size=2, seed=0), conditioner)

  assert said(unconditional) == 'arrays train, 4 records; no classes: training unconditionally'
  assert said(labels(2), labels=[0, 1, 0, 1]) == 'arrays train, 4 records'
  assert said(always('text'), captions=['a', 'b', 'c', 'd']) == 'arrays train, 4 records'
  with pytest.raises(ValueError, match="label 'cat' is asked for, and this run has no classes; leave the label out"):
    class_numbers(['cat'], ())


def test_a_missing_name_says_what_was_meant(tmp_path):
  with pytest.raises(FileNotFoundError, match="'emoji_32'; did you mean 'emoji32'"):
    data.source('emoji_32', data_dir=str(tmp_path))
  with pytest.raises(FileNotFoundError, match="'foldr:x'; did you mean 'folder'"):
    data.source('foldr:x', data_dir=str(tmp_path))
  with pytest.raises(FileNotFoundError, match='jaxgen data prepare cifar10'):
    data.source('cifar10', data_dir=str(tmp_path))


def test_tfds_names_open_what_is_prepared(tmp_path):
  data.emoji32(data_dir=tmp_path)
  dataset = data.source('tfds:emoji32', 'test', resolution=16, data_dir=str(tmp_path))
  assert dataset.read(0)['image'].shape == (16, 16, 3)
  assert dataset.num_classes == 7 and dataset.read(0)['caption']
  padded = data.source('emoji32', 'test', resolution=40, data_dir=str(tmp_path)).read(0)['image']
  assert padded.shape == (40, 40, 3) and (padded[:4] == -1).all()
  assert data.source('emoji32', 'test', resolution=16, data_dir=str(tmp_path)).read(0)['image'].shape == (16, 16, 3)


def test_a_dataset_of_tfds_without_a_network_is_one_line(tmp_path, monkeypatch, caplog):
  def no_network(*_, **__):
    raise urllib.error.URLError('Name or service not known')

  monkeypatch.setattr('urllib.request.urlopen', no_network)
  (tmp_path / 'cifar10' / '3.0.2').mkdir(parents=True)  # as an interrupted preparation leaves it
  with pytest.raises(ValueError, match=r'cifar10 is downloaded from https://.*, which cannot be reached'):
    data.source('tfds:cifar10', data_dir=str(tmp_path))
  assert not caplog.records


def test_splits_and_what_is_held_out(tmp_path, capsys):
  for split in ('train', 'test'):
    shard(tmp_path / f'pets-{split}-0.tar', range(3) if split == 'train' else range(3, 4))
  spec, options = f'webdataset:{tmp_path}', {'resolution': 8, 'data_dir': str(tmp_path / 'data')}
  train, test = data.train_and_test(spec, **options)
  assert (train.num_examples, test.num_examples) == (3, 1)
  np.savez(tmp_path / 'a.npz', np.arange(25, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8))
  train, test = data.train_and_test(f'npz:{tmp_path}/a.npz', **options)
  values = [
    [round((float(d.read(i)['image'][0, 0, 0]) + 1) * 127.5) for i in range(d.num_examples)] for d in (train, test)
  ]
  assert values[1] == [9, 19]
  assert sorted(values[0] + values[1]) == list(range(25))
  assert train.fingerprint != test.fingerprint
  capsys.readouterr()
  assert data.source(f'npz:{tmp_path}/a.npz', 'test', **options).split == 'train'
  assert "has no split 'test'; it has train; its train split is used instead" in capsys.readouterr().err
  with pytest.raises(NoSuchSplit):
    data.source(f'npz:{tmp_path}/a.npz', 'test[:10]', **options)


# --- patterns


def test_patterns_are_expanded(tmp_path):
  for name in ('a-000.tar', 'a-001.tar', 'b.tar', '.hidden.tar'):
    (tmp_path / name).write_bytes(b'')
  named = lambda pattern: [path.name for path in files(f'{tmp_path}/{pattern}', ending='.tar')]  # noqa: E731
  assert named('a-{000..001}.tar') == ['a-000.tar', 'a-001.tar']
  assert named('{b,a-001}.tar') == ['b.tar', 'a-001.tar']
  assert named('a-*.tar') == ['a-000.tar', 'a-001.tar']
  assert named('') == ['a-000.tar', 'a-001.tar', 'b.tar']
  with pytest.raises(FileNotFoundError, match=r'there is no file .*a-002\.tar'):
    named('a-{000..002}.tar')
  for address in ('https://host/a.tar', 'pipe:curl host', 's3://b/a.tar'):
    with pytest.raises(ValueError, match='is no file of this machine'):
      files(address, ending='.tar')
  paths = [pathlib.Path(f'data/{name}.parquet') for name in ('train-0', 'validation-0', 'test-0')]
  assert list(by_split(paths)) == ['train', 'validation', 'test']
  assert list(by_split([*paths, pathlib.Path('more.parquet')])) == ['train']


# --- WebDataset


def link(name: str, target: str, kind=tarfile.SYMTYPE) -> tarfile.TarInfo:
  info = tarfile.TarInfo(name)
  info.type, info.linkname = kind, target
  return info


@pytest.mark.parametrize(
  ('members', 'message'),
  [
    ([(link('a.png', '/etc/passwd'), b'')], "'a.png' is a link or a device"),
    ([(link('a.png', 'b.png', tarfile.LNKTYPE), b'')], 'is a link or a device'),
    ([(link('a.png', '', tarfile.FIFOTYPE), b'')], 'is a link or a device'),
    ([('../a.png', b'x')], r"'\.\./a.png' points out of the shard"),
    ([('/etc/a.png', b'x')], 'points out of the shard'),
    ([('a.txt', b'no image')], 'holds no images'),
    ([('a.png', png(COLOURS[0])), ('a.cls', b'0'), ('b.png', png(COLOURS[0]))], '1 samples without a label'),
    ([('a.png', png(COLOURS[0])), ('a.cls', b'99999999999')], 'labels go from 99999999999'),
  ],
)
def test_a_hostile_shard_is_refused(tmp_path, members, message):
  tar(tmp_path / 'a.tar', members)
  with pytest.raises(ValueError, match=message):
    webdataset.webdataset(str(tmp_path / 'a.tar'), size=8, data_dir=tmp_path)


@pytest.mark.parametrize('kind', ['webdataset', 'parquet'])
def test_captions_and_labels_are_read_alike(tmp_path, kind):
  texts = [['one', 'two'], float('nan'), None, 'drei']
  if kind == 'parquet':
    texts[3] = ['drei']
    texts[1] = []
    path = parquet_file(tmp_path / 'a.parquet', Text=texts, Label=[0.0, 1.0, 0.0, 2.0], label=None, text=None)
  else:
    members = [('__MACOSX/._9.png', b''), ('.ipynb_checkpoints/8.png', png(COLOURS[0]))]
    for i, text in enumerate(texts):
      text = json.dumps({'caption': text, 'label': LABELS[i]}).encode('utf-16' if i == 3 else 'utf-8')
      members += [(f'{i}.png', png(COLOURS[i])), (f'{i}.json', text)]
    path = tar(tmp_path / 'a.tar', members)
  dataset = data.source(f'{kind}:{path}', resolution=8, data_dir=str(tmp_path / 'data'))
  records = [dataset.read(i) for i in range(dataset.num_examples)]
  assert sorted(record['caption'] for record in records) == ['', '', 'drei', 'one\ntwo']
  assert sorted(int(record['label']) for record in records) == sorted(LABELS) and dataset.class_names == ('0', '1', '2')


@pytest.mark.parametrize('labels', [[0, 1, 2, 10**12], [0, 1, 2, -1], [[0], [1], [1], [0]], ['', 'a', 'b', 'c']])
def test_labels_of_parquet_that_are_none_are_refused(tmp_path, labels):
  path = parquet_file(tmp_path / 'a.parquet', label=labels)
  with pytest.raises(ValueError, match=r'a\.parquet.*(labels go from|a label is an integer|has no label)'):
    prepare_parquet(str(path), size=8, data_dir=tmp_path / 'data')


@pytest.mark.parametrize('metadata', ['{bad', '{"info": null}', '[]', '{"info": {"features": {"label": 3}}}'])
def test_metadata_of_parquet_that_say_no_names_are_passed_over(tmp_path, metadata):
  from pyarrow import parquet

  table = parquet.read_table(parquet_file(tmp_path / 'a.parquet'))
  parquet.write_table(table.replace_schema_metadata({'huggingface': metadata}), tmp_path / 'a.parquet')
  path = prepare_parquet(str(tmp_path / 'a.parquet'), size=8, data_dir=tmp_path / 'data')
  assert load(path, 'train').class_names == ('0', '1', '2')


@pytest.mark.parametrize('last', [-1, 10**12])
def test_labels_of_an_npz_that_are_none_are_refused_and_a_column_of_them_is_taken(tmp_path, last):
  pixels = np.zeros((3, 8, 8, 3), np.uint8)
  np.savez(tmp_path / 'a.npz', pixels, np.array([[0], [2], [1]]))
  assert npz_dataset(tmp_path / 'a.npz').read(1)['label'] == 2
  np.savez(tmp_path / 'a.npz', pixels, np.array([0, 1, last]))
  with pytest.raises(ValueError, match=r'a\.npz: labels go from'):
    npz_dataset(tmp_path / 'a.npz')


def test_a_damaged_shard_is_one_line(tmp_path):
  whole = shard(tmp_path / 'a.tar').read_bytes()
  for cut in (len(whole) // 2, 600, 100):
    (tmp_path / 'a.tar').write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r'a\.tar is no whole \.tar file'):
      webdataset.webdataset(str(tmp_path / 'a.tar'), size=8, data_dir=tmp_path)
  with tarfile.open(tmp_path / 'b.tar', 'w:gz') as file:
    file.add(__file__, 'a.png')
  with pytest.raises(ValueError, match='it is compressed; unpack it'):
    webdataset.webdataset(str(tmp_path / 'b.tar'), size=8, data_dir=tmp_path)


def test_json_beside_an_image_has_its_label_and_caption(tmp_path):
  json_ = lambda **fields: json.dumps(fields).encode()  # noqa: E731
  tar(
    tmp_path / 'a.tar',
    [
      ('a.png', png(COLOURS[0])),
      ('a.json', json_(caption='one', label='dog')),
      ('b.json', json_(text='two', label='cat')),
      ('b.PNG', png(COLOURS[1])),
      ('c.jpeg.png', png(COLOURS[2])),
      ('c.json', json_(caption=None, label='cat')),
    ],
  )
  dataset = webdataset.webdataset(str(tmp_path / 'a.tar'), data_dir=tmp_path)
  assert dataset.class_names == ('cat', 'dog')
  records = [dataset.read(i) for i in range(3)]
  assert [(int(r['label']), r['caption']) for r in records] == [(1, 'one'), (0, 'two'), (0, '')]
  assert records[0]['image'].shape == (20, 24, 3)
  assert isinstance(dataset.source._rows, np.memmap)


# --- Parquet


def test_row_groups_of_parquet_stay_together_whichever_process_reads_them(tmp_path, monkeypatch):
  """Groups of two rows and shards of five, so that a shard begins in the middle of a group."""
  pytest.importorskip('pyarrow')
  rows = [f'{i} {j}' for i in range(3) for j in range(4)]
  for i in range(3):
    parquet_file(tmp_path / f'{i}.parquet', text=rows[4 * i : 4 * i + 4])
  monkeypatch.setattr(Numbered.__new__, '__defaults__', (5, ()))
  made = []
  for count in (1, 3):
    barrier = threading.Barrier(count)
    jobs = [Job(index, count, lambda phase, b=barrier: b.wait(60), lambda where: None) for index in range(count)]
    prepare = partial(prepare_parquet, str(tmp_path / '*.parquet'), size=8, data_dir=tmp_path / f'data{count}')
    with ThreadPoolExecutor() as pool:
      paths = list(pool.map(lambda job, prepare=prepare: prepare(job=job), jobs))
    made.append({file.name: file.read_bytes() for file in paths[0].iterdir()})
  assert made[0] == made[1]
  assert sum('array_record' in name for name in made[0]) == 3
  dataset = load(paths[0], 'train')
  captions = [dataset.read(i)['caption'] for i in range(dataset.num_examples)]
  assert sorted(captions) == rows != captions
  assert {tuple(captions[i : i + 2]) for i in range(0, 12, 2)} == {tuple(rows[i : i + 2]) for i in range(0, 12, 2)}


def test_parquet_has_the_names_of_its_labels_and_leaves_out_what_has_no_image(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  path = parquet_file(tmp_path / 'train-0.parquet')
  about = {'info': {'features': {'label': {'names': ['cat', 'dog', 'cow']}}}}
  table = parquet.read_table(path).replace_schema_metadata({'huggingface': json.dumps(about)})
  parquet.write_table(table, path)
  parquet_file(
    tmp_path / 'test-0.parquet', image=[{'bytes': None, 'path': 'a.png'}, *({'bytes': png(c)} for c in COLOURS[1:])]
  )
  spec, options = f'parquet:{tmp_path}', {'resolution': 8, 'data_dir': str(tmp_path / 'data')}
  train, test = data.train_and_test(spec, **options)
  assert train.class_names == test.class_names == ('cat', 'dog', 'cow')
  assert (train.num_examples, test.num_examples) == (4, 3)
  strings = parquet_file(tmp_path / 'a.parquet', label=['x', 'y', 'x', 'z'], text=None, image=[png(c) for c in COLOURS])
  dataset = data.source(f'parquet:{strings}', **options)
  assert dataset.class_names == ('x', 'y', 'z') and set(dataset.read(0)) == {'image', 'label'}
  strings.write_bytes(strings.read_bytes()[:300])
  with pytest.raises(ValueError, match=r'a\.parquet is no whole Parquet file'):
    data.source(f'parquet:{strings}', **options)
  parquet.write_table(pyarrow.table({'url': ['a']}), tmp_path / 'b.parquet')
  with pytest.raises(ValueError, match='has no column of image bytes; it has url'):
    data.source(f'parquet:{tmp_path}/b.parquet', **options)


# --- arrays


def test_arrays_become_a_dataset():
  images = np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 3))
  dataset = data.from_arrays(images, [0, 1, 2, 0, 1, 2], list('abcdef'))
  assert dataset.class_names == ('0', '1', '2')
  record = dataset.read(3)
  assert record['image'].dtype == np.float32 and record['label'] == 0 and record['caption'] == 'd'
  batch = data.Loader(dataset, batch_size=4, seed=0).rows(0, range(4))
  assert batch['image'].shape == (4, 8, 8, 3)
  assert data.from_arrays(images).num_classes == 0
  assert len({data.from_arrays(i, s).fingerprint for i in (images, -images) for s in (None, [0] * 6)}) == 4


UNIFORM = np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((np.zeros((6, 8, 8, 3), np.uint8),), r'images are uint8 \[6, 8, 8, 3\]; wanted float in \[-1, 1\]: data.to_float'),
    (((UNIFORM + 1) / 2,), r'none below 0; wanted \[-1, 1\], as 2 \* images - 1'),
    ((UNIFORM * 127.5 + 127.5,), r'wanted \[-1, 1\], such as images / 127.5 - 1'),
    ((UNIFORM * np.nan,), r'images lie in \[nan'),
    ((UNIFORM[0],), r'\[8, 8, 3\]; wanted \[n, height'),
    ((np.moveaxis(UNIFORM, -1, 1),), 'wanted channels last'),
    ((UNIFORM[:0],), 'wanted'),
    ((UNIFORM, [0, 1]), r'labels are int64 \[2\]; wanted integers \[6\]'),
    ((UNIFORM, [0.0] * 6), 'wanted integers'),
    ((UNIFORM, [0, 1, 2, -1, 0, 0]), 'labels go from -1'),
    ((UNIFORM, None, ['a']), 'wanted 6 captions'),
    ((UNIFORM, None, 'abcdef'), 'got one str'),
    ((UNIFORM, [0, 1, 2, 10**12, 0, 0]), 'at most 1,000,000 classes'),
  ],
)
def test_wrong_arrays_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    data.from_arrays(*arguments)


def test_wrong_records_are_refused_by_name():
  with pytest.raises(ValueError, match='labels go from 0 to 5; with 2 classes they go from 0 to 1'):
    data.from_arrays(UNIFORM, range(6), class_names=('a', 'b'))
  dataset = data.from_arrays(UNIFORM, [0] * 6)
  check_record(dataset, dataset.read(0))
  for change, message in (
    ({'image': np.zeros((8, 8, 3), np.uint8)}, 'images of uint8; wanted float32'),
    ({'label': 3}, 'has the label 3; with 1 classes'),
  ):
    with pytest.raises(ValueError, match=message):
      check_record(dataset, dataset.read(0) | change)
  with pytest.raises(ValueError, match='records without an image; they have label'):
    check_record(dataset, {'label': 0})


# --- configs


def test_a_config_trains_on_a_folder_without_classes(tmp_path, monkeypatch):
  """As `--config.dataset=folder:PATH --config.resolution=16` builds it; the other configs: `--slow`."""
  build('emoji_dit', tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', ['emoji_unet', 'emoji_stylegan2', 'emoji_vae', 'emoji_vdm', 'cifar10_edm', 'celeba_dcgan']
)
def test_configs_train_on_a_folder_without_classes(tmp_path, monkeypatch, name):
  build(name, tmp_path, monkeypatch)


def build(name, tmp_path, monkeypatch):
  from jaxgen.experiment import as_stages
  from jaxgen.train import abstract_state

  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'home'))
  (tmp_path / 'flat').mkdir()
  for i in range(20):
    (tmp_path / 'flat' / f'{i}.png').write_bytes(png(COLOURS[i % 4], (40, 50)))
  changes = {'dataset': f'folder:{tmp_path}/flat', 'resolution': 32, 'fid.num_samples': 0}
  changes |= {'perceptual': 0.0} if name == 'emoji_vae' else {}
  config, module = load_config(name, changes)
  (stage,) = as_stages(module.build(config))
  assert set(stage.data.spec) == {'image'} and stage.data.spec['image'].shape[1:] == (32, 32, 3)
  abstract_state(stage)


def test_a_grid_has_a_row_for_each_of_16_classes_or_is_square():
  assert rows_of_classes((), per_class=8) == {'cond': {}, 'num': 64, 'rows': None}
  few = rows_of_classes(('a', 'b'), per_class=3)
  assert (few['num'], few['rows'], few['cond']['label'].tolist()) == (6, ['a', 'b'], [0, 0, 0, 1, 1, 1])
  many = rows_of_classes(tuple(map(str, range(1000))), per_class=2)
  assert (many['num'], len(many['rows']), many['rows'][0], many['rows'][-1]) == (32, 16, '0', '999')


def test_small_datasets_stay_in_memory():
  assert sources.fits_in_memory(data.from_arrays(UNIFORM))
  big = data.from_arrays(UNIFORM)._replace(source=range(10**7))
  assert not sources.fits_in_memory(big)
