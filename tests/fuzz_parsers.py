"""Mutated files for every parser of what comes from outside: `python -m tests.fuzz_parsers PARSER COUNT [SEED]`.

A parser gives its result or raises a ValueError or an OSError of one line, within a second of processor time and within
1 GB of memory more than the process has. Anything else is printed with the input's number, and kept in --keep FOLDER.
"""

import argparse
import collections
import functools
import gzip
import io
import json
import logging
import pathlib
import pickle
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

FILES = pathlib.Path(__file__).parent / 'golden' / 'torch_files'
SECONDS, BYTES = 1.0, 1 << 30
RNG = np.random.default_rng(0)
TREE = {'a': {'w': RNG.normal(size=(3, 4)).astype(np.float32), 'b': np.arange(5)}, 'c': (1, None, 'x')}
_NUMBERS = [0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]


class Parser(NamedTuple):
  """`parse(path)` of a file with this ending, and whole files to start from."""

  ending: str
  parse: Callable[[pathlib.Path], object]
  seeds: Callable[[], list[bytes]]


def _torch(path: pathlib.Path) -> None:
  from jaxgen.pretrained import torch_file

  content = torch_file.read(path)
  if isinstance(content, dict) and 'training' not in content:  # not the TorchScript archive, which has no state dict
    for tensor in torch_file.state_dict(path).values():
      np.array(tensor)


def _npz(path: pathlib.Path) -> None:
  from jaxgen.pretrained import arrays

  arrays.read(path)


def _npz_images(path: pathlib.Path) -> None:
  from jaxgen.data import npz

  np.array(npz.read_npz(path).images)


def _safetensors(path: pathlib.Path) -> None:
  from jaxgen.pretrained import safetensors_file

  for tensor in safetensors_file.lazily(path).values():
    np.asarray(tensor)
  safetensors_file.read(path)


def _numpy_pickle(path: pathlib.Path) -> None:
  from jaxgen.pretrained import numpy_pickle

  numpy_pickle.read(path.read_bytes(), path.name)


def _idx(path: pathlib.Path) -> None:
  from jaxgen.data.datasets import idx

  idx.read_idx(path)


def _image(path: pathlib.Path) -> None:
  from jaxgen.data.image import decode_image

  decode_image(path.read_bytes(), size=8)


def _captions(path: pathlib.Path, name: str = 'metadata.jsonl') -> None:
  from jaxgen.data import listing

  folder = path.with_suffix('')
  folder.mkdir(exist_ok=True)
  for image in ('a.png', 'b.png'):
    (folder / image).touch()
  (folder / name).write_bytes(path.read_bytes())
  listing.list_images(folder)


def _zip_of_images(path: pathlib.Path) -> None:
  from jaxgen.data import listing

  listed = listing.list_images(path)
  for image in listed.images:
    listing.read_image(listed.tree, image.name, size=8)


def _tar(path: pathlib.Path) -> None:
  from jaxgen.data.datasets.webdataset import webdataset

  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    samples = webdataset(str(path), size=8, data_dir=folder)
    for i in range(samples.num_examples):
      samples.decode(samples.source[i])


def _written(write: Callable[[io.BytesIO], object]) -> bytes:
  buffer = io.BytesIO()
  write(buffer)
  return buffer.getvalue()


def _safetensors_seeds() -> list[bytes]:
  from safetensors.numpy import save

  return [save({'a': TREE['a']['w'], 'b': TREE['a']['b']}, metadata={'format': 'pt'}), save({'x': np.zeros((0, 3))})]


def _image_seeds() -> list[bytes]:
  from PIL import Image

  image = Image.fromarray(RNG.integers(0, 255, (20, 30, 3), np.uint8))
  forms = [('PNG', {}), ('JPEG', {}), ('JPEG', {'progressive': True}), ('WEBP', {}), ('WEBP', {'lossless': True})]
  return [
    _written(functools.partial(image.save, format=form, **options))
    for form, options in [*forms, ('GIF', {}), ('BMP', {}), ('TIFF', {}), ('TIFF', {'compression': 'tiff_lzw'})]
  ]


