"""An image's own noise, found by DDIM inversion (samplers/ddim_inversion.py), and the image sampled from it again."""

from jaxgen.generation.edit import IMAGE
from jaxgen.objectives.base import Denoising, SampleFn, decoded, walk_times
from jaxgen.samplers.ddim import ddim
from jaxgen.typing import Array, Cond, Float, Key


def reconstructed(d: Denoising, *, repeats: int = 0) -> SampleFn:
  """cond[IMAGE] to its noise and back, by DDIM without guidance at the walk's times."""
  times, inverse = walk_times(d), d.inverse
  if inverse is None:
    raise ValueError(
      'this model predicts where a path ends, not its direction, so the noise of an image cannot be found; '
      'its images can be edited, inpainted, interpolated, watched and stopped early'
    )

  def sample(params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b']) -> Float[Array, 'b h w c']:
    x0, process = d.encode(frozen, cond[IMAGE]), d.process(params)
    denoise, condition = d.denoiser(params, frozen), d.condition(cond)
    noise = inverse(denoise, process, x0, times, cond=condition, repeats=repeats)
    return decoded(d, frozen, ddim(denoise, process, noise, times, cond=condition))

  return sample
