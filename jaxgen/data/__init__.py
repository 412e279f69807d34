"""Datasets, and the loader whose batch is a pure function of (dataset, seed, step).

dataset = data.emoji32('train')
loader = data.Loader(dataset, batch_size=64, seed=0, flip=True, cache=True)
dataset = data.source('folder:~/photos', resolution=64)                # or parquet:, webdataset:, npz:, zip:, tfds:
dataset = data.from_arrays(images, labels)                              # [n, h, w, c] in [-1, 1]
for batch in loader.iterate(step, sharding): ...   # {'image': [64, 32, 32, 3] in [-1, 1], 'label': [64]}
"""

from jaxgen.data.arrays import from_arrays
from jaxgen.data.buckets import BucketLoader, bucket_shapes
from jaxgen.data.dataset import BadRecord, Dataset
from jaxgen.data.datasets.avatars import avatars, prepare_avatars
from jaxgen.data.datasets.avatars32 import avatars32
from jaxgen.data.datasets.emoji32 import emoji32
from jaxgen.data.datasets.emoji64 import emoji64
from jaxgen.data.datasets.fashion_mnist import fashion_mnist
from jaxgen.data.datasets.icons import icons, prepare_icons
from jaxgen.data.datasets.image_folder import image_buckets, image_folder, prepare_image_folder
from jaxgen.data.datasets.mnist import mnist
from jaxgen.data.datasets.stacked import stacked
from jaxgen.data.datasets.tfds_dataset import prepare_tfds, tfds_dataset
from jaxgen.data.image import to_float
from jaxgen.data.loader import Batches, Loader, epoch
from jaxgen.data.recipe import prepare
from jaxgen.data.sources import source, train_and_test

__all__ = [
  'BadRecord',
  'Batches',
  'BucketLoader',
  'Dataset',
  'Loader',
  'avatars',
  'avatars32',
  'bucket_shapes',
  'emoji32',
  'emoji64',
  'epoch',
  'fashion_mnist',
  'from_arrays',
  'icons',
  'image_buckets',
  'image_folder',
  'mnist',
  'prepare',
  'prepare_avatars',
  'prepare_icons',
  'prepare_image_folder',
  'prepare_tfds',
  'source',
  'stacked',
  'tfds_dataset',
  'to_float',
  'train_and_test',
]
