"""Uses of a trained model beside sampling from noise; each takes an objective's `denoising`, returns a `GenerationFn`.

from jaxgen.generation.edit import edited                        # an image, with noise and sampled again
from jaxgen.generation.inpaint import inpainted
from jaxgen.generation.interpolate import interpolated
from jaxgen.generation.invert import reconstructed
from jaxgen.generation import gan_latents                        # walks, mixing, truncation and projection of StyleGANs
"""
