"""One lister and one decoder for all folders of images, and what the world's folders hold."""

import csv
import io
import json
import os
import pathlib
import resource
import threading
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageCms

from jaxgen import data
from jaxgen.cli import edit
from jaxgen.cli.main import main
from jaxgen.data import image as images
from jaxgen.data import listing, tfds_builder
from jaxgen.data.datasets.image_folder import image_folder, prepare_image_folder
from jaxgen.data.image import center_crop, decode_image, image_endings, image_shape
from jaxgen.data.npz import read_npz
from jaxgen.metrics import folder

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def encoded(image: Image.Image, form: str = 'PNG', **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


def two_halves(mode: str = 'RGB') -> Image.Image:
  """Red above blue, 48 x 32."""
  image = Image.new('RGB', (48, 32), RED)
  image.paste(BLUE, (0, 16, 48, 32))
  return image.convert(mode)


def write(path: pathlib.Path, color=RED, form: str | None = None) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (8, 8), color).save(path, form)


# --- the decoder


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_an_image_is_turned_as_its_exif_says(orientation, form):
  """By EXIF's own table: which sides of what is seen the first row and the first column of the file are."""
  rows, columns = [
    ('top', 'left'), ('top', 'right'), ('bottom', 'right'), ('bottom', 'left'),
    ('left', 'top'), ('right', 'top'), ('right', 'bottom'), ('left', 'bottom'),
  ][orientation - 1]  # fmt: skip
  stored = Image.new('RGB', (48, 32), 'white')
  stored.paste(RED, (0, 0, 48, 8))  # the first rows
  stored.paste(BLUE, (0, 8, 8, 32))  # the first columns
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {'quality': 95} if form in ('JPEG', 'AVIF') else {'lossless': True} if form == 'WEBP' else {}
  bytes_ = encoded(stored, form, exif=exif, **options)
  seen = decode_image(bytes_).astype(int)
  assert seen.shape == ((48, 32, 3) if orientation >= 5 else (32, 48, 3))
  assert image_shape(bytes_) == seen.shape[:2]
  sides = {'top': seen[:3, 12:-12], 'bottom': seen[-3:, 12:-12], 'left': seen[12:-12, :3], 'right': seen[12:-12, -3:]}
  assert abs(sides[rows] - RED).max() < 60
  assert abs(sides[columns] - BLUE).max() < 60


def test_damaged_exif_data_does_not_cost_the_image():
  assert decode_image(encoded(two_halves(), exif=b'Exif\0\0MM\0*\xff\xff\xff\xff')).shape == (32, 48, 3)


@pytest.mark.parametrize('form', ['PNG', 'TIFF', 'PPM'])
def test_gray_of_16_bits_is_scaled(form):
  gray = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(2, axis=0)
  got = decode_image(encoded(Image.fromarray(gray), form), channels=1)
  np.testing.assert_array_equal(got[0, :, 0], np.arange(256))
  np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(gray), form))[..., 1], got[..., 0])


@pytest.mark.parametrize(('low', 'high'), [(0, 1), (0, 255), (0, 65535), (-3, 5), (0, 1e6)])
def test_floats_are_scaled_by_the_range_they_lie_in(low, high):
  values = np.linspace(low, high, 256, dtype=np.float32)[None].repeat(2, axis=0)
  got = decode_image(encoded(Image.fromarray(values), 'TIFF'), channels=1)[0, :, 0]
  np.testing.assert_array_equal(got, np.arange(256))
  values[0, 0] = np.nan
  assert decode_image(encoded(Image.fromarray(values), 'TIFF'), channels=1).std() > 50


@pytest.mark.parametrize('value', [np.float32(70000), np.float32(-2), np.int32(-5), np.int32(70000)])
def test_gray_of_one_value_beyond_every_range_is_black(value):
  buffer = io.BytesIO()
  Image.fromarray(np.full((4, 4), value)).save(buffer, 'TIFF')
  assert not decode_image(buffer.getvalue()).any()


def test_integers_of_32_bits_are_scaled_too():
  values = (np.arange(256, dtype=np.int32) * 2**20)[None].repeat(2, axis=0)
  got = decode_image(encoded(Image.fromarray(values), 'TIFF'), channels=1)[0, :, 0]
  np.testing.assert_array_equal(got, np.arange(256))


