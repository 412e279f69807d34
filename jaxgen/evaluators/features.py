"""Features of many images: sharded over the devices, gathered on every process."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxgen.metrics.suite import NamedExtract
from jaxgen.models import inception
from jaxgen.models.layers.convolution import compiler_options
from jaxgen.objectives.distances import lpips
from jaxgen.typing import Array, Params

Extract = Callable[[Float[Array, 'b h w 3'] | Float[np.ndarray, 'b h w 3']], Float[np.ndarray, 'b d']]


def feature_extractor(
  params: Params,
  *,
  batch_size: int,
  resize: inception.Resize = inception.tf1_bilinear,
  prepare: Callable[[Array], Array] | None = None,
  network: Callable[[Params, Array], Array] | None = None,
  batch_sharding: jax.sharding.Sharding | None = None,
  replicated: jax.sharding.Sharding | None = None,
) -> Extract:
  """Returns `extract(images)`: float32 Inception features, on every process, of images in [-1, 1].

  Args:
    params: parameters that `pretrained.inception.load()` returns; they are placed once.
    batch_size: host arrays are cut into batches of this many images. A global array is one batch.
    resize: resizes images to 299 x 299.
    prepare: images in [-1, 1] of any size to the network's input; Inception's with `resize` by default.
    network: network of the prepared images; `network_with_spatial` gives the features of sFID, too.
    batch_sharding, replicated: shardings from `jaxgen.sharding`, for more than one device. A host array must then be
      the same on every process.

  Each image's features are its own: neither the batch, nor its padding, nor the devices change them beyond
  floating-point reassociation. The network is compiled for few shapes only, whatever sizes the images have.
  """
  shards = 1
  if batch_sharding is not None:
    shards = batch_size // batch_sharding.shard_shape((batch_size,))[0]
  params = jax.device_put(params, replicated)
  prepare = jax.jit(prepare or functools.partial(inception.prepare, resize=resize), out_shardings=batch_sharding)
  compute = jax.jit(network or inception.network, out_shardings=replicated, compiler_options=compiler_options())

  def place(images: np.ndarray) -> Array:
    if batch_sharding is None:
      return jnp.asarray(images)
    return jax.make_array_from_callback(images.shape, batch_sharding, lambda index: images[index])

  def extract_batch(images: np.ndarray) -> np.ndarray:
    n = len(images)
    padded = min(batch_size, shards * 2 ** math.ceil(math.log2(max(n / shards, 1))))  # few shapes to compile
    images = np.concatenate([images, np.zeros((padded - n, *images.shape[1:]), images.dtype)])
    return np.asarray(compute(params, prepare(place(images))))[:n]

  def extract(images):
    if isinstance(images, jax.Array):
      return np.asarray(compute(params, prepare(images)))
    return np.concatenate([extract_batch(images[i : i + batch_size]) for i in range(0, len(images), batch_size)])

  return extract


def named_features(
  extract: Extract | None,
  distances: Extract | None,
  needs: set[str],
  variants: Mapping[str, Extract] = {},
  others: Mapping[str, Extract] = {},
) -> NamedExtract:
  """Feeds images once to each network that is needed.

  Args:
    extract: the function that `feature_extractor` returns; with `network_with_spatial` where `needs` has 'spatial'.
    distances: the function that `neighbour_distances` returns, where `needs` has 'lpips'.
    needs: names of features, from `suite.needs`.
    variants: as `extract`, but with another preparation: `pool_truncated` is the features of 'truncated'.
    others: functions of further networks by the names of their features.
  """

  def inception_of(of_images: Extract, images: Any, ending: str = '') -> dict[str, np.ndarray]:
    features = of_images(images)
    width = features.shape[1] - (inception.SPATIAL if 'spatial' in needs else 0)
    named = {f'pool{ending}': features[:, :width], f'spatial{ending}': features[:, width:]}
    return named if 'spatial' in needs else {f'pool{ending}': features}

  def run(images: Any) -> dict[str, np.ndarray]:
    from_file = isinstance(images, np.ndarray)  # 8 bits, which rounding leaves as they are
    images = jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
    found = {}
    if extract is not None:
      found |= inception_of(extract, images)
    for name, of_images in variants.items():
      if name == 'truncated' and from_file:
        found |= {f'{feature}_truncated': found[feature] for feature in ('pool', 'spatial') if feature in found}
      else:
        found |= inception_of(of_images, images, f'_{name}')
    if distances is not None and 'lpips' in needs:
      found['lpips'] = distances(images)
    return found | {name: of_images(images) for name, of_images in others.items()}

  return run


def neighbour_distances(params: Params, *, replicated: jax.sharding.Sharding | None = None) -> Extract:
  """Returns `distances(images)`: LPIPS (AlexNet) of images 0 and 1, 2 and 3, ...

  A pair's distance stands at its first image, and NaN at the second. Images of fewer than 64 pixels a side are
  enlarged to 64, which AlexNet needs.
  """
  params = jax.device_put(params, replicated)

  @functools.partial(jax.jit, out_shardings=replicated)
  def compute(params, images):
    height, width = (max(size, 64) for size in images.shape[1:3])
    images = jax.image.resize(images, (len(images), height, width, images.shape[3]), 'bilinear')
    return lpips(params, images[0::2], images[1::2], network='alexnet')

  def distances(images: Any) -> np.ndarray:
    found = np.full(len(images), np.nan, np.float32)
    pairs = len(images) // 2
    if pairs:
      found[0 : 2 * pairs : 2] = np.asarray(compute(params, jnp.asarray(images)[: 2 * pairs]))
    return found

  return distances
