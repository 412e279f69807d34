"""One description of how a network is stored in other people's files, for reading and for writing.

  Layout: the network, where each of its parameters is found, and the configuration beside the tensors.

A module of this folder describes a family: `read(config) -> Layout` from a folder's configuration, and
`write(net, params, meta) -> Layout` for a network to be written. Reading, checking, hashing and casting by a layout are
done here, once for all.
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
  """Facts about a network beside its parameters.

  Attributes:
    config: the folder's configuration, with what the network does not carry, such as the size of its images.
    hash: hash of the tensors, whatever files they were in.
    scaling: shift and scale of an autoencoder's latents.
    licence: SPDX name, if known.
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
  """How a network is stored in a folder or file.

  Attributes:
    net: the network.
    leaves: where each parameter is stored.
    config: config.json, whose class selects the reader.
    stem: name of the file of tensors, without its ending.
    own: selects the network's tensors from a file's and gives them the names of `leaves`; drops buffers.
    fixed: tensors that the network computes itself; they are checked on reading and written on saving.
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
    layout: layout of the network.
    tensors: tensors of the file.
    source: name of the file, for messages.
    put: `(path in the tree, array) -> leaf`, such as an array sharded over a mesh; float32 on the host by default.
      Several threads call it; few parameters are in memory beside those that it returns.

  Raises:
    ValueError: every tensor that is missing, unexpected, misshapen or not the fixed one is listed.
  """
  own = layout.own(tensors)
  _check_fixed(own, layout.fixed, source)
  hashed = folder.Hashed({name: tensor for name, tensor in own.items() if name not in layout.fixed})
  params = state_dict.to_flax(layout.leaves, hashed.tensors, network=source, put=put or _float32)
  return Pretrained(layout.net, params, Meta(layout.config, hashed.digest(), layout.scaling))


def lazily(layout: Layout, tensors: Tensors, *, source: str) -> Pretrained:
  """As `pretrained`, but a parameter is read each time an array is made of it, and there is no hash."""
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
