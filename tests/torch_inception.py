"""The FID Inception in eager, channels-last PyTorch, as pytorch-fid writes it: what features are timed beside."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

_STRIDED = ('Conv2d_1a_3x3', 'Mixed_6a.branch3x3', 'Mixed_6a.branch3x3dbl_3', 'Mixed_7a.branch3x3_2')
_UNPADDED = (*_STRIDED, 'Conv2d_2a_3x3', 'Conv2d_4a_3x3', 'Mixed_7a.branch7x7x3_4')


class Convolution(nn.Module):
  def __init__(self, name: str, tensors: Mapping[str, np.ndarray]):
    super().__init__()
    out, into, *kernel = tensors[f'{name}.conv.weight'].shape
    stride = 2 if name in (*_STRIDED, 'Mixed_7a.branch7x7x3_4') else 1
    padding = 0 if name in _UNPADDED else [size // 2 for size in kernel]
    self.conv = nn.Conv2d(into, out, kernel, stride, padding, bias=False)
    self.bn = nn.BatchNorm2d(out, eps=1e-3)
    names = ('conv.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var')
    self.load_state_dict({key: torch.tensor(tensors[f'{name}.{key}']) for key in names}, strict=False)

  def forward(self, x):
    return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
  def __init__(self, tensors: Mapping[str, np.ndarray]):
    super().__init__()
    names = [name.removesuffix('.conv.weight') for name in tensors if name.endswith('.conv.weight')]
    self.convolutions = nn.ModuleDict({name.replace('.', '/'): Convolution(name, tensors) for name in names})

  def chain(self, x, block: str, *branches: str):
    for branch in branches:
      x = self.convolutions[f'{block}/{branch}' if block else branch](x)
    return x

  def forward(self, x):
    x = self.chain(x, '', 'Conv2d_1a_3x3', 'Conv2d_2a_3x3', 'Conv2d_2b_3x3')
    x = self.chain(F.max_pool2d(x, 3, 2), '', 'Conv2d_3b_1x1', 'Conv2d_4a_3x3')
    x = F.max_pool2d(x, 3, 2)
    for block in ('Mixed_5b', 'Mixed_5c', 'Mixed_5d'):
      a = self.chain(x, block, 'branch1x1')
      b = self.chain(x, block, 'branch5x5_1', 'branch5x5_2')
      c = self.chain(x, block, 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3')
      x = torch.cat([a, b, c, self.chain(average_pool(x), block, 'branch_pool')], 1)
    a = self.chain(x, 'Mixed_6a', 'branch3x3')
    b = self.chain(x, 'Mixed_6a', 'branch3x3dbl_1', 'branch3x3dbl_2', 'branch3x3dbl_3')
    x = torch.cat([a, b, F.max_pool2d(x, 3, 2)], 1)
    for block in ('Mixed_6b', 'Mixed_6c', 'Mixed_6d', 'Mixed_6e'):
      a = self.chain(x, block, 'branch1x1')
      b = self.chain(x, block, *(f'branch7x7_{i}' for i in range(1, 4)))
      c = self.chain(x, block, *(f'branch7x7dbl_{i}' for i in range(1, 6)))
      x = torch.cat([a, b, c, self.chain(average_pool(x), block, 'branch_pool')], 1)
    a = self.chain(x, 'Mixed_7a', 'branch3x3_1', 'branch3x3_2')
    b = self.chain(x, 'Mixed_7a', *(f'branch7x7x3_{i}' for i in range(1, 5)))
    x = torch.cat([a, b, F.max_pool2d(x, 3, 2)], 1)
    for block in ('Mixed_7b', 'Mixed_7c'):
      b = self.chain(x, block, 'branch3x3_1')
      c = self.chain(x, block, 'branch3x3dbl_1', 'branch3x3dbl_2')
      pooled = average_pool(x) if block == 'Mixed_7b' else F.max_pool2d(x, 3, 1, 1)
      parts = [self.chain(x, block, 'branch1x1')]
      parts += [self.chain(b, block, 'branch3x3_2a'), self.chain(b, block, 'branch3x3_2b')]
      parts += [self.chain(c, block, 'branch3x3dbl_3a'), self.chain(c, block, 'branch3x3dbl_3b')]
      x = torch.cat([*parts, self.chain(pooled, block, 'branch_pool')], 1)
    return x.mean((2, 3))


def average_pool(x):
  return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def build(tensors: Mapping[str, np.ndarray]) -> Inception:
  return Inception(tensors).eval().to(memory_format=torch.channels_last)
