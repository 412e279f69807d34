"""`jaxgen evaluate`: any metrics of a folder of images, of a run, or of a run at several settings."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from jaxgen.cli.config import add_trust_options, load_run
from jaxgen.cli.config import step as step_of
from jaxgen.cli.prompts import lines_of

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
  'fd_dinov2',
  'precision_recall_dinov2',
  'density_coverage_dinov2',
  'cmmd',
  'clip_score',
)
_USUAL = _NAMES[: _NAMES.index('fd_dinov2')]  # their networks' weights come in packages
_WITHOUT_REFERENCE = {'inception_score', 'lpips_diversity', 'clip_score'}


def main(argv: list[str]) -> int:
  options, overrides = _parse(argv)
  if options.run is None:
    found = _evaluate(options)
  else:
    own = not (options.metrics or options.sweep or options.dialects or options.against)
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
  run.add_argument(
    '--only', action='append', metavar='NAME', help='run this evaluator alone; may be repeated (default: all)'
  )
  run.add_argument('--step', type=step_of, help="step of the checkpoint, or 'best' by FID (default: the newest)")
  run.add_argument('--ema', help="the average to evaluate, 'none', or 'power:WIDTH' (default: own)")
  run.add_argument('--out', help='folder of grids, metrics.jsonl and protocols.json (default: RUN/evaluation)')
  run.add_argument('--num', type=int, help='samples to measure with --metrics (default: 50000)')
  run.add_argument('--seed', type=int, default=0, help='seed of the noise (default: 0)')
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
  run.add_argument('--prompts', type=Path, metavar='FILE', help='prompts of the samples, one a line, in turn')
  add_trust_options(parser)
  parser.add_argument(
    '--metrics',
    help=f'comma-separated: {", ".join(_NAMES)}; all is those before fd_dinov2, which need Inception and '
    'LPIPS alone (default: fid)',
  )
  parser.add_argument(
    '--network',
    action='append',
    default=[],
    metavar='NAME=FOLDER',
    help='folder of dinov2, cmmd or clip_score (default: those that `jaxgen weights get` fetched)',
  )
  parser.add_argument(
    '--dialects', action='store_true', help='also what torch-fidelity, ADM and Clean-FID would report, side by side'
  )
  parser.add_argument(
    '--against',
    type=Path,
    help='another run, or folder of images: tests whether the two differ, by pairs of one prompt and seed',
  )
  folders = parser.add_argument_group('two folders')
  folders.add_argument('--images', type=Path, help='folder of generated images, a .zip or .tar, or an .npz of samples')
  folders.add_argument(
    '--reference',
    type=Path,
    help='real images likewise, or an .npz with their mu and sigma; with --run also dataset:NAME',
  )
  folders.add_argument(
    '--resize',
    choices=('tf1_bilinear', 'pil_bicubic'),
    default='tf1_bilinear',
    help='resize to 299x299 as FID was published (default), or antialiased as Clean-FID proposes',
  )
  folders.add_argument('--batch-size', type=int, help='images at a time (default: 16 for each device)')
  options, overrides = parser.parse_known_args(argv)
  if (options.run is None) == (options.images is None):
    parser.error('wanted --run RUN, or --images A --reference B')
  if options.run is None and options.reference is None and not set(_names(options)) <= _WITHOUT_REFERENCE:
    parser.error('--images and --reference go together')
  if options.only and options.metrics:
    parser.error("--only names the run's own evaluators, which --metrics does not use: give one of the two")
  if options.against is not None and options.sweep:
    parser.error('--against compares two runs at one setting, and --sweep measures one at several: give one of the two')
  if options.run is None and options.prompts is not None:
    parser.error('--prompts is for --run; captions of a folder are its metadata.jsonl, or .txt files beside the images')
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
  if options.against is not None:
    return _measure_pair(options, overrides)
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
      _write_report(Path(options.run), 'evaluation')
      return result
    values = {name: value for name, value in result.items() if name not in ('protocol', 'dialects')}
    points = sweep.add(folder / 'sweep.json', {'settings': setting, 'values': values, 'protocol': result['protocol']})
    print(_clear() + sweep.table(points), file=sys.stderr, flush=True)
  if not points:
    return None
  _write_report(Path(options.run), 'sweep')
  return {'points': points}


def _measure_pair(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any] | None:
  """Chosen metrics of a run, and how those of another run differ at the same prompts and seeds."""
  from jaxgen import distributed
  from jaxgen.metrics import paired

  distributed.start()
  first = _measured(options.run, options, overrides, {}, Path(options.out or Path(options.run) / 'evaluation'))
  second = _measured(options.against, options, overrides, {}, options.against / 'evaluation')
  if first is None or second is None:
    return None
  logits = first.networks.logits
  found = paired.compare(_names(options), first.samples, second.samples, first.reference, logits=logits)
  print(_clear() + paired.table(found, [Path(options.run).name, options.against.name]), file=sys.stderr)
  return first.values | {'paired': {name: one._asdict() for name, one in found.items()}}


def _measure_point(
  options: argparse.Namespace, overrides: list[str], setting: dict[str, str], folder: Path
) -> dict[str, Any] | None:
  found = _measured(options.run, options, overrides, setting, folder)
  if found is None or isinstance(found, dict):
    return found
  if 'dialects' in found.values:
    from jaxgen.metrics import dialects

    print(_clear() + dialects.table(found.values['dialects']), file=sys.stderr)
  return found.values


def _measured(
  run: str | Path, options: argparse.Namespace, overrides: list[str], setting: dict[str, str], folder: Path
) -> Any:
  """The evaluate.Result of a run at a setting, the numbers of its own evaluators, or None."""
  from jaxgen import distributed, sample
  from jaxgen.evaluate import Samples, measure

  fields = {name: value for name, value in setting.items() if name not in ('ema', 'step')}
  more = [f'--config.{name}={value}' for name, value in fields.items()]
  config, module = load_run(run, [*overrides, *more], config=options.config, trust_code=options.trust)
  average = setting.get('ema', options.ema)
  step = step_of(setting['step']) if 'step' in setting else options.step
  trained = sample.restore(module.build(config), run, step=step, average=average)
  name = '_'.join(f'{key.rpartition(".")[2]}={value}' for key, value in setting.items()) or 'samples'
  at = folder / re.sub(r'[^\w=.,:-]', '_', name)
  if options.only:
    return _own_point(trained, at, options.only, setting)
  num = 50_000 if options.num is None else options.num
  batch_size = sample.batch_for(num, trained.stage.mesh) if options.batch_size is None else options.batch_size
  texts = [] if options.prompts is None else lines_of(options.prompts)
  about: dict[str, Any] = {
    'run': str(Path(run).resolve()),
    'step': trained.step,
    'average': average or 'own',
    'config': json.loads(json.dumps(config.to_dict(), default=repr)),
  }
  about |= {'settings': setting} if setting else {}
  cond = sample.conditioning(trained.stage, num, given=sample.prompt_fields(trained.stage, texts))
  result = measure(
    trained,
    at,
    Samples(num, options.seed, batch_size, cond, options.save_samples, texts),
    metrics=_names(options),
    about=about,
    reference=options.reference,
    folders=_folders(options),
    in_dialects=options.dialects,
    report=_report if sys.stderr.isatty() and distributed.is_first() else lambda message: None,
  )
  if result is not None:
    protocol = result.values['protocol']
    del protocol['config']  # it is in the run's folder, and what a sweep changes beside the numbers
    protocol |= {'prompts': str(options.prompts)} if texts else {}
    protocol['sampling'] = about['config'].get('sampling')
  return result


def _folders(options: argparse.Namespace) -> dict[str, Path]:
  found = {}
  for text in options.network:
    name, equals, folder = text.partition('=')
    if not equals or not folder:
      raise ValueError(f'--network {text} is not understood; wanted NAME=FOLDER, such as dinov2=dinov2-large')
    found[name] = Path(folder)
  return found


def _clear() -> str:
  return '\r\x1b[K' * sys.stderr.isatty()


def _own_point(trained: Any, folder: Path, only: list[str], setting: dict[str, str]) -> dict[str, Any] | None:
  """The run's own evaluators at one setting, without the numbers of each attribute or class."""
  from jaxgen import distributed
  from jaxgen.evaluate import evaluate

  found = evaluate(trained, folder, only=only)
  if not distributed.is_first():
    return None
  values = {name: value for part in found.values() for name, value in part.items() if '/' not in name}
  return values | {'protocol': {'settings': setting, 'step': trained.step}}


