"""`jaxgen evaluate`: how far a folder of images is from another, or a run's own metrics once more."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jaxgen.cli.config import add_trust_options, load_run


def main(argv: list[str]) -> int:
  options, overrides = _parse(argv)
  found = _evaluate(options) if options.run is None else _evaluate_run(options, overrides)
  if found is not None:
    print(json.dumps(found, indent=2))
  return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(
    prog='jaxgen evaluate',
    description="FID between two folders of images, or the evaluators of a run's config, as JSON.",
    epilog="With --run, any field of the run's config can be changed, e.g. --config.fid.num_samples=50000",
    allow_abbrev=False,
  )
  run = parser.add_argument_group('a run')
  run.add_argument('--run', help="the run's folder")
  run.add_argument('--only', action='append', metavar='NAME', help='this evaluator; may be repeated (default: all)')
  run.add_argument('--step', type=int, help='of the checkpoint (default: the newest)')
  run.add_argument('--ema', help="the average to evaluate, 'none', or 'power:WIDTH' (default: own)")
  run.add_argument('--out', help='folder of grids, metrics.jsonl and protocols.json (default: RUN/evaluation)')
  add_trust_options(parser)
  folders = parser.add_argument_group('two folders')
  folders.add_argument('--images', type=Path, help='folder of generated images, a .zip of one, or an .npz of samples')
  folders.add_argument('--reference', type=Path, help='real images likewise, or an .npz with their mu and sigma')
  folders.add_argument('--kid', action='store_true', help='also the kernel Inception distance')
  folders.add_argument('--precision-recall', action='store_true', help='also improved precision and recall')
  folders.add_argument('--inception-score', action='store_true', help='also the Inception Score; needs logits')
  folders.add_argument(
    '--resize',
    choices=('tf1_bilinear', 'pil_bicubic'),
    default='tf1_bilinear',
    help='to 299x299: as FID was published (default), or antialiased as Clean-FID proposes',
  )
  folders.add_argument('--batch-size', type=int, help='default: 16 for each device')
  options, overrides = parser.parse_known_args(argv)
  if (options.run is None) == (options.images is None and options.reference is None):
    parser.error('wanted --run RUN, or --images A --reference B')
  if options.run is None and (options.images is None or options.reference is None):
    parser.error('--images and --reference go together')
  if options.run is None and overrides:
    parser.error(f'unexpected {" ".join(overrides)}')
  return options, overrides


def _evaluate_run(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any] | None:
  """The run's metrics and their protocols; None on all processes but the first."""
  config, module = load_run(options.run, overrides, config=options.config, trust_code=options.trust)

  from etils import epath

  from jaxgen import distributed, evaluate, sample

  distributed.start()
  trained = sample.restore(module.build(config), options.run, step=options.step, average=options.ema)
  out = epath.Path(options.out or epath.Path(options.run) / 'evaluation')
  metrics = evaluate.evaluate(trained, out, only=options.only or ())
  if not distributed.is_first():
    return None
  found = {name: value for values in metrics.values() for name, value in values.items()}
  kept = out / 'protocols.json'
  protocols = json.loads(kept.read_text()) if kept.exists() else {}
  protocols = {name: protocols[name] for name in found if name in protocols}
  return {'step': trained.step} | found | {'protocols': protocols}


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
  import jax
  import jax.numpy as jnp
  import numpy as np

  from jaxgen import sharding
  from jaxgen.evaluators.fid import fid_name
  from jaxgen.metrics import inception
  from jaxgen.metrics.evaluate import evaluate
  from jaxgen.metrics.features import feature_extractor

  network = inception.load()
  mesh = sharding.make_mesh()
  batch_size = options.batch_size or 16 * jax.device_count()
  sharding.check_batch_size(batch_size, mesh)
  extract = feature_extractor(
    network.params,
    batch_size=batch_size,
    resize={'tf1_bilinear': inception.tf1_bilinear, 'pil_bicubic': inception.pil_bicubic}[options.resize],
    batch_sharding=sharding.batch_sharding(mesh),
    replicated=sharding.replicated(mesh),
  )

  def logits(features):
    return np.asarray(inception.inception_logits(network.params, jnp.asarray(features)))

  if options.inception_score:
    logits(np.zeros((1, 2048), np.float32))  # refuses weights without a classifier before the long work
  evaluation = evaluate(
    options.images,
    options.reference,
    extract=extract,
    batch_size=batch_size,
    kernel=options.kid,
    coverage=options.precision_recall,
    logits=logits if options.inception_score else None,
    report=_report if sys.stderr.isatty() else lambda message: None,
  )
  if sys.stderr.isatty():
    print('\r\x1b[K', end='', file=sys.stderr)
  how = {'network': 'inception-2015-12-05', 'weights': network.hash, 'resize': options.resize}
  metrics = dict(evaluation.metrics)
  named = {fid_name(evaluation.protocol['samples']): metrics.pop('fid')} | metrics
  return named | {'protocol': evaluation.protocol | how}


def _report(message: str) -> None:
  print(f'\r\x1b[K{message}', end='', file=sys.stderr, flush=True)
