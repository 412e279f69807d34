"""`jaxgen data`: list the datasets, prepare one, encode one with an autoencoder.

As library calls: `jaxgen.data.prepare(recipe, ...)`, `prepare_image_folder(...)`, `prepare_tfds(...)`,
`jaxgen.encode.encode(...)`.
"""

import argparse
import re
import sys
from typing import Any

_EXAMPLES = """examples:
  jaxgen data list
  jaxgen data prepare emoji64                          # downloads three archives from npm (150 MB)
  jaxgen data prepare emoji64 --source FOLDER          # where `npm pack` has put them
  jaxgen data prepare fashion_mnist --source FOLDER    # the four IDX files, also with .gz
  jaxgen data prepare image_folder --source FOLDER --size 256
  jaxgen data prepare parquet --source 'data/*.parquet' --size 256     # for --config.dataset=parquet:data/*.parquet
  jaxgen data prepare avatars                          # 20,000 drawn pictures with captions; needs 'jaxgen[avatars]'
  jaxgen data prepare avatars --size 32 --number 8000 --styles toon-head,personas
  jaxgen data prepare avatars_pairs                    # 10,000 edits with instructions; needs 'jaxgen[avatars]'
  jaxgen data prepare avatars_segments                 # 10,000 beside maps of their parts, for ControlNet
  jaxgen data prepare avatars_subject                  # ten pictures of one person, for DreamBooth
  jaxgen data prepare emoji_pairs --size 32            # 63,026 edits of emoji with instructions
  jaxgen data prepare openmoji --size 32               # 4,495 emoji beside their line drawings, for ControlNet
  jaxgen data prepare icons --number 20000 --source iconify-json-2.2.535.tgz
  jaxgen data prepare generated --run runs/avatars --prompt 'a person' --number 200      # for DreamBooth's prior
  jaxgen data prepare cifar10                          # any dataset of TFDS; most need TensorFlow for this
  jaxgen data encode --data emoji32 --autoencoder runs/emoji_vae/autoencoder     # latents, as emoji32_latents
  jaxgen data encode --data folder:pairs --autoencoder sd-vae --field original=mean --text-encoder clip-vit-l14"""


def main(argv: list[str]) -> int:
  """Runs `jaxgen data ARGV`; returns 0."""
  args = _parser().parse_args(argv)
  return {'list': _list, 'prepare': _prepare, 'encode': _encode}[args.action](args)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='jaxgen data',
    description='List the datasets, prepare one for training, or encode one.',
    epilog=_EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  actions = parser.add_subparsers(dest='action', required=True, metavar='list|prepare|encode')
  directory = argparse.ArgumentParser(add_help=False)
  directory.add_argument(
    '--data-dir', help='folder of prepared datasets (default: data in $JAXGEN_HOME or ~/.cache/jaxgen)'
  )
  actions.add_parser('list', parents=[directory], help='the datasets, and which are prepared')
  prepare = actions.add_parser('prepare', parents=[directory], help='write a dataset in the form training reads')
  prepare.add_argument('name', help='avatars, emoji32, emoji64, fashion_mnist, image_folder, or a name that TFDS knows')
  prepare.add_argument('--run', help='generated: folder of the run that samples, or a model such as jaxgen/avatars')
  prepare.add_argument('--weights', help='generated: published generator that samples')
  prepare.add_argument('--prompt', action='append', help='generated: prompt of the pictures; may be repeated')
  prepare.add_argument('--steps', type=int, help='generated, with --weights: steps of the sampler (default: 50)')
  prepare.add_argument('--batch-size', type=int, help='generated: pictures at a time (default: 64)')
  prepare.add_argument('--source', help='folder with the original files')
  prepare.add_argument(
    '--size', type=int, help='height and width (default: 256 of image_folder and parquet, 64 of avatars, icons, ...)'
  )
  prepare.add_argument('--number', type=int, help='avatars, icons: images in train (default: 20000; all)')
  prepare.add_argument('--styles', help='avatars: names of styles with commas between them (default: twelve of them)')
  prepare.add_argument('--seed', type=int, help='avatars: seed of all choices (default: 0)')
  prepare.add_argument('--all-pairs', action='store_true', help='avatars: hold no combinations of words out of train')
  prepare.add_argument('--name', dest='alias', help="image_folder, generated: a name (default: from the folder's path)")
  prepare.add_argument(
    '--max-bad-images', type=int, default=100, help='image_folder: unreadable files to leave out (default: 100)'
  )
  prepare.add_argument('--overwrite', action='store_true', help='make it again where it is prepared already')
  _add_encode(actions, directory)
  return parser


