"""What several configs share, as plain functions: data, evaluators, optimizers and whole Experiments.

A config defines its objective; what follows is the same for a whole family:

  PROCESSES, SAMPLERS      choices of the fields `process` and `sampling.name` of small diffusion models
  run_options              the fields of an Experiment that a config gives by their own names
  image_experiment         small class-conditional diffusion and few-step models of images
  balanced_experiment      diffusion on CIFAR-10 and ImageNet 64, sampled with equally many images of each class
  gan_experiment           GANs
  latent_experiment        small diffusion models on the latents of an autoencoder
  imagenet_experiment      diffusion on latents of ImageNet
  autoencoder_experiment   autoencoders

Each takes the config `c` and reads the fields that all configs of its family have. A config that wants something else
calls the library as these functions do.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from optax.contrib import muon

from jaxgen import ema, sharding
from jaxgen.checkpoint import Policy
from jaxgen.data.dataset import Dataset
from jaxgen.data.datasets.image_folder import image_folder
from jaxgen.data.datasets.latents import latents
from jaxgen.data.datasets.synthetic import synthetic
from jaxgen.data.loader import Loader
from jaxgen.data.reader import Transform
from jaxgen.data.sources import fits_in_memory, held_out_split, source
from jaxgen.evaluators import reconstruction
from jaxgen.evaluators.base import Evaluator
from jaxgen.evaluators.fid import fid, fid_name
from jaxgen.evaluators.generate import GenerateFrom, make_generate
from jaxgen.evaluators.held_out_loss import held_out_loss
from jaxgen.evaluators.modes import collapse
from jaxgen.evaluators.quality import quality
from jaxgen.evaluators.samples import rows_of_classes, samples
from jaxgen.experiment import Experiment
from jaxgen.models.latents import Autoencoder
from jaxgen.objectives.base import Objective
from jaxgen.optimizers import matrices
from jaxgen.pretrained import autoencoder, lpips
from jaxgen.processes import parameterisation, times
from jaxgen.processes.rectified_flow import rectified_flow
from jaxgen.processes.vp import vp_cosine
from jaxgen.samplers.ddim import ddim
from jaxgen.samplers.dpm_solver import dpm_multistep
from jaxgen.samplers.unipc import unipc
from jaxgen.typing import Array

PROCESSES = {  # process, space of the loss, times
  'cosine': (vp_cosine(), parameterisation.v, times.uniform(draw=times.stratified)),
  'flow': (rectified_flow(), parameterisation.velocity, times.logit_normal(-0.4, draw=times.stratified)),
}
SAMPLERS = {'DPM-Solver++ 2M': dpm_multistep, 'UniPC': unipc, 'DDIM': ddim}

Optimizers = Mapping[str, optax.GradientTransformation]
Cond = Mapping[str, np.ndarray]


def run_options(c: ConfigDict) -> dict[str, Any]:
  """The fields of an Experiment that a config gives by their own names; those it does not have keep their defaults."""
  names = ('steps', 'seed', 'clip_norm', 'accumulate', 'log_every', 'evaluate_first')
  return {name: c[name] for name in names if name in c} | {'checkpoints': Policy(**c.checkpoint)}


# Data


def loader(c: ConfigDict, dataset: Dataset) -> Loader:
  """Batches of a dataset, which stays in memory where it fits."""
  return Loader(dataset, batch_size=c.batch_size, seed=c.seed, flip=c.flip, cache=fits_in_memory(dataset))


def source_or_noise(c: ConfigDict, split: str = 'train', *, num_classes: int) -> Dataset:
  """The dataset that `c.dataset` names; `synthetic` is noise with labels, to time a step without data."""
  if c.dataset == 'synthetic':
    return synthetic((c.resolution, c.resolution, 3), num_classes=num_classes)
  return source(c.dataset, split, resolution=c.resolution, data_dir=c.data_dir)


def image_folder_or_noise(c: ConfigDict, split: str = 'train') -> Dataset:
  """The images that `jaxgen data prepare image_folder` prepared under the name `c.dataset`; or `synthetic`."""
  if c.dataset == 'synthetic' or ':' in c.dataset:
    return source_or_noise(c, split, num_classes=0)
  return image_folder('', split, size=c.resolution, name=c.dataset, data_dir=c.data_dir or None)


def latents_or_noise(c: ConfigDict, *, network: str, num_classes: int) -> tuple[Dataset, Autoencoder]:
  """The latents, and the autoencoder that they come from.

  Args:
    c: config with `latents`, `autoencoder` and `data_dir`.
    network: the autoencoder's layout where `c.dataset` is `synthetic`, and noise stands for latents.
    num_classes: classes of that noise.
  """
  if c.dataset == 'synthetic':
    blank = autoencoder.blank(network)
    side, channels = c.resolution // blank.net.factor, blank.net.channels_of_latents
    return synthetic((side, side, channels), num_classes=num_classes), blank
  loaded = autoencoder.load(c.autoencoder)
  return latents(c.latents, autoencoder=loaded.hash, data_dir=c.data_dir or None), loaded


# Optimizers


def warmup_cosine(peak: float, *, warmup: int, steps: int) -> optax.Schedule:
  """A learning rate that rises linearly to `peak` and falls to 0 by a cosine; short runs warm up for half of them."""
  if steps < 1:
    raise ValueError(f'steps is {steps}; it must be 1 or more')
  return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps=min(warmup, steps // 2), decay_steps=steps)


def muon_and_adam(o: ConfigDict, *, steps: int) -> optax.GradientTransformation:
  """Muon for the hidden matrices of a transformer and Adam for the rest, at the rates `o.muon` and `o.adam`."""
  schedule = partial(warmup_cosine, warmup=o.warmup, steps=steps)
  return muon(
    schedule(o.muon), adam_learning_rate=schedule(o.adam), adam_b2=o.b2, muon_weight_dimension_numbers=matrices
  )


def adams(o: ConfigDict) -> Optimizers:
  """Adam for both networks of a GAN, at the rate `o.rate`."""
  adam = optax.adam(o.rate, b1=o.b1, b2=o.b2)
  return {'generator': adam, 'discriminator': adam}


def burn_in_cosine(first: float, last: float, *, images: float, batch_size: int) -> Callable[[Array], Array]:
  """A function of the step that goes from `first` to `last` by a cosine, over the first `images` images (R3GAN)."""

  def value(step: Array) -> Array:
    share = jnp.clip(step * batch_size / images, 0.0, 1.0)
    return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2

  return value


# Evaluators


def grid_and_fid(
  c: ConfigDict,
  generate: GenerateFrom,
  *,
  mesh: jax.sharding.Mesh,
  shown: Mapping[str, Any],
  reference: Callable[[], Dataset],
  cond: Callable[[int], Cond],
  protocol: Mapping[str, Any],
) -> tuple[Evaluator, ...]:
  """A grid of samples, unless it shows no image, and FID, unless `c.fid.num_samples` is 0.

  An interval of 0 also turns an evaluator off (`Experiment.evaluators`).

  Args:
    c: config with `samples.every` and `fid`; `fid.metrics` are names of `metrics.suite.METRICS`, FID by default.
    generate: the function that `make_generate` made.
    mesh: the mesh it was made for.
    shown: options of `samples` that say what the grid shows: cond, num, rows.
    reference: opens the dataset that FID compares with.
    cond: the number of FID's samples -> their conditions.
    protocol: sampler, guidance and labels, written beside FID.
  """
  evaluators: tuple[Evaluator, ...] = ()
  if shown['num'] and c.samples.every:
    evaluators += (samples(generate, mesh=mesh, every=c.samples.every, **shown),)
  if c.fid.num_samples and c.fid.every:
    options = dict(c.fid)
    metrics = tuple(options.pop('metrics', ('fid',)))
    measure = partial(quality, metrics=metrics, name=fid_name(c.fid.num_samples)) if metrics != ('fid',) else fid
    given = cond(c.fid.num_samples)
    evaluators += (measure(generate, reference(), mesh=mesh, cond=given, protocol=protocol, **options),)
  return evaluators


def held_out(
  c: ConfigDict,
  objective: Objective,
  opened: Callable[[], Dataset | None],
  *,
  mesh: jax.sharding.Mesh,
  transform: Transform | None = None,
) -> tuple[Evaluator, ...]:
  """The loss at fixed noise on pictures that the run does not train on.

  There is none where the objective has no denoiser, as GANs, or where the network is given what no record holds, such
  as an embedding that the objective computes.

  Args:
    c: config with `held_out`, the options of `held_out_loss`; without the field, or with an interval of 0, none.
    objective: the objective.
    opened: opens the pictures; None where there are none.
    mesh: the mesh.
    transform: the training loader's.
  """
  options = dict(c.get('held_out') or {'every': 0})
  if not options['every'] or objective.denoising is None:
    return ()
  dataset = opened()
  if dataset is None:
    return ()
  record = dataset.read(0)
  record = transform(record, np.random.default_rng(0)) if transform is not None else record
  cond = tuple(objective.conditioner.fields)
  if not set(cond) <= set(record):
    return ()
  loss = held_out_loss(objective.denoising, dataset, mesh=mesh, cond=cond, transform=transform, **options)
  return (loss,)


def labels_of_batches(data: Loader) -> Callable[[int], Cond]:
  """The labels of the first `num` training images, as `cond` of `grid_and_fid`."""
  return lambda num: {'label': data.rows(0, range(num))['label']} if data.dataset.num_classes else {}


def labels_in_turn(num_classes: int) -> Callable[[int], Cond]:
  """Equally many labels of each class, as `cond` of `grid_and_fid`."""
  return lambda num: {'label': np.arange(num, dtype=np.int32) % num_classes} if num_classes else {}


# Experiments


def image_experiment(
  c: ConfigDict,
  objective: Objective,
  data: Loader,
  *,
  optimizers: Optimizers,
  learning_rates: Mapping[str, optax.Schedule] = {},
) -> Experiment:
  """A small class-conditional diffusion or few-step model: a row of the grid for each class, FID with its labels."""
  mesh, dataset = sharding.make_mesh(**c.mesh), data.dataset
  evaluators = grid_and_fid(
    c,
    make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size),
    mesh=mesh,
    shown=rows_of_classes(dataset.class_names, per_class=c.samples.per_class),
    reference=lambda: source(c.dataset, c.reference, resolution=c.resolution),
    cond=labels_of_batches(data),
    protocol={
      'labels': 'of the training data',
      'sampler': f'{c.sampling.name}, {c.sampling.steps} steps, clipped to [-1, 1]',
      'guidance': c.sampling.scale,
    },
  )
  test = partial(held_out_split, c.dataset, resolution=c.resolution)
  return Experiment(
    objective=objective,
    optimizers=optimizers,
    learning_rates=learning_rates,
    averages={'net': ema.Average('net', ema.warmup(c.ema))},
    data=data,
    mesh=mesh,
    evaluators=(*evaluators, *held_out(c, objective, test, mesh=mesh)),
    **run_options(c),
  )


def balanced_experiment(
  c: ConfigDict,
  objective: Objective,
  dataset: Dataset,
  *,
  optimizer: optax.GradientTransformation,
  decay: ema.Decay,
  sampler: str,
) -> Experiment:
  """A diffusion model whose grid and FID have equally many images of each class, if there are classes.

  Args:
    c: the config.
    objective: the objective.
    dataset: the training data, which FID compares with, too.
    optimizer: optimizer of the network.
    decay: decay of its average.
    sampler: the sampler's name and options in FID's protocol.
  """
  mesh, in_turn = sharding.make_mesh(**c.mesh), labels_in_turn(dataset.num_classes)
  evaluators = grid_and_fid(
    c,
    make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size),
    mesh=mesh,
    shown={'cond': in_turn(c.samples.num), 'num': c.samples.num},
    reference=lambda: dataset,
    cond=in_turn,
    protocol={'labels': 'as many of each class', 'sampler': sampler, 'guidance': 1.0},
  )

  def test() -> Dataset | None:
    return None if c.dataset == 'synthetic' else held_out_split(c.dataset, resolution=c.resolution, data_dir=c.data_dir)

  return Experiment(
    objective=objective,
    optimizers={'net': optimizer},
    averages={'net': ema.Average('net', decay)},
    data=Loader(dataset, batch_size=c.batch_size, seed=c.seed, flip=c.flip),
    mesh=mesh,
    evaluators=(*evaluators, *held_out(c, objective, test, mesh=mesh)),
    **run_options(c),
  )


def gan_experiment(
  c: ConfigDict, objective: Objective, data: Loader, *, optimizers: Optimizers, reference: Callable[[], Dataset]
) -> Experiment:
  """A GAN: a grid by class, FID, and a warning when its images are all alike.

  Args:
    c: the config.
    objective: the objective.
    data: the training data.
    optimizers: optimizers of the generator and the discriminator.
    reference: opens the dataset that FID compares with.
  """
  mesh, num_classes = sharding.make_mesh(**c.mesh.to_dict()), data.dataset.num_classes
  classes = np.arange(c.samples.num, dtype=np.int32) * max(num_classes, 1) // max(c.samples.num, 1)
  shown = {'cond': {'label': classes} if num_classes else {}, 'num': c.samples.num}

  def cond(num: int) -> Cond:
    if not num_classes:
      return {}
    return {'label': np.resize(data.rows(0, range(min(num, 256)))['label'], num)}

  protocol = {'labels': 'of the training data', 'sampler': 'one pass', 'truncation': 1.0}
  generate = make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size)
  evaluators = grid_and_fid(c, generate, mesh=mesh, shown=shown, reference=reference, cond=cond, protocol=protocol)
  if c.fid.num_samples and c.fid.every:
    num = min(c.fid.num_samples, 256)
    images = data.rows(0, range(num))['image']
    alike = collapse(generate, mesh=mesh, cond=cond(c.fid.num_samples), images=images, num=num, every=c.fid.every)
    evaluators = (*evaluators, alike)
  decay = ema.half_life(c.ema.images, batch_size=c.batch_size, ramp=c.ema.ramp)
  return Experiment(
    objective=objective,
    optimizers=optimizers,
    averages={'generator': ema.Average('generator', decay)} if c.ema.images else {},
    data=data,
    mesh=mesh,
    evaluators=evaluators,
    **run_options(c),
  )


def latent_experiment(
  c: ConfigDict,
  objective: Objective,
  data: Loader,
  *,
  images: Dataset,
  loaded: Autoencoder,
  optimizer: optax.GradientTransformation,
) -> Experiment:
  """A small class-conditional diffusion model of latents: image_experiment, with grid and FID of decoded images.

  Args:
    c: the config.
    objective: the objective, which `latent` made.
    data: the latents.
    images: the images that they come from, which FID compares with.
    loaded: the autoencoder.
    optimizer: optimizer of the network.
  """

  def cond(num: int) -> Cond:
    rows = data.rows(0, range(c.batch_size))
    return {name: np.resize(rows[name], num) for name in objective.conditioner.fields}

  mesh, test = sharding.make_mesh(**c.mesh), partial(held_out_split, c.dataset, resolution=c.resolution)
  evaluators = grid_and_fid(
    c,
    make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size),
    mesh=mesh,
    shown=rows_of_classes(images.class_names, per_class=c.samples.per_class),
    reference=lambda: images,
    cond=cond,
    protocol={'sampler': f'{c.sampling.steps} Euler steps', 'guidance': c.sampling.scale, 'autoencoder': loaded.hash},
  )
  return Experiment(
    objective=objective,
    optimizers={'net': optimizer},
    averages={'net': ema.Average('net', ema.warmup(c.ema))},
    data=data,
    mesh=mesh,
    frozen={'autoencoder': loaded.frozen},
    evaluators=(*evaluators, *held_out(c, objective, test, mesh=mesh)),
    **run_options(c),
  )


def imagenet_experiment(
  c: ConfigDict,
  objective: Objective,
  data: Loader,
  *,
  shown: Sequence[int],
  loaded: Autoencoder,
  optimizer: optax.GradientTransformation,
) -> Experiment:
  """A diffusion model of ImageNet's latents: FID with uniform labels; no evaluators for noise.

  Args:
    c: the config.
    objective: the objective, which `latent` made.
    data: the latents.
    shown: classes in the grid, two images each.
    loaded: the autoencoder.
    optimizer: optimizer of the network.
  """
  mesh, num_classes = sharding.make_mesh(**c.mesh.to_dict()), data.dataset.num_classes
  evaluators: tuple[Evaluator, ...] = ()
  if c.dataset != 'synthetic':
    label = np.repeat(np.asarray(shown, np.int32), 2)
    evaluators = grid_and_fid(
      c,
      make_generate(objective.sample, mesh=mesh, batch_size=c.sampling.batch_size),
      mesh=mesh,
      shown={'cond': {'label': label}, 'num': len(label)},
      reference=lambda: source(c.dataset, resolution=c.resolution, data_dir=c.data_dir),
      cond=lambda num: {'label': np.random.default_rng(c.seed).integers(0, num_classes, num, np.int32)},
      protocol={
        'labels': 'uniform',
        'sampler': f'{c.sampling.name}, {c.sampling.steps} steps',
        'guidance': c.sampling.scale,
        'autoencoder': loaded.hash,
      },
    )
    test = partial(held_out_split, c.dataset, resolution=c.resolution, data_dir=c.data_dir)
    evaluators += held_out(c, objective, test, mesh=mesh)
  return Experiment(
    objective=objective,
    optimizers={'net': optimizer},
    averages={'net': ema.Average('net', ema.constant(c.ema))},
    data=data,
    mesh=mesh,
    frozen={'autoencoder': loaded.frozen},
    evaluators=evaluators,
    **run_options(c),
  )


def autoencoder_experiment(
  c: ConfigDict,
  objective: Objective,
  net: Any,
  data: Loader,
  *,
  held_out: Dataset,
  latents: reconstruction.Latents,
) -> Experiment:
  """An autoencoder with a discriminator: reconstructions and rFID of held-out images; the autoencoder is kept.

  Args:
    c: the config.
    objective: the objective.
    net: the autoencoder's network.
    data: the training data.
    held_out: the images that are reconstructed.
    latents: statistics of the latents to report: reconstruction.GAUSSIAN or CODES.
  """
  mesh, dataset = sharding.make_mesh(**c.mesh), data.dataset
  measures: tuple[Evaluator, ...] = ()
  if c.fid.num_samples and c.fid.every:
    restored = reconstruction.restored(net, held_out, mesh=mesh, batch_size=c.images.batch_size)
    rfid = fid(restored, held_out, mesh=mesh, cond={}, protocol={'samples are': 'restored'}, prefix='r', **c.fid)
    measures = (rfid,)
  rate = warmup_cosine(c.learning_rate, warmup=50, steps=c.steps)
  return Experiment(
    objective=objective,
    optimizers={
      'autoencoder': optax.adam(rate, b1=0.5, b2=0.9),
      'discriminator': optax.adam(c.learning_rate / 2, b1=0.5, b2=0.9),
    },
    averages={'autoencoder': ema.Average('autoencoder', ema.warmup(c.ema))},
    data=data,
    mesh=mesh,
    frozen={'lpips': lpips.load().params} if c.perceptual else {},
    evaluators=(
      reconstruction.reconstruction(net, held_out, latents, mesh=mesh, **c.images),
      *measures,
      reconstruction.keep(net, dataset, mesh=mesh, **(dict(c.images) | {'num': dataset.num_examples})),
    ),
    **run_options(c),
  )
