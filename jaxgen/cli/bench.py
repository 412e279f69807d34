"""`jaxgen bench`: how fast a train step, or the FID's network, runs here; prints JSON."""

import argparse
import sys


def main(argv: list[str]) -> int:
  options, overrides = _parse(argv)
  import json

  print(json.dumps(_run(options, overrides), indent=2))
  return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(
    prog='jaxgen bench', description='Times the train step of a config, or one of the fixed benchmarks, as JSON.'
  )
  parser.add_argument('what', nargs='?', default='config', choices=('config', 'dit-s4', 'features'))
  parser.add_argument('--config', default='emoji_dit', help='path or name; --config.FIELD=VALUE changes a field')
  parser.add_argument('--steps', type=int, default=20, help='train steps to time (20)')
  parser.add_argument('--peer', metavar='FOLDER', help='dit-s4: in turn with this clone of the public PyTorch DiT')
  parser.add_argument('--peer-python', metavar='PYTHON', default=sys.executable, help='dit-s4: has torch and timm')
  options, rest = parser.parse_known_args(argv)
  if options.steps < 1:
    parser.error(f'--steps is {options.steps}; it must be 1 or more')
  if rest and (options.what != 'config' or not all(word.startswith('--config.') for word in rest)):
    parser.error(f'unexpected {" ".join(rest)}')
  if options.peer and options.what != 'dit-s4':
    parser.error(f'--peer is for dit-s4, not {options.what}')
  return options, rest


def _run(options: argparse.Namespace, overrides: list[str]):
  if options.what == 'features':
    from jaxgen.metrics import inception
    from jaxgen.metrics.benchmark import features_benchmark

    return features_benchmark(inception.load().params)
  from jaxgen import bench

  if options.what == 'config':
    from jaxgen.cli.config import load_config

    config, module = load_config(options.config, overrides)
    return bench.bench_train_step(module.build(config), steps=options.steps)
  if options.peer is None:
    return bench.bench_train_step(bench.dit_s4(), steps=options.steps)
  with bench.Peer(bench.torch_dit_command(options.peer, options.peer_python)) as peer:
    return bench.bench_train_step(bench.dit_s4(), steps=options.steps, peer=peer)
