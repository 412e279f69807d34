"""An image's own noise, found by DDIM inversion (samplers/ddim_inversion.py), and the image sampled from it again."""

from jaxgen.objectives.base import Denoising, EditFn, decoded, split_keys, walk_of
from jaxgen.samplers.ddim import ddim
from jaxgen.typing import Array, Cond, Float, Key


def reconstructed(d: Denoising, *, repeats: int = 0) -> EditFn:
  """`(params, frozen, cond, keys, *, image) -> images`: inverts to noise and samples again, by DDIM without guidance,
  at the walk's times."""
  (_, times), inverse = walk_of(d), d.inverse
  if inverse is None:
    raise ValueError(
      'this model predicts where a path ends, not its direction, so the noise of an image cannot be found; '
      'its images can be edited, inpainted, interpolated, watched and stopped early'
    )

  def sample(
    params: dict, frozen: dict, cond: Cond, keys: Key[Array, ' b'], *, image: Float[Array, 'b h w c']
  ) -> Float[Array, 'b h w c']:
    x0, process, denoise = d.encode(frozen, image), d.process(params), d.denoiser(params, frozen)
    encoded, _ = d.condition(params, frozen, cond, split_keys(keys)[2])
    noise = inverse(denoise, process, x0, times, cond=encoded, repeats=repeats)
    return decoded(d, frozen, ddim(denoise, process, noise, times, cond=encoded))

  return sample
