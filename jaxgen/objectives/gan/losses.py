"""Losses of GANs: functions of the logits that discriminator and generator minimise.

With r and f the logits of a real and of a generated image, s softplus:

                    discriminator                        generator
  minimax           s(-r) + s(f)                         -s(f)                    (1)  Goodfellow et al. 2014
  non-saturating    s(-r) + s(f)                         s(-f)                    (2)  the same
  hinge             max(0, 1 - r) + max(0, 1 + f)        -f                       (3)  Lim and Ye 2017
  least squares     ((r - 1)^2 + f^2) / 2                (f - 1)^2 / 2            (4)  Mao et al. 2017
  Wasserstein       f - r                                -f                       (5)  Arjovsky et al. 2017
  relativistic      s(f - r)                             s(r - f)                 (6)  Jolicoeur-Martineau 2019, R3GAN

Eq. 5 wants a discriminator whose slope is bounded: `optimizers.clipped` or a gradient penalty (regularizers.py). In Eq.
6 each real image is paired with the generated one of its place in the batch. A loss that does not read `r` costs no
forward pass of it: XLA removes it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.typing import Array

_softplus = jax.nn.softplus


class GanLoss(NamedTuple):
  """A game; both functions are `(real logits, fake logits) -> losses`, elementwise."""

  discriminator: Callable[[Array, Array], Array]
  generator: Callable[[Array, Array], Array]


minimax = GanLoss(lambda r, f: _softplus(-r) + _softplus(f), lambda r, f: -_softplus(f))  # Eq. 1
non_saturating = GanLoss(minimax.discriminator, lambda r, f: _softplus(-f))  # Eq. 2
hinge = GanLoss(lambda r, f: jax.nn.relu(1 - r) + jax.nn.relu(1 + f), lambda r, f: -f)  # Eq. 3
least_squares = GanLoss(lambda r, f: ((r - 1) ** 2 + f**2) / 2, lambda r, f: (f - 1) ** 2 / 2)  # Eq. 4
wasserstein = GanLoss(lambda r, f: f - r, lambda r, f: -f)  # Eq. 5
relativistic = GanLoss(lambda r, f: _softplus(f - r), lambda r, f: _softplus(r - f))  # Eq. 6


def heuristics(real: Array, fake: Array) -> dict[str, Array]:
  """Numbers to watch: mean logits and mean signs.

  The sign on real images is the overfitting heuristic r_t of Karras et al. 2020 (ADA): 0 where the discriminator cannot
  tell real from generated, 1 where it knows every training image.
  """
  return {
    'real_logit': jnp.mean(real),
    'fake_logit': jnp.mean(fake),
    'real_sign': jnp.mean(jnp.sign(real)),
    'fake_sign': jnp.mean(jnp.sign(fake)),
  }
