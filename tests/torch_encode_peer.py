"""Stable Diffusion's autoencoder encodes, by diffusers: the peer of `jaxgen bench encode`.

  python tests/torch_encode_peer.py BATCH_SIZE SIZE

torch and diffusers must be installed. The images and weights are channels last.
"""

import importlib.util
import sys
from functools import partial

import torch
from torch_peer import serve

# Beside a CPU's torch torchvision may not load, and diffusers needs none of it.
_find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name.split('.')[0] == 'torchvision' else _find(name, *args)

from diffusers import AutoencoderKL  # noqa: E402


def make_encode(batch_size, size):
  """A function that encodes a batch."""
  net = AutoencoderKL(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=('DownEncoderBlock2D',) * 4,
    up_block_types=('UpDecoderBlock2D',) * 4,
    layers_per_block=2,
    latent_channels=4,
  )
  net = net.eval().to(memory_format=torch.channels_last)
  x = (2 * torch.rand(batch_size, 3, size, size) - 1).contiguous(memory_format=torch.channels_last)

  @torch.inference_mode()
  def encode():
    gaussian = net.encode(x).latent_dist
    return gaussian.mean, gaussian.std

  return encode


if __name__ == '__main__':
  serve(partial(make_encode, *map(int, sys.argv[1:])))
