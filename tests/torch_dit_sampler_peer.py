"""DDIM sampling from the public PyTorch DiT-S/4 by its own loop, for `jaxgen bench sampler --peer FOLDER`.

  python tests/torch_dit_sampler_peer.py FOLDER BATCH_SIZE STEPS

FOLDER is a clone of https://github.com/facebookresearch/DiT; torch and timm must be installed. The loop is that of its
diffusion/gaussian_diffusion.py, respaced to STEPS of 1,000, without guidance and without clipping.
"""

import sys
from functools import partial

import torch
from torch_dit_peer import import_models
from torch_peer import serve


def make_run(folder, batch_size, steps):
  """A function that samples once."""
  net = import_models(folder).DiT_models['DiT-S/4'](input_size=32, num_classes=1000).eval()
  from diffusion import create_diffusion

  process, y = create_diffusion(f'ddim{steps}'), torch.zeros(batch_size, dtype=torch.long)

  @torch.no_grad()
  def run():
    x = torch.randn(batch_size, 4, 32, 32)
    return process.ddim_sample_loop(net, x.shape, x, clip_denoised=False, model_kwargs={'y': y}, device='cpu')

  return run


if __name__ == '__main__':
  serve(partial(make_run, sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
