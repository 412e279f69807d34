"""`jaxgen export`: a run's model as a folder for others, with a model card."""

import argparse
import pathlib
from typing import Any

from jaxgen.cli import output
from jaxgen.cli.config import add_trust_options, load_run, step

_NOTED = 256  # conditions of training data that a model keeps, at least


def main(argv: list[str]) -> int:
  args, overrides = _parser().parse_known_args(argv)
  if args.num < 1:
    raise ValueError(f'--num is {args.num}; it must be 1 or more')
  output.check_export_folder(args.out)
  config, module = load_run(args.run, overrides, config=args.config, trust_code=args.trust)

  from etils import epath

  from jaxgen import distributed, export, model_folder, sample
  from jaxgen.data import described

  distributed.start()
  with described.recorded() as notes:
    trained = sample.restore(module.build(config), args.run, step=args.step, average=args.ema)
    cond = sample.conditioning(trained.stage, max(args.num, _NOTED))
  out, record = epath.Path(args.out), _record(epath.Path(args.run))
  output.clear_export(args.out)
  opens = record | {'config': config.to_dict()}  # with what the command line changes: the folder opens with it
  made = export.model(trained, out, opens, notes) if args.format == 'jaxgen' else export.networks(trained, out)
  cond = {name: rows[: args.num] for name, rows in cond.items()}
  if args.stablehlo:
    export.program(trained, out, cond, num=args.num, platforms=args.platforms.split(','))
    made = made._replace(program=True)
  _write_card(args, trained, made, cond, record)
  parts = [f'{name}/ ({layout})' for name, layout in made.networks.items()]
  parts += [model_folder.FILE] if made.model else []
  parts += ['sampler.stablehlo'] if made.program else []
  pipeline = f'; diffusers.{made.pipeline} loads it' if made.pipeline else ''
  print(f'{args.out}: {", ".join(parts)}, README.md{pipeline}')
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='jaxgen export',
    description="Writes a run's averaged networks with a model card: as diffusers keeps them where it can load them, "
    'else as safetensors; with --stablehlo the whole sampler too. With --format jaxgen, as one small folder for '
    '`jaxgen sample --weights` and `jaxgen.load_run`.',
    epilog="Any field of the run's config can be changed, e.g. --config.sampling.steps=10",
    allow_abbrev=False,
  )
  parser.add_argument('run', help="the run's folder")
  parser.add_argument('--out', type=pathlib.Path, required=True, help='the folder to write')
  parser.add_argument('--step', type=step, help="step of the checkpoint, or 'best' by FID (default: the newest)")
  parser.add_argument('--ema', help="the average to export, 'none', or 'power:WIDTH' (default: own)")
  parser.add_argument(
    '--num', type=int, default=16, help='images on the card, and images that one call of the program makes (16)'
  )
  parser.add_argument(
    '--format',
    choices=('networks', 'jaxgen'),
    default='networks',
    help='networks, each in a folder of its own; or jaxgen, the config and the averages in half precision (networks)',
  )
  parser.add_argument(
    '--stablehlo', action='store_true', help='write the sampler as a program of jax.export too, for serving'
  )
  parser.add_argument(
    '--platforms', default='cpu,cuda,tpu', help='platforms that the program may run on (cpu,cuda,tpu)'
  )
  add_trust_options(parser)
  return parser


def _record(run: Any) -> dict[str, Any]:
  """config.json of the run, with the command as whoever repeats it would write it."""
  from jaxgen.files import read_json_object

  kept = read_json_object(run / 'config.json') or {}
  about = dict(kept.get('environment') or {})
  if about.get('command'):
    program, *rest = str(about['command']).split(' ')
    about['command'] = ' '.join([pathlib.PurePath(program).name, *rest])
  return kept | {'environment': about}


def _write_card(args: argparse.Namespace, trained: Any, made: Any, cond: Any, record: Any) -> None:
  import jax
  from etils import epath

  from jaxgen import sample, writer
  from jaxgen.files import read_json_object, write_whole
  from jaxgen.metrics_file import read_metrics
  from jaxgen.model_card import model_card

  run = epath.Path(args.run)
  images = sample.sample(trained, cond, num=args.num)
  writer.save_png(args.out / 'samples.png', writer.grid(images))
  metrics = run / 'metrics.jsonl'
  trees = {name: tree for name, tree in trained.params.items() if name != 'extra'}
  card = model_card(
    record=record,
    provenance=_provenance(run, trained.stage.data.dataset),
    metrics=read_metrics(metrics) if metrics.exists() else [],
    protocols=read_json_object(run / 'protocols.json') or {},
    exported=made,
    step=trained.step,
    sizes={name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in trees.items()},
    fields={name: rows.shape for name, rows in cond.items()},
    num=args.num,
  )
  write_whole(args.out / 'README.md', card)


def _provenance(run: Any, dataset: Any) -> dict[str, Any]:
  """What is known of the training data; records that name no licence are counted and not opened one by one."""
  from jaxgen.data import licences
  from jaxgen.files import read_json_object

  if kept := read_json_object(run / 'provenance.json'):
    return kept
  if next(licences.origins(dataset)).licence:
    return licences.provenance(dataset)
  records = dataset.num_examples
  about = {'dataset': dataset.name, 'split': dataset.split, 'records': records}
  return about | {'licences': {'none named': records}, 'attributions': []}
