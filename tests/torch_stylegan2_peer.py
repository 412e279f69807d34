"""16 train steps of the public PyTorch StyleGAN2 at a time, for `jaxgen bench stylegan2 --peer FOLDER`.

  python tests/torch_stylegan2_peer.py FOLDER BATCH_SIZE MAX_FEATURES

FOLDER is a clone of https://github.com/NVlabs/stylegan2-ada-pytorch; torch and requests must be installed. Networks and
losses are the clone's own, and the order of things is that of its training_loop.py: latents, the phases that are due
(path lengths every 4 steps, R1 every 16) with gradients of one network at a time, nan_to_num, lazy Adam, EMA; without
labels, ADA, logs or a data loader, in float32.

On a CPU that code takes its reference upfirdn2d (depthwise convolutions) and bias_act, not its CUDA kernels, and
activations are channels first: it was written for GPUs, and nobody made it fast here. Its path length mixes styles,
jaxgen's does not: eight layers of the mapping more for 8 images in 4 steps. Nothing else differs in the work asked for.
"""

import copy
import sys
from functools import partial
from typing import NamedTuple

import torch
from torch_peer import serve

R1, PATH_LENGTH = 16, 4
RESOLUTION = 32
HALF_LIFE, RAMP = 5_000, 0.05


class Phase(NamedTuple):
  name: str
  net: torch.nn.Module
  optimizer: torch.optim.Optimizer
  every: int


def lazy_adam(net, every):
  ratio = every / (every + 1)
  return torch.optim.Adam(net.parameters(), lr=0.0025 * ratio, betas=(0.0, 0.99**ratio), eps=1e-8)


def make_cycle(folder, batch_size, max_features):
  """A function that runs 16 steps."""
  sys.path.insert(0, folder)
  from training.loss import StyleGAN2Loss
  from training.networks import Discriminator, Generator

  shape = {'c_dim': 0, 'img_resolution': RESOLUTION, 'img_channels': 3}
  generator = Generator(z_dim=512, w_dim=512, synthesis_kwargs={'channel_max': max_features}, **shape)
  discriminator = Discriminator(channel_max=max_features, epilogue_kwargs={'mbstd_group_size': 4}, **shape)
  for net in (generator, discriminator):
    net.train().requires_grad_(False)
  average = copy.deepcopy(generator).eval()
  loss = StyleGAN2Loss(
    device=torch.device('cpu'),
    G_mapping=generator.mapping,
    G_synthesis=generator.synthesis,
    D=discriminator,
    r1_gamma=0.0002 * RESOLUTION**2 / batch_size,
  )
  g_adam, d_adam = lazy_adam(generator, PATH_LENGTH), lazy_adam(discriminator, R1)
  phases = (
    Phase('Gmain', generator, g_adam, 1),
    Phase('Greg', generator, g_adam, PATH_LENGTH),
    Phase('Dmain', discriminator, d_adam, 1),
    Phase('Dreg', discriminator, d_adam, R1),
  )
  real, label = torch.rand(batch_size, 3, RESOLUTION, RESOLUTION) * 2 - 1, torch.zeros(batch_size, 0)
  steps = 0

  def step():
    nonlocal steps
    latents = torch.randn(len(phases) * batch_size, 512).split(batch_size)
    for phase, z in zip(phases, latents, strict=True):
      if steps % phase.every == 0:
        run_phase(loss, phase, real_img=real, real_c=label, gen_z=z, gen_c=label)
    seen = min(HALF_LIFE, steps * batch_size * RAMP)
    update_average(average, generator, 0.5 ** (batch_size / max(seen, 1e-8)))
    steps += 1

  def cycle():
    for _ in range(R1):
      step()

  return cycle


def run_phase(loss, phase, **batch):
  phase.optimizer.zero_grad(set_to_none=True)
  phase.net.requires_grad_(True)
  loss.accumulate_gradients(phase=phase.name, sync=True, gain=phase.every, **batch)
  phase.net.requires_grad_(False)
  for parameter in phase.net.parameters():
    if parameter.grad is not None:
      torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
  phase.optimizer.step()


@torch.no_grad()
def update_average(average, net, decay):
  for mean, parameter in zip(average.parameters(), net.parameters(), strict=True):
    mean.copy_(parameter.lerp(mean, decay))
  for mean, buffer in zip(average.buffers(), net.buffers(), strict=True):
    mean.copy_(buffer)


if __name__ == '__main__':
  serve(partial(make_cycle, sys.argv[1], *map(int, sys.argv[2:])))
