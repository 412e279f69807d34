"""Rectified flow: a straight line from data to noise (Liu et al. 2022; Lipman et al. 2022; SD3, Esser et al. 2024).

  (1)  alpha(t) = 1 - t,  sigma(t) = t;  the velocity d x_t/dt = eps - x0 does not depend on t.

Differs from Liu et al. and JiT: their t runs from noise to data, and their velocity is x0 - eps.
"""

from jaxgen.processes.process import Process


def rectified_flow(*, time_scale: float = 1000.0) -> Process:
  """A straight line from data to noise; the network sees `time_scale * t`."""
  return Process(  # Eq. 1
    alpha=lambda t: 1 - t, sigma=lambda t: 1.0 * t, network_time=lambda t: time_scale * t
  )