def _add_encode(actions: Any, directory: argparse.ArgumentParser) -> None:
  encode = actions.add_parser(
    'encode',
    parents=[directory],
    help="write a dataset of an autoencoder's latents",
    description='Encodes the images, and the captions, of a dataset once. The same command goes on with a run that '
    'was stopped or killed.',
  )
  encode.add_argument(
    '--data', required=True, help='a dataset as --config.dataset names it: emoji32, folder:PATH, one of TFDS, ...'
  )
  encode.add_argument(
    '--autoencoder', required=True, help="a folder in diffusers' layout: RUN/autoencoder, or one fetched"
  )
  encode.add_argument('--name', help='name of the latents (default: DATA_latents)')
  encode.add_argument('--split', action='append', help="split, as TFDS writes it; may be repeated (default: 'train')")
  encode.add_argument('--size', type=int, help='crops and resizes the images')
  encode.add_argument(
    '--batch-size', type=int, default=32, help="images at a time, over a process's devices (default: 32)"
  )
  encode.add_argument('--no-flips', action='store_true', help='leave the mirrored images out')
  encode.add_argument(
    '--field',
    action='append',
    default=[],
    metavar='NAME=FORM[,scaled]',
    help='a field of images and what is stored of it: moments (mean and deviation), sample, mean or mode, perhaps '
    'scaled as the autoencoder says; may be repeated (default: image=moments). Other fields are kept as they are',
  )
  encode.add_argument(
    '--text-encoder', help='also encode the captions: a folder of CLIP, T5 or BERT, or of a diffusers pipeline'
  )
  encode.add_argument('--tokenizer', help='folder of its tokenizer (default: the same)')
  encode.add_argument('--tokens', type=int, help="tokens of a caption (default: the tokenizer's)")
  encode.add_argument('--dtype', default='float32', help="dtype of the autoencoder's activations (default: float32)")


def _recipes() -> tuple:
  from jaxgen.data.datasets import (
    avatars,
    avatars_pairs,
    avatars_segments,
    avatars_subject,
    emoji32,
    emoji64,
    emoji_pairs,
    fashion_mnist,
    icons,
    mnist,
    openmoji,
  )

  return (
    avatars.recipe(),
    avatars_pairs.recipe(),
    avatars_segments.recipe(),
    avatars_subject.recipe(),
    emoji32.RECIPE,
    emoji64.RECIPE,
    emoji_pairs.recipe(),
    fashion_mnist.RECIPE,
    icons.recipe(),
    mnist.RECIPE,
    openmoji.recipe(),
  )


def _list(args: argparse.Namespace) -> int:

  from jaxgen.data.dataset import default_data_dir
  from jaxgen.data.recipe import folder
  from jaxgen.home import mirror

  place = mirror(args.data_dir or default_data_dir())
  print(f'datasets ({place})\n')
  ours = {recipe.name: recipe for recipe in _recipes()}
  for recipe in ours.values():
    state = 'prepared' if folder(recipe, place).exists() else '-'
    print(f'  {recipe.name:16}{state:10}{recipe.about}')
  print(f'  {"image_folder":16}{"":10}your own images: jaxgen data prepare image_folder --source FOLDER --size 256')
  print(f'  {"NAME":16}{"":10}a dataset of TFDS: jaxgen data prepare NAME')
  others = sorted({path.parent.parent for path in place.glob('**/dataset_info.json')} - {place / name for name in ours})
  for path in others:
    print(f'  {path.relative_to(place)!s:16}  prepared')
  return 0


