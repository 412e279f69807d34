"""Weights, inputs and outputs of EDM's public U-Nets: the numbers in tests/golden/edm_unet.npz.

  python tests/torch_edm_unet.py FOLDER tests/golden/edm_unet.npz

FOLDER is a clone of https://github.com/NVlabs/edm; torch must be installed. Arrays of the state dict are named as
there, under `ddpmpp/` or `ncsnpp/`, in half precision; layers that start near zero are drawn like the others.
"""

import sys

import numpy as np
import torch

SMALL = {
  'img_resolution': 8,
  'in_channels': 3,
  'out_channels': 3,
  'label_dim': 3,
  'augment_dim': 2,
  'model_channels': 8,
  'channel_mult': [1, 2],
  'num_blocks': 1,
  'attn_resolutions': [4],
}
NCSNPP = {
  'embedding_type': 'fourier',
  'encoder_type': 'residual',
  'channel_mult_noise': 2,
  'resample_filter': [1, 3, 3, 1],
}


def main(folder: str, path: str) -> None:
  sys.path.insert(0, folder)
  from training.networks import SongUNet

  torch.manual_seed(0)
  x, t = torch.randn(3, 3, 8, 8), torch.tensor([-1.5, 0.2, 1.0])
  labels, augment = torch.eye(3)[[0, 2, 1]], torch.randn(3, 2)
  labels[1] = 0  # no label
  arrays = {'x': x, 't': t, 'label': torch.tensor([0, 3, 1]), 'augment': augment}
  for name, options in (('ddpmpp', {}), ('ncsnpp', NCSNPP)):
    net = SongUNet(**SMALL, **options).eval()
    with torch.no_grad():
      for parameter in net.parameters():
        parameter.copy_((0.3 * torch.randn_like(parameter)).half().float())
      for buffer in net.map_noise.buffers():
        buffer.copy_(buffer.half().float())
      arrays[f'{name}_out'] = net(x, t, labels, augment)
    arrays |= {f'{name}/{key}': value.half() for key, value in net.state_dict().items() if 'filter' not in key}
  np.savez(path, **{name: value.numpy() for name, value in arrays.items()})


if __name__ == '__main__':
  main(*sys.argv[1:])