def clear(mode: str) -> bytes:
  """The left half is transparent and black beneath, the right half is green."""
  image = Image.new('RGBA', (8, 4), (0, 0, 0, 0))
  image.paste((*GREEN, 255), (4, 0, 8, 4))
  if mode == 'LA':
    return encoded(image.convert('LA'))
  if mode in ('P', 'GIF'):
    palette = Image.new('P', (8, 4), 0)
    palette.putpalette([0, 0, 0, *GREEN])
    palette.paste(1, (4, 0, 8, 4))
    return encoded(palette, 'GIF' if mode == 'GIF' else 'PNG', transparency=0)
  if mode in ('L', 'RGB'):
    return encoded(image.convert(mode), transparency=0 if mode == 'L' else (0, 0, 0))
  if mode == 'I;16':
    gray = np.zeros((4, 8), np.uint16)
    gray[:, 4:] = 150 * 257
    return encoded(Image.fromarray(gray), transparency=0)
  return encoded(image, mode)


@pytest.mark.parametrize('mode', ['PNG', 'WEBP', 'TIFF', 'LA', 'P', 'GIF', 'L', 'RGB', 'I;16'])
def test_transparency_is_laid_on_white(mode):
  seen = decode_image(clear(mode)).astype(int)
  assert (seen[:, :3] == 255).all()
  wanted = (150, 150, 150) if mode in ('LA', 'L', 'I;16') else GREEN
  assert abs(seen[:, 5:] - wanted).max() <= 2
  assert decode_image(clear(mode), channels=1)[0, 0, 0] == 255


def test_the_bands_of_a_tall_image_meet(monkeypatch):
  pixels = np.random.default_rng(0).integers(0, 256, (50, 7, 4), np.uint8)
  whole = decode_image(encoded(Image.fromarray(pixels)))
  monkeypatch.setattr(images, '_BAND', 16)
  np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(pixels))), whole)


@pytest.mark.parametrize('form', ['JPEG', 'TIFF'])
def test_cmyk_is_not_inverted(form):
  """Adobe writes CMYK into JPEG upside down, and says so in the file; nobody does in TIFF."""
  image = Image.new('CMYK', (16, 16), (0, 255, 255, 0))  # magenta and yellow ink are red
  image.paste((255, 255, 0, 0), (0, 8, 16, 16))  # cyan and magenta are blue
  bytes_ = encoded(image, form)
  assert form == 'TIFF' or b'Adobe' in bytes_
  seen = decode_image(bytes_).astype(int)
  assert abs(seen[:6] - RED).max() < 40
  assert abs(seen[-6:] - BLUE).max() < 40


def test_palettes_bits_and_other_colours_are_read():
  np.testing.assert_array_equal(decode_image(encoded(two_halves('P')))[0, 0], RED)
  assert set(np.unique(decode_image(encoded(two_halves('1'))))) <= {0, 255}
  lab = ImageCms.profileToProfile(
    two_halves(), ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB'
  )
  assert abs(decode_image(encoded(lab, 'TIFF'))[0, 0].astype(int) - RED).max() < 12
  ycc = decode_image(encoded(two_halves('YCbCr'), 'JPEG', quality=95))
  assert abs(ycc[2, 2].astype(int) - RED).max() < 12


@pytest.mark.parametrize('form', ['GIF', 'PNG', 'WEBP', 'TIFF', 'AVIF'])
def test_an_animation_is_its_first_frame(form):
  frames = [Image.new('RGB', (8, 8), color) for color in (RED, BLUE)]
  seen = decode_image(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
  assert abs(seen.astype(int) - RED).max() < 12


def test_what_a_file_is_called_starts_no_interpreter(tmp_path):
  """EPS would start Ghostscript; WMF asks the system; a stub of HDF5 has no pixels."""
  write(tmp_path / 'a.png')
  (tmp_path / 'b.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n')
  (tmp_path / 'c.png').write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(100))
  (tmp_path / 'd.png').write_bytes(b'\xd7\xcd\xc6\x9a\0\0' + bytes(100))
  for name in 'bcd':
    with pytest.raises(ValueError, match='of no known raster format'):
      decode_image((tmp_path / f'{name}.png').read_bytes())
  assert not {'.eps', '.ps', '.wmf', '.emf', '.pdf', '.h5', '.mpg'} & image_endings()
  assert {'.gif', '.bmp', '.tif', '.tiff', '.jfif', '.avif', '.webp', '.jp2', '.mpo', '.apng'} <= image_endings()


