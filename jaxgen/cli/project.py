"""`jaxgen project`: finds the latents of an image in a StyleGAN."""

import pathlib

from jaxgen.cli import styles


def main(argv: list[str]) -> int:
  parser = styles.parser('project', 'Finds the w (or w of each layer) and noise whose image is nearest to a picture.')
  parser.add_argument('image', type=pathlib.Path, help='the picture; it is cropped and resized')
  parser.add_argument(
    '--each-layer', action='store_true', help='W+: a w for each layer, which comes closer and is worse to edit'
  )
  parser.add_argument(
    '--distance', choices=('lpips', 'pixels'), default='lpips', help='the distance that is minimised (lpips)'
  )
  parser.add_argument('--steps', type=int, default=1000, help='steps of Adam (1000)')
  parser.add_argument('--samples', type=int, default=10_000, help='samples of w, for its standard deviation (10000)')
  parser.add_argument('--seed', type=int, default=0, help='seed of the noise (0)')
  args, overrides = parser.parse_known_args(argv)
  for name in ('steps', 'samples'):
    if getattr(args, name) < 2:
      raise ValueError(f'--{name} is {getattr(args, name)}; it must be 2 or more')

  import jax
  import jax.numpy as jnp
  import numpy as np

  from jaxgen import writer
  from jaxgen.cli.edit import read_images
  from jaxgen.evaluators.generate import to_uint8
  from jaxgen.generation import gan_latents
  from jaxgen.metrics.reconstruction import psnr

  distance = _distance(args.distance)
  made = styles.load(args, overrides)
  target = jnp.asarray(read_images(args.image, made.shape, 1)[0])
  run = jax.jit(
    lambda params, target, key: gan_latents.project(
      made.net,
      params,
      target,
      key,
      distance=distance,
      cond=made.cond(1),
      each_layer=args.each_layer,
      steps=args.steps,
      samples=args.samples,
    )
  )
  found = jax.device_get(run(made.params, target, jax.random.key(args.seed)))
  args.out.mkdir(parents=True, exist_ok=True)
  pair = np.stack([np.asarray(target), found.image])
  writer.save_png(args.out / 'target_and_projection.png', writer.grid(np.asarray(to_uint8(jnp.asarray(pair)))))
  noise = {f'noise_{i}': leaf for i, leaf in enumerate(jax.tree.leaves(found.noise))}
  np.savez(args.out / 'latents.npz', ws=found.ws, distances=found.distances, **noise)
  decibels = float(psnr(jnp.asarray(pair[1:]), jnp.asarray(pair[:1]))[0])
  print(f'{args.out}: {args.distance} {float(found.distance):.4g}, PSNR {decibels:.2f} dB; w in latents.npz')
  return 0


def _distance(name: str):
  """`(images, images) -> distances`."""
  import jax.numpy as jnp

  from jaxgen.objectives.distances import lpips
  from jaxgen.pretrained.lpips import load

  if name == 'pixels':
    return lambda a, b: jnp.mean((a - b) ** 2, axis=(1, 2, 3))
  params = load().params
  return lambda a, b: lpips(params, a, b)
