"""Weights, inputs and outputs of EDM's public U-Nets: the numbers in tests/golden/edm_unet.npz.

  python tests/torch_edm_unet.py FOLDER tests/golden/edm_unet.npz

FOLDER is a clone of https://github.com/NVlabs/edm; torch must be installed. Arrays of the state dict are named as
there, under `ddpmpp/` or `ncsnpp/`, in half precision; layers that start near zero are drawn like the others. ADM
cannot be small (its norms have 32 groups): its weights are those of `drawn`, and what is kept is what its
preconditioning says of `adm_x` with noise `adm_sigma`.
"""

import sys
import zlib

import numpy as np

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
ADM = {'img_resolution': 8, 'label_dim': 3, 'model_channels': 128, 'channel_mult': [1, 1], 'num_blocks': 1}


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A tensor that its name says: kernels keep the variance, scales are about 1."""
  draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
  if len(shape) > 1:
    return draw / np.float32(np.sqrt(np.prod(shape[1:])))
  return 0.2 * draw + np.float32(name.endswith('.weight'))


def main(folder: str, path: str) -> None:
  sys.path.insert(0, folder)
  import torch
  from training.networks import EDMPrecond, SongUNet

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
  net = EDMPrecond(img_channels=3, attn_resolutions=[4], **ADM).eval()
  for name, parameter in net.model.named_parameters():
    parameter.data.copy_(torch.from_numpy(drawn(name, tuple(parameter.shape))))
  sigma = torch.tensor([0.05, 1.0, 20.0])
  noisy = x * (0.25 + sigma**2).sqrt()[:, None, None, None]
  with torch.no_grad():
    arrays |= {'adm_x': noisy, 'adm_sigma': sigma, 'adm_out': net(noisy, sigma, labels)}
  np.savez(path, **{name: value.numpy() for name, value in arrays.items()})


if __name__ == '__main__':
  main(*sys.argv[1:])
