"""Processes that corrupt data, and what a network may predict about them: x_t = alpha(t) x0 + sigma(t) eps.

from jaxgen.processes.rectified_flow import rectified_flow      # or vp.vp_cosine, edm.edm, trig_flow.trig_flow
from jaxgen.processes import parameterisation, times, weighting

t = 0 is data and t = 1 is noise. A process is a pair of functions, `process.Process(alpha, sigma, ...)`.
"""
