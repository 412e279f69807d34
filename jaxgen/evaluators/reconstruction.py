"""Evaluators of an autoencoder: its reconstructions, its latents, and the autoencoder as a folder to use.

  reconstruction   PSNR, SSIM, LPIPS (AlexNet), the KL of each channel or the use of the codes, and pairs side by side
  restored         images for the evaluator `fid`: its number is then the reconstruction FID (rFID)
  keep             WORKDIR/autoencoder, with the scaling of its latents computed from data (models/latents.py)

All go over a dataset's first images, in its own order, with the averaged parameters; latents are their means.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import distributed, sharding
from jaxgen.data.dataset import Dataset
from jaxgen.data.loader import epoch
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.generate import Generate, to_host
from jaxgen.metrics.reconstruction import psnr, ssim
from jaxgen.models.latents import Scaling, posterior, unscaled
from jaxgen.objectives.autoencoder.quantize import whole
from jaxgen.objectives.distances import lpips
from jaxgen.pretrained import autoencoder
from jaxgen.train_state import sampling_params
from jaxgen.typing import Array, Params

FOLDER = 'autoencoder'  # in the run's folder


class Latents(NamedTuple):
  """Statistics of the latents of one kind of autoencoder.

  Attributes:
    sums: `(net, params, images, mask) -> tree of sums over the images of the batch`.
    report: (those sums over all images, their number) -> scalars.
  """

  sums: Callable[[Any, Params, Array, Array], Any]
  report: Callable[[Any, int], dict[str, float]]


def _gaussian_sums(net: Any, params: Params, images: Array, mask: Array) -> Array:
  made = net.apply({'params': params}, images, method='encode')
  return jnp.sum(jnp.where(mask[:, None], made.kl().sum(axis=(1, 2)), 0.0), axis=0)  # z


def _gaussian_report(kl: np.ndarray, count: int) -> dict[str, float]:
  each = {f'kl/channel_{i}': float(value) / count for i, value in enumerate(kl)}
  return {'kl': sum(each.values()), **each}


def _code_sums(net: Any, params: Params, images: Array, mask: Array) -> Array:
  z = net.apply({'params': params}, images, method='encode')
  index = net.apply({'params': params}, z, method='quantize').index
  weights = jnp.broadcast_to(mask[:, None, None], index.shape).astype(jnp.float32)
  return jnp.zeros(net.codes_in_all).at[index.ravel()].add(weights.ravel())


def _code_report(counts: np.ndarray, count: int) -> dict[str, float]:
  share = counts[counts > 0] / counts.sum()
  return {'codes_used': float(np.mean(counts > 0)), 'perplexity': float(np.exp(-np.sum(share * np.log(share))))}


GAUSSIAN = Latents(_gaussian_sums, _gaussian_report)  # nats for each image, in all and by channel
CODES = Latents(_code_sums, _code_report)  # the share of codes used, and exp of their entropy


def reconstruction(
  net: Any,
  dataset: Dataset,
  latents: Latents,
  *,
  mesh: jax.sharding.Mesh,
  every: int,
  batch_size: int,
  num: int,
  shown: int = 16,
  columns: int = 8,
  name: str = 'reconstruction',
) -> Evaluator:
  """Compares images with their reconstructions.

  Args:
    net: the autoencoder's network.
    dataset: best one that the run does not train on.
    latents: GAUSSIAN or CODES.
    mesh: mesh that a batch is sharded over.
    every: interval in steps.
    batch_size: images at a time.
    num: number of images, the dataset's first ones.
    shown: number of these in samples/NAME_STEP.png: rows of images, each above the row of its reconstructions.
    columns: images in a row.
    name: name of the picture and the clock.

  LPIPS is reported where `frozen['lpips']` has AlexNet.
  """
  sharding.check_batch_size(batch_size, mesh)
  everywhere = sharding.replicated(mesh)
  num = min(num, dataset.num_examples)

  @jax.jit
  def measure(params, frozen, batch, first):
    x, mask = batch['image'], batch['mask'] & (first + jnp.arange(batch_size) < num)
    x_hat = _restore(net, params, x)
    found = {'psnr': psnr(x, x_hat), 'ssim': ssim(x, x_hat)}
    if 'alexnet' in frozen.get('lpips', {}):
      a, b = (jnp.broadcast_to(images, (*images.shape[:3], 3)) for images in (x, x_hat))
      found['lpips'] = lpips(frozen['lpips'], a, b, network='alexnet')
    sums = {key: jnp.sum(jnp.where(mask, value, 0.0)) for key, value in found.items()}
    made = (sums, latents.sums(net, params, x, mask), mask.sum())
    return jax.lax.with_sharding_constraint(made, everywhere), x_hat

  def run(context: Context) -> dict[str, float]:
    params, totals, pictures = whole(sampling_params(context.state)), None, []
    for first, batch in _batches(dataset, batch_size, mesh, num):
      part, x_hat = measure(params, context.frozen, batch, np.int32(first))
      part = jax.device_get(part)
      totals = part if totals is None else jax.tree.map(np.add, totals, part)
      if first < shown:
        pictures.append((to_host(batch['image'], mesh), to_host(x_hat, mesh)))
      context.progress(name, first + batch_size, num)
    assert totals is not None
    sums, of_latents, count = totals
    if not count:
      raise ValueError(f'no image of {dataset.name} ({dataset.split}) can be read, so none can be reconstructed')
    _show(context, name, pictures, min(shown, num) // columns * columns, columns)
    return {key: float(value / count) for key, value in sums.items()} | latents.report(of_latents, int(count))

  return Evaluator(name, every, run)


def restored(net: Any, dataset: Dataset, *, mesh: jax.sharding.Mesh, batch_size: int) -> Generate:
  """Reconstructions of the dataset's first images, for `fid(generate, ...)`; neither cond nor seed matters."""

  @jax.jit
  def run(params, images):
    return _restore(net, params, images)

  def generate(
    params: Any, frozen: Any, cond: Mapping[str, np.ndarray], *, seed: int, num: int, first: int = 0
  ) -> Iterator[tuple[Array, int]]:
    if num > dataset.num_examples:
      raise ValueError(
        f'{dataset.name} ({dataset.split}) has {dataset.num_examples} images; {num} cannot be reconstructed'
      )
    for begin, batch in _batches(dataset, batch_size, mesh, num, first=first):
      skipped = max(first - begin, 0)
      images = jnp.roll(run(whole(params), batch['image']), -skipped, axis=0)
      yield images, min(batch_size, num - begin) - skipped

  return generate


