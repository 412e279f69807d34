"""`jaxgen compare`: several runs on one page."""

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog='jaxgen compare', description='Curves, samples, numbers and configs of several runs on one page.'
  )
  parser.add_argument('runs', nargs='+', metavar='RUN', help="a run's folder")
  parser.add_argument('--out', type=Path, default=Path('compare.html'), help='default: compare.html')
  options = parser.parse_args(argv)

  from jaxgen import compare

  print(compare.write(options.runs, options.out))
  return 0
