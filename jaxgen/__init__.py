"""jaxgen: training image generators in JAX, as pure functions of (config, seed, step).

  run = jaxgen.load_run('runs/emoji_dit')           # a run's folder
  images = run.sample(16, labels='food')            # uint8 [16, 32, 32, 3]
  jaxgen.grid(images)                               # a picture, which a notebook shows
  run = jaxgen.train('emoji_dit', 'runs/mine', {'steps': 100})      # a config, or an Experiment
  jaxgen.evaluate('samples', 'photos', metrics=['fid', 'kid'])
  net = jaxgen.load('DiT-XL-2-256/transformer')     # published weights
  dataset = jaxgen.data.from_arrays(images, labels)

These names, and the sub-packages, are imported at their first use. Importing jaxgen sets the flag that XLA's CPU
backend needs for right results (xla_flags.py), so import it before JAX's first computation.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from jaxgen import xla_flags

if TYPE_CHECKING:
  from jaxgen.library import LoadedRun as LoadedRun
  from jaxgen.library import evaluate as evaluate
  from jaxgen.library import grid as grid
  from jaxgen.library import load as load
  from jaxgen.library import load_run as load_run
  from jaxgen.library import train as train

__version__ = '0.1.0'

_LIBRARY = ('LoadedRun', 'evaluate', 'grid', 'load', 'load_run', 'train')
_MODULES = (
  'adapters',
  'data',
  'destination',
  'evaluators',
  'generation',
  'metrics',
  'models',
  'objectives',
  'pretrained',
  'processes',
  'samplers',
)

__all__ = ['__version__', *_LIBRARY, *_MODULES]


class _Package(types.ModuleType):
  """This package; its functions are not replaced when a module of the same name is imported.

  `from jaxgen.train import abstract_state` would otherwise replace `jaxgen.train` by the module.
  """

  def __setattr__(self, name: str, value: Any) -> None:
    if not (name in _LIBRARY and isinstance(value, types.ModuleType)):
      super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
  if name in _LIBRARY:
    value = getattr(importlib.import_module('jaxgen.library'), name)
  elif name in _MODULES:
    value = importlib.import_module(f'jaxgen.{name}')
  else:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
xla_flags.require()
