"""Published models come from the Hub checked, whole or not at all, and say what to do where they cannot."""

import hashlib
import pathlib
import sys
import types

import pytest

from jaxgen.pretrained import hub


@pytest.fixture
def library(monkeypatch, tmp_path):
  """A Hub of two files that never leaves this machine; `library.bytes` is what it sends."""
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path))
  fake = types.ModuleType('huggingface_hub')
  fake.bytes, fake.calls = b'tensors', []
  digest = hashlib.sha256(b'tensors').hexdigest()

  def snapshot_download(repository, *, revision, allow_patterns, local_dir):
    fake.calls.append((repository, revision, tuple(allow_patterns)))
    if fake.bytes is None:
      raise ConnectionError('no route to host\nand more')
    folder = pathlib.Path(local_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text('{}')
    (folder / 'model.safetensors').write_bytes(fake.bytes)

  file = types.SimpleNamespace
  siblings = [
    file(rfilename='config.json', lfs=None),
    file(rfilename='model.safetensors', lfs=file(sha256=digest)),
    file(rfilename='other.h5', lfs=file(sha256='0')),
  ]
  fake.HfApi = lambda: file(model_info=lambda repository, revision, files_metadata: file(siblings=siblings))
  fake.utils = file(filter_repo_objects=lambda names, allow_patterns: [n for n in names if n.endswith('.safetensors')])
  fake.constants = file(HF_HUB_OFFLINE=False)
  fake.snapshot_download = snapshot_download
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  return fake


def test_a_model_is_fetched_once_and_checked(library):
  reported = []
  place = hub.fetch('t5-small', report=reported.append)
  assert (place / 'model.safetensors').read_bytes() == b'tensors'
  assert 'licence Apache-2.0' in reported[0]
  assert hub.fetch('t5-small') == place
  assert library.calls == [('google-t5/t5-small', None, hub.MODELS['t5-small'].files)]


def test_a_file_that_the_hub_does_not_name_is_refused_and_fetched_again(library):
  library.bytes = b'tampered'
  with pytest.raises(ValueError, match='not the file that the Hub names'):
    hub.fetch('t5-small')
  assert not hub.is_here('t5-small')
  assert not (hub.stored('t5-small') / 'model.safetensors').exists()
  library.bytes = b'tensors'
  assert hub.fetch('t5-small').name == 't5-small'


def test_without_a_network_one_line_says_what_to_bring(library):
  library.bytes = None
  with pytest.raises(OSError, match=r'no route to host\); on a machine with a network, `hf download goog'):
    hub.fetch('t5-small')


def test_an_unknown_name_and_a_missing_library_are_told(library, monkeypatch):
  with pytest.raises(ValueError, match='dit-xl-2-256'):
    hub.fetch('dit')
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(ValueError, match=r"pip install 'jaxgen\[hub\]'"):
    hub.fetch('t5-small')


def test_every_model_names_a_config_that_there_is():
  configs = {path.stem for path in (pathlib.Path(__file__).parents[1] / 'configs').glob('*.py')}
  assert {model.config for model in hub.MODELS.values()} <= configs | {''}
