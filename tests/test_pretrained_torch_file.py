"""Torch files: three that torch wrote, and what somebody with bad intentions would write.

golden/torch_files was written by torch 2.13: one content in its zip format and its legacy format, and a
convolution as TorchScript (without the archive's source code, which nobody reads).
"""

import argparse
import collections
import copyreg
import functools
import io
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxgen.pretrained import torch_file
from jaxgen.pretrained.pickle_data import Opaque

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


def test_hostile_pickles_do_not_run_and_give_no_tensors(tmp_path):
  marker = tmp_path / 'ran'
  pickles = list(hostile(marker))
  assert len(pickles) > 25
  refused = 0
  for i, pickled in enumerate(pickles):
    path = as_zip(tmp_path / f'{i}.pt', pickled)
    with pytest.raises(ValueError, match=r'cannot be read as a torch file|no state dict'):
      torch_file.state_dict(path)
    try:
      torch_file.read(path)  # what it names is a placeholder at most
    except ValueError:
      refused += 1
    legacy = tmp_path / f'{i}.legacy.pt'
    legacy.write_bytes(pickle.dumps(torch_file._LEGACY_MAGIC, 2) + pickle.dumps(1001, 2) + pickled)
    with pytest.raises(ValueError, match='torch file'):
      torch_file.read(legacy)
  assert refused > 8
  assert not marker.exists()


class Unknown:
  """Stands for Lightning's callbacks and the like; pickled by its name."""

  def __init__(self):
    self.best = 3


def test_objects_of_other_classes_are_placeholders(tmp_path):
  content = {
    'callbacks': {Unknown: {'best': 0.5}},
    'args': argparse.Namespace(lr=1e-4, model='DiT-S/4'),
    'score': np.float32(2.0),
    'counts': collections.defaultdict(list, {'a': [1]}),
    'object': Unknown(),
    'set': {1, 2},
    'call': functools.partial(print, 'x'),
    'path': Path('a'),
    'array': np.arange(3),
    'big': 1 << 100,
  }
  for protocol in range(2, 6):
    read = torch_file.read(as_zip(tmp_path / f'{protocol}.pt', pickle.dumps(content, protocol)))
    assert read['args'].name == 'argparse.Namespace' and read['args'].state == {'lr': 1e-4, 'model': 'DiT-S/4'}
    assert read['score'].name.endswith('multiarray.scalar')
    assert read['counts'] == {'a': [1]}
    assert read['big'] == 1 << 100
    assert read['set'] == {1, 2} if protocol > 3 else read['set'].name.endswith('.set')
    placeholders = [read[name] for name in ('args', 'score', 'object', 'call', 'path', 'array')]
    assert all(isinstance(each, Opaque) for each in placeholders)
    assert len({*placeholders, *read['callbacks']}) == 7  # they can be keys
    assert read['object'].name == f'{__name__}.Unknown'


def tensors(**entries):
  """A pickle of a dict whose tensors are all the four floats of the one storage."""
  pickled = b'\x80\x02}'
  for name, value in entries.items():
    key = b'X' + struct.pack('<I', len(name)) + name.encode()
    pickled += key + (value if isinstance(value, bytes) else tensor()[2:-1]) + b's'
  return pickled + b'.'


NAMESPACE = b'cargparse\nNamespace\n)\x81}X\x02\x00\x00\x00lrK\x01sb'


@pytest.mark.parametrize(
  ('pickled', 'part', 'names'),
  [
    (tensors(w=0, b=0), None, {'w', 'b'}),
    (tensors(model=tensors(m=0)[2:-1], ema=tensors(e=0)[2:-1], args=NAMESPACE), None, {'e'}),
    (tensors(model=tensors(m=0)[2:-1], ema=tensors(e=0)[2:-1], args=NAMESPACE), 'model', {'m'}),
    (tensors(state_dict=tensors(w=0)[2:-1], callbacks=NAMESPACE, epoch=b'K\x03'), None, {'w'}),  # Lightning
    (tensors(module=tensors(w=0)[2:-1], optimizer=b'N', ds_config=NAMESPACE), None, {'w'}),  # DeepSpeed
    (tensors(trainer=tensors(vae=tensors(w=0)[2:-1])[2:-1]), 'trainer/vae', {'w'}),
    (tensors(**{'module._orig_mod.a': 0, 'module._orig_mod.b.w': 0}), None, {'a', 'b.w'}),
    (tensors(**{'_orig_mod.a': 0, 'b._orig_mod.w': 0}), None, {'a', 'b.w'}),
    (tensors(**{'module.a': 0, 'n_averaged': 0}), None, {'a'}),
    (tensors(**{'module.a': 0, 'b': 0}), None, {'module.a', 'b'}),
    (tensors(w=0, _extra_state=NAMESPACE), None, {'w'}),
  ],
)
def test_the_state_dict_of_a_checkpoint_is_found(pickled, part, names, tmp_path):
  found = torch_file.state_dict(as_zip(tmp_path / 'a.ckpt', pickled), part=part)
  assert found.keys() == names
  assert all(array.shape == (2, 2) for array in found.values())


