"""How fast a train step is: the real one of an experiment, alone or in turn with another program's."""

import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen import ema, flops, sharding, train
from jaxgen.experiment import Experiment, as_stages
from jaxgen.models.dit import dit
from jaxgen.models.layers import remat
from jaxgen.models.unet import DDPM, DDPM_SIZES, UNet
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.processes import parameterisation
from jaxgen.processes.vp import vp_linear
from jaxgen.samplers import grids
from jaxgen.samplers.ddim import ddim
from jaxgen.train_state import TrainState

# Published dense bfloat16 peaks, FLOP/s for each JAX device, by `device_kind`.
PEAKS = {
  'TPU v2': 22.5e12,  # a device is one of the chip's two cores
  'TPU v3': 61.5e12,  # the same
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
  'TPU7x': 1153.5e12,  # half a chip
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
}


def bench_train_step(
  experiment: Experiment | tuple[Experiment, ...],
  *,
  steps: int = 20,
  warmup: int = 2,
  peer: Callable[[], float] | None = None,
) -> dict[str, Any]:
  """Times the train step of an experiment's first stage, one step at a time, on its own data.

  Args:
    experiment: what `build(config)` returns.
    steps: to time, after `warmup` more.
    peer: runs one step of another program and returns its seconds. It is called after each step; the ratio is the
      median of the steps' own ratios, which holds on a machine that is busy with other things.

  Returns:
    Numbers ready for JSON. `peak_bytes` is of one device; `model_flops` are of a step on all devices, without what is
    computed twice; `input_wait` is a share of the time. `peak_flops` is published (bfloat16), else measured (float32).
  """
  stage = as_stages(experiment)[0]
  abstract, frozen = train.abstract_state(stage), train.place_frozen(stage)
  began = time.perf_counter()
  step = train.compile_step(stage, abstract, frozen)
  compiled = time.perf_counter() - began
  total, waits, theirs = _time(stage, step, train.initial_state(stage, abstract), frozen, warmup + steps, peer)
  total, waits, theirs = total[warmup:], waits[warmup:], theirs[warmup:]
  median, operations, (peak, source) = statistics.median(total), model_flops(stage, abstract, frozen), _peak(stage)
  batch_size, memory = stage.data.identity['batch_size'], step.memory_analysis()
  result = {
    'device': jax.devices()[0].device_kind,
    'devices': stage.mesh.size,
    'batch_size': batch_size,
    'step_ms': 1e3 * median,
    'images_per_second': batch_size / median,
    'compile_seconds': compiled,
    'peak_bytes': None if memory is None else memory.peak_memory_in_bytes,
    'input_wait': sum(waits) / sum(total),
    'model_flops': operations,
    'peak_flops': peak,
    'peak_source': source,
    'peak_share': operations / median / peak,
  }
  if peer is not None:
    ratio = statistics.median(ours / other for ours, other in zip(total, theirs, strict=True))
    result |= {'peer_step_ms': 1e3 * statistics.median(theirs), 'ratio': ratio}
  return result


def _time(stage: Experiment, step, state: TrainState, frozen, steps: int, peer):
  """Seconds of each step with its wait for data, of the wait alone, and of the peer's step."""
  key = jax.random.key(stage.seed)
  batches = stage.data.iterate(0, sharding.batch_sharding(stage.mesh))
  total, waits, theirs = [], [], []
  try:
    for index in range(steps):
      began = time.perf_counter()
      batch = next(batches)
      waits.append(time.perf_counter() - began)
      state, _ = step(state, frozen, batch, jax.random.fold_in(key, index))
      jax.block_until_ready(state)
      total.append(time.perf_counter() - began)
      theirs.append(0.0 if peer is None else peer())
  finally:
    batches.close()
  return total, waits, theirs


