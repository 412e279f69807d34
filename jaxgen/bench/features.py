"""Times Inception's features, alone or in turn with another program."""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgen.models import inception
from jaxgen.models.layers.convolution import compiler_options
from jaxgen.typing import Params


def features_benchmark(
  params: Params, *, batch_size: int = 16, repeats: int = 11, peer: Callable[[], object] | None = None
) -> dict[str, float | int]:
  """Times the network on resized input, and `peer()` (another program's same work) in turn with it.

  Turns are what makes the ratio hold on a machine that is busy with other things: it is the median of the
  repeats' own ratios.
  """
  x = jnp.zeros((batch_size, inception.SIZE, inception.SIZE, 3))
  params = jax.device_put(params)
  compute = jax.jit(inception.network, compiler_options=compiler_options())
  begin = time.perf_counter()
  compiled = compute.lower(params, x).compile()
  compile_seconds = time.perf_counter() - begin
  ours, theirs = [], []
  for repeat in range(repeats + 2):
    pair = [_seconds(lambda: compiled(params, x).block_until_ready()), _seconds(peer) if peer else 0.0]
    if repeat >= 2:  # the first ones fill caches
      ours.append(pair[0])
      theirs.append(pair[1])
  result = {
    'batch_size': batch_size,
    'batch_ms': 1e3 * statistics.median(ours),
    'images_per_second': batch_size / statistics.median(ours),
    'compile_seconds': compile_seconds,
  }
  if peer is not None:
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    result |= {'peer_batch_ms': 1e3 * statistics.median(theirs), 'ratio': ratio}
  return result


def _seconds(run: Callable[[], object]) -> float:
  begin = time.perf_counter()
  run()
  return time.perf_counter() - begin
