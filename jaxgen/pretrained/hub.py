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
    draws: whether `jaxgen sample --weights` samples with it.
  """

  repository: str
  description: str
  licence: str
  megabytes: int
  files: tuple[str, ...]
  config: str = ''
  draws: bool = False


def _pipeline(*parts: str, schedulers: tuple[str, ...] = ('scheduler',)) -> tuple[str, ...]:
  """Files of a pipeline: of each part one set of tensors, and not its variants (`.fp16`, `.non_ema`, `.bin`)."""
  kinds = ('*.json', '*.txt', '*.model', '*model.safetensors', '*model-0????-of-0????.safetensors')
  return ('model_index.json', *(f'{part}/{kind}' for part in (*schedulers, *parts) for kind in kinds))


_NETWORK = ('config.json', '*.safetensors', '*.bin')
_DIT = ('transformer/*', 'vae/*', 'scheduler/*', 'model_index.json')
_SD = _pipeline('unet', 'vae', 'text_encoder', 'tokenizer')
_SDXL = _pipeline('unet', 'vae', 'text_encoder', 'text_encoder_2', 'tokenizer', 'tokenizer_2')
_FLUX = _pipeline('transformer', 'vae', 'text_encoder', 'text_encoder_2', 'tokenizer', 'tokenizer_2')
_SD3 = (*_FLUX, *_pipeline('text_encoder_3', 'tokenizer_3'))
_PIXART = _pipeline('transformer', 'vae', 'text_encoder', 'tokenizer')
_IF = _pipeline('unet', 'text_encoder', 'tokenizer')
_KARLO = _pipeline(
  'prior',
  'decoder',
  'text_proj',
  'super_res_first',
  'super_res_last',
  'text_encoder',
  'tokenizer',
  schedulers=('prior_scheduler', 'decoder_scheduler', 'super_res_scheduler'),
)
_UNET = ('config.json', 'scheduler_config.json', 'model_index.json', '*.safetensors', '*.bin')

# Sizes follow from the numbers of parameters, in the precision that they are stored in. A licence with a star is agreed
# to on the model's page; the token of whoever did is in HF_TOKEN.
_COMMUNITY = 'Stability AI Community*'
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
  'sd15': Model(
    'stable-diffusion-v1-5/stable-diffusion-v1-5',
    'Stable Diffusion 1.5',
    'CreativeML OpenRAIL-M',
    4265,
    _SD,
    'sd15_finetune',
    draws=True,
  ),
  'sdxl': Model(
    'stabilityai/stable-diffusion-xl-base-1.0',
    'Stable Diffusion XL',
    'CreativeML OpenRAIL++-M',
    13876,
    _SDXL,
    'sdxl_finetune',
    draws=True,
  ),
  'sdxl-refiner': Model(
    'stabilityai/stable-diffusion-xl-refiner-1.0',
    'its refiner',
    'CreativeML OpenRAIL++-M',
    12155,
    _pipeline('unet', 'vae', 'text_encoder_2', 'tokenizer_2'),
    draws=True,
  ),
  'sd3-medium': Model(
    'stabilityai/stable-diffusion-3-medium-diffusers',
    'Stable Diffusion 3 medium',
    _COMMUNITY,
    15498,
    _SD3,
    'sd3_medium_finetune',
    draws=True,
  ),
  'sd35-medium': Model(
    'stabilityai/stable-diffusion-3.5-medium',
    'Stable Diffusion 3.5 medium',
    _COMMUNITY,
    16267,
    _SD3,
    draws=True,
  ),
  'sd35-large': Model(
    'stabilityai/stable-diffusion-3.5-large', 'Stable Diffusion 3.5 large', _COMMUNITY, 27443, _SD3, draws=True
  ),
  'flux-dev': Model(
    'black-forest-labs/FLUX.1-dev',
    'Flux.1 dev',
    'FLUX.1 dev Non-Commercial*',
    33740,
    _FLUX,
    'flux_dev_finetune',
    draws=True,
  ),
  'flux-schnell': Model(
    'black-forest-labs/FLUX.1-schnell',
    'Flux.1 schnell',
    'Apache-2.0',
    33720,
    _FLUX,
    'flux_schnell_finetune',
    draws=True,
  ),
  'pixart-256': Model(
    'PixArt-alpha/PixArt-XL-2-256x256', 'PixArt-alpha, 256x256', 'CreativeML OpenRAIL++-M', 21826, _PIXART, draws=True
  ),
  'pixart-1024': Model(
    'PixArt-alpha/PixArt-XL-2-1024-MS', 'PixArt-alpha, 1024', 'CreativeML OpenRAIL++-M', 21826, _PIXART, draws=True
  ),
  'z-image-turbo': Model('Tongyi-MAI/Z-Image-Turbo', 'Z-Image Turbo', 'Apache-2.0', 32833, _PIXART, draws=True),
  'karlo': Model('kakaobrain/karlo-v1-alpha', 'DALL-E 2 (Karlo)', 'CreativeML OpenRAIL-M', 13962, _KARLO, draws=True),
  'karlo-variations': Model(
    'kakaobrain/karlo-v1-alpha-image-variations',
    'its variations of a picture',
    'CreativeML OpenRAIL-M',
    11100,
    (*_KARLO, *_pipeline('image_encoder', 'feature_extractor')),
    draws=True,
  ),
  'if-i-xl': Model('DeepFloyd/IF-I-XL-v1.0', "DeepFloyd IF's first stage", 'DeepFloyd IF*', 36268, _IF, draws=True),
  'if-ii-l': Model(
    'DeepFloyd/IF-II-L-v1.0',
    'its second, jaxgen sample --weights if-i-xl --then if-ii-l',
    'DeepFloyd IF*',
    24000,
    (*_IF, *_pipeline('image_noising_scheduler')),
  ),
  'clip-vit-h-14': Model('laion/CLIP-ViT-H-14-laion2B-s32B-b79K', 'OpenCLIP ViT-H/14', 'MIT', 3944, _NETWORK),
  't5-v1_1-xxl': Model('google/t5-v1_1-xxl', 'T5 v1.1 XXL', 'Apache-2.0', 44541, _NETWORK),
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


def resolved(path: str | os.PathLike) -> str:
  """The folder that a path, or the name of a published model that was fetched, stands for.

  Raises:
    FileNotFoundError: a model of that name is not here.
  """
  text = os.path.expanduser(path)
  if text not in MODELS or pathlib.Path(text).exists():
    return text
  if not is_here(text):
    raise FileNotFoundError(f'{text} is not here; `jaxgen weights get {text}` fetches it from the Hugging Face Hub')
  return os.fspath(stored(text))


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
  if not any(file.suffix in ('.safetensors', '.bin') for file in place.rglob('*')):
    raise ValueError(f'{model.repository} has none of the files that are read: {", ".join(model.files)}')
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
