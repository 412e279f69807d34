"""`jaxgen train`: trains a config, or goes on with the run in its folder."""

import argparse
import sys

from jaxgen.signals import Signals, listening


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog='jaxgen train',
    description='Trains a config. The same command goes on with a run that was stopped or killed.',
    epilog='Any field of the config can be changed: --config.steps=1000 --config.model.depth=4',
    allow_abbrev=False,
  )
  parser.add_argument(
    '--config', default='emoji_dit', help='path of a config file, or the bare name of one in configs/ (emoji_dit)'
  )
  parser.add_argument('--workdir', help="the run's folder, also gs://BUCKET/NAME (default: runs/NAME)")
  parser.add_argument(
    '--allow-changes',
    action='store_true',
    help='go on with a run although its dataset, seed, batch size or config differ',
  )
  args, overrides = parser.parse_known_args(argv)

  with listening(exits=True) as signals:  # before the imports, which take seconds
    return _train(args, overrides, signals)


def _train(args: argparse.Namespace, overrides: list[str], signals: Signals) -> int:
  from jaxgen.cli.config import load_config, record, remember

  config, module = load_config(args.config, overrides)

  from etils import epath

  from jaxgen import distributed
  from jaxgen.train import train

  distributed.start()
  about = record(config, module)
  remember(module)
  workdir = epath.Path(args.workdir or f'runs/{about["name"]}')
  try:
    train(module.build(config), workdir, record=about, allow_changes=args.allow_changes, signals=signals)
  except distributed.Preempted as stopped:
    print(f'jaxgen: {stopped}', file=sys.stderr)
    return stopped.exit_code
  except Exception as error:
    distributed.fail(error)
    raise
  if distributed.is_first():
    print(f'Done. Open {workdir / "report.html"}')
  return 0
