"""One description of how a network lies in other people's files, for reading and writing alike.

  Layout: the network, where each of its parameters is found, and the configuration beside the tensors.

A module of this folder describes a family: `read(config) -> Layout` from a folder's configuration, and
`write(net, params, meta) -> Layout` for a network to be written. What follows from a layout is here, once: reading,
checking, hashing, casting.
"""

import os
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from jaxgen.models.latents import Scaling
from jaxgen.pretrained import folder, state_dict
from jaxgen.pretrained.state_dict import Leaves, Tensors
from jaxgen.typing import Params

_NOTHING: Mapping[str, Any] = types.MappingProxyType({})
Put = Callable[[str, np.ndarray], Any]  # (path in the tree, array) -> what to put there


class Meta(NamedTuple):
  """What is known of a network beside its parameters.

  Attributes:
    config: the folder's configuration, with what the network does not carry, such as the size of its images.
    hash: hash of the tensors, whatever files they were in.
    scaling: shift and scale of an autoencoder's latents.
    licence: SPDX name, where it is known.
  """

  config: Mapping[str, Any] = _NOTHING
  hash: str = ''
  scaling: Scaling | None = None
  licence: str = ''


class Pretrained(NamedTuple):
  """One network with its parameters."""

  net: nn.Module
  params: Params
  meta: Meta = Meta()


def _same(tensors: Tensors) -> Tensors:
  return tensors


class Layout(NamedTuple):
  """How a network lies in a folder or file.

  Attributes:
    net: the network.
    leaves: where each parameter is found.
    config: config.json; its class is what readers know the folder by.
    stem: name of the file of tensors, without its ending.
    own: the tensors of a file that are the network's, under the names of `leaves`: older names and buffers end here.
    fixed: tensors that the network computes itself: checked where a file has them, written where one is saved.
    scaling: shift and scale of an autoencoder's latents.
  """

  net: nn.Module
  leaves: Leaves
  config: folder.Config
  stem: str = folder.STEM
  own: Callable[[Tensors], Tensors] = _same
  fixed: Mapping[str, np.ndarray] = _NOTHING
  scaling: Scaling | None = None


def pretrained(layout: Layout, tensors: Tensors, *, source: str, put: Put | None = None) -> Pretrained:
  """The network of a layout with the tensors of a file.

  Args:
    layout: of the network.
    tensors: of the file.
    source: what the tensors are, for messages.
    put: what to put in the tree for an array, such as one sharded over a mesh; float32 arrays without it. It is called
      by several threads; memory holds few parameters beside those that it keeps.

  Raises:
    ValueError: every tensor that is missing, unexpected, misshapen or not the fixed one is listed.
  """
  own = layout.own(tensors)
  _check_fixed(own, layout.fixed, source)
  hashed = folder.Hashed({name: tensor for name, tensor in own.items() if name not in layout.fixed})
  params = state_dict.to_flax(layout.leaves, hashed.tensors, network=source, put=put or _float32)
  return Pretrained(layout.net, params, Meta(layout.config, hashed.digest(), layout.scaling))


def lazily(layout: Layout, tensors: Tensors, *, source: str) -> Pretrained:
  """As `pretrained`, with parameters that are read from the file whenever an array is made of them, and no hash."""
  own = layout.own(tensors)
  _check_fixed(own, layout.fixed, source)
  kept = {name: tensor for name, tensor in own.items() if name not in layout.fixed}
  params = state_dict.lazily(layout.leaves, kept, network=source)
  return Pretrained(layout.net, params, Meta(layout.config, scaling=layout.scaling))


def load(layout: Layout, path: str | os.PathLike, *, put: Put | None = None) -> Pretrained:
  """The network of a layout from its folder; see `pretrained`."""
  return pretrained(layout, folder.tensors(path, stem=layout.stem), source=os.fspath(path), put=put)


def tensors(layout: Layout, params: Params) -> dict[str, np.ndarray]:
  """The state dict of a network's parameters; the inverse of `pretrained`."""
  return state_dict.to_torch(layout.leaves, params) | dict(layout.fixed)


def save(layout: Layout, path: str | os.PathLike, params: Params) -> str:
  """Writes the folder of a layout; returns the hash of its tensors."""
  made = state_dict.to_torch(layout.leaves, params)
  folder.write(path, layout.config, made | dict(layout.fixed), stem=layout.stem)
  return folder.Hashed(made).digest()


def _float32(path: str, array: np.ndarray) -> np.ndarray:
  return np.asarray(array, np.float32)


def _check_fixed(tensors: Tensors, fixed: Mapping[str, np.ndarray], source: str) -> None:
  for name, wanted in fixed.items():
    if name not in tensors:
      continue
    found = np.asarray(tensors[name])
    if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=0, atol=1e-5):
      raise ValueError(f'{source}: {name} is not the fixed one that this network computes with')
