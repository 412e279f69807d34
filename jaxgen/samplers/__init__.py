"""Samplers: solvers, one step rule a file, grids of times, and guidance, which makes a denoiser of a denoiser.

from jaxgen.samplers import grids
from jaxgen.samplers.euler import euler                          # or ddim, dpm_solver, unipc, heun, edm, ddpm, ...
from jaxgen.samplers.guidance import classifier_free
from jaxgen.samplers.sampler import Sampler
sampler = Sampler(euler, grids.uniform(50))

A solver is `(denoise, process, x, times, *, cond, keys) -> x0`, for any function that denoises.
"""
