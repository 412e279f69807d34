"""Times a sampler: its overhead beside the network that it calls, and another program's loop in turn with it."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.models.dit import dit
from jaxgen.processes import parameterisation
from jaxgen.processes.vp import vp_linear
from jaxgen.samplers import grids
from jaxgen.samplers.ddim import ddim

STEPS, BATCH_SIZE = 50, 4


def bench_sampler(
  *,
  steps: int = STEPS,
  rounds: int = 10,
  batch_size: int = BATCH_SIZE,
  size: str = 'S/4',
  peer: Callable[[], float] | None = None,
) -> dict[str, Any]:
  """Times a DDIM run against its calls of the network alone, in turn: what a sampler costs beside the network.

  The fastest runs count: a machine that others use only ever adds to them, by more than a sampler costs.

  Args:
    steps: number of DDIM steps.
    rounds: rounds of both to time, after one to warm up.
    batch_size: images of 32x32x4.
    size: size of the DiT.
    peer: samples as many images by as many steps with another program and returns its seconds. It is called in each
      round; the ratio is the median of the rounds' own ratios.
  """
  net, process = dit(size, num_classes=1000), vp_linear(1000)
  times, x = jnp.asarray(grids.spaced(steps, 1000)), jax.random.normal(jax.random.key(0), (batch_size, 32, 32, 4))
  cond = {'label': jnp.zeros(batch_size, jnp.int32)}
  params = jax.jit(lambda key: net.init(key, x, times[:1].repeat(batch_size), cond))(jax.random.key(1))

  def sample(params, x):
    def apply(x, t, cond) -> Any:
      return net.apply(params, x, t, cond)

    denoise = parameterisation.denoiser(apply, process, parameterisation.eps)
    return ddim(denoise, process, x, times, cond=cond)

  def call(params, x):
    def body(x, t) -> Any:
      return net.apply(params, x, jnp.full(len(x), process.network_time(t)), cond), None

    return jax.lax.scan(body, x, times[:-1])[0]

  programs = [jax.jit(program).lower(params, x).compile() for program in (sample, call)]
  seconds = []
  for _ in range(rounds + 1):
    seconds.append([*(_seconds(program, params, x) for program in programs), 0.0 if peer is None else peer()])
  ours, network, theirs = zip(*seconds[1:], strict=True)
  both, alone = min(ours), min(network)
  result = {
    'device': jax.devices()[0].device_kind,
    'steps': steps,
    'batch_size': batch_size,
    'sampler_ms': 1e3 * both,
    'network_ms': 1e3 * alone,
    'overhead': 1 - alone / both,
  }
  if peer is not None:
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    result |= {'peer_sampler_ms': 1e3 * min(theirs), 'ratio': ratio}
  return result


def _seconds(program: Callable, *args: Any) -> float:
  began = time.perf_counter()
  jax.block_until_ready(program(*args))
  return time.perf_counter() - began
