"""emoji_vae with a codebook: a VQGAN whose images are 8x8 grids of 256 codes.

  jaxgen weights get lpips                                    # once
  jaxgen train --config emoji_vqgan                           # leaves the VQModel in runs/emoji_vqgan/autoencoder

The same hardware. The codebook is a moving average; codes that nothing chooses take vectors of the images
(objectives/autoencoder/quantize.py).

Result, seed 0, two CPU cores, 39 minutes beside other programs: of held-out images PSNR 21.2, SSIM 0.674, LPIPS 0.033
(by AlexNet, which it learned from), 98% of the codes used, perplexity 147; rfid_128 145.0. On emoji64, 300 steps of
batch 8 of a model twice as wide with VGG in LPIPS, the adversary from step 150 on, use 97% of the codes at PSNR 21.0.
"""

from ml_collections import ConfigDict

from jaxgen.config_parts import autoencoder_experiment, loader
from jaxgen.data.sources import train_and_test
from jaxgen.evaluators.reconstruction import CODES
from jaxgen.experiment import Experiment
from jaxgen.models.patchgan import PatchGAN
from jaxgen.models.vq import VQModel
from jaxgen.objectives.autoencoder.autoencoder import Adversary, autoencoder
from jaxgen.objectives.autoencoder.quantize import moving_codebook


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
      'model': {'multipliers': (1, 2, 4), 'latent': 4, 'width': 16, 'blocks': 1, 'groups': 8, 'codes': 256},
      'codebook': {'commitment': 0.25, 'decay': 0.99, 'revive': 0.1},
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
  channels = data.spec['image'].shape[-1]
  net, a = VQModel(channels=channels, **c.model), c.adversary
  objective = autoencoder(
    net,
    moving_codebook(**c.codebook),
    perceptual=c.perceptual,
    judge=c.judge,
    adversary=Adversary(PatchGAN(width=a.width, layers=a.layers), weight=a.weight, start=a.start),
  )
  return autoencoder_experiment(c, objective, net, data, held_out=held_out, latents=CODES)
