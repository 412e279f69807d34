"""Metrics: functions of features, which a frozen network makes of images once for all of them (suite.py).

from jaxgen.metrics.frechet import frechet_distance              # or kernel_distance, precision_recall, memorisation
from jaxgen.metrics.suite import METRICS                         # all, by the names that `evaluate` takes
"""
