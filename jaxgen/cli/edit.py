"""Images as inputs of `jaxgen sample`: reads files, and chooses how to sample from them."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from jaxgen.cli.numbers import finite

if TYPE_CHECKING:
  import numpy as np


_GOOD_INVERSION = 25.0  # dB; below, differences are plain to see


def add_options(parser: argparse.ArgumentParser) -> None:
  """The options of editing, watching and stopping."""
  ways = parser.add_mutually_exclusive_group()
  ways.add_argument('--edit', metavar='IMAGE', type=pathlib.Path, help='edit a file, or each file of a folder (SDEdit)')
  ways.add_argument('--inpaint', metavar='IMAGE', type=pathlib.Path, help='fill what is white in --mask (RePaint)')
  ways.add_argument(
    '--interpolate', metavar='SEED', type=int, help='images from the first one of --seed to that of SEED'
  )
  ways.add_argument(
    '--invert', metavar='IMAGE', type=pathlib.Path, help='find the noise of an image and sample it again (DDIM)'
  )
  parser.add_argument(
    '--strength', type=finite, default=0.6, help='time of the noise for --edit, in (0, 1]; 1 keeps nothing (0.6)'
  )
  parser.add_argument(
    '--mask', metavar='IMAGE', type=pathlib.Path, help='mask of --inpaint: white is filled, black is kept'
  )
  parser.add_argument(
    '--repeats',
    type=int,
    help='times that --inpaint takes each step (10), or iterations of --invert to its fixed point (0)',
  )
  parser.add_argument(
    '--until', metavar='T', type=finite, help='stop at this time in (0, 1), with x0 as the network predicts it there'
  )
  parser.add_argument(
    '--previews',
    metavar='PATH',
    type=pathlib.Path,
    help='save the predictions of x0: a folder of grids, a .png strip, or a .gif, .webp or .mp4 of the denoising',
  )


def check(args: argparse.Namespace) -> None:
  """Raises ValueError where options do not go together."""
  if (args.inpaint is None) != (args.mask is None):
    raise ValueError('--inpaint and --mask go together: an image, and which of its pixels to fill')
  if args.instruction and args.edit is None:
    raise ValueError('--instruction says what to change in a picture; give it with --edit IMAGE')
  if args.repeats is not None and args.inpaint is None and args.invert is None:
    raise ValueError('--repeats is for --inpaint or --invert; give one of them an image')


def instruction_fields(args: argparse.Namespace, trained: Any) -> dict[str, np.ndarray]:
  """The field of a batch that --edit gives to a model that follows instructions; {} for others.

  Raises:
    ValueError: the model takes no instruction, or it wants one.
  """
  from jaxgen.objectives.instruct import FIELD
  from jaxgen.sample import parts_of

  reads = FIELD in trained.stage.objective.conditioner.fields
  if args.instruction and not reads:
    raise ValueError(
      'this model takes no instruction: it was not trained to edit; say what the whole picture shows with --prompt, '
      'or train one (--config instruct_pix2pix)'
    )
  if not reads:
    return {}
  if args.edit is None or not args.instruction:
    raise ValueError('this model edits pictures by instructions; give it --edit IMAGE and --instruction TEXT')
  return {FIELD: read_images(args.edit, image_shape(parts_of(trained.stage), trained.frozen), args.num)}


def chosen(
  args: argparse.Namespace,
  trained: Any,
  cond: dict[str, np.ndarray],
  *,
  parts: Any = None,
  show: Any = None,
  reads_mask: bool = False,
) -> tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
  """The sampling that the options ask for: the sample function (None for the objective's own), condition and inputs.

  `parts` stands in for the objective's `denoising`, where it is given; `show` is called with every x0; a network that
  `reads_mask` was trained to inpaint.
  """
  edit_file = None if args.instruction else args.edit  # else it is a condition
  if parts is None and all(
    given is None for given in (edit_file, args.inpaint, args.interpolate, args.invert, args.until, show)
  ):
    return None, cond, {}
  import numpy as np

  from jaxgen import sample
  from jaxgen.generation import edit, inpaint, interpolate, invert, stop
  from jaxgen.objectives.base import sampled

  parts = parts or sample.denoising(trained)
  if args.until is not None:
    parts = stop.stopped(parts, args.until)
  if show is not None:
    parts = parts._replace(show=show)
  file = edit_file or args.inpaint or args.invert
  inputs, shape = {}, image_shape(parts, trained.frozen)
  if file is not None:
    inputs = {'image': read_images(file, shape, args.num)}
  if edit_file is not None:
    return edit.edited(parts, strength=args.strength), cond, inputs
  if args.inpaint is not None:
    inputs |= {'mask': _mask(args.mask, shape, args.num)}
    if reads_mask:
      return inpaint.concat_inpainted(parts), cond, inputs
    repeats = 10 if args.repeats is None else args.repeats
    return inpaint.inpainted(parts, repeats=repeats), cond, inputs
  if args.invert is not None:
    return invert.reconstructed(parts, repeats=args.repeats or 0), cond, inputs
  if args.interpolate is not None:
    ends = sample.noise_key(args.seed), sample.noise_key(args.interpolate)
    first = {name: np.repeat(rows[:1], args.num, axis=0) for name, rows in cond.items()}
    return interpolate.interpolated(parts, *ends), first, {'weight': np.linspace(0, 1, args.num, dtype=np.float32)}
  return sampled(parts), cond, {}


def inversion_message(images: np.ndarray, originals: np.ndarray) -> str:
  """The PSNR of images that were inverted and sampled again; images are uint8, originals float in [-1, 1]."""
  import numpy as np

  pixels = np.clip(np.round((originals + 1) * 127.5), 0, 255)
  error = np.mean((images - pixels) ** 2, axis=(1, 2, 3))
  decibels = 10 * np.log10(255**2 / np.maximum(error, 1e-10))
  text = f'PSNR of what came back: {decibels.mean():.1f} dB'
  text += f', {decibels.min():.1f} at least' if len(decibels) > 1 else ''
  if decibels.min() >= _GOOD_INVERSION:
    return text
  return (
    f'{text}; the inversion is poor, so edits of this noise will not keep the image: give more steps '
    '(--config.sampling.steps), --repeats 5, or --guidance 1'
  )


def image_shape(parts: Any, frozen: Any) -> tuple[int, ...]:
  """The shape of one image, which is decoded where the denoiser sees latents."""
  import jax
  import jax.numpy as jnp

  return jax.eval_shape(parts.decode, frozen, jnp.zeros((1, *parts.shape))).shape[1:]


def read_images(path: pathlib.Path, shape: tuple[int, ...], num: int | None) -> np.ndarray:
  """`num` images of that shape in [-1, 1]: the file, or a folder's files in turn; each once without `num`."""
  import numpy as np

  from jaxgen.data.image import to_float
  from jaxgen.data.listing import image_names, open_file, open_tree, read_image

  height, width, channels = shape
  if height != width or channels not in (1, 3):
    raise ValueError(
      f'{path}: this run has images of {height}x{width}x{channels}; only square gray or RGB ones are read'
    )
  path = path.expanduser()
  tree = open_file(path) if path.is_file() and path.suffix.lower() != '.zip' else open_tree(path)
  names = image_names(tree)[0][:num]
  images = [to_float(read_image(tree, name, channels=channels, size=height)) for name in names]
  return np.stack([images[i % len(images)] for i in range(len(images) if num is None else num)])


def _mask(path: pathlib.Path, shape: tuple[int, ...], num: int) -> np.ndarray:
  """1 where a pixel is kept."""
  mask = (1 - read_images(path, (*shape[:2], 1), num)) / 2
  if mask.min() == mask.max():
    colour, what = ('black', 'there is nothing to fill') if mask.max() > 0.5 else ('white', 'nothing is kept')
    raise ValueError(f'--mask {path} is {colour} everywhere: {what}; white is filled and black is kept')
  return mask
