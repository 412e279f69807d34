"""Sampling that ends early, in the x0 that the network predicts there."""

from jaxgen.objectives.base import Denoising, walk_of
from jaxgen.samplers import grids


def stopped(d: Denoising, at: float) -> Denoising:
  """Ends at the time `at`, in x0 as the network predicts it there."""
  walk = walk_of(d)
  sampler = d.sampler._replace(times=grids.stopped(d.sampler.times, at))
  return d._replace(sampler=sampler, walk=walk._replace(times=grids.stopped(walk.times, at)))
