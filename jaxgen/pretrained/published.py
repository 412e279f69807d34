"""Published weights: networks, and whole generators.

load(folder or file) -> Pretrained | Pipeline        save(it, folder)        objective_of(pipeline): text_to_image.py
"""

import os
from typing import Any

import jax.numpy as jnp
from etils import epath

from jaxgen.pretrained import hub, networks, pipeline, single_file
from jaxgen.pretrained.layout import Pretrained, Put
from jaxgen.pretrained.pipeline import Pipeline


def load(path: str | os.PathLike, *, put: Put | None = None, dtype: Any = jnp.float32) -> Pretrained | Pipeline:
  """The network or the generator of a folder or file.

  Args:
    path: path of a folder of diffusers or transformers, of a file that `jaxgen weights get` stored, or of a
      single-file checkpoint of Stable Diffusion; or the name of a model that `jaxgen weights get` fetched.
    put: `(path in the tree, array) -> leaf`, such as an array sharded over a mesh; by default float32 on the host. It
      applies to single networks; the parameters of a generator are read when they are used.
    dtype: dtype of the networks' activations.

  Raises:
    FileNotFoundError: there is no such folder or file, or a part of it is missing.
    ValueError: jaxgen has no such network or generator, or the tensors are not its own.
  """
  path = hub.resolved(path)
  if (epath.Path(path) / pipeline.INDEX).exists():
    return pipeline.load(path, dtype=dtype)
  if single_file.is_checkpoint(path):
    return single_file.load(path, dtype=dtype)
  return networks.load(path, put=put, dtype=dtype)


def lazily(path: str | os.PathLike, *, dtype: Any = jnp.float32) -> Pretrained | Pipeline:
  """As `load`, but the parameters of a single network, too, are read when they are used; there is no hash then."""
  path = hub.resolved(path)
  if (epath.Path(path) / pipeline.INDEX).exists() or single_file.is_checkpoint(path):
    return load(path, dtype=dtype)
  return networks.lazily(path, dtype=dtype)


def save(it: Pretrained | Pipeline, path: str | os.PathLike) -> None:
  """Writes a folder that `load`, and the library that the layout is of, read.

  Raises:
    ValueError: there is no layout for such a network.
  """
  if isinstance(it, Pipeline):
    pipeline.save(it, path)
  else:
    networks.save(it, path)
