"""Features of many images: sharded over the devices, gathered on every process."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxgen.metrics import inception
from jaxgen.typing import Array, Params

Extract = Callable[[Float[Array, 'b h w 3'] | Float[np.ndarray, 'b h w 3']], Float[np.ndarray, 'b d']]


def feature_extractor(
  params: Params,
  *,
  batch_size: int,
  resize: inception.Resize = inception.tf1_bilinear,
  batch_sharding: jax.sharding.Sharding | None = None,
  replicated: jax.sharding.Sharding | None = None,
) -> Extract:
  """Returns `extract(images)`: float32 Inception features, on every process, of images in [-1, 1].

  Args:
    params: of `inception.load()`; they are placed once.
    batch_size: host arrays are cut into batches of this many images. A global array is one batch.
    batch_sharding, replicated: of `jaxgen.sharding`, for more than one device. A host array must then be the
      same on every process.

  Each image's features are its own: neither the batch, nor its padding, nor the devices change them beyond
  floating-point reassociation. The network is compiled for few shapes only, whatever sizes the images have.
  """
  shards = 1
  if batch_sharding is not None:
    shards = batch_size // batch_sharding.shard_shape((batch_size,))[0]
  params = jax.device_put(params, replicated)
  prepare = jax.jit(functools.partial(inception.prepare, resize=resize), out_shardings=batch_sharding)
  compute = jax.jit(inception.network, out_shardings=replicated, compiler_options=inception.compiler_options())

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
