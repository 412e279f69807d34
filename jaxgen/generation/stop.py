"""Sampling that ends early, in the x0 that the network predicts there."""

from functools import partial

from jaxgen.objectives.base import Denoising, sampler_times, walk_times
from jaxgen.samplers import grids


def stopped(d: Denoising, at: float) -> Denoising:
  """Ends at the time `at`, in x0 as the network predicts it there."""
  sampler, times = partial(d.sampler, times=grids.stopped(sampler_times(d), at)), grids.stopped(walk_times(d), at)
  return d._replace(sampler=sampler, walk_times=times)
