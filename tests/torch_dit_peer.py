"""The train step of the public PyTorch DiT-S/4, one at a time, for `jaxgen bench dit-s4 --peer FOLDER`.

  python tests/torch_dit_peer.py FOLDER BATCH_SIZE

FOLDER is a clone of https://github.com/facebookresearch/DiT; torch and timm must be installed. The step is that of
its train.py: forward, mean squared error of eps, backward, AdamW, EMA.
"""

import copy
import sys
from functools import partial

import torch
from torch_peer import serve


def import_models(folder):
  """The clone's models.py. timm imports torchvision, whose compiled operators may not fit a CPU build of torch."""
  sys.path.insert(0, folder)
  try:
    import models
  except RuntimeError:
    library = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
      library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    for name in [name for name in sys.modules if name.split('.')[0] in ('torchvision', 'timm')]:
      del sys.modules[name]
    import models
  return models


def make_step(folder, batch_size):
  """A function that runs one step."""
  net = import_models(folder).DiT_models['DiT-S/4'](input_size=32, num_classes=1000)
  average = copy.deepcopy(net).requires_grad_(False)
  net.train()
  optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0)
  x, eps = torch.randn(2, batch_size, 4, 32, 32)
  t, y = torch.randint(0, 1000, (2, batch_size))

  def step():
    loss = ((net(x, t, y)[:, :4] - eps) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
      params = dict(net.named_parameters())
      for name, mean in average.named_parameters():
        mean.mul_(0.9999).add_(params[name], alpha=1 - 0.9999)
    return loss.item()

  return step


if __name__ == '__main__':
  serve(partial(make_step, sys.argv[1], int(sys.argv[2])))