def _prepare(args: argparse.Namespace) -> int:
  from jaxgen import distributed
  from jaxgen.data.dataset import default_data_dir
  from jaxgen.home import mirror

  distributed.start()
  progress = distributed.is_first()
  job = distributed.job(mirror(args.data_dir or default_data_dir()))
  options = {'data_dir': args.data_dir, 'progress': progress, 'overwrite': args.overwrite}
  try:
    path = _prepared(args, options, job)
  except Exception as error:
    distributed.fail(error)
    raise
  if progress:
    print(f'prepared in {path}')
  return 0


def _prepared(args: argparse.Namespace, options: dict[str, Any], job: Any) -> Any:
  """Prepares what `args` name, by all processes of the job where the work can be shared, else by one of them."""
  from jaxgen import data

  recipes = {recipe.name: recipe for recipe in _recipes()}
  if args.name == 'image_folder':
    if args.source is None:
      raise ValueError('image_folder needs --source FOLDER, the folder of images')
    return data.prepare_image_folder(
      args.source,
      size=256 if args.size is None else args.size,
      name=args.alias,
      max_bad_images=args.max_bad_images,
      job=job,
      **options,
    )
  if args.name == 'parquet':
    from jaxgen.data.datasets.parquet import prepare_parquet

    if args.source is None:
      raise ValueError("parquet needs --source PATTERN, such as 'data/train-*.parquet'")
    return prepare_parquet(args.source, size=256 if args.size is None else args.size, job=job, **options)
  if args.name == 'avatars':
    return data.prepare_avatars(_avatars_options(args), job=job, **options)
  if args.name == 'avatars_pairs':
    from jaxgen.data.datasets import avatars_pairs

    return avatars_pairs.prepare_avatars_pairs(_avatars_options(args, avatars_pairs.DEFAULT), job=job, **options)
  if args.name == 'avatars_segments':
    from jaxgen.data.datasets import avatars_segments

    wanted = _avatars_options(args, avatars_segments.DEFAULT)
    return avatars_segments.prepare_avatars_segments(wanted, job=job, **options)
  if args.name == 'avatars_subject':
    from jaxgen.data.datasets import avatars_subject

    return avatars_subject.prepare_avatars_subject(_avatars_options(args, avatars_subject.DEFAULT), job=job, **options)
  if args.name == 'generated':
    path = _generated(args, **options)
    print(f'--config.prior.dataset={path.parent.name}')
    return path
  if args.name == 'icons':
    return data.prepare_icons(_icons_options(args), source=args.source, **options)
  if args.name in ('emoji_pairs', 'openmoji'):
    from jaxgen.data.datasets import emoji_pairs, openmoji

    module: Any = emoji_pairs if args.name == 'emoji_pairs' else openmoji
    sized = module.DEFAULT if args.size is None else module.Options(args.size)
    return data.prepare(module.recipe(sized), source=args.source, job=job, **options)
  if args.name in recipes:
    return data.prepare(recipes[args.name], source=args.source, job=job, **options)
  return data.prepare_tfds(args.name, job=job, **options)


