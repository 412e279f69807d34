"""Checkpoints of one network as its original code saves them: DiT's, SiT's and REPA's, IDDPM's and ADM's.

  DiT-XL-2-256x256.pt           a state dict
  checkpoints/0100000.pt        what train.py saves: {'model', 'ema', 'opt', 'args'}
  256x256_diffusion.pt          ADM's

Such a file does not say what network it is of; the one that a run trains says how it is read (init_from.py).
"""

import os
import pathlib

import flax.linen as nn
import numpy as np

from jaxgen.models.dit import DiT
from jaxgen.models.unet import UNet
from jaxgen.pretrained import dit, layout, torch_file, unet
from jaxgen.pretrained.layout import Layout
from jaxgen.typing import Params

ENDINGS = ('.pt', '.pth')
_TABLE, _LAST = 'y_embedder.embedding_table.weight', 'final_layer.linear.weight'


def is_file(path: str | os.PathLike) -> bool:
  """Whether a path has the ending of such a file."""
  return pathlib.PurePath(path).suffix in ENDINGS


def params_like(path: str | os.PathLike, net: nn.Module, params: Params, *, part: str | None = None) -> Params:
  """The parameters of a file, with the classes and channels that it has.

  Args:
    path: the file; nothing in it is run.
    net: the network that a run trains.
    params: its parameters, for the number of channels.
    part: entry of the file, such as 'ema' or 'model'; by default the one to sample with.

  Raises:
    ValueError: there is no such part, the file is of another network, or the original code has none like `net`.
  """
  tensors = torch_file.state_dict(path, part=part)
  return layout.pretrained(_described(net, params, tensors), tensors, source=os.fspath(path)).params


def _described(net: nn.Module, params: Params, tensors: dict[str, np.ndarray]) -> Layout:
  if isinstance(net, DiT):
    if _TABLE in tensors:
      net = net.clone(num_classes=len(tensors[_TABLE]) - 1)
    channels = params['patch_embed']['kernel'].shape[0] // net.patch**2
    if _LAST in tensors:
      net = net.clone(learn_sigma=len(tensors[_LAST]) == 2 * channels * net.patch**2)
    tokens = tensors[dit.POSITIONS].shape[1] if dit.POSITIONS in tensors else 1
    side = round(tokens**0.5) * net.patch
    return dit.original(net, image_shape=(side, side, channels))
  if isinstance(net, UNet) and not (net.transformer or net.joined):
    return unet.original(net, channels=params['conv_in']['kernel'].shape[-2])
  raise ValueError(
    f'files of the original code are read for DiT and for U-Nets without text, and this run trains '
    f'{type(net).__name__}; give a folder (`jaxgen weights convert` makes them)'
  )
