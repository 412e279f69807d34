"""`jaxgen evaluate`: any metrics of a folder of images, of a run, or of a run at several settings."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from jaxgen.cli.config import add_trust_options, load_run
from jaxgen.cli.config import step as step_of

# Of metrics/suite.py, written out so that --help needs no JAX; a test compares them.
_NAMES: tuple[str, ...] = (
  'fid',
  'sfid',
  'fid_infinity',
  'kid',
  'mind',
  'inception_score',
  'precision_recall',
  'density_coverage',
  'memorisation',
  'lpips_diversity',
)
_WITHOUT_REFERENCE = {'inception_score', 'lpips_diversity'}


def main(argv: list[str]) -> int:
  options, overrides = _parse(argv)
  if options.run is None:
    found = _evaluate(options)
  else:
    own = options.metrics is None and not options.sweep
    found = (_evaluate_run if own else _measure_run)(options, overrides)
  if found is not None:
    print(json.dumps(found, indent=2))
  return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(
    prog='jaxgen evaluate',
    description='Metrics of a folder of images against another, or of a run, as JSON. Without --metrics and --sweep '
    "a run's own evaluators are run.",
    epilog="With --run, any field of the run's config can be changed, e.g. --config.fid.num_samples=50000",
    allow_abbrev=False,
  )
  run = parser.add_argument_group('a run')
  run.add_argument('--run', help="the run's folder")
  run.add_argument('--only', action='append', metavar='NAME', help='this evaluator; may be repeated (default: all)')
  run.add_argument('--step', type=step_of, help="of the checkpoint, or 'best' by FID (default: the newest)")
  run.add_argument('--ema', help="the average to evaluate, 'none', or 'power:WIDTH' (default: own)")
  run.add_argument('--out', help='folder of grids, metrics.jsonl and protocols.json (default: RUN/evaluation)')
  run.add_argument('--num', type=int, help='samples to measure with --metrics (default: 50000)')
  run.add_argument('--seed', type=int, default=0, help='seed of their noise (default: 0)')
  run.add_argument(
    '--sweep',
    action='append',
    default=[],
    metavar='FIELD=A,B',
    help="measure --metrics, or the evaluators of --only, at each value of a config's field, or of `ema` or `step`; "
    'may be repeated, for all combinations',
  )
  run.add_argument(
    '--save-samples', choices=('png', 'npz'), help="keep the samples; npz as ADM's evaluation reads them"
  )
  add_trust_options(parser)
  parser.add_argument('--metrics', help=f'comma-separated: {", ".join(_NAMES)}, or all (default: fid)')
  folders = parser.add_argument_group('two folders')
  folders.add_argument('--images', type=Path, help='folder of generated images, a .zip of one, or an .npz of samples')
  folders.add_argument('--reference', type=Path, help='real images likewise, or an .npz with their mu and sigma')
  folders.add_argument(
    '--resize',
    choices=('tf1_bilinear', 'pil_bicubic'),
    default='tf1_bilinear',
    help='to 299x299: as FID was published (default), or antialiased as Clean-FID proposes',
  )
  folders.add_argument('--batch-size', type=int, help='default: 16 for each device')
  options, overrides = parser.parse_known_args(argv)
  if (options.run is None) == (options.images is None):
    parser.error('wanted --run RUN, or --images A --reference B')
  if options.run is None and options.reference is None and not set(_names(options)) <= _WITHOUT_REFERENCE:
    parser.error('--images and --reference go together')
  if options.only and options.metrics:
    parser.error("--only names the run's own evaluators, which --metrics does not use: give one of the two")
  if options.num is not None and options.num < 2:
    parser.error(f'--num is {options.num}; it must be 2 or more')
  if options.run is None and overrides:
    parser.error(f'unexpected {" ".join(overrides)}')
  return options, overrides


def _evaluate_run(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any] | None:
  """The run's metrics and their protocols; None on all processes but the first."""
  config, module = load_run(options.run, overrides, config=options.config, trust_code=options.trust)

  from etils import epath

  from jaxgen import distributed, sample
  from jaxgen.evaluate import evaluate

  distributed.start()
  trained = sample.restore(module.build(config), options.run, step=options.step, average=options.ema)
  out = epath.Path(options.out or epath.Path(options.run) / 'evaluation')
  metrics = evaluate(trained, out, only=options.only or ())
  if not distributed.is_first():
    return None
  found = {name: value for values in metrics.values() for name, value in values.items()}
  kept = out / 'protocols.json'
  protocols = json.loads(kept.read_text()) if kept.exists() else {}
  protocols = {name: protocols[name] for name in found if name in protocols}
  return {'step': trained.step} | found | {'protocols': protocols}


