"""Feature networks besides Inception: DINOv2 and CLIP, from folders as transformers writes them.

No package ships them: `jaxgen weights get NAME` fetches them from the Hub, or a folder is given.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import sharding
from jaxgen.data.tokenizers.published import from_folder
from jaxgen.data.tokenizers.tokenizer import Tokenizer, encode_all
from jaxgen.evaluators.features import Extract, feature_extractor
from jaxgen.metrics.clip_score import HESSEL_PREFIX
from jaxgen.models import clip, dinov2
from jaxgen.models.clip import CLIP
from jaxgen.models.dinov2 import DINOv2
from jaxgen.pretrained import hub, networks, tokenizer_files
from jaxgen.pretrained.layout import Pretrained
from jaxgen.typing import Array, Params

Texts = Callable[[Sequence[str]], np.ndarray]
_TEXTS = 64  # captions at a time


class Encoder(NamedTuple):
  """A network whose features metrics compare.

  Attributes:
    published: name of the published weights (`jaxgen weights get`).
    feature: name of its features in metrics/suite.py.
    kind: class of the network.
    description: how images become features.
  """

  published: str
  feature: str
  kind: type[nn.Module]
  description: str


NETWORKS = {
  'dinov2': Encoder(
    'dinov2-large', 'dinov2', DINOv2, '224x224 by bicubic in 8 bits as dgm-eval, class token after the last norm'
  ),
  'cmmd': Encoder('clip-vit-l-14-336', 'clip', CLIP, 'bicubic to the shorter side, centre crop; projected features'),
  'clip_score': Encoder(
    'clip-vit-b-32', 'clip_image', CLIP, 'bicubic to the shorter side, centre crop; projected features'
  ),
}


def load(
  needs: set[str], *, folders: Mapping[str, os.PathLike], batch_size: int, mesh: jax.sharding.Mesh
) -> tuple[dict[str, Extract], Texts | None, dict[str, Any]]:
  """Functions from images to each feature that is needed, from texts to CLIP's, and the protocol.

  Args:
    needs: names of features, from `suite.needs`.
    folders: folders by names of NETWORKS; the published ones by default.
    batch_size: images at a time.
    mesh: mesh that a batch is sharded over.

  Raises:
    FileNotFoundError: weights are missing; the message says how to get them.
    ValueError: a folder is of another network, or an unknown name.
  """
  if unknown := sorted(set(folders) - NETWORKS.keys()):
    raise ValueError(f'no feature network is called {unknown[0]!r}; wanted one of {", ".join(NETWORKS)}')
  extracts: dict[str, Extract] = {}
  texts, how = None, {}
  for name, encoder in NETWORKS.items():
    if encoder.feature not in needs:
      continue
    folder = Path(folders.get(name) or hub.stored(encoder.published)).expanduser()
    it = _read(name, encoder, folder)
    prepare, apply = _of_images(it.net)
    extracts[encoder.feature] = feature_extractor(
      it.params,
      batch_size=batch_size,
      prepare=prepare,
      network=apply,
      batch_sharding=sharding.batch_sharding(mesh),
      replicated=sharding.replicated(mesh),
    )
    how |= {f'{name}_network': folder.name, f'{name}_hash': it.meta.hash, f'{name}_features': encoder.description}
    if 'clip_text' in needs and encoder.feature == 'clip_image':
      texts = functools.partial(_of_texts, it, _tokenizer(folder))
      how |= {'clip_score_prefix': HESSEL_PREFIX.strip()}
  return extracts, texts, how


def _read(name: str, encoder: Encoder, folder: Path) -> Pretrained:
  if not folder.is_dir():
    raise FileNotFoundError(
      f'{name} needs the weights {encoder.published} ({hub.MODELS[encoder.published].repository}) at {folder}: '
      f'`jaxgen weights get {encoder.published}`, or give their folder: --network {name}=FOLDER'
    )
  it = networks.load(folder)
  if not isinstance(it.net, encoder.kind):
    raise ValueError(f'{folder} holds a {type(it.net).__name__}; {name} needs a {encoder.kind.__name__}')
  return it


def _of_images(net: Any) -> tuple[Callable[[Array], Array], Callable[[Params, Array], Any]]:
  """Images in [-1, 1] to the network's input, and (parameters, input) to features."""
  if isinstance(net, DINOv2):
    net = net.clone(offset=dinov2.OFFSET)
    return dinov2.preprocess, lambda params, x: net.apply({'params': params}, x)

  def prepare(images: Array) -> Array:
    pixels = jnp.clip(jnp.round(127.5 * (images.astype(jnp.float32) + 1)), 0, 255)  # as a file holds them
    return clip.preprocess(pixels / 127.5 - 1, size=net.vision.size)

  return prepare, lambda params, x: net.apply({'params': params}, x, method=CLIP.encode_image)


def _of_texts(it: Pretrained, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
  """CLIP's features of texts, each behind Hessel's prefix and cut to the length that CLIP reads; equal ones once."""
  unique = sorted(set(texts))
  ids = encode_all(tokenizer, [HESSEL_PREFIX + text for text in unique])
  encode = jax.jit(lambda params, rows: it.net.apply({'params': params}, rows, method=CLIP.encode_text))
  rows = np.resize(np.arange(len(ids)), -(-len(ids) // _TEXTS) * _TEXTS).reshape(-1, _TEXTS)
  found = np.concatenate([np.asarray(encode(it.params, ids[part])) for part in rows])
  number = {text: i for i, text in enumerate(unique)}
  return found[[number[text] for text in texts]]


def _tokenizer(folder: Path) -> Tokenizer:
  """The folder's own, or CLIP's."""
  return from_folder(folder) if (folder / 'merges.txt').exists() else tokenizer_files.clip_tokenizer()
