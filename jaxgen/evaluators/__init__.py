"""Evaluators measure or show a run while it trains: a name, an interval, and a function of the run's state (base.py).

from jaxgen.evaluators.fid import fid                            # or quality, held_out_loss, likelihood, reconstruction
from jaxgen.evaluators.samples import samples                    # grids of images
from jaxgen.evaluators.generate import make_generate             # makes images for them
"""