def model_flops(stage: Experiment, abstract: TrainState, frozen: Mapping[str, Any]) -> int:
  """Operations of a train step's losses and gradients; a phase that runs every n steps counts 1/n."""
  operations = 0
  for phase in stage.objective.phases:

    def loss(subtree, state, batch, frozen, phase=phase):
      params = state.params | {phase.trains: subtree}
      return phase.loss(params, state, frozen, batch, jax.random.key(0))[0]

    args = abstract.params[phase.trains], abstract, stage.data.spec, frozen
    operations += flops.count_gradient(loss, *args) // phase.every
  return operations


def _peak(stage: Experiment) -> tuple[float, str]:
  """FLOP/s of the mesh, and where the number is from."""
  kind = jax.devices()[0].device_kind
  if kind in PEAKS:
    return PEAKS[kind] * stage.mesh.size, 'published'
  shared = jax.default_backend() == 'cpu'  # fake devices are the same cores
  return _measured_peak() * (1 if shared else stage.mesh.size), 'measured'


def _measured_peak(size: int = 1024) -> float:
  """The best of several float32 products of two matrices."""
  x = jnp.ones((size, size))
  product = jax.jit(lambda x: x @ x).lower(x).compile()
  seconds = []
  for _ in range(10):
    began = time.perf_counter()
    product(x).block_until_ready()
    seconds.append(time.perf_counter() - began)
  return 2 * size**3 / min(seconds)


class FixedBatch(NamedTuple):
  """Data for a benchmark: the same batch for ever, made once; a stand-in for a loader."""

  batch: dict[str, np.ndarray]

  @property
  def identity(self) -> dict[str, Any]:
    return {'dataset': 'fixed batch', 'batch_size': len(next(iter(self.batch.values())))}

  @property
  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in self.batch.items()}

  def iterate(self, start_step: int, sharding: jax.sharding.Sharding) -> Iterator[dict[str, jax.Array]]:
    batch = jax.device_put(self.batch, sharding)
    while True:
      yield batch


def dit_s4(*, batch_size: int = 16, size: str = 'S/4') -> Experiment:
  """The train step that is compared with the public PyTorch DiT's: float32, 32x32x4 latents, eps, AdamW, EMA."""
  net = dit(size, num_classes=1000, learn_sigma=True, remat=remat.policy('dots'))
  return eps_step(net, (batch_size, 32, 32, 4), optax.adamw(1e-4, weight_decay=0.0), num_classes=1000)


def unet_cifar10(*, batch_size: int = 16) -> Experiment:
  """The train step that is compared with a PyTorch U-Net's: DDPM's of CIFAR-10 at half the width, float32, Adam."""
  net = UNet(**DDPM_SIZES['cifar10']._replace(width=64, dropout=0.0)._asdict(), style=DDPM)
  return eps_step(net, (batch_size, 32, 32, 3), optax.adam(2e-4))


def eps_step(
  net: nn.Module, shape: tuple[int, ...], optimizer: optax.GradientTransformation, *, num_classes: int = 0
) -> Experiment:
  """One batch of that shape, for ever; the loss is the mean squared error of eps in the first channels."""
  draw = np.random.default_rng(0)
  batch = {
    'image': draw.standard_normal(shape, np.float32),
    'eps': draw.standard_normal(shape, np.float32),
    't': draw.integers(0, 1000, shape[0]).astype(np.float32),
    'label': draw.integers(0, num_classes or 1, shape[0], np.int32),
  }

  def apply(variables, batch, **kwargs) -> Any:
    return net.apply(variables, batch['image'], batch['t'], {'label': batch['label']}, train=True, **kwargs)

  def init(key, batch):
    made = net.init(key, batch['image'], batch['t'], {'label': batch['label']})
    return {'params': {'net': made['params']}}

  def loss(params, state, frozen, batch, key):
    error = apply({'params': params['net']}, batch, rngs={'dropout': key})[..., : shape[-1]] - batch['eps']
    return jnp.mean(jnp.square(error)), Aux()

  return Experiment(
    objective=Objective(init, (Phase('net', 'net', loss),), _no_samples),
    optimizers={'net': optimizer},
    averages={'net': ema.Average('net', ema.constant(0.9999))},
    data=FixedBatch(batch),
    steps=1,
    mesh=sharding.make_mesh(data=1, devices=jax.devices()[:1]),
  )