def _captions_seeds() -> list[bytes]:
  lines = [{'file_name': 'a.png', 'text': 'a caption'}, {'file_name': 'b.png', 'caption': 'ünïcode "quoted"'}]
  text = ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)
  return [text.encode(), text.encode('utf-8-sig'), text.encode('utf-16')]


def _captions_csv_seeds() -> list[bytes]:
  text = 'file_name,text,label\r\na.png,"a ""caption"", of\ntwo lines",3\r\nb.png,ünïcode,\r\n'
  return [text.encode(), text.encode('utf-8-sig'), text.encode('utf-16')]


def _zip_seeds() -> list[bytes]:
  def write(buffer: io.BytesIO, compression: int) -> None:
    with zipfile.ZipFile(buffer, 'w', compression) as file:
      for i, image in enumerate(_image_seeds()[:3]):
        file.writestr(f'{"ab"[i % 2]}/{i}.{("png", "jpg", "jpg")[i]}', image)
      file.writestr('a/0.txt', 'a caption')

  return [_written(functools.partial(write, compression=kind)) for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]


def _tar_seeds() -> list[bytes]:
  parts = {'png': _image_seeds()[0], 'cls': b'7', 'txt': b'a caption', 'json': b'{"caption": "one", "label": 3}'}

  def write(buffer: io.BytesIO, form: int) -> None:
    with tarfile.open(fileobj=buffer, mode='w', format=form) as file:
      for i in range(3):
        for ending in ('png', 'cls', 'txt') if i < 2 else ('png', 'json'):
          member = tarfile.TarInfo(
            f'folder/{"x" * 120 * (i == 1 and form != tarfile.USTAR_FORMAT)}{i}.{ending}'
          )  # a long name has a header of its own
          member.size = len(parts[ending])
          file.addfile(member, io.BytesIO(parts[ending]))

  forms = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
  return [_written(functools.partial(write, form=form)) for form in forms]


_IDX = struct.pack('>HBBIII', 0, 8, 3, 2, 4, 4) + RNG.bytes(32)
_SAMPLES = {'arr_0': RNG.integers(0, 255, (3, 4, 4, 3), np.uint8), 'arr_1': np.arange(3)}
PARSERS = {
  'torch': Parser('.pt', _torch, lambda: [path.read_bytes() for path in sorted(FILES.iterdir())]),
  'npz': Parser(
    '.npz',
    _npz,
    lambda: [_written(functools.partial(save, **TREE['a'])) for save in (np.savez, np.savez_compressed)],
  ),
  'npz_images': Parser(
    '.npz',
    _npz_images,
    lambda: [_written(functools.partial(save, **_SAMPLES)) for save in (np.savez, np.savez_compressed)],
  ),
  'safetensors': Parser('.safetensors', _safetensors, _safetensors_seeds),
  'numpy_pickle': Parser('.ckpt', _numpy_pickle, lambda: [pickle.dumps(TREE, protocol) for protocol in range(2, 6)]),
  'idx': Parser('', _idx, lambda: [_IDX]),
  'idx_gz': Parser('.gz', _idx, lambda: [gzip.compress(_IDX)]),
  'image': Parser('.png', _image, _image_seeds),
  'captions': Parser('.jsonl', _captions, _captions_seeds),
  'captions_csv': Parser('.csv', functools.partial(_captions, name='metadata.csv'), _captions_csv_seeds),
  'captions_txt': Parser('.txt', functools.partial(_captions, name='a.txt'), _captions_seeds),
  'zip_of_images': Parser('.zip', _zip_of_images, _zip_seeds),
  'tar': Parser('.tar', _tar, _tar_seeds),
}