def test_a_bomb_is_one_error(monkeypatch):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    for width, height in ((9000, 9000), (60000, 60000), (2**31 - 1, 2**31 - 1)):
      with pytest.raises(ValueError, match=r'^not a readable image: .*pixels'):
        decode_image(_png_of_size(width, height))
  with pytest.raises(ValueError, match='bytes; an image file may have'):
    decode_image(bytes(images.MAX_BYTES + 1))
  monkeypatch.setattr(images, 'MAX_PIXELS', 500)
  photo = encoded(two_halves().resize((192, 128)), 'JPEG', quality=95)
  assert decode_image(photo, size=8).shape == (8, 8, 3)  # read at an eighth of its size
  with pytest.raises(ValueError, match='192x128 pixels; an image may have 500'):
    decode_image(photo)


def _png_of_size(width: int, height: int) -> bytes:
  """A PNG whose head says so; the rest is a pixel."""
  import struct
  import zlib

  png = encoded(Image.new('RGB', (1, 1)))
  head = b'IHDR' + struct.pack('>II', width, height) + png[24:29]
  return png[:12] + head + struct.pack('>I', zlib.crc32(head)) + png[33:]


@pytest.mark.parametrize('shape', [(4000, 1), (1, 4000), (30000, 1), (8, 3000)])
def test_a_strip_takes_no_memory(shape):
  pixels = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), np.uint8)
  bytes_ = encoded(Image.fromarray(pixels))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  got = decode_image(bytes_, size=256)
  assert got.shape == (256, 256, 3)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; it was 1 GB, and 5.9


def test_a_strip_is_cropped_as_any_image_is():
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 1000, 3), np.uint8))
  wanted = image.resize((round(1000 * 32 / 31), 32), Image.Resampling.BICUBIC)
  left = (wanted.width - 32) // 2
  wanted = np.asarray(wanted.crop((left, 0, left + 32, 32))).astype(int)
  assert abs(np.asarray(center_crop(image, 32)) - wanted).max() <= 1


def test_an_image_is_cropped_to_any_shape():
  pixels = np.arange(40)[:, None] * np.ones((1, 60), int)
  image = Image.fromarray((pixels * 6).astype(np.uint8))
  assert center_crop(image, (20, 30)).size == (30, 20)
  np.testing.assert_array_equal(np.asarray(center_crop(image, (20, 30)))[5:15, 3], (np.arange(5, 15) * 2 + 0.5) * 6)
  assert center_crop(image, (32, 16)).size == (16, 32)


# --- the lister


def names(source) -> list[str]:
  return [found.name for found in listing.list_images(source).images]


def test_every_raster_format_is_taken_and_the_rest_is_counted(tmp_path):
  for name, form in {
    'a.bmp': 'BMP', 'b.gif': 'GIF', 'c.tif': 'TIFF', 'd.png': 'PNG', 'e.jfif': 'JPEG', 'f.JPEG': 'JPEG',
    'g.avif': 'AVIF', 'h.WebP': 'WEBP', 'i.ppm': 'PPM', 'j.TGA': 'TGA', 'k.jp2': 'JPEG2000',
  }.items():  # fmt: skip
    write(tmp_path / name, form=form)
  for name in ('x.heic', 'y.heic', 'z.mp4', 'README', 'notes.txt', 'd.txt'):
    (tmp_path / name).write_text('text')
  found = listing.list_images(tmp_path)
  assert [name[0] for name in names(tmp_path)] == list('abcdefghijk')
  assert found.summary() == (
    '11 images, no classes, captions; skipped 5 files (.heic: 2, no ending: 1, .mp4: 1, .txt: 1)'
  )
  assert list(folder.open_images(tmp_path).names) == names(tmp_path)
  assert folder.open_images(tmp_path).skipped == found.summary().partition('captions')[2]


