"""Images from a trained generator, in batches over the mesh.

Image i of a set is a function of (params, cond_i, seed, i) alone: its key is fold_in(key(seed), i). So neither the
batch size nor the number of devices or processes changes it, beyond floating-point reassociation.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import sharding
from jaxgen.objectives.base import GenerationFn
from jaxgen.typing import Array, Float, UInt8


@runtime_checkable
class Generate(Protocol):
  """Makes images in batches, from image `first` on: yields `(images, count)`, of which the first `count` are valid."""

  def __call__(
    self, params: Any, frozen: Any, cond: Mapping[str, np.ndarray], *, seed: int, num: int, first: int = 0
  ) -> Iterator[tuple[Array, int]]: ...


@runtime_checkable
class GenerateFrom(Protocol):
  """A `Generate` that also takes inputs, such as an image to edit, and can make some images only."""

  def __call__(
    self,
    params: Any,
    frozen: Any,
    cond: Mapping[str, np.ndarray],
    *,
    seed: int,
    num: int,
    inputs: Mapping[str, np.ndarray] = {},
    first: int = 0,
    only: Sequence[int] | None = None,
  ) -> Iterator[tuple[Array, int]]: ...


def make_generate(sample: GenerationFn, *, mesh: jax.sharding.Mesh, batch_size: int) -> GenerateFrom:
  """Returns `generate(params, frozen, cond, *, seed, num, ...)`, a GenerateFrom, compiled once for its batch size.

  Args:
    sample: an objective's, `(params, frozen, cond, keys) -> images`, or one of generation/.
    mesh: mesh; the batch is sharded over its `data` and `fsdp` axes.
    batch_size: images at a time.

  `generate` takes `cond`, and `inputs` for a sample that wants more (an image to edit), as host arrays of `num` rows
  each, on every process, and yields `(images, count)`: float images of the full batch, sharded over the mesh, of which
  the first `count` are valid (the last batch is padded). Images before `first` are left out; with `only`, these images
  of the `num` are made, in this order.
  """
  sharding.check_batch_size(batch_size, mesh)
  place = sharding.batch_sharding(mesh)
  run = sampler(sample, mesh=mesh)

  def generate(
    params: Any,
    frozen: Any,
    cond: Mapping[str, np.ndarray],
    *,
    seed: int,
    num: int,
    inputs: Mapping[str, np.ndarray] = {},
    first: int = 0,
    only: Sequence[int] | None = None,
  ) -> Iterator[tuple[Array, int]]:
    root = jax.random.key(seed)
    end = num if only is None else len(only)
    for begin in range(first, end, batch_size):
      indices = np.arange(begin, begin + batch_size)
      if only is not None:
        indices = np.asarray(only)[np.minimum(indices, end - 1)]
      rows = np.minimum(indices, num - 1)
      cond_rows, input_rows = (
        {name: placed(np.asarray(values)[rows], place) for name, values in fields.items()} for fields in (cond, inputs)
      )
      images = run(params, frozen, cond_rows, root, placed(indices.astype(np.int32), place), input_rows)
      yield images, min(batch_size, end - begin)

  return generate


def sampler(sample: GenerationFn, *, mesh: jax.sharding.Mesh) -> Any:
  """The jitted `(params, frozen, cond, root, indices, inputs) -> images`, a batch sharded over the mesh."""
  place = sharding.batch_sharding(mesh)

  def run(params, frozen, cond, root, indices, inputs):
    keys = jax.vmap(lambda index: jax.random.fold_in(root, index))(indices)
    images = sample(params, frozen, cond, keys, **inputs)
    return jax.lax.with_sharding_constraint(images, place)

  return jax.jit(sharding.under(mesh, run))


def placed(values: np.ndarray, place: jax.sharding.Sharding) -> Array:
  """The host array that every process has, as one array over the mesh."""
  return jax.make_array_from_callback(values.shape, place, lambda index: values[index])


def to_uint8(images: Float[Array, 'b h w c']) -> UInt8[Array, 'b h w c']:
  """[-1, 1] to 0..255, rounded, as files hold images."""
  return jnp.clip(jnp.round((images + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def to_host(images: Float[Array, 'b h w c'], mesh: jax.sharding.Mesh) -> UInt8[np.ndarray, 'b h w c']:
  """A sharded batch of images as uint8 on every process."""
  return np.asarray(jax.jit(to_uint8, out_shardings=sharding.replicated(mesh))(images))
