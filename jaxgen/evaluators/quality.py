"""Any metrics of metrics/suite.py from one set of samples, which are made once and pass through each feature network
once.

What is made is kept in shards (metrics/shards.py) where a folder is given, so that a killed evaluation goes on: image i
depends on (params, cond_i, seed, i) alone, and the first that is missing is the next to be made.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import distributed, sharding
from jaxgen.data.dataset import Dataset
from jaxgen.data.loader import epoch
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.features import feature_extractor, named_features, neighbour_distances
from jaxgen.evaluators.generate import GenerateFrom, to_host
from jaxgen.home import home
from jaxgen.metrics import suite
from jaxgen.metrics.shards import Shards
from jaxgen.metrics.suite import NamedExtract
from jaxgen.models import inception
from jaxgen.pretrained import inception as inception_weights
from jaxgen.pretrained import lpips
from jaxgen.train_state import sampling_params
from jaxgen.typing import UInt8

_SHARD = 1000  # images, at least, between two writes

Keep = Callable[[int, UInt8[np.ndarray, 'b h w c']], None]  # the number of the first image, and images


class Networks(NamedTuple):
  """The feature networks of some metrics, and their names.

  Attributes:
    extract: images to features by name.
    logits: features to logits; None without need of them.
    protocol: names and hashes.
  """

  extract: NamedExtract
  logits: Callable[[np.ndarray], np.ndarray] | None
  protocol: dict[str, Any]


def load_networks(
  metrics: Sequence[str],
  *,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  resize: inception.Resize = inception.tf1_bilinear,
) -> Networks:
  """The networks that `metrics` need.

  Raises:
    FileNotFoundError, ValueError: weights that are missing, damaged or without logits.
  """
  suite.check_names(metrics)
  needs, how = suite.needs(metrics), {}
  everywhere = sharding.replicated(mesh)
  extract, logits, distances = None, None, None
  if needs & {'pool', 'spatial'}:
    network = inception_weights.load()
    extract = feature_extractor(
      network.params,
      batch_size=batch_size,
      resize=resize,
      network=inception.network_with_spatial if 'spatial' in needs else None,
      batch_sharding=sharding.batch_sharding(mesh),
      replicated=everywhere,
    )
    tf1 = resize is inception.tf1_bilinear
    how |= {
      'network': 'Inception 2015-12-05, pool3, 2048 features',
      'network_hash': network.hash,
      'resize': ('TensorFlow 1 bilinear' if tf1 else 'antialiased bicubic, as Clean-FID') + ', from 8-bit images',
    }
    if 'inception_score' in metrics:
      logits = functools.partial(_logits, network.params)
      logits(np.zeros((1, inception.FEATURES), np.float32))  # refuses weights without a classifier before the long work
  if 'lpips' in needs:
    weights = lpips.load()
    distances = neighbour_distances({'alexnet': weights.params['alexnet']}, replicated=everywhere)
    how |= {'lpips_hash': weights.hash}
  return Networks(named_features(extract, distances, needs), logits, how)


def _logits(params: Any, features: np.ndarray) -> np.ndarray:
  return np.asarray(inception.inception_logits(params, jnp.asarray(features)))


def collect(
  generate: GenerateFrom,
  params: Any,
  frozen: Any,
  cond: Mapping[str, np.ndarray],
  *,
  seed: int,
  num: int,
  mesh: jax.sharding.Mesh,
  extract: NamedExtract,
  shards: Shards,
  keep: Keep | None = None,
  progress: Callable[[int], None] = lambda done: None,
) -> suite.Features:
  """Features of `num` samples: those in `shards`, and new ones for the rest.

  Args:
    shards: samples that are there already, on the first process; new ones are added.
    keep: called with every new image, as 8 bits on the host.
    progress: called with the number of samples so far.
  """
  done = written = distributed.agree(len(shards))
  if done < num:
    for images, count in generate(params, frozen, cond, seed=seed, num=num, first=done):
      if keep is not None:
        keep(done, to_host(images, mesh)[:count])
      found = {name: values[:count].copy() for name, values in extract(images).items()}
      if count % 2 and 'lpips' in found:
        found['lpips'][-1] = np.nan  # its partner is padding
      shards.add(found)
      done += count
      if done - written >= _SHARD:
        shards.flush()
        written = done
      progress(done)
  return {name: values[:num] for name, values in shards.arrays().items()}


def dataset_reference(
  dataset: Dataset,
  *,
  extract: NamedExtract,
  about: Mapping[str, Any],
  batch_size: int,
  mesh: jax.sharding.Mesh,
  progress: Callable[[int], None] = lambda done: None,
) -> suite.Reference:
  """Features of every record of a dataset, kept under ~/.cache/jaxgen/features (JAXGEN_HOME) for the next time.

  Args:
    about: networks and resize.
  """
  channels = dataset.read(0)['image'].shape[-1]
  if channels not in (1, 3):
    raise ValueError(f'{dataset.name} holds {channels} channels, not images (latents?); give a reference (--reference)')
  key = dict(about) | {'dataset': dataset.fingerprint, 'split': dataset.split}
  digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
  shards = Shards(home() / 'features' / digest[:32] if distributed.is_first() else None, about=key)
  whole = home() / 'features' / digest[:32] / 'whole'
  if not distributed.agree(int(whole.exists())):
    shards.clear()
    with epoch(dataset, batch_size=batch_size, sharding=sharding.batch_sharding(mesh)) as batches:
      for batch in batches:
        mask = np.asarray(jax.device_put(batch['mask'], sharding.replicated(mesh)))
        shards.add({name: values[mask] for name, values in extract(batch['image']).items()})
        progress(len(shards))
    shards.flush()
    if distributed.is_first():
      whole.touch()
  if not distributed.is_first():
    return suite.Reference({}, {})
  features = shards.arrays()
  return suite.Reference(features, {n: suite.moments_of(features[n]) for n in ('pool', 'spatial') if n in features})


def quality(
  generate: GenerateFrom,
  dataset: Dataset,
  *,
  metrics: Sequence[str],
  mesh: jax.sharding.Mesh,
  cond: Mapping[str, np.ndarray],
  num_samples: int,
  every: int,
  batch_size: int,
  protocol: Mapping[str, Any],
  seed: int = 0,
  name: str = 'quality',
) -> Evaluator:
  """Chosen metrics against a dataset, each written with its protocol to protocols.json.

  Args:
    generate: the function that `make_generate` returns.
    dataset: the reference.
    metrics: names of `suite.METRICS`.
    mesh: the mesh `generate` was made for.
    cond: conditioning of the samples, as host arrays of `num_samples` rows.
    num_samples: samples; a number of 50,000 compares with the literature.
    every: interval in steps.
    batch_size: reference images at a time.
    protocol: further facts that the numbers depend on: labels, sampler, guidance.
    seed: seed of the noise.
    name: name of its clock.

  Raises:
    ValueError: an unknown metric, or reference images at a time that do not divide over the mesh.

  Its `check` raises FileNotFoundError where weights are missing, and says how to get them.
  """
  suite.check_names(metrics)
  sharding.check_batch_size(batch_size, mesh)
  networks = functools.cache(lambda: load_networks(metrics, batch_size=batch_size, mesh=mesh))
  references: list[suite.Reference] = []

  def run(context: Context) -> dict[str, float]:
    made = networks()
    if not references:
      references.append(
        dataset_reference(
          dataset,
          extract=made.extract,
          about=made.protocol,
          batch_size=batch_size,
          mesh=mesh,
          progress=lambda done: context.progress(f'features of {dataset.name}, once', done, dataset.num_examples),
        )
      )
    samples = collect(
      generate,
      sampling_params(context.state),
      context.frozen,
      cond,
      seed=seed,
      num=num_samples,
      mesh=mesh,
      extract=made.extract,
      shards=Shards(None, about={}),
      progress=lambda done: context.progress(name, done, num_samples),
    )
    if not distributed.is_first():
      return {}
    values, how = suite.measure(metrics, samples, references[0], logits=made.logits)
    count = len(next(iter(references[0].features.values())))
    how |= {
      'reference': f'{count} images of {dataset.name} ({dataset.split})',
      'reference_fingerprint': dataset.fingerprint,
      'samples': num_samples,
      'seed': seed,
      **made.protocol,
    }
    for key in values:
      context.writer.protocol(key, how | dict(protocol))
    return values

  return Evaluator(name, every, run, check=networks)


def keep_png(folder: Path) -> Keep:
  """Writes image i as 00000i.png."""
  from jaxgen.image_grid import save_png

  def keep(first: int, images: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images, first):
      save_png(folder / f'{i:06d}.png', image)

  return keep


def keep_npy(path: Path, num: int) -> Keep:
  """Writes images to their places in one array on disk, which `npz_of` makes an .npz."""
  found: list[np.ndarray] = []

  def keep(first: int, images: np.ndarray) -> None:
    if not found:
      path.parent.mkdir(parents=True, exist_ok=True)
      shape = (num, *images.shape[1:])
      mode = 'r+' if path.exists() else 'w+'
      found.append(np.lib.format.open_memmap(path, mode=mode, dtype=np.uint8, shape=None if mode == 'r+' else shape))
    found[0][first : first + len(images)] = images
    found[0].flush()  # pyrefly: ignore[missing-attribute]

  return keep


def npz_of(path: Path, out: Path) -> None:
  """The array as `arr_0` of an .npz, as ADM's evaluation reads samples; nothing is loaded."""
  import zipfile

  partial = out.with_name(f'.{out.name}.partial')
  with zipfile.ZipFile(partial, 'w', zipfile.ZIP_STORED, allowZip64=True) as file:
    file.write(path, 'arr_0.npy')
  partial.replace(out)
  path.unlink()
