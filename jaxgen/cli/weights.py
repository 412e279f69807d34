"""`jaxgen weights`: lists the pretrained weights that jaxgen knows, and gets them."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(prog='jaxgen weights', description='Pretrained weights, by name.')
  commands = parser.add_subparsers(dest='command', required=True)
  commands.add_parser('list', help='names, what they are, and which are here')
  get = commands.add_parser('get', help='fetch, check and store weights')
  get.add_argument('name')
  get.add_argument('--from', dest='source', type=Path, metavar='FILE', help='read this file; fetch nothing')
  options = parser.parse_args(argv)
  if options.command == 'list':
    _list()
  else:
    _get(options.name, options.source)
  return 0


def _list() -> None:
  from jaxgen.pretrained import weights

  for name, entry in weights.REGISTRY.items():
    path = weights.stored(name)
    print(f'{name:12}{entry.description}\n{"":12}{path if path.exists() else "not here yet; from"}')
    for source in entry.sources:
      print(f'{"":14}{source.name}: {source.description}')


def _get(name: str, source: Path | None) -> None:
  from jaxgen.pretrained import weights

  live = sys.stderr.isatty()

  def report(message: str) -> None:
    print(f'\r\x1b[K{message}' if live else message, end='' if live else '\n', file=sys.stderr, flush=True)

  path = weights.get(name, source=source, report=report)
  if live:
    print('\r\x1b[K', end='', file=sys.stderr)
  print(path)
