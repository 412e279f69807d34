"""The classifier of attributes that comes with jaxgen: measures whether avatars show what their prompts ask for.

`configs/avatars_attributes.py` trains it at 32x32, and says how well it does on pictures it has not seen. Larger images
are averaged down to that size. Half precision.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen.data.datasets.avatars_styles import VOCABULARY
from jaxgen.models.attributes import predict
from jaxgen.models.conv_classifier import ConvClassifier
from jaxgen.pretrained import safetensors_file
from jaxgen.typing import Array, Float, Int, Params

FILE = pathlib.Path(__file__).parent / 'shipped' / 'avatars32_attributes.safetensors'
SIZES = tuple(len(words) for words in VOCABULARY.values())
SIDE = 32
_BATCH = 100  # images at a time

Classify = Callable[[Float[np.ndarray, 'b h w c']], Int[np.ndarray, 'b a']]


def read(path: str | os.PathLike = FILE) -> tuple[ConvClassifier, Params]:
  """The network and its parameters, for images of 32 pixels a side.

  Raises:
    ValueError: the file is damaged, or of another vocabulary.
  """
  about = safetensors_file.metadata(path)
  if about.get('vocabulary') != _vocabulary():
    raise ValueError(f'{path} classifies other attributes than those of avatars; train configs/avatars_attributes.py')
  net = ConvClassifier(
    sum(SIZES), widths=tuple(json.loads(about['widths'])), strides=tuple(json.loads(about['strides']))
  )
  flat = {name: jnp.asarray(array, jnp.float32) for name, array in safetensors_file.read(path).items()}
  return net, traverse_util.unflatten_dict(flat, sep='/')


@functools.cache
def load(path: str | os.PathLike = FILE) -> Classify:
  """The classifier: square float images in [-1, 1] to a value of each attribute of `avatars_styles.VOCABULARY`.

  Raises:
    ValueError: as `read`; of the classifier: the side is no multiple of 32.
  """
  net, params = read(path)
  run = jax.jit(functools.partial(predict, net, sizes=SIZES))

  def classify(images: Float[np.ndarray, 'b h w c']) -> Int[np.ndarray, 'b a']:
    n, height, width, channels = images.shape
    if height != width or height % SIDE:
      raise ValueError(f'images are {height}x{width}; the attributes of avatars are seen in squares of {SIDE}, 64, ...')
    factor = height // SIDE
    images = images.reshape(n, SIDE, factor, SIDE, factor, channels).mean(axis=(2, 4))
    found = []
    for begin in range(0, len(images), _BATCH):
      part = images[begin : begin + _BATCH]
      padded = np.concatenate([part, np.zeros((_BATCH - len(part), *part.shape[1:]), part.dtype)])
      found.append(np.asarray(run(params, jnp.asarray(padded)))[: len(part)])
    return np.concatenate(found)

  return classify


def features(net: ConvClassifier, params: Params, images: Float[Array, 'b h w c']) -> Float[Array, 'b l e']:
  """What the classifier sees of square images, 16 patches of 256 features: an image encoder for image prompts.

  Args:
    net, params: the classifier, from `read`.
    images: images in [-1, 1] whose side is a multiple of 32.
  """
  b, height, _, channels = images.shape
  factor = height // SIDE
  images = images.reshape(b, SIDE, factor, SIDE, factor, channels).mean(axis=(2, 4))
  made = hidden(net, params, images, layer=len(net.widths) - 1)
  return nn.relu(made).reshape(b, -1, made.shape[-1])


def hidden(net: ConvClassifier, params: Params, images: Float[Array, 'b h w c'], *, layer: int) -> Array:
  """What a convolution of the classifier gives, before its relu, float b h2 w2 e.

  Args:
    net, params: the classifier, from `read`.
    images: images in [-1, 1] of 32 x 32.
    layer: number of the convolution, from 0.
  """
  _, kept = net.apply({'params': params}, images, jnp.zeros(len(images)), {}, mutable=['hidden'])
  made: Any = kept['hidden'][f'layer_{layer}'][0]
  return made


def save(net: ConvClassifier, params: Params, path: str | os.PathLike = FILE) -> None:
  """Writes a trained classifier, which `load` reads."""
  flat = traverse_util.flatten_dict(params, sep='/')
  about = {
    'widths': json.dumps(net.widths),
    'strides': json.dumps(net.strides or (2,) * len(net.widths)),
    'vocabulary': _vocabulary(),
  }
  safetensors_file.write(path, {name: np.asarray(leaf, np.float16) for name, leaf in flat.items()}, metadata=about)


def _vocabulary() -> str:
  return hashlib.sha256(json.dumps(VOCABULARY).encode()).hexdigest()


def embedding(net: ConvClassifier) -> Callable[[Any, Array], Array]:
  """`(frozen, images) -> b d`: the logits, as an embedding of what images show; frozen['embedder'] is the network.

  Larger images are averaged to 32 pixels.
  """

  def embed(frozen: Any, images: Array) -> Array:
    x = images.astype(jnp.float32)
    if x.shape[1] != SIDE:
      x = x.reshape(len(x), SIDE, x.shape[1] // SIDE, SIDE, x.shape[2] // SIDE, x.shape[3]).mean(axis=(2, 4))
    made: Any = net.apply({'params': frozen['embedder']}, x, jnp.zeros(len(x)), {})
    return made

  return embed


def most_likely(embeddings: Float[np.ndarray, 'n d']) -> Int[np.ndarray, 'n a']:
  """The most likely value of each attribute, of embeddings."""
  ends = np.cumsum(SIZES)[:-1]
  return np.stack([part.argmax(-1) for part in np.split(embeddings, ends, axis=1)], axis=1).astype(np.int32)
