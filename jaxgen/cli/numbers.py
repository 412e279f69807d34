"""Types of numbers for options."""

import argparse
import math


def finite(text: str) -> float:
  """A float that is neither nan nor infinite."""
  value = float(text)
  if not math.isfinite(value):
    raise argparse.ArgumentTypeError(f'{text} is not finite')
  return value
