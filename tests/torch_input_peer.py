"""PyTorch's DataLoader on a folder of JPEG files, by Pillow: the peer of `jaxgen bench input`.

  python tests/torch_input_peer.py FOLDER BATCH_SIZE SIZE

torch and Pillow must be installed. As many worker processes as cores; images are cropped as ADM does.
"""

import os
import pathlib
import sys
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch_peer import serve


class Files(torch.utils.data.Dataset):
  def __init__(self, folder, size):
    self.paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg'))
    self.size = size

  def __len__(self):
    return len(self.paths)

  def __getitem__(self, index):
    image, size = Image.open(self.paths[index]).convert('RGB'), self.size
    while min(image.size) >= 2 * size:
      image = image.resize(tuple(side // 2 for side in image.size), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    pixels = pixels[top : top + size, left : left + size].astype(np.float32) / 127.5 - 1
    return torch.from_numpy(pixels)


def make_epoch(folder, batch_size, size):
  """A function that reads an epoch."""
  files, cores = Files(pathlib.Path(folder), int(size)), len(os.sched_getaffinity(0))
  loader = torch.utils.data.DataLoader(
    files, batch_size=int(batch_size), shuffle=True, drop_last=True, num_workers=cores, persistent_workers=True
  )

  def epoch():
    for _ in loader:
      pass

  return epoch


if __name__ == '__main__':
  serve(partial(make_epoch, *sys.argv[1:]))
