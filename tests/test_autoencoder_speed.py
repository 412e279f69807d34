"""Stable Diffusion's autoencoder: how fast it is loaded, and encodes. The slow ones need an idle machine, that of
encoding torch and diffusers as well (the `parity` extra)."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import sharding
from jaxgen.bench import encode
from jaxgen.bench.peer import Peer, encode_command
from jaxgen.models.autoencoder import AutoencoderKL, autoencoder_kl
from jaxgen.models.latents import unscaled
from jaxgen.pretrained import autoencoder, folder

NET = autoencoder_kl('sd-f8')


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """A folder of random weights."""
  place = tmp_path_factory.mktemp('sd')
  shapes = jax.eval_shape(NET.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
  rng = np.random.default_rng(0)
  draw = lambda leaf: rng.standard_normal(leaf.shape, np.float32) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))  # noqa: E731
  autoencoder.save(place, NET, jax.tree.map(lambda leaf: np.float32(draw(leaf)), shapes), unscaled(4))
  return place


def _resident() -> int:
  return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.slow
def test_it_is_loaded_into_shards_in_3_seconds_and_little_more_than_its_own_memory(path):
  mesh = sharding.make_mesh(data=1, fsdp=-1)
  size = (path / f'{folder.STEM}.safetensors').stat().st_size
  before, peak, done = _resident(), [0], threading.Event()

  def watch():
    while not done.wait(0.001):
      peak[0] = max(peak[0], _resident())

  watcher = threading.Thread(target=watch)
  watcher.start()
  begin = time.perf_counter()
  loaded = autoencoder.load(path, put=lambda name, a: jax.device_put(a, sharding.shard_tree({name: a}, mesh)[name]))
  jax.block_until_ready(loaded.params)
  seconds = time.perf_counter() - begin
  done.set()
  watcher.join()
  share = (peak[0] - before) / size
  print(f'{size / 1e6:.0f} MB in {seconds:.2f} s, peak {share:.2f} of the file')
  kernel = loaded.params['decoder']['level_3_block_0']['conv_in']['kernel']
  assert not kernel.sharding.is_fully_replicated
  assert share < 1.5
  assert seconds < 3


def test_a_ratio_to_a_peer_is_of_time_per_image(monkeypatch):
  net = AutoencoderKL(multipliers=(1,), latent=2, width=4, groups=2, blocks=0, middle_attention=False)
  monkeypatch.setattr(autoencoder, 'published', lambda name: net)
  found = encode.bench_encode(rounds=3, network='small', batch_size=4, size=8, peer=lambda: 8.0)
  assert (found['peer_image_ms'], found['batch_size'], found['size']) == (2000, 4, 8)
  assert found['ratio'] == pytest.approx(found['image_ms'] / 2000)
  assert found['image_ms'] > 0


@pytest.mark.slow
def test_encoding_takes_no_longer_than_in_pytorch():
  """`jaxgen bench encode --peer diffusers`; that both say the same is tested in test_pretrained_folders.py."""
  python = os.environ.get('JAXGEN_PARITY_PYTHON', sys.executable)
  if subprocess.run([python, '-c', 'import torch, diffusers'], capture_output=True, check=False).returncode:
    pytest.skip(f'{python} has not torch and diffusers (the `parity` extra); JAXGEN_PARITY_PYTHON may name another')
  with Peer(encode_command(python, batch_size=encode.BATCH_SIZE, size=encode.SIZE)) as peer:
    found = encode.bench_encode(peer=peer)
  print(found)
  assert found['ratio'] <= 1.1
