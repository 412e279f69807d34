"""`jaxgen train`: trains a config, or resumes the run in its folder.

With JAXGEN_RESTARTS set, as launchers that start a run again set it, a failure after a new checkpoint ends with 75: it
is treated like a preemption, and is not counted as a failure.
"""

import argparse
import os
import sys
import traceback

from jaxgen.signals import Signals, listening


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog='jaxgen train',
    description='Trains a config. The same command goes on with a run that was stopped or killed.',
    epilog='Any field of the config can be changed: --config.steps=1000 --config.model.depth=4',
    allow_abbrev=False,
  )
  parser.add_argument(
    '--config',
    default='avatars',
    help='path of a config file, or the bare name of one in configs/ (default: avatars)',
  )
  parser.add_argument('--workdir', help="the run's folder, also gs://BUCKET/NAME (default: runs/NAME)")
  parser.add_argument(
    '--allow-changes',
    action='store_true',
    help='go on with a run although its dataset, seed, batch size or config differ',
  )
  parser.add_argument(
    '--init-from',
    metavar='PATH',
    help="start from another run's averages, or from published weights (a folder or file)",
  )
  for kind, what in (
    ('fresh', 'parameters that start as without --init-from: a new label table'),
    ('widened', "parameters that may be larger than the source's, zero where they are: a wider conv_in"),
    ('unused', "arrays of the source that have no place in this run's networks"),
  ):
    parser.add_argument(
      f'--init-{kind}', metavar='PATTERN', action='append', default=[], help=f'{what}; may be repeated'
    )
  parser.add_argument(
    '--init-part',
    metavar='NAME',
    help="the weights of --init-from to take: 'ema' or 'model' of a .pt that DiT's, SiT's or REPA's train.py saved; an "
    "average of a run, or 'none' (default: what it is sampled with)",
  )
  parser.add_argument(
    '--local-checkpoints',
    metavar='PATH',
    help='a folder on a disk of each machine, where every process keeps checkpoints of its own, which are read first '
    'when the run goes on; with rare ones in the workdir (--config.checkpoint.every)',
  )
  parser.add_argument(
    '--local-every', type=int, default=100, metavar='STEPS', help='steps between two local checkpoints (default: 100)'
  )
  parser.add_argument(
    '--profile', type=int, default=0, metavar='STEPS', help='trace this many steps, for xprof, in the folder profile/'
  )
  parser.add_argument('--profile-port', type=int, metavar='PORT', help='port at which profilers may ask for a trace')
  parser.add_argument(
    '--wandb', metavar='PROJECT', help='send metrics and pictures to Weights & Biases too (pip install jaxgen[wandb])'
  )
  args, overrides = parser.parse_known_args(argv)

  with listening(exits=True) as signals:  # before the imports, which take seconds
    return _train(args, overrides, signals)


def _train(args: argparse.Namespace, overrides: list[str], signals: Signals) -> int:
  from jaxgen.cli.config import load_config, record, remember

  config, module = load_config(args.config, overrides)

  from etils import epath

  from jaxgen import destination, distributed
  from jaxgen.checkpoint import newest_step
  from jaxgen.experiment import as_stages
  from jaxgen.init_from import InitFrom
  from jaxgen.local_checkpoints import Local, newest_local_step
  from jaxgen.profiling import Profile
  from jaxgen.train import train

  distributed.start(signals)
  writers = [destination.wandb(args.wandb)] if args.wandb and distributed.is_first() else []
  about = record(config, module)
  remember(module)
  workdir = epath.Path(args.workdir or f'runs/{about["name"]}')
  local = Local(args.local_checkpoints, args.local_every) if args.local_checkpoints else None
  newest = lambda: max(newest_step(workdir / 'checkpoints'), newest_local_step(local, workdir) if local else -1)  # noqa: E731
  before = newest()
  try:
    stages = as_stages(module.build(config))
    if args.init_from:
      source = InitFrom(
        args.init_from,
        tuple(args.init_fresh),
        tuple(args.init_widened),
        tuple(args.init_unused),
        average=args.init_part,
      )
      stages = (stages[0]._replace(init_from=source), *stages[1:])
      about['init_from'] = args.init_from
    elif args.init_fresh or args.init_widened or args.init_unused or args.init_part:
      raise ValueError('--init-fresh, --init-widened, --init-unused and --init-part go with --init-from PATH')
    train(
      stages,
      workdir,
      record=about,
      allow_changes=args.allow_changes,
      signals=signals,
      profile=Profile(args.profile, args.profile_port),
      writers=writers,
      local=local,
    )
  except distributed.Preempted as stopped:
    print(f'jaxgen: {stopped}', file=sys.stderr)
    return stopped.exit_code
  except Exception as error:
    resumes = bool(os.environ.get('JAXGEN_RESTARTS')) and newest() > before
    distributed.fail(error, code=distributed.Preempted.exit_code if resumes else 1)
    if not resumes:
      raise
    traceback.print_exc()
    print('jaxgen: failed after a new checkpoint; the same command goes on from there', file=sys.stderr)
    return distributed.Preempted.exit_code
  if distributed.is_first():
    print(f'Done. Open {workdir / "report.html"}')
  return 0