def test_what_systems_leave_behind_is_no_class(tmp_path):
  for kind in ('cat', 'dog'):
    write(tmp_path / kind / '0.png')
    write(tmp_path / kind / '.ipynb_checkpoints' / '0-checkpoint.png')
    write(tmp_path / kind / '@eaDir' / '0.png' / 'thumb.jpg')
    (tmp_path / kind / '._0.png').write_bytes(b'\0\5\x16\7')
    (tmp_path / kind / 'Thumbs.db').write_bytes(b'\0')
  write(tmp_path / '.ipynb_checkpoints' / '1.png')
  (tmp_path / '__MACOSX').mkdir()
  (tmp_path / '__MACOSX' / '._0.png').write_bytes(b'\0')
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'broken').mkdir()
  (tmp_path / 'broken' / 'a.png').write_bytes(b'no image')
  found = listing.list_images(tmp_path)
  assert found.class_names == ('cat', 'dog')
  assert found.summary() == '2 images, 2 classes; skipped 3 files (.db: 2, .png: 1)'
  assert 'broken/a.png' in folder.open_images(tmp_path).names  # an evaluation leaves nothing out in silence


def test_links_are_followed_and_circles_are_not(tmp_path):
  write(tmp_path / 'elsewhere' / 'cats' / 'a.png')
  write(tmp_path / 'elsewhere' / 'b.png')
  here = tmp_path / 'here'
  write(here / 'dogs' / 'c.png')
  (here / 'cats').symlink_to(tmp_path / 'elsewhere' / 'cats')
  (here / 'dogs' / 'd.png').symlink_to(tmp_path / 'elsewhere' / 'b.png')
  (here / 'dogs' / 'loop').symlink_to(here)
  (here / 'dogs' / 'self').symlink_to('.')
  (here / 'dogs' / 'gone.png').symlink_to(tmp_path / 'nothing')
  (tmp_path / 'elsewhere' / 'cats' / 'back').symlink_to(here / 'dogs')
  os.mkfifo(here / 'dogs' / 'pipe.png')
  assert names(here)[:1] == ['cats/a.png']
  assert [name for name in names(here) if name.startswith('dogs')] == ['dogs/c.png', 'dogs/d.png']
  (tmp_path / 'link').symlink_to(here)
  assert names(tmp_path / 'link') == names(here)


def test_folders_called_as_splits_are_splits(tmp_path):
  for split in ('Train', 'val', 'testing'):
    for kind in ('cat', 'dog'):
      write(tmp_path / split / kind / f'{split}.png')
  found = listing.list_images(tmp_path)
  assert found.class_names == ('cat', 'dog')
  assert {split: [i.name for i in its] for split, its in found.splits.items()} == {
    'train': ['Train/cat/Train.png', 'Train/dog/Train.png'],
    'validation': ['val/cat/val.png', 'val/dog/val.png'],
    'test': ['testing/cat/testing.png', 'testing/dog/testing.png'],
  }
  assert found.summary() == '6 images, 2 train, 2 validation, 2 test, 2 classes'
  write(tmp_path / 'cow' / 'a.png')  # then they are classes
  assert listing.list_images(tmp_path).class_names == ('Train', 'cow', 'testing', 'val')


def zipped(folder_: pathlib.Path, path: pathlib.Path, top: str = '') -> pathlib.Path:
  with zipfile.ZipFile(path, 'w') as file:
    for found in sorted(folder_.rglob('*')):
      if found.is_file():
        file.write(found, f'{top}{found.relative_to(folder_)}')
  return path