def _generated(args: argparse.Namespace, **options: Any) -> Any:
  from jaxgen.generated import prepare_generated

  if (args.run is None) == (args.weights is None) or not args.prompt:
    raise ValueError('generated needs --run FOLDER or --weights FOLDER, and --prompt TEXT')
  if args.weights is not None:
    from jaxgen import from_weights

    steps, settings = args.steps or 50, {'steps': args.steps or 50}
    trained = from_weights.trained(from_weights.opened(args.weights), texts=args.prompt, steps=steps)
  else:
    from jaxgen import model_folder, sample
    from jaxgen.cli.config import load_run

    run = model_folder.resolved(args.run)
    config, module = load_run(run)
    settings = {'sampling': config.to_dict().get('sampling')}
    trained = sample.of_config(module.build, config, run)
  return prepare_generated(
    trained,
    args.prompt,
    number=200 if args.number is None else args.number,
    seed=args.seed or 0,
    batch_size=args.batch_size,
    settings=settings,
    name=args.alias,
    **options,
  )


def _avatars_options(args: argparse.Namespace, default: Any = None) -> Any:
  from jaxgen.data.datasets.avatars import DEFAULT

  given = {name: value for name in ('size', 'number', 'seed') if (value := getattr(args, name)) is not None}
  options = (default or DEFAULT)._replace(**given)
  options = options._replace(hold_out=not args.all_pairs)
  return options._replace(styles=tuple(args.styles.split(','))) if args.styles else options


def _icons_options(args: argparse.Namespace) -> Any:
  from jaxgen.data.datasets.icons import Options

  return Options(**{name: value for name in ('size', 'number') if (value := getattr(args, name)) is not None})


def _encode(args: argparse.Namespace) -> int:
  import jax
  import jax.numpy as jnp

  from jaxgen import distributed, sharding
  from jaxgen.encode import encode
  from jaxgen.pretrained import autoencoder, text_encoder

  distributed.start()
  mesh = sharding.make_mesh(devices=jax.local_devices())
  sharding.check_batch_size(args.batch_size, mesh)
  datasets = [_open(args, split) for split in args.split or ['train']]
  fields = _fields(args.field)
  if args.text_encoder is None and (args.tokenizer or args.tokens):
    raise ValueError('--tokenizer and --tokens are of a text encoder; add --text-encoder FOLDER')
  put = lambda _, array: jax.device_put(array, sharding.replicated(mesh))  # noqa: E731
  loaded = autoencoder.load(args.autoencoder, dtype=jnp.dtype(args.dtype), put=put)
  text = args.text_encoder and text_encoder.load(
    args.text_encoder, tokenizer=args.tokenizer, length=args.tokens, put=put, dtype=jnp.dtype(args.dtype)
  )
  live = sys.stderr.isatty() and distributed.is_first()
  try:
    path = encode(
      datasets,
      loaded,
      name=args.name or f'{re.sub("[/:]", "_", datasets[0].name if ":" in args.data else args.data)}_latents',
      mesh=mesh,
      batch_size=args.batch_size,
      flips=not args.no_flips,
      fields=fields,
      text=text or None,
      data_dir=args.data_dir,
      report=(lambda message: print(f'\r\x1b[K{message}', end='', file=sys.stderr, flush=True))
      if live
      else lambda _: None,
    )
  except Exception as error:
    distributed.fail(error)
    raise
  if live:
    print(file=sys.stderr)
  if distributed.is_first():
    print(f'encoded in {path}')
  return 0


def _fields(given: list[str]) -> dict[str, Any]:
  """`--field` as `jaxgen.encode.encode` takes it."""
  from jaxgen.encode import IMAGE, Latents, mean, moments, sample

  forms = {'moments': moments, 'sample': sample, 'mean': mean, 'mode': mean}  # a Gaussian's mode is its mean
  fields = dict(IMAGE)
  for text in given:
    name, _, how = text.partition('=')
    form, _, scaled = how.partition(',')
    if not name or form not in forms or scaled not in ('', 'scaled'):
      raise ValueError(f'--field {text}: wanted NAME=FORM or NAME=FORM,scaled with a form of {", ".join(forms)}')
    fields[name] = Latents(forms[form], bool(scaled))
  return fields


def _open(args: argparse.Namespace, split: str) -> Any:
  from jaxgen.data.sources import source

  return source(args.data, split, resolution=args.size or 0, data_dir=args.data_dir)