def mutated(data: bytes, random_numbers: random.Random) -> bytes:
  """The data after one to six random changes of one to many bytes."""
  made = bytearray(data)
  for _ in range(random_numbers.choice((1, 1, 2, 3, 6))):
    at = random_numbers.randrange(len(made) + 1)
    size = random_numbers.choice((1, 2, 4, 8, 33))
    kind = random_numbers.randrange(7)
    if kind == 0 and made:
      made[at % len(made)] = random_numbers.randrange(256)
    elif kind == 1 and made:
      made[at % len(made)] ^= 1 << random_numbers.randrange(8)
    elif kind == 2:
      number = random_numbers.choice(_NUMBERS) % 2 ** (8 * (size := random_numbers.choice((1, 2, 4, 8))))
      made[at : at + size] = number.to_bytes(size, random_numbers.choice(('little', 'big')))
    elif kind == 3:
      del made[at : at + size]
    elif kind == 4:
      made[at:at] = random_numbers.randbytes(size)
    elif kind == 5:
      source = random_numbers.randrange(len(made) + 1)
      made[at:at] = made[source : source + 4 * size]
    elif random_numbers.random() < 0.2:
      del made[at:]
  return bytes(made)


def fuzz(name: str, count: int, seed: int, keep: pathlib.Path | None = None) -> dict[str, int]:
  """How many inputs were read, refused cleanly, and neither."""
  parser, random_numbers = PARSERS[name], random.Random(f'{name} {seed}')
  seeds = parser.seeds()
  tally: collections.Counter = collections.Counter(dict.fromkeys(('read', 'refused', 'failed'), 0))
  logging.disable(logging.WARNING)
  warnings.simplefilter('ignore')
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / f'input{parser.ending}'
    for data in seeds:  # whole files are read
      path.write_bytes(data)
      parser.parse(path)
    _limit_memory()
    for i in range(count):
      data = mutated(random_numbers.choice(seeds), random_numbers)
      path.write_bytes(data)
      outcome, problems = _outcome(parser, path)
      tally[outcome] += 1
      for problem in problems:
        print(f'{name} {seed} {i}: {problem}', file=sys.stderr)
        if keep is not None:
          (keep / f'{name}_{seed}_{i}{parser.ending}').write_bytes(data)
  return dict(tally)


def _outcome(parser: Parser, path: pathlib.Path) -> tuple[str, list[str]]:
  began, outcome, problems = time.process_time(), 'read', []
  try:
    parser.parse(path)
  except (ValueError, OSError) as error:
    outcome = 'refused'
    if '\n' in str(error):
      problems.append(f'a message of several lines: {error!s:.200}')
    if isinstance(error, UnicodeError):  # a ValueError that no parser means to raise
      problems.append(f'{error!r:.200}')
  except (Exception, RecursionError) as error:
    problems.append(f'{error!r:.200}')
  seconds = time.process_time() - began
  if seconds > SECONDS:
    problems.append(f'{seconds:.2f} s')
  return ('failed' if problems else outcome), problems


def _limit_memory() -> None:
  """What takes more fails with a MemoryError, which is a failure here."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  limit = pages * resource.getpagesize() + BYTES
  resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _arguments() -> Iterator[tuple[str, argparse.Namespace]]:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('parsers', help=f'one of {", ".join(PARSERS)}, several with commas between, or all')
  parser.add_argument('count', type=int)
  parser.add_argument('seed', type=int, nargs='?', default=0)
  parser.add_argument('--keep', type=pathlib.Path, help='folder for inputs that fail')
  options = parser.parse_args()
  for name in PARSERS if options.parsers == 'all' else options.parsers.split(','):
    yield name, options


def main() -> None:
  failed = 0
  for name, options in _arguments():
    tally = fuzz(name, options.count, options.seed, options.keep)
    failed += tally['failed']
    print(json.dumps({'parser': name, 'seed': options.seed} | tally), flush=True)
  sys.exit(failed > 0)


if __name__ == '__main__':
  main()