def test_a_zip_is_as_its_folder(tmp_path):
  write(tmp_path / 'photos' / 'cat' / 'a.png')
  write(tmp_path / 'photos' / 'dog' / 'b.png', BLUE)
  (tmp_path / 'photos' / 'dog' / 'b.txt').write_text('a dog')
  for top in ('', 'photos/'):
    path = zipped(tmp_path / 'photos', tmp_path / 'photos.zip', top)
    with zipfile.ZipFile(path, 'a') as file:
      file.writestr('__MACOSX/photos/._a.png', b'\0')
      file.writestr('../../escape.png', b'\0')
    found, wanted = listing.list_images(path), listing.list_images(tmp_path / 'photos')
    assert (found.splits, found.skipped) == (wanted.splits, wanted.skipped)
    np.testing.assert_array_equal(listing.read_image(found.tree, 'dog/b.png')[0, 0], BLUE)
    assert list(folder.open_images(path).names) == ['cat/a.png', 'dog/b.png']
  with zipfile.ZipFile(tmp_path / 'windows.zip', 'w') as file:  # some programs there put '\\' between folders
    for name in ('cat/a.png', 'dog/b.png', 'dog/b.txt'):
      member = zipfile.ZipInfo(name)
      member.filename = f'photos\\{name}'.replace('/', '\\')
      file.writestr(member, (tmp_path / 'photos' / name).read_bytes())
  assert listing.list_images(tmp_path / 'windows.zip').splits == wanted.splits
  np.testing.assert_array_equal(
    listing.read_image(listing.open_tree(tmp_path / 'windows.zip'), 'dog/b.png')[0, 0], BLUE
  )
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=r'neither a folder nor a whole \.zip'):
    listing.list_images(path)
  path.write_bytes(whole[:60] + bytes(20) + whole[80:])
  with pytest.raises(ValueError, match=r'photos.zip'):
    [listing.read_image(listing.open_tree(path), name) for name in ('cat/a.png', 'dog/b.png')]


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_captions_are_read_as_editors_write_them(tmp_path, encoding, end):
  for name in 'abcdef':
    write(tmp_path / 'in' / f'{name}.png')
  rows = [{'file_name': 'a.png', 'text': 'ein Füchslein, "rot"', 'w': 3}, {'file_name': 'b.png', 'text': None}]
  lines = [json.dumps(row, ensure_ascii=False) for row in rows] + ['', '{"file_name": "c.png", "caption": "sea"}']
  (tmp_path / 'in' / 'd.txt').write_bytes(f' ein See {end}'.encode(encoding))
  text = io.StringIO(newline='')
  table = csv.writer(text, lineterminator=end)
  table.writerows([('file_name', 'caption'), ('in/e.png', 'two\nlines, yes'), ('in/f.png', '')])
  wanted = {'a': rows[0]['text'], 'b': None, 'c': 'sea', 'd': 'ein See', 'e': 'two\nlines, yes', 'f': None}
  (tmp_path / 'in' / 'metadata.jsonl').write_bytes(end.join(lines).encode(encoding))
  (tmp_path / 'metadata.csv').write_bytes(text.getvalue().encode(encoding))
  assert {i.name[3]: i.caption for i in listing.list_images(tmp_path).images} == wanted


@pytest.mark.parametrize(
  'line',
  ['[1]', '{"text": "a"}', '{"file_name": 3, "text": "a"}', '[' * 100_000],
)
def test_a_bad_line_is_named(tmp_path, line):
  write(tmp_path / 'a.png')
  (tmp_path / 'metadata.jsonl').write_text('\n' + line)
  with pytest.raises(ValueError, match=r'metadata.jsonl, line 2: wanted file_name and text'):
    listing.list_images(tmp_path)


def test_windows_and_nan_and_keys_beside_the_caption(tmp_path):
  write(tmp_path / 'cat' / 'a.png')
  write(tmp_path / 'dog' / 'b.png')
  (tmp_path / 'metadata.jsonl').write_text(
    '{"file_name": "cat\\\\a.png", "text": NaN, "label": 3}\n{"file_name": "./dog/b.png", "text": 7}\n'
  )
  assert [i.caption for i in listing.list_images(tmp_path).images] == [None, '7']


def test_several_captions_are_a_line_each_and_names_with_accents_are_found(tmp_path):
  write(tmp_path / 'cafe\N{COMBINING ACUTE ACCENT}.png')  # as macOS writes it
  entry = {'file_name': 'caf\N{LATIN SMALL LETTER E WITH ACUTE}.png', 'text': ['one', None, 'two']}
  (tmp_path / 'metadata.jsonl').write_text(json.dumps(entry), encoding='utf-8')
  assert listing.list_images(tmp_path).images[0].caption == 'one\ntwo'
  (tmp_path / 'metadata.jsonl').write_text(json.dumps(entry | {'text': {'en': 'one'}}), encoding='utf-8')
  with pytest.raises(ValueError, match=r'line 1: a caption is text or a list of texts, and not .*en'):
    listing.list_images(tmp_path)


def test_names_of_classes_stay_as_many_as_there_are(tmp_path):
  folders = [b'cat', b'cat ', b'two\nlines', b'caf\xe9', '猫'.encode()]
  for number, name in enumerate(folders):
    write(tmp_path / 'photos' / os.fsdecode(name) / f'{number}.png')
  prepare_image_folder(tmp_path / 'photos', size=8, data_dir=tmp_path / 'data')
  dataset = image_folder(tmp_path / 'photos', size=8, data_dir=tmp_path / 'data')
  assert sorted(dataset.class_names) == ['caf\\udce9', 'cat (1)', 'cat (2)', 'two lines', '猫']
  assert sorted(int(dataset.read(i)['label']) for i in range(5)) == [0, 1, 2, 3, 4]


