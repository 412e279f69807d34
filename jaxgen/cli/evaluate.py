"""`jaxgen evaluate`: how far a folder of images is from another."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
  options = _parse(argv)
  import json

  from jaxgen.evaluators.fid import fid_name

  evaluation = _evaluate(options)
  if sys.stderr.isatty():
    print('\r\x1b[K', end='', file=sys.stderr)
  metrics = dict(evaluation.metrics)
  named = {fid_name(evaluation.protocol['samples']): metrics.pop('fid')} | metrics
  print(json.dumps(named | {'protocol': evaluation.protocol}, indent=2))
  return 0


def _parse(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='jaxgen evaluate', description='FID of a folder of images, as JSON.')
  parser.add_argument('--images', type=Path, required=True, help='folder of generated images (png, jpg, webp, bmp)')
  parser.add_argument(
    '--reference', type=Path, required=True, help='folder of real images, or an .npz with their mu and sigma'
  )
  parser.add_argument('--kid', action='store_true', help='also the kernel Inception distance')
  parser.add_argument('--precision-recall', action='store_true', help='also improved precision and recall')
  parser.add_argument('--inception-score', action='store_true', help='also the Inception Score; needs logits')
  parser.add_argument(
    '--resize',
    choices=('tf1_bilinear', 'pil_bicubic'),
    default='tf1_bilinear',
    help='to 299x299: as FID was published (default), or antialiased as Clean-FID proposes',
  )
  parser.add_argument('--batch-size', type=int, help='default: 16 for each device')
  return parser.parse_args(argv)


def _evaluate(options: argparse.Namespace):
  import jax
  import jax.numpy as jnp
  import numpy as np

  from jaxgen import sharding
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
  how = {'network': 'inception-2015-12-05', 'weights': network.hash, 'resize': options.resize}
  return evaluation._replace(protocol=evaluation.protocol | how)


def _report(message: str) -> None:
  print(f'\r\x1b[K{message}', end='', file=sys.stderr, flush=True)