def _measure_run(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any] | None:
  """Chosen metrics of a run, at one setting or at each of a sweep; None on all processes but the first."""
  from jaxgen import distributed, sweep

  settings = sweep.settings_of(options.sweep)
  folder = Path(options.out or Path(options.run) / 'evaluation')
  if (folder / 'checkpoints').exists():
    raise ValueError(f'{folder} is the folder of a run, whose records would be lost; give another (--out)')
  distributed.start()
  points: list[dict[str, Any]] = []
  for setting in settings:
    result = _measure_point(options, overrides, setting, folder)
    if result is None:
      continue
    if not options.sweep:
      return result
    values = {name: value for name, value in result.items() if name != 'protocol'}
    points = sweep.add(folder / 'sweep.json', {'settings': setting, 'values': values, 'protocol': result['protocol']})
    print('\r\x1b[K' * sys.stderr.isatty() + sweep.table(points), file=sys.stderr, flush=True)
  if not points:
    return None
  _write_report(Path(options.run))
  return {'points': points}


def _measure_point(
  options: argparse.Namespace, overrides: list[str], setting: dict[str, str], folder: Path
) -> dict[str, Any] | None:
  from jaxgen import distributed, sample
  from jaxgen.evaluate import Samples, measure

  fields = {name: value for name, value in setting.items() if name not in ('ema', 'step')}
  more = [f'--config.{name}={value}' for name, value in fields.items()]
  config, module = load_run(options.run, [*overrides, *more], config=options.config, trust_code=options.trust)
  average = setting.get('ema', options.ema)
  step = step_of(setting['step']) if 'step' in setting else options.step
  trained = sample.restore(module.build(config), options.run, step=step, average=average)
  name = '_'.join(f'{key.rpartition(".")[2]}={value}' for key, value in setting.items()) or 'samples'
  at = folder / re.sub(r'[^\w=.,:-]', '_', name)
  if options.only:
    return _own_point(trained, at, options.only, setting)
  num = 50_000 if options.num is None else options.num
  batch_size = sample.batch_for(num, trained.stage.mesh) if options.batch_size is None else options.batch_size
  about = {
    'run': str(Path(options.run).resolve()),
    'step': trained.step,
    'average': average or 'own',
    'config': json.loads(json.dumps(config.to_dict(), default=repr)),
  }
  result = measure(
    trained,
    at,
    Samples(num, options.seed, batch_size, sample.conditioning(trained.stage, num), options.save_samples),
    metrics=_names(options),
    about=about,
    reference=options.reference,
    report=_report if sys.stderr.isatty() and distributed.is_first() else lambda message: None,
  )
  if result is not None:
    del result['protocol']['config']  # it is in the run's folder, and what a sweep changes beside the numbers
    result['protocol'] |= {'settings': setting} if setting else {}
    result['protocol']['sampling'] = about['config'].get('sampling')
  return result


def _own_point(trained: Any, folder: Path, only: list[str], setting: dict[str, str]) -> dict[str, Any] | None:
  """The run's own evaluators at one setting, without the numbers of each attribute or class."""
  from jaxgen import distributed
  from jaxgen.evaluate import evaluate

  found = evaluate(trained, folder, only=only)
  if not distributed.is_first():
    return None
  values = {name: value for part in found.values() for name, value in part.items() if '/' not in name}
  return values | {'protocol': {'settings': setting, 'step': trained.step}}


def _write_report(run: Path) -> None:
  from jaxgen import report

  if (run / 'metrics.jsonl').exists():
    print(f'{report.write(run)} has the sweep', file=sys.stderr)


def _names(options: argparse.Namespace) -> list[str]:
  names = str(options.metrics or 'fid').split(',')
  return list(_NAMES) if names == ['all'] else names


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
  from jaxgen.evaluate import compare
  from jaxgen.models import inception

  found = compare(
    options.images,
    options.reference,
    metrics=_names(options),
    batch_size=options.batch_size,
    resize={'tf1_bilinear': inception.tf1_bilinear, 'pil_bicubic': inception.pil_bicubic}[options.resize],
    report=_report if sys.stderr.isatty() else lambda message: None,
  )
  if sys.stderr.isatty():
    print('\r\x1b[K', end='', file=sys.stderr)
  return found


def _report(message: str) -> None:
  print(f'\r\x1b[K{message}', end='', file=sys.stderr, flush=True)
