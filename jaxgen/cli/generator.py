"""`jaxgen sample --weights`: images of a published generator, or of a model that a run was exported as."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jaxgen.cli import adapters

_BOTH = '--run and --weights are both given; give the folder of a run, or a published generator'


def add_options(parser: argparse.ArgumentParser) -> None:
  """The options of published generators."""
  group = parser.add_argument_group('published generators')
  group.add_argument(
    '--weights',
    metavar='PATH',
    help='in place of --run: a folder of diffusers, a checkpoint in one file, a folder of `jaxgen export --format '
    'jaxgen`, or one that comes with jaxgen, jaxgen/NAME',
  )
  group.add_argument('--steps', type=int, help="steps of the sampler (default: 50; 25 of DALL-E 2's prior and decoder)")
  group.add_argument(
    '--then', metavar='FOLDER', action='append', default=[], help='a generator that enlarges the images of --weights'
  )
  group.add_argument('--size', metavar='HxW', help='size of the images in pixels (default: that of the training)')
  group.add_argument('--dtype', help="dtype of the networks' activations (default: bfloat16, float32 on CPUs)")
  group.add_argument('--tile', type=int, help='decode large images in tiles of this many latents a side')
  group.add_argument(
    '--double-shift',
    action='store_true',
    help="shift a flow's last time twice, as diffusers does for Stable Diffusion 3",
  )
  group.add_argument(
    '--prediction', choices=('epsilon', 'v_prediction'), help='prediction of the network, where a file does not say'
  )


def as_run(args: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
  """If --weights is an exported model of a run, uses it as --run; returns the changes to its config."""
  from jaxgen import model_folder

  args.model = None
  folder = None if args.weights is None else model_folder.resolved(args.weights)
  if folder is None or not model_folder.is_model(folder):
    return list(overrides)
  if args.run is not None:
    raise ValueError(_BOTH)
  given = [name for name in ('size', 'dtype', 'tile', 'prediction', 'then') if getattr(args, name) not in (None, [])]
  given += ['double-shift'] if args.double_shift else []
  if given:
    raise ValueError(
      f'--{given[0]} is for published generators; {args.weights} has a config, whose fields can be changed'
    )
  steps = [] if args.steps is None else [f'--config.sampling.steps={args.steps}']
  args.model, args.run, args.weights, args.steps = args.weights, folder, None, None
  return [*overrides, *steps]


def check(args: argparse.Namespace, overrides: Sequence[str]) -> None:
  """Raises ValueError where options are not for --weights, or only for it."""
  if args.run is not None and args.weights is not None:
    raise ValueError(_BOTH)
  if args.weights is None:
    given = [
      name for name in ('steps', 'size', 'dtype', 'tile', 'prediction', 'then') if getattr(args, name) not in (None, [])
    ]
    given += ['double-shift'] if args.double_shift else []
    if given:
      raise ValueError(
        f'--{given[0]} is for --weights; a run has fields of its config, such as --config.sampling.steps'
      )
    return
  named = [name for name in ('step', 'ema', 'config') if getattr(args, name) is not None]
  if named or overrides:
    raise ValueError(f'{overrides[0] if overrides else f"--{named[0]}"} is for --run; {args.weights} is no run')


def opened(args: argparse.Namespace, words: Sequence[str]) -> tuple[Any, bool, dict[str, Any]]:
  """The opened generator, whether it reads the mask of an image to fill, and its further conditions."""
  import jax
  import jax.numpy as jnp

  from jaxgen import distributed, from_weights
  from jaxgen.pretrained.pipeline import UNCLIP
  from jaxgen.pretrained.text_to_image import concatenated, is_guided, is_instructed

  distributed.start()
  dtype = args.dtype or ('float32' if jax.default_backend() == 'cpu' else 'bfloat16')
  pipeline = from_weights.opened(args.weights, prediction=args.prediction, dtype=jnp.dtype(dtype))
  from_weights.check_draws(pipeline)
  if args.negative is not None and not is_guided(pipeline, args.guidance):
    raise ValueError('--negative has no effect without guidance; give --guidance a value above 1')
  if args.negative is not None and pipeline.kind in UNCLIP:
    raise ValueError(f'--negative is not for a {pipeline.kind}, which is led away from no words alone')
  if args.double_shift and not pipeline.schedule.is_flow:
    raise ValueError(f'--double-shift is for flows, and {args.weights} has a {pipeline.schedule.scheduler}')
  if args.then:
    return _in_a_row(args, pipeline, words), False, {}
  pipeline, extend, fields = adapters.extended(args, pipeline)
  trained = from_weights.trained(
    pipeline,
    texts=[*words, *([args.negative] if args.negative else [])],
    size=_size(args.size),
    steps=args.steps,
    guidance=args.guidance,
    image_guidance=args.image_guidance,
    tile=args.tile,
    double_shift=args.double_shift,
    extend=extend,
  )
  if pipeline.kind == 'UnCLIPImageVariationPipeline' and not args.image_prompt:
    raise ValueError('this generator makes variations of a picture; give it --image-prompt IMAGE')
  if trained.stage.tokenize is not None and not words and not is_instructed(pipeline):
    raise ValueError('this generator reads text; give it --prompt TEXT')
  reads = 0 if is_instructed(pipeline) else concatenated(pipeline)
  if reads and args.inpaint is None:
    raise ValueError(
      f'this generator reads {reads} channels beside its image: it fills in; give it --inpaint and --mask'
    )
  return trained, bool(reads), fields


def _in_a_row(args: argparse.Namespace, first: Any, words: Sequence[str]) -> Any:
  """The opened generators of --weights and --then as one."""
  import jax.numpy as jnp

  from jaxgen import from_weights

  names = ('size', 'tile', 'lora', 'embedding', 'control', 'image_prompt', 'edit', 'inpaint', 'invert', 'interpolate')
  given = [name for name in (*names, 'until', 'previews') if getattr(args, name)]
  if given:
    raise ValueError(f'--{given[0].replace("_", "-")} is for one generator; leave out --then')
  if not words:
    raise ValueError('these generators read text; give them --prompt TEXT')
  dtype = jnp.dtype(first.denoiser.net.dtype)
  others = [from_weights.opened(folder, dtype=dtype) for folder in args.then]
  return from_weights.in_a_row([first, *others], steps=args.steps, guidance=args.guidance, negative=args.negative)


def _size(text: str | None) -> tuple[int, int] | None:
  if text is None:
    return None
  height, _, width = text.partition('x')
  if not (height.isdecimal() and (width or height).isdecimal()):
    raise ValueError(f'--size is {text!r}; wanted HEIGHTxWIDTH in pixels, such as 512x768')
  return int(height), int(width or height)
