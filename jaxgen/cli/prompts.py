"""Text options of `jaxgen sample`: --prompt, --prompts, --instruction, --negative and --guidance."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from jaxgen.cli.numbers import finite

_SCALE = 'sampling.scale'  # the field of a config that is the guidance scale
_IMAGE_SCALE = 'sampling.image_scale'  # guidance scale of the picture that is edited


def add_options(parser: argparse.ArgumentParser) -> None:
  """The options of text."""
  group = parser.add_argument_group('text')
  group.add_argument(
    '--prompt',
    action='append',
    metavar='TEXT',
    help='text that the images show; may be repeated, and they take them in turn',
  )
  group.add_argument('--prompts', metavar='FILE', type=pathlib.Path, help='a file with one prompt a line')
  group.add_argument(
    '--instruction',
    action='append',
    metavar='TEXT',
    help='what to change in the picture of --edit (InstructPix2Pix); may be repeated',
  )
  group.add_argument('--negative', metavar='TEXT', help='text that guidance leads away from; needs guidance above 1')
  group.add_argument('--guidance', metavar='W', type=finite, help=f'guidance scale, 1 is unguided (--config.{_SCALE})')
  group.add_argument(
    '--image-guidance',
    metavar='W',
    type=finite,
    help=f'scale of guidance by the picture of --edit, with --instruction (--config.{_IMAGE_SCALE})',
  )


def overrides(args: argparse.Namespace) -> list[str]:
  """The changes to the config that --guidance and --image-guidance stand for."""
  given = {_SCALE: args.guidance, _IMAGE_SCALE: args.image_guidance}
  return [f'--config.{field}={value}' for field, value in given.items() if value is not None]


def read(args: argparse.Namespace) -> list[str]:
  """The prompts, or the instructions; none where none are given.

  Raises:
    ValueError: a prompt or the file is empty, or there are prompts and instructions.
  """
  if args.instruction and (args.prompt or args.prompts is not None):
    raise ValueError('--instruction and --prompt are both given; a model of instructions reads no other text')
  if args.image_guidance is not None and not args.instruction:
    raise ValueError('--image-guidance is for --instruction: how much of the picture of --edit is kept')
  prompts = list(args.prompt or args.instruction or ())
  if args.prompts is not None:
    prompts += lines_of(args.prompts)
  kind = '--instruction' if args.instruction else '--prompt'
  for name, text in [(kind, prompt) for prompt in prompts] + [('--negative', args.negative)]:
    if text is not None and not text.strip():
      raise ValueError(f'{name} is empty; say what it should be')
  return prompts


def lines_of(path: pathlib.Path) -> list[str]:
  """The prompts of a file, one a line.

  Raises:
    ValueError: it has none, or is no text.
  """
  from jaxgen.data.fields import decode_text

  try:
    text = decode_text(path.expanduser().read_bytes())
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if not lines:
    raise ValueError(f'{path} holds no prompt; write one a line')
  return lines


def negated(args: argparse.Namespace, stage: Any, config: Any) -> Any:
  """The objective's sampling with --negative in place of no text; None where it is not given."""
  if args.negative is None:
    return None
  scale = (config.get('sampling') or {}).get('scale')
  if scale is not None and scale <= 1:
    raise ValueError(f'--negative has no effect at guidance {scale:g}; give --guidance a value above 1')
  from jaxgen import sample

  return sample.away_from_prompt(stage, args.negative)
