"""`jaxgen truncate`: images nearer and nearer to the mean, as a grid."""

import argparse

from jaxgen.cli import styles


def main(argv: list[str]) -> int:
  parser = styles.parser('truncate', 'A grid of seeds at several truncations: typical images lie near the mean of w.')
  parser.add_argument('--seeds', type=styles.seeds_of, default=list(range(8)), help='seeds of the columns (0-7)')
  parser.add_argument('--psi', type=_numbers, default=[1.0, 0.7, 0.5, 0.3, 0.0], help='the rows (1,0.7,0.5,0.3,0)')
  args, overrides = parser.parse_known_args(argv)

  import numpy as np

  from jaxgen import writer

  made = styles.load(args, overrides)
  rows = [made.draw(made.styles(args.seeds, truncation=psi)) for psi in args.psi]
  writer.save_png(args.out, writer.grid(np.concatenate(rows), rows=[f'{psi:g}' for psi in args.psi]))
  print(f'{len(args.seeds)} seeds at psi {", ".join(f"{psi:g}" for psi in args.psi)} in {args.out}')
  return 0


def _numbers(text: str) -> list[float]:
  try:
    return [float(part) for part in text.split(',')]
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r} is not understood; wanted numbers such as 1,0.7,0.5') from None
