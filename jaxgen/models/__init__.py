"""Networks: Flax modules and nothing else, called `net(x, t, cond, *, train)`; images are NHWC.

from jaxgen.models.dit import DiT                                # or mmdit.MMDiT, unet.UNet, edm_unet.EDMUNet
from jaxgen.models.stylegan2 import stylegan2_generator          # or dcgan, progan, r3gan
from jaxgen.models.autoencoder import AutoencoderKL              # or vq.VQModel
from jaxgen.models.clip import CLIPText                          # or t5.T5Encoder, bert.Bert, text_encoder.TextEncoder
"""
