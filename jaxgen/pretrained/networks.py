"""Published networks; the class that a folder or file names selects the reader.

load(folder or file), lazily(...) -> Pretrained        save(pretrained, folder)
"""

import json
import os
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from etils import epath

from jaxgen.models.autoencoder import AutoencoderKL
from jaxgen.models.bert import Bert
from jaxgen.models.clip import CLIP, CLIPText, CLIPVision
from jaxgen.models.dinov2 import DINOv2
from jaxgen.models.dit import DiT
from jaxgen.models.mmdit import MMDiT
from jaxgen.models.pixart import PixArt
from jaxgen.models.prior import Prior
from jaxgen.models.qwen3 import Qwen3
from jaxgen.models.t5 import T5Encoder
from jaxgen.models.unclip import EmbeddingProjection
from jaxgen.models.unet import UNet
from jaxgen.models.vq import VQModel
from jaxgen.models.z_image import ZImage
from jaxgen.pretrained import (
  autoencoder,
  bert,
  clip,
  diffusers_unet,
  dinov2,
  dit,
  edm_unet,
  folder,
  layout,
  mmdit,
  mmdit_original,
  pixart,
  prior,
  qwen3,
  safetensors_file,
  t5,
  z_image,
)
from jaxgen.pretrained.layout import Layout, Meta, Pretrained, Put
from jaxgen.typing import Params


@runtime_checkable
class Read(Protocol):
  """Describes the network of a folder's config."""

  def __call__(self, config: folder.Config, *, dtype: Any) -> Layout: ...


# A class name is only looked up in this table: nothing is imported or run because a folder names it.
READERS: dict[str, Read] = {
  **dict.fromkeys(clip.CLASSES, clip.read),
  **dict.fromkeys(t5.CLASSES, t5.read),
  **dict.fromkeys(bert.CLASSES, bert.read),
  **dict.fromkeys(qwen3.CLASSES, qwen3.read),
  **dict.fromkeys(dinov2.CLASSES, dinov2.read),
  **dict.fromkeys(autoencoder.CLASSES, autoencoder.read),
  **dict.fromkeys(diffusers_unet.CLASSES, diffusers_unet.read),
  **dict.fromkeys(dit.CLASSES, dit.read),
  **dict.fromkeys(mmdit.CLASSES, mmdit.read),
  **dict.fromkeys(pixart.CLASSES, pixart.read),
  **dict.fromkeys(prior.CLASSES, prior.read),
  **dict.fromkeys(z_image.CLASSES, z_image.read),
  **dict.fromkeys(prior.PROJECTIONS, prior.read_projection),
  **dict.fromkeys(edm_unet.CLASSES, edm_unet.read),
}
WRITERS: dict[type[nn.Module], Callable[[Any, Params, Meta], Layout]] = {
  CLIPText: clip.write,
  CLIPVision: clip.write,
  CLIP: clip.write,
  T5Encoder: t5.write,
  Bert: bert.write,
  Qwen3: qwen3.write,
  DINOv2: dinov2.write,
  AutoencoderKL: autoencoder.write,
  VQModel: autoencoder.write,
  UNet: diffusers_unet.write,
  DiT: dit.write,
  MMDiT: mmdit.write,
  PixArt: pixart.write,
  Prior: prior.write,
  ZImage: z_image.write,
  EmbeddingProjection: prior.write_projection,
}


def load(path: str | os.PathLike, *, put: Put | None = None, dtype: Any = jnp.float32) -> Pretrained:
  """The network of a folder, or of a file that `jaxgen weights get` stored.

  Args:
    path: path of the folder or file.
    put: `(path in the tree, array) -> leaf`, such as an array sharded over a mesh; float32 on the host by default.
    dtype: dtype of the network's activations.

  Raises:
    FileNotFoundError: there is no such folder or file.
    ValueError: jaxgen has no such network, or the tensors are not its own.
  """
  made = describe(path, dtype=dtype)
  if epath.Path(path).is_dir():
    return layout.load(made, path, put=put)
  return layout.pretrained(made, safetensors_file.lazily(path), source=os.fspath(path), put=put)


def lazily(path: str | os.PathLike, *, dtype: Any = jnp.float32) -> Pretrained:
  """As `load`, but a parameter is read each time an array is made of it, and there is no hash."""
  made = describe(path, dtype=dtype)
  directory = epath.Path(path).is_dir()
  tensors = folder.tensors(path, stem=made.stem) if directory else safetensors_file.lazily(path)
  return layout.lazily(made, tensors, source=os.fspath(path))


def describe(path: str | os.PathLike, *, dtype: Any = jnp.float32) -> Layout:
  """The layout of the network at `path`, without its tensors."""
  if epath.Path(path).is_dir() or epath.Path(path).suffix != '.safetensors':
    config = folder.config(path, classes=tuple(READERS))
  elif mmdit_original.is_mmdit(lazy := safetensors_file.lazily(path), ''):
    return mmdit_original.layout(lazy, dtype=dtype)
  else:
    config = json.loads(safetensors_file.metadata(path).get('config', '{}'))
    if folder.class_of(config) not in READERS:
      raise ValueError(f'{path} does not say what network it is of; give the folder that it is from')
  return READERS[str(folder.class_of(config))](config, dtype=dtype)


def save(it: Pretrained, path: str | os.PathLike) -> str:
  """Writes a folder that `load`, and the library that the layout is of, read; returns the hash of its tensors.

  Raises:
    ValueError: there is no layout for such a network.
  """
  if type(it.net) not in WRITERS:
    raise ValueError(f'{type(it.net).__name__} has no published layout; it can be kept as a checkpoint only')
  return layout.save(WRITERS[type(it.net)](it.net, it.params, it.meta), path, it.params)
