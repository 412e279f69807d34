"""Torch files: three that torch wrote, and what somebody with bad intentions would write.

golden/torch_files was written by torch 2.13: one content in its zip format and its legacy format, and a
convolution as TorchScript (without the archive's source code, which nobody reads).
"""

import copyreg
import io
import pickle
import random
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxgen.pretrained import torch_file

FILES = Path(__file__).parent / 'golden' / 'torch_files'
TENSOR = b'ctorch._utils\n_rebuild_tensor_v2\n'
STORAGE = b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ'


def as_zip(path, pickled, *, storage=bytes(16), compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', pickled)
    archive.writestr('archive/data/0', storage)
  return path


def tensor(offset=0, shape=b'K\x02K\x02\x86', strides=b'K\x02K\x01\x86'):
  """A pickle of one tensor in a storage of four floats."""
  place = b'J' + struct.pack('<i', offset)
  return b'\x80\x02' + TENSOR + b'(' + STORAGE + place + shape + strides + b'\x89)tR.'


@pytest.mark.parametrize('name', ['zip', 'legacy'])
def test_what_torch_saved_is_read(name):
  content = torch_file.read(FILES / f'{name}.pt')
  model, f = content['model'], np.arange(6, dtype=np.float32).reshape(2, 3)
  wanted = {
    '0.weight': np.arange(12, dtype=np.float32).reshape(3, 2, 1, 2),
    'transposed': f.T,
    'slice': np.arange(3, 7),
    'half': (f / 4).astype(np.float16),
    'bfloat16': (f / 4).astype(ml_dtypes.bfloat16),
    'bool': np.array([True, False]),
    'double': f * np.float64(1e-300),
    'empty': np.zeros((0, 3), np.float32),
    'scalar': np.array(2.5, np.float32),
    'expanded': np.array([[1, 2]] * 3, np.float32),
  }
  assert model.keys() == wanted.keys()
  for key, value in wanted.items():
    assert model[key].dtype == value.dtype
    np.testing.assert_array_equal(model[key], value)
  np.testing.assert_array_equal(content['parameter'], f)
  np.testing.assert_array_equal(content['list'][0], f[0])
  assert content['list'][1] == (1, None, True)
  assert (content['step'], content['rate'], content['name']) == (7, 1e-3, 'tiny')


def test_torchscript_is_read():
  content = torch_file.read(FILES / 'torchscript.pt')
  np.testing.assert_array_equal(content['conv']['weight'], np.arange(12, dtype=np.float32).reshape(3, 2, 1, 2))
  assert content['padding'] == [0, 3]


def test_arrays_are_read_only_views_of_the_file():
  weight = torch_file.read(FILES / 'zip.pt')['model']['0.weight']
  base = weight
  while not isinstance(base, np.memmap):
    base = base.base
  with pytest.raises(ValueError, match='read-only'):
    weight[0] = 1


def test_big_endian_storages_are_read(tmp_path):
  path = as_zip(tmp_path / 'big.pt', tensor(), storage=np.arange(4, dtype='>f4').tobytes())
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr('archive/byteorder', 'big')
  np.testing.assert_array_equal(torch_file.read(path), [[0, 1], [2, 3]])


def reduce(function, *args):
  """Pickled bytes of a call, as `pickle` makes them of an object with __reduce__."""

  class Call:
    def __reduce__(self):
      return function, args

  return [pickle.dumps({'model': Call()}, protocol=protocol) for protocol in range(6)]


def hostile(marker):
  """Pickles that a plain `pickle.load` would run, or choke on."""
  command = f'touch {marker}'
  yield from reduce(__import__('os').system, command)
  yield from reduce(eval, f'open({str(marker)!r}, "w")')
  yield from reduce(getattr, 'text', '__class__')
  short = b'\x8c' + bytes([len(command)]) + command.encode()
  for module, name in ((b'os', b'system'), (b'torch._utils', b'_rebuild_tensor_v2.__call__'), (b'torch', b'load')):
    pair = b''.join(b'\x8c' + bytes([len(part)]) + part for part in (module, name))
    yield b'\x80\x04' + pair + b'\x93' + short + b'\x85R.'
  yield b'\x80\x02cjaxgen.pretrained.torch_file\nread\n' + short + b'\x85R.'
  yield b'(S"%s"\nios\nsystem\n.' % command.encode()  # INST
  yield b'\x80\x02(cos\nsystem\n' + short + b'o.'  # OBJ
  yield b'\x80\x02\x82\x01.'  # an extension's number instead of a name
  yield b'\x80\x02' + TENSOR + b'}\x8c\x05_codeK\x01sb.'  # BUILD: sets an attribute of the function
  yield b'\x80\x02' + TENSOR + b'N}\x8c\x09_functionK\x01s\x86b.'
  yield b'\x80\x02]r\xff\xff\xff\x7f.'  # a memo of 2^31 entries
  yield b'\x80\x02]' + b'q\x00h\x00a.'  # a list that holds itself
  yield b'\x80\x02ctorch\nFloatStorage\n.'
  yield b'\x80\x02X\x01\x00\x00\x00xQ.'  # a persistent id that is no storage
  yield b'\x80\x02K\x01'  # no end
  yield b''


def test_hostile_pickles_are_refused_and_do_not_run(tmp_path):
  marker = tmp_path / 'ran'
  pickles = list(hostile(marker))
  assert len(pickles) > 25
  for i, pickled in enumerate(pickles):
    with pytest.raises(ValueError, match='cannot be read as a torch file'):
      torch_file.read(as_zip(tmp_path / f'{i}.pt', pickled))
    legacy = tmp_path / f'{i}.legacy.pt'
    legacy.write_bytes(pickle.dumps(torch_file._LEGACY_MAGIC, 2) + pickle.dumps(1001, 2) + pickled)
    with pytest.raises(ValueError, match='torch file'):
      torch_file.read(legacy)
  assert not marker.exists()


def test_a_registered_extension_is_refused(tmp_path):
  """pickle remembers what an extension's number meant, and does not ask for its name again."""
  copyreg.add_extension('builtins', 'print', 0x42)
  pickled = b'\x80\x02\x82\x42.'
  try:
    assert pickle.loads(pickled) is print
    with pytest.raises(ValueError, match='opcode EXT1'):
      torch_file.read(as_zip(tmp_path / 'extension.pt', pickled))
  finally:
    copyreg.remove_extension('builtins', 'print', 0x42)
    copyreg.clear_extension_cache()


def test_the_attacks_would_work_on_a_plain_unpickler(tmp_path):
  marker = tmp_path / 'ran'
  pickle.loads(reduce(__import__('os').system, f'touch {marker}')[2])
  assert marker.exists()


@pytest.mark.parametrize(
  'pickled',
  [
    tensor(offset=1),
    tensor(offset=-1),
    tensor(shape=b'K\x02K\x03\x86'),
    tensor(strides=b'K\x03K\x01\x86'),
    tensor(strides=b'J\xff\xff\xff\xffK\x01\x86'),
    tensor(shape=b'K\x02\x85'),
    tensor().replace(b'X\x01\x00\x00\x000', b'X\x01\x00\x00\x001'),
  ],
  ids=['offset', 'negative offset', 'shape', 'stride', 'negative stride', 'rank', 'no such storage'],
)
def test_tensors_outside_their_storage_are_refused(tmp_path, pickled):
  np.testing.assert_array_equal(torch_file.read(as_zip(tmp_path / 'good.pt', tensor())), np.zeros((2, 2)))
  with pytest.raises(ValueError, match='cannot be read as a torch file'):
    torch_file.read(as_zip(tmp_path / 'bad.pt', pickled))


def test_a_file_cut_off_anywhere_is_an_error(tmp_path):
  for name in ('zip', 'legacy', 'torchscript'):
    data = (FILES / f'{name}.pt').read_bytes()
    for size in [*range(0, len(data) - 1, 37), len(data) - 1]:
      path = tmp_path / 'cut.pt'
      path.write_bytes(data[:size])
      with pytest.raises(ValueError, match=r'cut\.pt'):
        torch_file.read(path)


@pytest.mark.filterwarnings('ignore:invalid escape sequence')
def test_damaged_files_raise_nothing_but_value_errors(tmp_path):
  random_numbers = random.Random(0)
  refused = 0
  for name in ('zip', 'legacy', 'torchscript'):
    data = (FILES / f'{name}.pt').read_bytes()
    for _ in range(150):
      damaged = bytearray(data)
      for _ in range(3):
        damaged[random_numbers.randrange(len(data))] = random_numbers.randrange(256)
      path = tmp_path / 'damaged.pt'
      path.write_bytes(damaged)
      try:
        torch_file.read(path)
      except ValueError:
        refused += 1
  assert refused > 100


def test_other_files_are_named_for_what_they_are(tmp_path):
  other = tmp_path / 'other.pt'
  other.write_bytes(b'hello')
  with pytest.raises(ValueError, match='no torch file'):
    torch_file.read(other)
  other.write_bytes(bytes(257) + b'ustar' + bytes(300))
  with pytest.raises(ValueError, match='tar format'):
    torch_file.read(other)
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr('readme.txt', 'no tensors')
  other.write_bytes(buffer.getvalue())
  with pytest.raises(ValueError, match=r'data\.pkl'):
    torch_file.read(other)
  with pytest.raises(ValueError, match='uncompressed'):
    torch_file.read(as_zip(other, tensor(), compression=zipfile.ZIP_DEFLATED))
  with pytest.raises(FileNotFoundError):
    torch_file.read(tmp_path / 'missing.pt')
