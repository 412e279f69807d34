"""`jaxgen bench gpu`: what a few minutes of one GPU can tell, as JSON.

  products   FLOP/s of square bfloat16 products, the ceiling of what follows                        (1)
  dit, unet  train steps of DiT-XL/2 and of SDXL's U-Net in bfloat16: share of the published peak,
             and of Eq. 1                                                                           (2)
  fid        FID of 10,000 samples of a small trained model

Each part has a deadline: one that is past its time is not begun, and one that fails says why, so that the others are
there. Compiled programs are written to a folder as HLO, where one is given.
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.bench.programs import eps_step
from jaxgen.bench.train_step import bench_train_step
from jaxgen.experiment import Experiment
from jaxgen.models.dit import DiT, dit
from jaxgen.models.layers import remat
from jaxgen.models.unet import UNet, stable_diffusion
from jaxgen.typing import Report


class Sizes(NamedTuple):
  """Sizes of the work.

  Attributes:
    products: sides of the matrices.
    dit: the DiT; None for XL/2.
    dit_batch: its images of 32x32x4.
    unet: the U-Net; None for SDXL's.
    unet_batch, unet_side: its images, and their side in latents.
    steps: steps to time.
    samples: samples of FID; 0 for none.
  """

  products: tuple[int, ...] = (4096, 8192, 16384)
  dit: DiT | None = None
  dit_batch: int = 64
  unet: UNet | None = None
  unet_batch: int = 8
  unet_side: int = 128
  steps: int = 10
  samples: int = 10_000


DEFAULT = Sizes()


def bench_gpu(
  sizes: Sizes = DEFAULT,
  *,
  seconds: float = 450.0,
  fid: Callable[[int], dict[str, Any]] | None = None,
  out: pathlib.Path | None = None,
  report: Report = print,
) -> dict[str, Any]:
  """Runs all parts that there is time for.

  Args:
    sizes: sizes of the work.
    seconds: no part begins after this time.
    fid: measures FID of so many samples; None for no such part.
    out: folder of the compiled programs; None for none.
    report: gets a line before each part.
  """
  began = time.perf_counter()
  found: dict[str, Any] = {'device': jax.devices()[0].device_kind, 'jax': jax.__version__}
  parts: dict[str, Callable[[], dict[str, Any]]] = {
    'products': lambda: _products(sizes.products),
    'dit': lambda: _step(dit_step(sizes), sizes.steps, out and out / 'dit.hlo.txt'),
    'unet': lambda: _step(unet_step(sizes), sizes.steps, out and out / 'unet.hlo.txt'),
  }
  if fid is not None and sizes.samples:
    parts['fid'] = lambda: fid(sizes.samples)
  for name, part in parts.items():
    if time.perf_counter() - began > seconds:
      found[name] = {'not_run': f'after {seconds:.0f} s'}
      continue
    report(f'{name}, after {time.perf_counter() - began:.0f} s')
    start = time.perf_counter()
    try:
      found[name] = part()
    except Exception as error:  # one that is out of memory, say, must not take the others with it
      found[name] = {'failed': f'{type(error).__name__}: {str(error)[:400]}'}
    found[name]['seconds'] = time.perf_counter() - start
  ceiling = found['products'].get('best_flops')
  for name in ('dit', 'unet'):
    if ceiling and 'model_flops' in found[name]:
      found[name]['ceiling_share'] = found[name]['model_flops'] / (1e-3 * found[name]['step_ms']) / ceiling  # Eq. 2
  return found


def dit_step(sizes: Sizes) -> Experiment:
  """The train step of a DiT on latents, as configs/dit_xl2_imagenet256.py trains it."""
  net = sizes.dit or dit('XL/2', num_classes=1000, learn_sigma=True, dtype=jnp.bfloat16, remat=remat.policy('dots'))
  return eps_step(net, (sizes.dit_batch, 32, 32, 4), optax.adamw(1e-4, weight_decay=0.0), num_classes=1000)


def unet_step(sizes: Sizes) -> Experiment:
  """The train step of a U-Net of SDXL's size, with its text, pooled text and size conditions."""
  net = sizes.unet or stable_diffusion('xl', dtype=jnp.bfloat16, remat=remat.policy('dots'))
  draw, shapes = np.random.default_rng(0), {'text': (77, 2048), 'pooled': (1280,), 'size': (6,)}
  cond = {name: draw.standard_normal((sizes.unet_batch, *shape), np.float32) for name, shape in shapes.items()}
  return eps_step(net, (sizes.unet_batch, sizes.unet_side, sizes.unet_side, 4), optax.adamw(1e-4), cond=cond)


def _products(sides: tuple[int, ...]) -> dict[str, Any]:
  """Eq. 1: the best of several products of each size."""
  found = {}
  for side in sides:
    x = jnp.ones((side, side), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x).lower(x).compile()
    product(x).block_until_ready()
    seconds = []
    for _ in range(5):
      began = time.perf_counter()
      made = x
      for _ in range(4):
        made = product(x)
      made.block_until_ready()
      seconds.append((time.perf_counter() - began) / 4)
    found[f'flops_{side}'] = 2 * side**3 / min(seconds)
  return found | {'best_flops': max(found.values())}


def _step(experiment: Experiment, steps: int, hlo: pathlib.Path | None) -> dict[str, Any]:
  def write(compiled: Any) -> None:
    if hlo is not None:
      hlo.parent.mkdir(parents=True, exist_ok=True)
      hlo.write_text(compiled.as_text())

  return bench_train_step(experiment, steps=steps, inspect=write)