def test_a_caption_of_lists_in_lists_is_refused(tmp_path):
  write(tmp_path / 'a.png')
  deep = '[' * 900 + ']' * 900
  (tmp_path / 'metadata.jsonl').write_text(f'{{"file_name": "a.png", "text": {deep}}}')
  with pytest.raises(ValueError, match=r'metadata\.jsonl, line 1: a caption is text or a list of texts, and not \[\['):
    listing.list_images(tmp_path)


def test_names_of_captions_may_be_in_capitals(tmp_path):
  for name in ('A.JPG', 'B.JPG'):
    write(tmp_path / name, form='JPEG')
  (tmp_path / 'A.TXT').write_text('a fox')
  (tmp_path / 'Metadata.CSV').write_text('file_name,text\nB.JPG,a dog\n')
  assert {i.name: i.caption for i in listing.list_images(tmp_path).images} == {'A.JPG': 'a fox', 'B.JPG': 'a dog'}
  assert not listing.list_images(tmp_path).skipped


# --- what uses them


def test_prepare_evaluate_and_edit_see_the_same(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 3
  turned = encoded(two_halves().resize((32, 32)), 'JPEG', exif=exif, quality=95)
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'a.jpg').write_bytes(turned)
  data.prepare_image_folder(tmp_path / 'in', size=32, data_dir=tmp_path / 'data')
  prepared = data.image_folder(tmp_path / 'in', size=32, data_dir=tmp_path / 'data').read(0)['image']
  (evaluated,) = folder.image_batches(folder.open_images(tmp_path / 'in'), batch_size=1)
  edited = edit.read_images(tmp_path / 'in', (32, 32, 3), 2)
  one = edit.read_images(tmp_path / 'in' / 'a.jpg', (32, 32, 3), 1)
  for seen in (prepared, evaluated[0], edited[1], one[0]):
    np.testing.assert_array_equal(seen, prepared)
    assert seen[2, 2, 2] > 0.9 and seen[2, 2, 0] < -0.9  # blue above
  (tmp_path / 'bad.png').write_bytes(b'no')
  with pytest.raises(ValueError, match=r'bad\.png cannot be decoded'):
    edit.read_images(tmp_path / 'bad.png', (32, 32, 3), 1)


def test_a_folder_that_changed_is_prepared_again(tmp_path, capsys):
  place, options = tmp_path / 'in', {'size': 8, 'data_dir': tmp_path / 'data'}
  write(place / 'a.png')
  made = lambda: data.prepare_image_folder(place, progress=True, **options)  # noqa: E731
  path = made()
  written = (path / 'dataset_info.json').stat().st_mtime_ns
  assert '1 image, no classes' in capsys.readouterr().err
  made()
  assert (path / 'dataset_info.json').stat().st_mtime_ns == written
  write(place / 'b.png')
  with pytest.raises(ValueError, match=r'in has changed since image_folder_in_.* was made from it'):
    data.image_folder(place, **options)
  made()
  assert 'preparing it again' in capsys.readouterr().err
  assert data.image_folder(place, **options).num_examples == 2
  before = data.image_folder(place, **options).fingerprint
  os.utime(place / 'b.png', ns=(0, 0))  # the same pixels, of another time: the records stay what they are
  made()
  assert data.image_folder(place, **options).fingerprint == before
  write(place / 'b.png', BLUE)
  os.utime(place / 'b.png', ns=(0, 0))
  (place / 'b.txt').write_text('blue')
  made()
  assert data.image_folder(place, **options).fingerprint != before


