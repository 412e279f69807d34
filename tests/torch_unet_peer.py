"""The train step of DDPM's U-Net of CIFAR-10, half as wide, by diffusers: the peer of `jaxgen bench unet-cifar10`.

  python tests/torch_unet_peer.py BATCH_SIZE

torch and diffusers must be installed. The images and weights are channels last; the step is forward, mean squared error
of eps, backward, Adam, EMA.
"""

import copy
import sys
from functools import partial

import torch
from torch_peer import serve


def import_unet():
  """diffusers' U-Net. It imports torchvision, where there is one, whose operators may not fit a CPU build of torch."""
  try:
    import torchvision  # noqa: F401
  except ModuleNotFoundError:
    pass  # diffusers does without
  except RuntimeError:
    library = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
      library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    for name in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
      del sys.modules[name]
  from diffusers import UNet2DModel  # here, while the library lives

  return UNet2DModel


def make_step(batch_size):
  """A function that runs one step."""
  down = ('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D', 'DownBlock2D')
  net = import_unet()(
    sample_size=32,
    block_out_channels=(64, 128, 128, 128),
    down_block_types=down,
    up_block_types=('UpBlock2D', 'UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
    downsample_padding=0,
    attention_head_dim=None,
    norm_eps=1e-6,
    flip_sin_to_cos=False,
    freq_shift=1,
  ).to(memory_format=torch.channels_last)
  average = copy.deepcopy(net).requires_grad_(False)
  net.train()
  optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)
  x, eps = (a.contiguous(memory_format=torch.channels_last) for a in torch.randn(2, batch_size, 3, 32, 32))
  t = torch.randint(0, 1000, (batch_size,))

  def step():
    loss = ((net(x, t).sample - eps) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
      for mean, parameter in zip(average.parameters(), net.parameters(), strict=True):
        mean.mul_(0.9999).add_(parameter, alpha=1 - 0.9999)
    return loss.item()

  return step


if __name__ == '__main__':
  serve(partial(make_step, int(sys.argv[1])))
