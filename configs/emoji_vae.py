"""An AutoencoderKL learns the emoji at 32x32: 8x8 latents of 4 channels, for emoji_ldm and emoji_latent_dit.

  jaxgen weights get lpips                                    # once
  jaxgen train --config emoji_vae                             # leaves the autoencoder in runs/emoji_vae/autoencoder
  jaxgen data encode --data emoji32 --autoencoder runs/emoji_vae/autoencoder

Rombach et al. 2022 in small: absolute error, LPIPS, a faint KL, and a PatchGAN from half of the run on.

Result, seed 0, two CPU cores, 54 minutes beside other programs: of held-out images PSNR 23.1, SSIM 0.749, LPIPS
0.022 (by AlexNet, which it learned from); rfid_128 131.5, of 128 images against the 147 held out. Outlines, colours and
faces come back, small marks are blurred.
"""

from ml_collections import ConfigDict

from jaxgen.config_parts import autoencoder_experiment, loader
from jaxgen.data.sources import train_and_test
from jaxgen.evaluators.reconstruction import GAUSSIAN
from jaxgen.experiment import Experiment
from jaxgen.models.autoencoder import AutoencoderKL
from jaxgen.models.patchgan import PatchGAN
from jaxgen.objectives.autoencoder.autoencoder import Adversary, autoencoder
from jaxgen.objectives.autoencoder.quantize import gaussian


def get_config() -> ConfigDict:
  return ConfigDict(
    {
      'seed': 0,
      'dataset': 'emoji32',  # or folder:PATH, ...: jaxgen/data/sources.py
      'resolution': 0,  # side of the images; 0 for images as they are
      'flip': True,
      'steps': 1500,
      'batch_size': 32,
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1},
      'model': {'multipliers': (1, 2, 4), 'latent': 4, 'width': 16, 'blocks': 1, 'groups': 8},
      'kl': 1e-3,
      'perceptual': 0.5,
      'judge': 'alexnet',  # LPIPS's network; 'vgg16' is the usual one, and would cost more than all the rest
      'adversary': {'width': 32, 'layers': 2, 'weight': 0.3, 'start': 750},
      'learning_rate': 1e-3,
      'ema': 0.995,
      'clip_norm': 1.0,
      'images': {'every': 250, 'num': 128, 'batch_size': 16},
      'fid': {'every': 1500, 'num_samples': 128, 'batch_size': 16},  # num_samples=0 for none
      'log_every': 25,
      'checkpoint': {'every': 250, 'keep': 2},
    }
  )


def build(c: ConfigDict) -> Experiment:
  dataset, held_out = train_and_test(c.dataset, resolution=c.resolution)
  data = loader(c, dataset)
  side, _, channels = data.spec['image'].shape[1:]
  net, a = AutoencoderKL(channels=channels, **c.model), c.adversary
  objective = autoencoder(
    net,
    gaussian(c.kl, side=side // 2 ** (len(c.model.multipliers) - 1)),
    perceptual=c.perceptual,
    judge=c.judge,
    adversary=Adversary(PatchGAN(width=a.width, layers=a.layers), weight=a.weight, start=a.start),
  )
  return autoencoder_experiment(c, objective, net, data, held_out=held_out, latents=GAUSSIAN)