def bench_sampler(*, steps: int = 50, rounds: int = 10, batch_size: int = 4, size: str = 'S/4') -> dict[str, Any]:
  """Times a DDIM run against its calls of the network alone, in turn: what a sampler costs beside the network.

  Args:
    steps: of DDIM.
    rounds: of both, after one more.
    batch_size: images of 32x32x4.
    size: of the DiT.
  """
  net, process = dit(size, num_classes=1000), vp_linear(1000)
  times, x = jnp.asarray(grids.spaced(steps, 1000)), jax.random.normal(jax.random.key(0), (batch_size, 32, 32, 4))
  cond = {'label': jnp.zeros(batch_size, jnp.int32)}
  params = jax.jit(lambda key: net.init(key, x, times[:1].repeat(batch_size), cond))(jax.random.key(1))

  def sample(params, x):
    def apply(x, t, cond) -> Any:
      return net.apply(params, x, t, cond)

    denoise = parameterisation.denoiser(apply, process, parameterisation.eps(process))
    return ddim(denoise, process, x, times, cond=cond)

  def call(params, x):
    def body(x, t) -> Any:
      return net.apply(params, x, jnp.full(len(x), process.network_time(t)), cond), None

    return jax.lax.scan(body, x, times[:-1])[0]

  programs = [jax.jit(program).lower(params, x).compile() for program in (sample, call)]
  seconds = [[_seconds(program, params, x) for program in programs] for _ in range(rounds + 1)][1:]
  both, alone = (statistics.median(column) for column in zip(*seconds, strict=True))
  return {
    'device': jax.devices()[0].device_kind,
    'steps': steps,
    'batch_size': batch_size,
    'sampler_ms': 1e3 * both,
    'network_ms': 1e3 * alone,
    'overhead': statistics.median(1 - network / sampler for sampler, network in seconds),
  }


def _seconds(program: Callable, *args: Any) -> float:
  began = time.perf_counter()
  jax.block_until_ready(program(*args))
  return time.perf_counter() - began


def _no_samples(params, frozen, cond, keys):
  raise ValueError('the benchmark of a train step makes no images')


class Peer:
  """Another program that runs a step when told to. It prints `ready`, then its seconds for each line that it reads."""

  def __init__(self, command: list[str]):
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self._expect('ready')

  def __call__(self) -> float:
    assert self._process.stdin is not None
    self._process.stdin.write('step\n')
    self._process.stdin.flush()
    return float(self._expect())

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


def torch_dit_command(folder: str | os.PathLike, python: str, *, batch_size: int = 16) -> list[str]:
  """The command of the peer in `tests/torch_dit_peer.py` for a clone of the public PyTorch DiT.

  Raises:
    FileNotFoundError: `folder` is no such clone, or jaxgen runs without its checkout.
  """
  models = pathlib.Path(folder) / 'models.py'
  if not models.is_file():
    raise FileNotFoundError(f'{models} is missing; --peer wants a clone of https://github.com/facebookresearch/DiT')
  script = pathlib.Path(__file__).resolve().parents[1] / 'tests' / 'torch_dit_peer.py'
  if not script.is_file():
    raise FileNotFoundError(f'{script} is missing; the comparison runs from a checkout of jaxgen')
  return [python, str(script), str(folder), str(batch_size)]


def torch_unet_command(python: str, *, batch_size: int = 16) -> list[str]:
  """The command of the peer in `tests/torch_unet_peer.py`, which is diffusers' U-Net.

  Raises:
    FileNotFoundError: jaxgen runs without its checkout.
  """
  script = pathlib.Path(__file__).resolve().parents[1] / 'tests' / 'torch_unet_peer.py'
  if not script.is_file():
    raise FileNotFoundError(f'{script} is missing; the comparison runs from a checkout of jaxgen')
  return [python, str(script), str(batch_size)]
