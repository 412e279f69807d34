"""Any metrics of metrics/suite.py from one set of samples, which are made once and pass through each feature network
once.

What is made is kept in shards (metrics/shards.py) where a folder is given, so that a killed evaluation goes on: image i
depends on (params, cond_i, seed, i) alone, and the first that is missing is the next to be made.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import distributed, sharding
from jaxgen.data.dataset import Dataset
from jaxgen.data.loader import epoch
from jaxgen.evaluators import encoders
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.evaluators.features import Extract, feature_extractor, named_features, neighbour_distances
from jaxgen.evaluators.generate import GenerateFrom, to_host, to_uint8
from jaxgen.evaluators.kept_statistics import digest_of, identity
from jaxgen.home import home, mirror
from jaxgen.metrics import dialects, suite
from jaxgen.metrics.shards import Shards
from jaxgen.metrics.suite import NamedExtract
from jaxgen.models import inception
from jaxgen.pretrained import inception as inception_weights
from jaxgen.pretrained import lpips
from jaxgen.train_state import sampling_params
from jaxgen.typing import UInt8

_SHARD = 1000  # images, at least, between two writes
PAIRS = 8  # samples that are shown beside the training images nearest to them

Keep = Callable[[int, UInt8[np.ndarray, 'b h w c']], None]  # the number of the first image, and images


class Networks(NamedTuple):
  """The feature networks of some metrics, and their names.

  Attributes:
    extract: images to features by name.
    logits: features to logits; None without need of them.
    protocol: names and hashes.
    texts: texts to the features that CLIP's of images are compared with; None without need of them.
  """

  extract: NamedExtract
  logits: suite.Logits | None
  protocol: dict[str, Any]
  texts: encoders.Texts | None = None


def load_networks(
  metrics: Sequence[str],
  *,
  batch_size: int,
  mesh: jax.sharding.Mesh,
  resize: inception.Resize = inception.tf1_bilinear,
  folders: Mapping[str, os.PathLike] = {},
  in_dialects: bool = False,
) -> Networks:
  """The networks that `metrics` need.

  Args:
    metrics: names of `suite.METRICS`.
    batch_size: images at a time.
    mesh: mesh that a batch is sharded over.
    resize: resizes images to Inception's 299x299.
    folders: folders of `encoders.NETWORKS`, where they are not the published ones that `jaxgen weights get` fetched.
    in_dialects: with the features of metrics/dialects.py.

  Raises:
    FileNotFoundError, ValueError: weights that are missing, damaged or without logits.
  """
  suite.check_names(metrics)
  needs, how = suite.needs(metrics) | (dialects.needs(metrics) if in_dialects else set()), {}
  everywhere = sharding.replicated(mesh)
  extract, logits, distances = None, None, None
  variants: dict[str, Extract] = {}
  if any(name.startswith(('pool', 'spatial')) for name in needs):
    network = inception_weights.load()
    of_images = functools.partial(
      feature_extractor,
      network.params,
      batch_size=batch_size,
      network=inception.network_with_spatial if 'spatial' in needs else None,
      batch_sharding=sharding.batch_sharding(mesh),
      replicated=everywhere,
    )
    extract = of_images(resize=resize)
    if 'pool_truncated' in needs or 'spatial_truncated' in needs:
      cut = functools.partial(inception.prepare, resize=inception.tf1_bilinear, to_bits=inception.truncated)
      variants['truncated'] = of_images(prepare=cut)
    if 'pool_clean' in needs:
      variants['clean'] = of_images(resize=inception.pil_bicubic)
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
  others, texts, about = encoders.load(needs, folders=folders, batch_size=batch_size, mesh=mesh)
  return Networks(named_features(extract, distances, needs, variants, others), logits, how | about, texts)


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
  kept: str = '',
  progress: Callable[[int], None] = lambda done: None,
) -> suite.Features:
  """Features of `num` samples: those in `shards`, and new ones for the rest.

  Args:
    shards: samples that are there already, on the first process; new ones are added.
    keep: called with every image that it has not had in an earlier, killed call, as 8 bits on the host.
    kept: name under which `shards` counts the images that `keep` has had.
    progress: called with the number of samples so far.
  """
  done = written = distributed.agree(len(shards))
  saved = num if keep is None else distributed.agree(shards.count(kept))
  at = min(done, saved)
  if at < num:
    for images, count in generate(params, frozen, cond, seed=seed, num=num, first=at):
      if keep is not None and at + count > saved:
        keep(at, to_host(images, mesh)[:count])
      at += count
      if at > done:
        found = {name: values[:count].copy() for name, values in extract(images).items()}
        if count % 2 and 'lpips' in found:
          found['lpips'][-1] = np.nan  # its partner is padding
        shards.add({name: values[count - (at - done) :] for name, values in found.items()})
        done = at
      if at - written >= _SHARD or at == num:
        shards.flush()
        if keep is not None:
          shards.set_count(kept, at)
        written = at
      progress(at)
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
    first, rest = divmod(distributed.agree(len(shards)), batch_size)
    if rest:  # left by batches of another size
      shards.clear()
      first = 0
    written, all_read = first * batch_size, True
    with epoch(dataset, batch_size=batch_size, sharding=sharding.batch_sharding(mesh), first=first) as batches:
      for batch in batches:
        mask = np.asarray(jax.device_put(batch['mask'], sharding.replicated(mesh)))
        shards.add({name: values[mask] for name, values in extract(batch['image']).items()})
        all_read &= bool(mask.all())  # else the number of images would not say which batch is the next
        if all_read and len(shards) - written >= _SHARD:
          shards.flush()
          written = len(shards)
        progress(len(shards))
    shards.flush()
    if distributed.is_first():
      whole.touch()
  if not distributed.is_first():
    return suite.Reference({}, {})
  features = shards.arrays()
  return suite.Reference(features, {n: suite.moments_of(features[n]) for n in suite.FRECHET if n in features})


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
  given = functools.cache(lambda: digest_of(cond))

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
    params = sampling_params(context.state)
    about = {'step': context.step, 'params': identity(params), 'seed': seed, 'cond': given(), **made.protocol}
    folder = mirror(context.workdir) / 'evaluation' / name if distributed.is_first() else None
    shards = Shards(folder, required=False, about=about | {'needs': sorted(suite.needs(metrics))})
    samples = collect(
      generate,
      params,
      context.frozen,
      cond,
      seed=seed,
      num=num_samples,
      mesh=mesh,
      extract=made.extract,
      shards=shards,
      progress=lambda done: context.progress(name, done, num_samples),
    )
    if not distributed.is_first():
      return {}
    values, how = suite.measure(metrics, samples, references[0], logits=made.logits)
    shards.remove()
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


def side_by_side(samples: np.ndarray, real: Sequence[np.ndarray], ratios: np.ndarray) -> UInt8[np.ndarray, 'H W 3']:
  """Samples at the left and the training images nearest to them at the right, each pair with its ratio.

  Args:
    samples: 8-bit images.
    real: images in [-1, 1].
    ratios: Eq. 1 of metrics/memorisation.py.
  """
  from jaxgen.image_grid import grid

  nearest = np.asarray(jax.device_get(to_uint8(jnp.asarray(np.stack(real)))))
  if nearest.shape[1:] != samples.shape[1:]:
    raise ValueError(f'samples are {samples.shape[1:]} and training images {nearest.shape[1:]}; wanted one size')
  pairs = np.stack([samples, nearest], axis=1).reshape(-1, *samples.shape[1:])
  return grid(pairs, rows=[f'{ratio:.2f}' for ratio in ratios])


def forget(folder: Path, array: Path) -> None:
  """Removes images that an earlier call kept, of other samples."""
  for path in (folder / 'samples').glob('[0-9]' * 6 + '.png'):
    path.unlink()
  array.unlink(missing_ok=True)


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
