"""`jaxgen sample`: makes images with a run's model, or with a published one."""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxgen.cli import adapters, edit, generator, lora, output, previews, prompt_edit, prompts
from jaxgen.cli.config import add_trust_options, load_run, newest_run, step

_FPS = 12
_STRIP = 12  # images of an interpolation in one row, at most


def main(argv: list[str]) -> int:
  args, overrides = _parser().parse_known_args(argv)
  overrides = generator.as_run(args, overrides)
  generator.check(args, overrides)
  if args.weights is None:
    args.run = args.run or str(newest_run())
  if args.num < 1:
    raise ValueError(f'--num is {args.num}; it must be 1 or more')
  edit.check(args)
  adapters.check(args)
  if args.out.suffix.lower() in previews.ANIMATIONS:
    previews.check(args.out)
  elif args.out.suffix.lower() != '.png':
    output.check_samples_folder(args.out)
  if args.previews is not None:
    previews.check(args.previews)
  words = prompt_edit.check(args, prompts.read(args))

  trained, config, reads_mask, given = _opened(args, overrides, words)

  import numpy as np

  from jaxgen import distributed, sample
  from jaxgen.generation import cascade

  trained = lora.added(args.lora, trained) if args.weights is None else trained
  names = trained.stage.data.class_names
  if args.label is not None:
    given |= {'label': np.asarray(sample.class_numbers(args.label, names), np.int32)}
  given |= edit.instruction_fields(args, trained) | adapters.control_fields(args, trained)
  given |= sample.prompt_fields(trained.stage, words)
  cond = sample.conditioning(trained.stage, args.num, given=given)
  parts = None if args.then else prompts.negated(args, trained.stage, config)
  watch = None if args.previews is None else previews.previews(args.previews)
  show = None if watch is None else watch.show
  sample_fn, cond, inputs = edit.chosen(args, trained, cond, parts=parts, show=show, reads_mask=reads_mask)
  if len(args.image_prompt or ()) == 2:
    sample_fn = cascade.of_one_noise(trained.stage.objective.sample, sample.noise_key(args.seed))
  if args.to_prompt is not None:
    sample_fn = prompt_edit.chosen(args, trained, config, words)
  images = sample.sample(
    trained,
    cond,
    num=args.num,
    seed=args.seed,
    batch_size=args.batch_size,
    sample_fn=sample_fn,
    inputs=inputs,
  )
  if watch is not None:
    watch.finish(args.num)
  if distributed.is_first():
    columns = args.num if args.interpolate is not None and args.num <= _STRIP else None
    _save(args.out, images, cond, names, words, columns=columns)
    made_by = args.model or (f'{args.run}, step {trained.step:,},' if args.weights is None else args.weights)
    print(f'{args.num} images of {made_by} in {args.out}')
    if args.invert is not None:
      print(edit.inversion_message(images, inputs['image']))
  return 0


def _opened(args: argparse.Namespace, overrides: Sequence[str], words: Sequence[str]) -> tuple[Any, Any, bool, Any]:
  """The model, its config ({} of a published one), whether it reads a mask, and its further conditions."""
  if args.weights is not None:
    trained, reads_mask, fields = generator.opened(args, words)
    return trained, {}, reads_mask, fields
  changes = [*overrides, *prompts.overrides(args)]
  config, module = load_run(args.run, changes, config=args.config, trust_code=args.trust)
  from jaxgen import distributed, sample

  distributed.start()
  return sample.of_config(module.build, config, args.run, step=args.step, average=args.ema), config, False, {}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='jaxgen sample',
    description="Makes images with a run's model and the sampler of its config, or with a published generator.",
    epilog="Any field of the run's config can be changed, e.g. --config.sampling.steps=100",
    allow_abbrev=False,
  )
  parser.add_argument('--run', help="the run's folder (default: the newest in runs/)")
  parser.add_argument(
    '--out',
    type=pathlib.Path,
    default=pathlib.Path('samples.png'),
    help='a folder; a .png file for one grid; a .webp, .gif or .mp4 file for an animation (samples.png)',
  )
  parser.add_argument('--num', type=int, default=64, help='number of images (default: 64)')
  parser.add_argument(
    '--label',
    action='append',
    help="a class, by name or number; may be repeated, and 'all' is every class; the images take them in turn "
    '(default: as in the training data)',
  )
  parser.add_argument('--seed', type=int, default=0, help='seed of the noise (default: 0)')
  parser.add_argument('--step', type=step, help="step of the checkpoint, or 'best' by FID (default: the newest)")
  parser.add_argument('--ema', help="the average to sample with, 'none', or 'power:WIDTH' (default: own)")
  parser.add_argument('--batch-size', type=int, help='images at a time (default: 64)')
  prompts.add_options(parser)
  prompt_edit.add_options(parser)
  lora.add_options(parser)
  adapters.add_options(parser)
  edit.add_options(parser)
  generator.add_options(parser)
  add_trust_options(parser)
  return parser


def _save(
  out: pathlib.Path,
  images: Any,
  cond: dict[str, Any],
  names: Sequence[str],
  words: Sequence[str],
  *,
  columns: int | None = None,
) -> None:
  """One grid, an animation of the images in order, or a folder of numbered files with metadata.jsonl beside them."""
  from jaxgen import writer

  if out.suffix.lower() == '.png':
    out.parent.mkdir(parents=True, exist_ok=True)
    writer.save_png(out, writer.grid(images, columns=columns))
    return
  if out.suffix.lower() in previews.ANIMATIONS:
    from etils import epath

    from jaxgen import animation

    animation.write(epath.Path(out), images, frames_per_second=_FPS)
    return
  output.clear_samples(out)
  lines = []
  for i in range(len(images)):
    line: dict[str, Any] = {'file_name': f'{i:06d}.png'}
    line |= {'prompt': words[i % len(words)]} if words else {}
    if 'label' in cond:
      label = int(cond['label'][i])
      line |= {'label': label, 'class': names[label]} if names else {'label': label}
    lines.append(json.dumps(line) + '\n')
  # First of all, so that what a killed call leaves is known for samples, and for too few.
  (out / 'metadata.jsonl').write_text(''.join(lines), encoding='utf-8')
  for i, image in enumerate(images):
    writer.save_png(out / f'{i:06d}.png', image)
