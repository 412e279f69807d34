"""Published models come from the Hub checked, whole or not at all, and say what to do where they cannot."""

import fnmatch
import hashlib
import pathlib
import re
import sys
import types

import pytest

from jaxgen import from_weights, model_folder
from jaxgen.cli import weights
from jaxgen.pretrained import hub, published


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


def test_every_model_names_a_config_that_there_is(capsys):
  configs = {path.stem for path in (pathlib.Path(__file__).parents[1] / 'configs').glob('*.py')}
  assert {model.config for model in hub.MODELS.values()} <= configs | {''}
  assert weights.main(['list']) == 0
  assert set(re.findall(r'--config (\w+)', capsys.readouterr().out)) <= configs | {'CONFIG'}


def test_a_name_stands_for_the_folder_that_was_fetched(library, tmp_path, monkeypatch):
  assert hub.resolved(tmp_path / 'else') == str(tmp_path / 'else')
  for use in (model_folder.resolved, published.load, from_weights.opened):
    with pytest.raises(FileNotFoundError, match='t5-small is not here; `jaxgen weights get t5-small` fetches it'):
      use('t5-small')
  place = hub.fetch('t5-small')
  assert hub.resolved('t5-small') == model_folder.resolved('t5-small') == str(place)
  monkeypatch.chdir(tmp_path)
  (tmp_path / 't5-small').mkdir()  # one's own folder comes first
  assert hub.resolved('t5-small') == 't5-small'


def test_a_generator_is_fetched_without_its_variants(library):
  names = ['model_index.json', 'unet/config.json', 'unet/diffusion_pytorch_model.safetensors', 'tokenizer/merges.txt',
           'text_encoder_3/model-00001-of-00002.safetensors', 'text_encoder_3/model.safetensors.index.json',
           'tokenizer_3/spiece.model']  # fmt: skip
  others = ['unet/diffusion_pytorch_model.fp16.safetensors', 'unet/diffusion_pytorch_model.non_ema.safetensors',
            'unet/diffusion_pytorch_model.bin', 'safety_checker/model.safetensors', 'v1-5-pruned.ckpt',
            'text_encoder_3/model.fp16-00001-of-00002.safetensors']  # fmt: skip
  patterns = (*hub.MODELS['sd15'].files, *hub.MODELS['sd3-medium'].files)
  taken = [name for name in names + others if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
  assert taken == names


def test_a_repository_without_tensors_is_not_taken_for_whole(library):
  fake = library.snapshot_download
  library.snapshot_download = lambda *args, **options: (
    fake(*args, **options),
    [file.unlink() for file in pathlib.Path(options['local_dir']).glob('*.safetensors')],
  )
  with pytest.raises(ValueError, match='t5-small has none of the files that are read'):
    hub.fetch('t5-small')
  assert not hub.is_here('t5-small')
