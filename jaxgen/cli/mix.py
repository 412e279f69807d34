"""`jaxgen mix`: the coarse layers of some images with the fine layers of others, as a grid."""

from jaxgen.cli import styles


def main(argv: list[str]) -> int:
  parser = styles.parser('mix', 'A grid: each row has the coarse layers of its first image, each column the fine ones.')
  parser.add_argument('--coarse', type=styles.seeds_of, default=[0, 1, 2, 3], help='seeds of the rows (0-3)')
  parser.add_argument('--fine', type=styles.seeds_of, default=[10, 11, 12, 13, 14], help='seeds of the columns (10-14)')
  parser.add_argument('--layer', type=int, help='the first layer that is fine (default: half of them)')
  styles.add_truncation(parser)
  args, overrides = parser.parse_known_args(argv)

  import jax.numpy as jnp
  import numpy as np

  from jaxgen import writer
  from jaxgen.generation import gan_latents

  made = styles.load(args, overrides)
  layers = made.net.num_styles
  layer = layers // 2 if args.layer is None else args.layer
  if not 0 <= layer <= layers:
    raise ValueError(f'--layer is {layer}; this generator has {layers} layers, so it is from 0 to {layers}')
  coarse, fine = (made.styles(seeds, truncation=args.truncation) for seeds in (args.coarse, args.fine))
  rows, columns = len(coarse), len(fine)
  both = gan_latents.mix(jnp.repeat(coarse, columns, axis=0), jnp.tile(fine, (rows, 1, 1)), layer=layer)
  top, left, inside = made.draw(fine), made.draw(coarse), made.draw(both)
  corner = np.full_like(top[:1], 255)
  lines = [corner, top] + [part for i in range(rows) for part in (left[i : i + 1], inside[i * columns :][:columns])]
  writer.save_png(args.out, writer.grid(np.concatenate(lines), columns=columns + 1))
  print(f'{rows} x {columns} images in {args.out}: layers before {layer} of the rows, the rest of the columns')
  return 0
