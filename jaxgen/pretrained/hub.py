"""Published models on the Hugging Face Hub that jaxgen reads, and how they are fetched (extra `hub`).

  fetch(MODELS['dit-xl-2-256']) -> the folder, for `--init-from`, `--weights` and `jaxgen.load`

`huggingface_hub` does the transport: its cache, its mirrors (HF_ENDPOINT), its token (HF_TOKEN) and its offline mode
(HF_HUB_OFFLINE) are respected, and a fetch that broke off goes on. Each large file is then compared with the SHA-256
that the Hub names for it. What `fetch` leaves is a folder with the files that are read and no others.
"""

import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxgen.home import fetched, home, kept

Report = Callable[[str], None]


class Model(NamedTuple):
  """A published model.

  Attributes:
    repository: OWNER/NAME on the Hub.
    description: one line about it.
    licence: the licence that its authors state.
    megabytes: size of what is fetched, about.
    files: patterns of the files that jaxgen reads.
    config: the config that trains or samples such a network; '' for none.
  """

  repository: str
  description: str
  licence: str
  megabytes: int
  files: tuple[str, ...]
  config: str = ''


_NETWORK = ('config.json', '*.safetensors', '*.bin')
_DIT = ('transformer/*', 'vae/*', 'scheduler/*', 'model_index.json')
_UNET = ('config.json', 'scheduler_config.json', 'model_index.json', '*.safetensors', '*.bin')

# Sizes follow from the numbers of parameters, in float32.
MODELS = {
  'dit-xl-2-256': Model(
    'facebook/DiT-XL-2-256',
    'DiT-XL/2 of ImageNet 256x256',
    'CC-BY-NC-4.0',
    3040,
    _DIT,
    'dit_xl2_imagenet256',
  ),
  'dit-xl-2-512': Model(
    'facebook/DiT-XL-2-512',
    'DiT-XL/2 of ImageNet 512x512',
    'CC-BY-NC-4.0',
    3040,
    _DIT,
    'dit_xl2_imagenet512',
  ),
  'ddpm-cifar10-32': Model('google/ddpm-cifar10-32', 'DDPM, CIFAR-10 32x32', 'Apache-2.0', 143, _UNET, 'cifar10_ddpm'),
  'ddpm-celebahq-256': Model('google/ddpm-celebahq-256', 'DDPM, CelebA-HQ 256x256', 'Apache-2.0', 455, _UNET),
  'ddpm-church-256': Model('google/ddpm-church-256', 'DDPM, LSUN churches 256x256', 'Apache-2.0', 455, _UNET),
  'ddpm-bedroom-256': Model('google/ddpm-bedroom-256', 'DDPM, LSUN bedrooms 256x256', 'Apache-2.0', 455, _UNET),
  'sd-vae-ft-mse': Model('stabilityai/sd-vae-ft-mse', 'the VAE of DiT and Stable Diffusion', 'MIT', 335, _NETWORK),
  'sd-vae-ft-ema': Model('stabilityai/sd-vae-ft-ema', 'the same, tuned without L2', 'MIT', 335, _NETWORK),
  'clip-vit-l-14': Model('openai/clip-vit-large-patch14', 'CLIP ViT-L/14', 'not named', 1711, _NETWORK),
  'clip-vit-l-14-336': Model(
    'openai/clip-vit-large-patch14-336', 'CLIP ViT-L/14 of 336 pixels, of CMMD', 'not named', 1711, _NETWORK
  ),
  'clip-vit-b-32': Model('openai/clip-vit-base-patch32', 'CLIP ViT-B/32, of CLIP scores', 'not named', 605, _NETWORK),
  'dinov2-large': Model('facebook/dinov2-large', 'DINOv2 ViT-L/14, of FD-DINOv2', 'Apache-2.0', 1217, _NETWORK),
  't5-small': Model('google-t5/t5-small', 'T5-small', 'Apache-2.0', 242, _NETWORK),
}


def folder() -> pathlib.Path:
  """Where fetched models are: `hub` in $JAXGEN_HOME."""
  return home() / 'hub'


def stored(name: str) -> pathlib.Path:
  """The folder of a model, there or not.

  Raises:
    ValueError: no such model.
  """
  if name not in MODELS:
    raise ValueError(f'no published model is called {name!r}; there are: {", ".join(MODELS)}')
  return fetched(folder() / name)


def is_here(name: str) -> bool:
  """Whether a model was fetched, all of it."""
  return (stored(name) / _WHOLE).exists()


_WHOLE = '.jaxgen-whole'  # written last of all


def fetch(name: str, *, revision: str | None = None, report: Report = lambda message: None) -> pathlib.Path:
  """The folder of a published model, fetched where it is not here.

  Args:
    name: name in MODELS.
    revision: branch, tag or commit of the repository; its main branch by default.
    report: receives lines of progress.

  Raises:
    ValueError: no such model, huggingface_hub is missing, or a file is not what the Hub says it is.
    OSError: it could not be fetched; the message says which files to bring, and where to.
  """
  model, place = MODELS.get(name), stored(name)
  assert model is not None
  if is_here(name) and revision is None:
    return place
  hub = _library()
  report(f'{name}: about {model.megabytes:,} MB of {model.repository}, licence {model.licence}')
  try:
    wanted = None if hub.constants.HF_HUB_OFFLINE else _digests(hub, model, revision)
    hub.snapshot_download(
      model.repository, revision=revision, allow_patterns=list(model.files), local_dir=os.fspath(place)
    )
  except Exception as error:
    raise OSError(_how_to_bring(name, model, place, error)) from error
  for file, digest in (wanted or {}).items():
    report(f'{name}: checking {file}')
    if _sha256(place / file) != digest:
      (place / file).unlink()
      raise ValueError(f'{place / file} is not the file that the Hub names; fetch it again')
  (place / _WHOLE).write_text(model.repository + '\n')
  return kept(place)


def _library() -> Any:
  try:
    import huggingface_hub
  except ModuleNotFoundError as error:
    raise ValueError("published models are fetched by huggingface_hub: pip install 'jaxgen[hub]'") from error
  return huggingface_hub


def _digests(hub: Any, model: Model, revision: str | None) -> Mapping[str, str]:
  """SHA-256 of each large file that is wanted, as the Hub names it."""
  about = hub.HfApi().model_info(model.repository, revision=revision, files_metadata=True)
  large = {file.rfilename: file.lfs.sha256 for file in about.siblings if getattr(file, 'lfs', None)}
  return {name: large[name] for name in hub.utils.filter_repo_objects(large, allow_patterns=list(model.files))}


def _how_to_bring(name: str, model: Model, place: pathlib.Path, error: Exception) -> str:
  why = (str(error).strip() or type(error).__name__).splitlines()[0]
  return (
    f'{name} could not be fetched ({why}); on a machine with a network, `hf download {model.repository} '
    f'--local-dir {name}`, then bring that folder and give its path in place of the name, or put it at {place}'
  )


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