def keep(
  net: Any,
  dataset: Dataset,
  *,
  mesh: jax.sharding.Mesh,
  every: int,
  batch_size: int,
  num: int,
  by_channel: bool = True,
  name: str = FOLDER,
) -> Evaluator:
  """Writes the autoencoder as a folder of diffusers' layout, WORKDIR/NAME, for `jaxgen data encode`.

  Args:
    net: the autoencoder's network.
    dataset: dataset that shift and scale are computed from.
    mesh, every, batch_size: as in `reconstruction`.
    num: number of images, the dataset's first ones.
    by_channel: a shift and a scale for each channel; else one for all, as Stable Diffusion has.
    name: name of the folder.
  """
  everywhere = sharding.replicated(mesh)
  num = min(num, dataset.num_examples)

  @jax.jit
  def moments(params, batch, first):
    mean, std = posterior(net, {'params': params}, batch['image'])
    mask = (batch['mask'] & (first + jnp.arange(batch_size) < num)).reshape(-1, 1, 1, 1)
    sums = [jnp.sum(jnp.where(mask, value, 0.0), axis=(0, 1, 2)) for value in (mean, mean**2 + std**2)]
    return jax.lax.with_sharding_constraint((*sums, mask.sum() * mean[0, ..., 0].size), everywhere)

  def run(context: Context) -> dict[str, float]:
    params, totals = whole(sampling_params(context.state)), np.float64(0)
    for first, batch in _batches(dataset, batch_size, mesh, num):
      totals = totals + np.asarray([np.broadcast_to(v, net.channels_of_latents) for v in moments(params, batch, first)])
      context.progress(name, first + batch_size, num)
    scaling = scaling_of(*np.asarray(totals, np.float64), by_channel=by_channel)
    host = jax.device_get(jax.device_put(params, jax.tree.map(lambda _: everywhere, params)))
    if distributed.is_first():
      side = dataset.read(0)['image'].shape[0]
      autoencoder.save(context.workdir / name, net, host, scaling, sample_size=side)
    return {}

  return Evaluator(name, every, run, check=lambda: autoencoder.configuration(net, unscaled(net.channels_of_latents)))


def scaling_of(total: np.ndarray, squares: np.ndarray, count: np.ndarray, *, by_channel: bool = True) -> Scaling:
  """Shift and scale that make latents of mean 0 and variance 1, from sums over `count` latents of each channel."""
  mean, square = total / count, squares / count
  if not by_channel:
    mean, square = np.full_like(mean, mean.mean()), np.full_like(square, square.mean())
  std = np.sqrt(np.maximum(square - mean**2, 1e-12))
  return Scaling(mean.astype(np.float32), (1 / std).astype(np.float32))


def _restore(net: Any, params: Params, images: Array) -> Array:
  mean, _ = posterior(net, {'params': params}, images)
  return jnp.clip(net.apply({'params': params}, mean, method='restore'), -1.0, 1.0)


def _batches(
  dataset: Dataset, batch_size: int, mesh: jax.sharding.Mesh, num: int, *, first: int = 0
) -> Iterator[tuple[int, dict[str, Array]]]:
  """Batches of the images up to `num`, from that of image `first` on, with the number of each batch's first."""
  begin, place = first // batch_size, sharding.batch_sharding(mesh)
  with epoch(dataset, batch_size=batch_size, sharding=place, first=begin) as batches:
    yield from zip(range(begin * batch_size, num, batch_size), batches, strict=False)


def _show(context: Context, name: str, pictures: list[tuple[np.ndarray, np.ndarray]], count: int, columns: int) -> None:
  if not count:
    return
  x, x_hat = (np.concatenate(images)[:count] for images in zip(*pictures, strict=True))
  rows = np.stack([image.reshape(-1, columns, *image.shape[1:]) for image in (x, x_hat)], axis=1)
  labels = ('image', 'restored') * (count // columns)
  context.writer.images(context.step, name, rows.reshape(-1, *x.shape[1:]), rows=labels)
