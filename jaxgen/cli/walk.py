"""`jaxgen walk`: a walk through a StyleGAN's latents, as an animation."""

from jaxgen.cli import styles

_SUFFIXES = ('.webp', '.gif', '.png', '.mp4')


def main(argv: list[str]) -> int:
  parser = styles.parser('walk', 'Walks from seed to seed and back to the first, as an animation that loops.')
  parser.add_argument('--seeds', type=styles.seeds_of, default=[0, 1, 2, 3], help='seeds of the stops (0-3)')
  parser.add_argument('--frames', type=int, default=24, help='frames from one stop to the next (24)')
  parser.add_argument('--fps', type=int, default=24, help='frames a second (24)')
  styles.add_truncation(parser)
  args, overrides = parser.parse_known_args(argv)
  if args.out.suffix.lower() not in _SUFFIXES:
    raise ValueError(f'--out is {args.out}; an animation is a {", ".join(_SUFFIXES)} file')
  for name in ('frames', 'fps'):
    if getattr(args, name) < 1:
      raise ValueError(f'--{name} is {getattr(args, name)}; it must be 1 or more')

  import jax.numpy as jnp
  import numpy as np
  from etils import epath

  from jaxgen import animation
  from jaxgen.generation import gan_latents
  from jaxgen.generation.interpolate import slerp

  animation.check(args.out)
  made = styles.load(args, overrides)
  places = made.latents(args.seeds)
  steps = jnp.tile(jnp.arange(args.frames) / args.frames, len(args.seeds))
  before, after = (jnp.repeat(ends, args.frames, axis=0) for ends in (places, jnp.roll(places, -1, axis=0)))
  z, frames = slerp(before, after, steps), []
  variables = gan_latents.variables(made.params)
  for begin in range(0, len(z), 64):
    part = z[begin : begin + 64]
    ws = made.net.apply(variables, part, made.cond(len(part)), truncation=args.truncation, method='styles')
    frames.append(made.draw(ws))
  animation.write(epath.Path(args.out), np.concatenate(frames), frames_per_second=args.fps)
  print(f'{len(z)} frames in {args.out}')
  return 0
