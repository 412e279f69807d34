"""`jaxgen weights`: lists the pretrained weights that jaxgen knows, gets them, and converts published files."""

import argparse
import sys
from pathlib import Path

from jaxgen.cli.config import add_trust_options, load_run

# Files, where they are, their licence, and what reads them.
FILES = (
  (
    'DiT-XL-2-256x256.pt, DiT-XL-2-512x512.pt (2.7 GB)',
    'https://dl.fbaipublicfiles.com/DiT/models/',
    'CC-BY-NC-4.0',
    'jaxgen train --config dit_xl2_imagenet256 --init-from FILE',
  ),
  (
    "what DiT's, SiT's and REPA's train.py save (0100000.pt)",
    'your own run',
    'yours',
    'jaxgen train --config CONFIG --init-from FILE --init-part ema|model',
  ),
  (
    'U-Nets of IDDPM and ADM (.pt)',
    'https://github.com/openai/improved-diffusion, https://github.com/openai/guided-diffusion',
    'MIT',
    'jaxgen train --config CONFIG --init-from FILE',
  ),
  (
    "EDM's networks (.pkl, 0.2 to 1.2 GB), saved as arrays",
    'https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/',
    'CC-BY-NC-SA-4.0',
    'jaxgen weights convert FILE FOLDER --network edm-cifar10-32x32-cond-vp',
  ),
  (
    "StyleGAN2's networks (.pkl, 0.3 to 0.4 GB), saved as arrays (docs/start_from.md)",
    'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/',
    'NVIDIA Source Code License, not for commerce',
    'jaxgen train --config ffhq256_stylegan2 --init-from FILE',
  ),
  (
    'Stable Diffusion 1, 2, XL, 3 and Flux in one file (.safetensors, .ckpt)',
    'the pages of those models above, and of models made of them',
    'that of the model',
    'jaxgen sample --weights FILE; jaxgen weights convert FILE FOLDER',
  ),
  (
    'autoencoders of latent diffusion and VQGAN (.ckpt)',
    'https://github.com/CompVis/latent-diffusion, https://github.com/CompVis/taming-transformers',
    'MIT',
    'jaxgen weights convert FILE FOLDER --network kl-f4|vq-f8|vqgan-f16-1024|...',
  ),
  (
    'LoRA, ControlNet, IP-Adapter and textual inversion (.safetensors)',
    'the Hub, Civitai',
    'that of the file',
    'jaxgen sample --weights sdxl --lora FILE (docs/adapters.md)',
  ),
)


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog='jaxgen weights', description='Pretrained weights, by name.')
  commands = parser.add_subparsers(dest='command', required=True)
  commands.add_parser('list', help='list the names, what they are, and which are stored here')
  get = commands.add_parser('get', help='fetch, check and store weights')
  get.add_argument('name')
  get.add_argument('--from', dest='source', type=Path, metavar='FILE', help='read this file; fetch nothing')
  convert = commands.add_parser(
    'convert',
    help='write a folder that jaxgen and diffusers load from a file of the original code',
    description='What the file is decides: a checkpoint of Stable Diffusion 1, 2 or XL becomes a folder with '
    'model_index.json; with --network, its autoencoder alone, or that of a VQGAN or latent diffusion, becomes one. '
    "EDM's pickles hold code: save their state dicts as arrays where you trust it (jaxgen/pretrained/edm_unet.py).",
  )
  convert.add_argument(
    'file', type=Path, help='.ckpt, .pt, .pth or .safetensors; .npz or .safetensors of EDM; nothing in it is run'
  )
  convert.add_argument('folder', type=Path)
  convert.add_argument(
    '--network',
    help='network of a file that does not say it: sd-f8, sdxl-f8, kl-f4, kl-f16, vq-f4, vq-f8, vqgan-f16-1024, ...; '
    'edm-cifar10-32x32-cond-vp, ...',
  )
  convert.add_argument(
    '--part', help="entry of the checkpoint, such as 'ema' or 'model' (default: the one to sample with)"
  )
  convert.add_argument(
    '--prediction',
    choices=('epsilon', 'v_prediction'),
    help='prediction of Stable Diffusion 2, whose files do not say it',
  )
  export = commands.add_parser('lora', help="write a run's LoRA as a file that diffusers, peft and kohya's tools read")
  export.add_argument('run', help="the run's folder")
  export.add_argument('file', type=Path, help='.safetensors file to write')
  export.add_argument('--kohya', action='store_true', help="kohya's names and alphas, in place of diffusers'")
  export.add_argument('--ema', help="the average to write, or 'none' (default: own)")
  add_trust_options(export)
  options = parser.parse_args(argv)
  if options.command == 'list':
    _list()
  elif options.command == 'get':
    _get(options.name, options.source)
  elif options.command == 'lora':
    _lora(options)
  else:
    _convert(options)
  return 0


