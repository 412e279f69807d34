"""Datasets, and the loader whose batch is a pure function of (dataset, seed, step).

dataset = data.emoji32('train')
loader = data.Loader(dataset, batch_size=64, seed=0, flip=True, cache=True)
for batch in loader.iterate(step, sharding): ...   # {'image': [64, 32, 32, 3] in [-1, 1], 'label': [64]}
"""

from jaxgen.data.dataset import BadRecord, Dataset
from jaxgen.data.datasets.emoji32 import emoji32
from jaxgen.data.loader import Batches, Loader, epoch

__all__ = ['BadRecord', 'Batches', 'Dataset', 'Loader', 'emoji32', 'epoch']