def test_what_a_killed_preparation_left_is_deleted_and_one_waits_for_another(tmp_path):
  write(tmp_path / 'in' / 'a.png')
  options = {'size': 8, 'data_dir': tmp_path / 'data'}
  path = data.prepare_image_folder(tmp_path / 'in', **options)
  left = path.parent.with_name(f'{path.parent.name}.partial')
  left.mkdir()
  (left / 'a').touch()
  write(tmp_path / 'in' / 'b.png')
  both = [threading.Thread(target=lambda: data.prepare_image_folder(tmp_path / 'in', **options)) for _ in range(2)]
  for thread in both:
    thread.start()
  for thread in both:
    thread.join()
  assert [found.name for found in path.parent.iterdir()] == [path.name]
  assert not left.exists()
  assert data.image_folder(tmp_path / 'in', **options).num_examples == 2


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
  """As the library of ArrayRecord words it, from a disk of 64 kB."""
  write(tmp_path / 'in' / 'a.png')

  def fill(features, record):
    raise RuntimeError('write() failed: No space left on device; writing x; at byte 65536')

  monkeypatch.setattr(tfds_builder, 'serialized', fill)
  monkeypatch.setattr('jaxgen.distributed.start', lambda *_: None)
  argv = ['data', 'prepare', 'image_folder', '--source', str(tmp_path / 'in'), '--size', '8']
  assert main([*argv, '--data-dir', str(tmp_path / 'data')]) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith('jaxgen: error: the disk is full, and the dataset is not there; free some space')
  assert not list((tmp_path / 'data').rglob('*array_record*'))


# --- .npz


def test_samples_as_npz_are_read_and_mapped(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 20, 3), np.uint8)
  np.savez(tmp_path / 'a.npz', pixels, np.arange(12) % 3)
  np.savez_compressed(tmp_path / 'b.npz', images=np.asfortranarray(pixels), captions=np.array(['x'] * 12))
  for name in 'ab':
    arrays = read_npz(tmp_path / f'{name}.npz')
    assert isinstance(arrays.images, np.memmap) == (name == 'a')
    np.testing.assert_array_equal(arrays.images, pixels)
    opened = folder.open_images(tmp_path / f'{name}.npz')
    np.testing.assert_array_equal(np.stack([opened.decode(i) for i in opened.names]), pixels)
  np.testing.assert_array_equal(read_npz(tmp_path / 'a.npz').labels, np.arange(12) % 3)
  np.savez(tmp_path / 'c.npz', pixels[..., :1])
  assert folder.open_images(tmp_path / 'c.npz').decode('3').shape == (20, 20, 3)


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'mu': np.zeros(3)}, 'holds no images'),
    ({'arr_0': np.zeros((4, 8, 8, 3), np.float32)}, r'the images are float32 \[4, 8, 8, 3\]; wanted uint8'),
    ({'arr_0': np.zeros((4, 3, 8, 8), np.uint8)}, r'wanted uint8 \[n, height, width, 3 or 1\]'),
    (
      {'arr_0': np.zeros((4, 8, 8, 3), np.uint8), 'arr_1': np.zeros(5, int)},
      'labels are .*wanted integers',
    ),
    ({'arr_0': np.array([{}], object)}, 'Python objects'),
  ],
)
def test_another_npz_is_refused(tmp_path, arrays, message):
  np.savez(tmp_path / 'a.npz', **arrays)
  with pytest.raises(ValueError, match=message):
    read_npz(tmp_path / 'a.npz')
  whole = (tmp_path / 'a.npz').read_bytes()
  (tmp_path / 'a.npz').write_bytes(whole[:-30])
  with pytest.raises(ValueError, match=r'cannot be read as an \.npz'):
    read_npz(tmp_path / 'a.npz')


def _jpegs():
  """JPEGs of many kinds by name."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 255, (31, 45, 3), np.uint8)
  made = {}
  for name, mode, options in (
    ('plain', 'RGB', {}),
    ('gray', 'L', {}),
    ('cmyk', 'CMYK', {}),
    ('progressive', 'RGB', {'progressive': True}),
    ('whole_colours', 'RGB', {'subsampling': 0}),
    ('turned', 'RGB', {'exif': b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'}),
  ):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, 'JPEG', **options)
    made[name] = file.getvalue()
  made['with_bytes_behind'] = made['plain'] + b'more'
  return made


def test_simplejpeg_gives_the_pixels_of_pillow(monkeypatch):
  pytest.importorskip('simplejpeg')
  fast = {(name, size): decode_image(data, size=size) for name, data in _jpegs().items() for size in (None, 16)}
  monkeypatch.setattr(images, '_simplejpeg', lambda: None)
  for (name, size), pixels in fast.items():
    np.testing.assert_array_equal(pixels, decode_image(_jpegs()[name], size=size), err_msg=name)


def test_a_cut_jpeg_is_refused_with_simplejpeg_too():
  with pytest.raises(ValueError, match='not a readable image'):
    decode_image(_jpegs()['plain'][:600])