def _convert(options: argparse.Namespace) -> None:
  from jaxgen.pretrained import autoencoder, edm_unet, published, single_file

  file, folder, network, part = options.file, options.folder, options.network, options.part
  if network is None:
    if not single_file.is_checkpoint(file):
      raise ValueError(f'{file} does not say what it is; give --network, such as sd-f8 or edm-cifar10-32x32-cond-vp')
    published.save(single_file.load(file, prediction=options.prediction), folder)
  elif network.startswith('edm-'):
    if part:
      raise ValueError(f'--part is {part!r}; arrays of EDM have no parts')
    edm_unet.convert(file, folder, network)
  else:
    autoencoder.convert(file, folder, network, part=part)
  print(folder)


def _lora(options: argparse.Namespace) -> None:
  from jaxgen import sample
  from jaxgen.cli import lora

  if options.file.suffix != '.safetensors':
    raise ValueError(f'{options.file} is not .safetensors, which a LoRA is written as')
  config, module = load_run(options.run, config=options.config, trust_code=options.trust)
  trained = sample.of_config(module.build, config, options.run, average=options.ema)
  count = lora.export(trained, config, options.file, kohya=options.kohya)
  print(f'{count} modules of step {trained.step:,} in {options.file}')


def _list() -> None:
  from jaxgen import model_folder
  from jaxgen.pretrained import folder, hub, weights

  for name in model_folder.shipped():
    print(f'{name:18}a model that comes with jaxgen: jaxgen sample --weights {name}')
  for name, entry in weights.REGISTRY.items():
    path = weights.stored(name)
    print(f'{name:18}{entry.description}; {entry.licence}')
    if path.exists():
      print(f'{"":18}{path} ({path.stat().st_size / 1e6:.1f} MB)')
    else:
      print(f'{"":18}not here yet; from')
      for source in entry.sources:
        print(f'{"":20}{source.name}: {source.description}')
    if entry.config:
      sizes = ', '.join(f'{field} {value}' for field, value in entry.config.items() if isinstance(value, int))
      print(f'{"":18}{folder.class_of(entry.config)}: {sizes}')
  print("\nPublished models of the Hugging Face Hub, by name too (pip install 'jaxgen[hub]'):\n")
  for name, model in hub.MODELS.items():
    print(f'{name:18}{model.description}: {model.repository}, {model.licence}, about {model.megabytes:,} MB')
    uses = [f'jaxgen sample --weights {name}'] * model.draws
    uses += [_use(name, model.config)] if model.config else []
    print(
      ''.join(f'{"":18}{use}\n' for use in uses) + f'{"":18}{hub.stored(name) if hub.is_here(name) else "not here yet"}'
    )
  print('\nA star: its licence is agreed to on its page, and HF_TOKEN is the token of whoever did.')
  print('\nFiles of the original code, which you bring:\n')
  for files, where, licence, use in FILES:
    print(f'{files}: {where}; {licence}\n{"":18}{use}')


def _use(name: str, config: str) -> str:
  given = f'--config.weights={name}' if config.endswith('_finetune') else f'--init-from {name}'
  return f'jaxgen train --config {config} {given}'


def _get(name: str, source: Path | None) -> None:
  from jaxgen.pretrained import hub, weights

  live = sys.stderr.isatty()

  def report(message: str) -> None:
    print(f'\r\x1b[K{message}' if live else message, end='' if live else '\n', file=sys.stderr, flush=True)

  published = name in hub.MODELS and source is None
  path = hub.fetch(name, report=report) if published else weights.get(name, source=source, report=report)
  if live:
    print('\r\x1b[K', end='', file=sys.stderr)
  print(path)
