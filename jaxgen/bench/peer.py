"""Peers: other programs whose steps are timed in turn with jaxgen's, and the commands of those in `tests/`."""

import os
import pathlib
import subprocess
from typing import NamedTuple

from jaxgen.bench import sampler
from jaxgen.bench.programs import BATCH_SIZE, STYLEGAN2_FEATURES
from jaxgen.bench.usage import Usage, of_process


class Peer:
  """Another program that runs a cycle of steps on request.

  It prints `ready`, then for each line that it reads the seconds that a cycle took.
  """

  def __init__(self, command: list[str]):
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self._expect('ready')

  def __call__(self) -> float:
    assert self._process.stdin is not None
    self._process.stdin.write('cycle\n')
    self._process.stdin.flush()
    return float(self._expect())

  def usage(self) -> Usage:
    """Its processor time and page faults so far."""
    return of_process(self._process.pid)

  def _expect(self, word: str | None = None) -> str:
    assert self._process.stdout is not None
    line = self._process.stdout.readline().strip()
    if not line or word not in (None, line):
      self.close()
      raise RuntimeError(f'the peer program stopped, or said {line!r}; its own message is above')
    return line

  def close(self) -> None:
    assert self._process.stdin is not None
    self._process.stdin.close()
    self._process.wait()

  def __enter__(self) -> 'Peer':
    return self

  def __exit__(self, *_) -> None:
    self.close()


class Clone(NamedTuple):
  """A program that is measured with somebody's public code.

  Attributes:
    script: file in tests/; its arguments are the clone's folder and `arguments`.
    has: a file that shows that a folder is such a clone.
    url: address of the code.
    arguments: sizes, which are those of programs.py.
  """

  script: str
  has: str
  url: str
  arguments: tuple[int, ...]


_DIT = 'https://github.com/facebookresearch/DiT'
CLONES = {
  'dit-s4': Clone('torch_dit_peer.py', 'models.py', _DIT, (BATCH_SIZE,)),
  'sampler': Clone('torch_dit_sampler_peer.py', 'diffusion/respace.py', _DIT, (sampler.BATCH_SIZE, sampler.STEPS)),
  'stylegan2': Clone(
    'torch_stylegan2_peer.py',
    'training/networks.py',
    'https://github.com/NVlabs/stylegan2-ada-pytorch',
    (BATCH_SIZE, STYLEGAN2_FEATURES),
  ),
}


def clone_command(clone: Clone, folder: str | os.PathLike, python: str) -> list[str]:
  """The command of the peer for a clone in `folder`.

  Raises:
    FileNotFoundError: `folder` is no such clone, or jaxgen runs without its checkout.
  """
  file = pathlib.Path(folder) / clone.has
  if not file.is_file():
    raise FileNotFoundError(f'{file} is missing; --peer wants a clone of {clone.url}')
  return [python, str(_script(clone.script)), str(folder), *map(str, clone.arguments)]


def unet_command(python: str) -> list[str]:
  """The command of the peer in `tests/torch_unet_peer.py`, which is diffusers' U-Net.

  Raises:
    FileNotFoundError: jaxgen runs without its checkout.
  """
  return [python, str(_script('torch_unet_peer.py')), str(BATCH_SIZE)]


def mmdit_command(python: str) -> list[str]:
  """The command of the peer in `tests/torch_mmdit_peer.py`, which is diffusers' SD3 transformer.

  Raises:
    FileNotFoundError: jaxgen runs without its checkout.
  """
  return [python, str(_script('torch_mmdit_peer.py')), str(BATCH_SIZE)]


def encode_command(python: str, *, batch_size: int, size: int) -> list[str]:
  """The command of the peer in `tests/torch_encode_peer.py`, which is diffusers' autoencoder.

  Raises:
    FileNotFoundError: jaxgen runs without its checkout.
  """
  return [python, str(_script('torch_encode_peer.py')), str(batch_size), str(size)]


def input_command(python: str, folder: pathlib.Path, *, batch_size: int, size: int) -> list[str]:
  """The command of the peer in `tests/torch_input_peer.py`, which is PyTorch's DataLoader on a folder of JPEG files.

  Raises:
    FileNotFoundError: jaxgen runs without its checkout.
  """
  return [python, os.fspath(_script('torch_input_peer.py')), os.fspath(folder), str(batch_size), str(size)]


def _script(name: str) -> pathlib.Path:
  script = pathlib.Path(__file__).resolve().parents[2] / 'tests' / name
  if not script.is_file():
    raise FileNotFoundError(f'{script} is missing; the comparison runs from a checkout of jaxgen')
  return script