def test_a_part_that_is_not_there_names_those_that_are(tmp_path):
  path = as_zip(tmp_path / 'a.pt', tensors(net=tensors(m=0)[2:-1], avg=tensors(n=tensors(e=0)[2:-1])[2:-1]))
  with pytest.raises(ValueError, match=r"no state dict 'ema'; its parts with tensors are net, avg/n"):
    torch_file.state_dict(path, part='ema')
  with pytest.raises(ValueError, match=r'net is a dict, not a tensor; its parts with tensors are net, avg/n'):
    torch_file.state_dict(path)


LAUGH = b'\x80\x02(lq\x00' + b''.join(
  b'(' + 10 * bytes([ord('h'), i]) + bytes([ord('l'), ord('q'), i + 1]) for i in range(40)
)


@pytest.mark.parametrize(
  'pickled',
  [
    LAUGH + b'.',  # ten times the list before, forty times
    LAUGH.replace(b'lq', b'tq') + b'.',
    LAUGH + b'Q.',
    LAUGH.replace(b'lq', b'tq') + b'}h\x28Ns.',  # a key that takes for ever to hash
    LAUGH.replace(b'lq', b'tq') + b'\x91.',
    b'\x80\x02ccollections\nOrderedDict\n(](' + LAUGH[2:].replace(b'lq', b'tq') + b'N\x86e\x85R.',
    b'\x80\x02' + b'(' * 10**5 + b'l' * 10**5 + b'.',
    b'\x80\x02' + b'N0' * 2 * 10**6,
    b'\x80\x02' + b']' * 3 * 10**6 + b'.',
  ],
  ids=['lists', 'tuples', 'reference', 'key', 'frozen set', 'pairs', 'depth', 'pops', 'objects'],
)
def test_a_small_file_takes_little_time(pickled, tmp_path):
  """In a process of its own, with 4 GB of addresses, most of them of libraries."""
  path = as_zip(tmp_path / 'a.pt', pickled)
  code = (
    'import resource, sys, time, jaxgen.pretrained.torch_file as t\n'
    'resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n'
    'began = time.process_time()\n'
    'try: t.state_dict(sys.argv[1])\n'
    'except ValueError as error: print(len(str(error)) < 600)\n'
    'print(time.process_time() - began)'
  )
  done = subprocess.run([sys.executable, '-c', code, path], capture_output=True, text=True, timeout=60)
  message, seconds = done.stdout.split()
  assert message == 'True' and float(seconds) < (10 if len(pickled) > 10**6 else 1)


def test_stored_elements_are_not_repeated_without_bound(tmp_path):
  """Strides of 0, or of 1 in every axis, make a small storage a large array."""
  for strides in (b'K\x00K\x00\x86', b'K\x01K\x00\x86'):
    pickled = tensor(shape=b'K\x02J\xff\xff\xff\x7f\x86', strides=strides)
    with pytest.raises(ValueError, match='repeats 4 stored elements'):
      torch_file.read(as_zip(tmp_path / 'a.pt', pickled))
  small = torch_file.read(as_zip(tmp_path / 'b.pt', tensor(shape=b'K\x02M\xff\xff\x86', strides=b'K\x01K\x00\x86')))
  assert small.shape == (2, 65535)
  many = tensors(
    **{f'{i}': tensor(shape=b'K\x02J\xff\xff\x7f\x00\x86', strides=b'K\x01K\x00\x86')[2:-1] for i in range(9)}
  )
  with pytest.raises(ValueError, match='repeats 4 stored elements'):
    torch_file.read(as_zip(tmp_path / 'c.pt', many))


def test_a_registered_extension_is_refused(tmp_path):
  """pickle remembers what an extension's number meant, and does not ask for its name again."""
  copyreg.add_extension('builtins', 'print', 0x42)
  pickled = b'\x80\x02\x82\x42.'
  try:
    assert pickle.loads(pickled) is print
    with pytest.raises(ValueError, match=r"opcode b'.x82'"):
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
