"""`jaxgen bench`: how fast a train step, a sampler, or the FID's network, runs here; prints JSON."""

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
  parser.add_argument(
    'what', nargs='?', default='config', choices=('config', 'dit-s4', 'unet-cifar10', 'sampler', 'features')
  )
  parser.add_argument('--config', default='emoji_dit', help='path or name; --config.FIELD=VALUE changes a field')
  parser.add_argument('--steps', type=int, default=20, help='train steps, or runs of a sampler, to time (20)')
  peer_help = 'in turn with PyTorch: dit-s4 with this clone of the public DiT, unet-cifar10 with `diffusers`'
  parser.add_argument('--peer', metavar='FOLDER', help=peer_help)
  parser.add_argument(
    '--peer-python', metavar='PYTHON', default=sys.executable, help='of the peer: has torch, and timm or diffusers'
  )
  options, rest = parser.parse_known_args(argv)
  if options.steps < 1:
    parser.error(f'--steps is {options.steps}; it must be 1 or more')
  if rest and (options.what != 'config' or not all(word.startswith('--config.') for word in rest)):
    parser.error(f'unexpected {" ".join(rest)}')
  if options.peer and options.what not in ('dit-s4', 'unet-cifar10'):
    parser.error(f'--peer is for dit-s4 and unet-cifar10, not {options.what}')
  if options.what == 'unet-cifar10' and options.peer not in (None, 'diffusers'):
    parser.error(f'the peer of unet-cifar10 is `diffusers`, not {options.peer}')
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
  if options.what == 'sampler':
    return bench.bench_sampler(rounds=options.steps)
  experiment = bench.dit_s4() if options.what == 'dit-s4' else bench.unet_cifar10()
  if options.peer is None:
    return bench.bench_train_step(experiment, steps=options.steps)
  if options.what == 'dit-s4':
    command = bench.torch_dit_command(options.peer, options.peer_python)
  else:
    command = bench.torch_unet_command(options.peer_python)
  with bench.Peer(command) as peer:
    return bench.bench_train_step(experiment, steps=options.steps, peer=peer)
