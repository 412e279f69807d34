"""`jaxgen sample --prompt TEXT --to-prompt TEXT`: an image, and the same with another prompt (Prompt-to-Prompt)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jaxgen.cli.numbers import finite


def add_options(parser: argparse.ArgumentParser) -> None:
  """The options of editing by a second prompt."""
  group = parser.add_argument_group('prompt to prompt')
  group.add_argument(
    '--to-prompt',
    metavar='TEXT',
    help='make each image of --prompt a second time for TEXT, with the same layout',
  )
  group.add_argument(
    '--emphasis',
    metavar='WORD=W',
    action='append',
    default=[],
    help='with --to-prompt: factor of the attention to a word',
  )
  group.add_argument(
    '--cross', metavar='S', type=finite, default=0.8, help='share of time in which the attention to words is kept (0.8)'
  )
  group.add_argument(
    '--itself',
    metavar='S',
    type=finite,
    default=0.4,
    help='share of time in which self-attention, and with it shapes, is kept (0.4)',
  )


def check(args: argparse.Namespace, words: Sequence[str]) -> list[str]:
  """The prompts, the second beside the first.

  Raises:
    ValueError: the options do not go together.
  """
  if args.to_prompt is None:
    if args.emphasis:
      raise ValueError('--emphasis is for --to-prompt: the prompt whose word counts more or less')
    return list(words)
  if len(words) != 1 or args.instruction or args.negative:
    raise ValueError('--to-prompt goes with one --prompt, and with no --instruction or --negative')
  if any((args.edit, args.inpaint, args.invert, args.until, args.interpolate is not None, args.previews)):
    raise ValueError(
      '--to-prompt samples from noise; give it no --edit, --inpaint, --invert, --interpolate, --until or --previews'
    )
  if args.num % 2:
    raise ValueError(f'--to-prompt makes pairs, and --num is {args.num}; it must be even')
  return [words[0], args.to_prompt]


def chosen(args: argparse.Namespace, trained: Any, config: Any, words: Sequence[str]) -> Any:
  """How to sample pairs of a source and its target.

  Args:
    args: options.
    trained: the model.
    config: the run's config; empty for a published generator.
    words: the two prompts.

  Raises:
    ValueError: a word is in no prompt, or the guidance scale is not known.
  """
  from jaxgen import sample
  from jaxgen.generation.prompt_to_prompt import aligned, prompt_to_prompt

  parts = sample.denoising(trained)
  scale = args.guidance if args.guidance is not None else (config.get('sampling') or {}).get('scale')
  if scale is None:
    raise ValueError('--to-prompt with --weights wants --guidance: the scale that this generator is sampled with')
  source, target = next(iter(sample.prompt_fields(trained.stage, words).values())).tolist()
  weights: dict[int, float] = {}
  for text in args.emphasis:
    word, _, factor = text.rpartition('=')
    try:
      number = finite(factor)
    except (ValueError, argparse.ArgumentTypeError):
      raise ValueError(f'--emphasis {text}: wanted WORD=W, such as red=2') from None
    weights |= dict.fromkeys(places(trained, target, word), number)
  edit = aligned(source, target, weights=weights)
  # The first of an objective's guides is guidance by the prompt, whose place the edit takes.
  return prompt_to_prompt(
    parts, edit, scale=float(scale), cross=args.cross, itself=args.itself, after=tuple(parts.guide[1:])
  )


def places(trained: Any, target: Sequence[int], word: str) -> list[int]:
  """Where the tokens of a word are in the second prompt.

  Raises:
    ValueError: they are not.
  """
  padded = trained.stage.tokenize([word, ''])
  ids, empty = (row.tolist() for row in next(iter(padded.values())))
  own = [token for token in ids if token not in empty]
  starts = [i for i in range(len(target)) if own and list(target[i : i + len(own)]) == own]
  if not starts:
    raise ValueError(f'--emphasis {word}: the word is not in --to-prompt')
  return [i + j for i in starts for j in range(len(own))]