def _write_report(run: Path, what: str) -> None:
  from jaxgen import report

  if (run / 'metrics.jsonl').exists():
    print(f'{report.write(run)} has the {what}', file=sys.stderr)


def _names(options: argparse.Namespace) -> list[str]:
  names = str(options.metrics or 'fid').split(',')
  return list(_USUAL) if names == ['all'] else names


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
  from jaxgen.evaluate import compare
  from jaxgen.metrics import dialects, paired
  from jaxgen.models import inception

  for path in filter(None, (options.images, options.reference, options.against)):  # before networks are read
    if not path.expanduser().exists() and not set('{*?[') & set(str(path)):
      raise FileNotFoundError(f'there is no folder or file {path}')
  found = compare(
    options.images,
    options.reference,
    metrics=_names(options),
    batch_size=options.batch_size,
    resize={'tf1_bilinear': inception.tf1_bilinear, 'pil_bicubic': inception.pil_bicubic}[options.resize],
    folders=_folders(options),
    in_dialects=options.dialects,
    against=options.against,
    report=_report if sys.stderr.isatty() else lambda message: None,
  )
  print(_clear(), end='', file=sys.stderr)
  if 'dialects' in found:
    print(dialects.table(found['dialects']), file=sys.stderr)
  if 'paired' in found:
    differences = {name: paired.Difference(**one) for name, one in found['paired'].items()}
    print(paired.table(differences, [options.images.name, options.against.name]), file=sys.stderr)
  return found


def _report(message: str) -> None:
  print(f'\r\x1b[K{message}', end='', file=sys.stderr, flush=True)
