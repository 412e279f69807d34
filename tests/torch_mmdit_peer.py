"""The train step of a small SD3 transformer by diffusers: the peer of `jaxgen bench mmdit`.

  python tests/torch_mmdit_peer.py BATCH_SIZE

torch and diffusers must be installed. The step is forward, mean squared error of eps, backward, AdamW, EMA.
"""

import copy
import sys
from functools import partial

import torch
from diffusers import SD3Transformer2DModel
from torch_peer import serve


def make_step(batch_size):
  """A function that runs one step."""
  net = SD3Transformer2DModel(
    sample_size=32,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=6,
    attention_head_dim=64,
    num_attention_heads=6,
    joint_attention_dim=512,
    caption_projection_dim=384,
    pooled_projection_dim=512,
    pos_embed_max_size=96,
  )
  average = copy.deepcopy(net).requires_grad_(False)
  net.train()
  optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0)
  x, eps = torch.randn(2, batch_size, 4, 32, 32)
  text, pooled = torch.randn(batch_size, 77, 512), torch.randn(batch_size, 512)
  t = torch.randint(0, 1000, (batch_size,))

  def step():
    out = net(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=t).sample
    loss = ((out - eps) ** 2).mean()
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
