"""Times the encoder of `jaxgen data encode` on a batch, alone or in turn with another program."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxgen import sharding
from jaxgen.encode import IMAGE, encoder
from jaxgen.pretrained import autoencoder

BATCH_SIZE, SIZE = 2, 256


def bench_encode(
  *,
  rounds: int = 10,
  network: str = 'sd-f8',
  batch_size: int = BATCH_SIZE,
  size: int = SIZE,
  peer: Callable[[], float] | None = None,
) -> dict[str, Any]:
  """Times the encoder of a published autoencoder with random weights, on one device, in float32.

  Args:
    rounds: rounds to time, after one to warm up.
    network: name of the network in models/autoencoder.py.
    batch_size: images at a time.
    size: their side.
    peer: encodes as many with another program and returns its seconds. It is called after each batch; the ratio is the
      median of the rounds' own ratios, which holds on a machine that is busy with other things.
  """
  draw, mesh = np.random.default_rng(0), sharding.make_mesh(data=1, devices=jax.devices()[:1])
  made = autoencoder.blank(network)
  spread = lambda leaf: draw.standard_normal(leaf.shape, np.float32) * max(np.prod(leaf.shape[:-1]), 1) ** -0.5  # noqa: E731
  frozen = {'autoencoder': made.frozen | {'params': jax.tree.map(spread, made.params)}}
  frozen = jax.device_put(frozen, sharding.replicated(mesh))
  images = draw.uniform(-1, 1, (batch_size, size, size, 3)).astype(np.float32)
  batch = jax.device_put(({'image': images}, {}, np.arange(batch_size, dtype=np.int32)), sharding.batch_sharding(mesh))
  began = time.perf_counter()
  jitted: Any = encoder(made.net, mesh, fields=IMAGE, flips=False)
  run = jitted.lower(frozen, *batch).compile()
  compiled = time.perf_counter() - began
  ours, theirs = [], []
  for _ in range(rounds + 1):
    began = time.perf_counter()
    jax.block_until_ready(run(frozen, *batch))
    ours.append(time.perf_counter() - began)
    theirs.append(0.0 if peer is None else peer())
  ours, theirs = ours[1:], theirs[1:]  # the first ones fill caches
  result = {
    'device': jax.devices()[0].device_kind,
    'network': network,
    'batch_size': batch_size,
    'size': size,
    'image_ms': 1e3 * statistics.median(ours) / batch_size,
    'compile_seconds': compiled,
  }
  if peer is not None:
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    result |= {'peer_image_ms': 1e3 * statistics.median(theirs) / batch_size, 'ratio': ratio}
  return result
