"""`jaxgen bench`: times train steps, samplers, encoders, loaders and the FID's network; prints JSON."""

import argparse
import pathlib
import sys

PEERS = (  # programs that may be timed in turn with another one
  'dit-s4',
  'stylegan2',
  'unet-cifar10',
  'mmdit',
  'encode',
  'input',
  'sampler',
)


def main(argv: list[str]) -> int:
  options, overrides = _parse(argv)
  import json

  print(json.dumps(_run(options, overrides), indent=2))
  return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  parser = argparse.ArgumentParser(
    prog='jaxgen bench',
    description='Times the train step of a config, how soon it starts, or one of the fixed benchmarks, as JSON.',
  )
  parser.add_argument('what', nargs='?', default='config', choices=('config', 'start', *PEERS, 'features', 'gpu'))
  parser.add_argument('--config', default='emoji_dit', help='path or name; --config.FIELD=VALUE changes a field')
  steps_help = 'train steps (up to whole cycles of phases), runs of a sampler or encoder, or starts, to time (20)'
  parser.add_argument('--steps', type=int, default=20, help=steps_help)
  peer_help = 'in turn with PyTorch: a clone of the public code, or `diffusers` (U-Net, encode), `torch` (input)'
  parser.add_argument('--peer', metavar='FOLDER', help=peer_help)
  parser.add_argument('--files', metavar='FOLDER', help='input: JPEG files to read (default: 512 that are made)')
  parser.add_argument('--out', metavar='FOLDER', help='gpu: where compiled programs are written as HLO')
  python_help = 'of the peer: has torch, and timm, requests or diffusers'
  parser.add_argument('--peer-python', metavar='PYTHON', default=sys.executable, help=python_help)
  options, rest = parser.parse_known_args(argv)
  if options.steps < 1:
    parser.error(f'--steps is {options.steps}; it must be 1 or more')
  if rest and (options.what not in ('config', 'start') or not all(word.startswith('--config.') for word in rest)):
    parser.error(f'unexpected {" ".join(rest)}')
  if options.peer and options.what not in PEERS:
    parser.error(f'--peer is for {", ".join(PEERS)}, not {options.what}')
  named = dict.fromkeys(('unet-cifar10', 'mmdit', 'encode'), 'diffusers') | {'input': 'torch'}
  if options.what in named and options.peer not in (None, named[options.what]):
    parser.error(f'the peer of {options.what} is `{named[options.what]}`, not {options.peer}')
  return options, rest


def _run(options: argparse.Namespace, overrides: list[str]):
  if options.what == 'features':
    from jaxgen.bench.features import features_benchmark
    from jaxgen.pretrained import inception

    return features_benchmark(inception.load().params)
  from jaxgen.bench import peer, programs, sampler, start, train_step

  if options.what == 'start':
    return start.bench_start(options.config, overrides, rounds=options.steps)
  if options.what == 'config':
    from jaxgen.cli.config import load_config

    config, module = load_config(options.config, overrides)
    return train_step.bench_train_step(module.build(config), steps=options.steps)
  if options.what == 'sampler':
    if options.peer is None:
      return sampler.bench_sampler(rounds=options.steps)
    with peer.Peer(peer.clone_command(peer.CLONES['sampler'], options.peer, options.peer_python)) as other:
      return sampler.bench_sampler(rounds=options.steps, peer=other)
  if options.what == 'encode':
    return _encode(options)
  if options.what == 'input':
    return _input(options)
  if options.what == 'gpu':
    from jaxgen.bench import gpu

    report = lambda line: print(line, file=sys.stderr)  # noqa: E731
    return gpu.bench_gpu(fid=_fid, out=options.out and pathlib.Path(options.out), report=report)
  build = {'dit-s4': programs.dit_s4, 'stylegan2': programs.stylegan2, 'unet-cifar10': programs.unet_cifar10}
  build['mmdit'] = programs.mmdit
  experiment = build[options.what]()
  if options.peer is None:
    return train_step.bench_train_step(experiment, steps=options.steps)
  if options.what == 'unet-cifar10':
    command = peer.unet_command(options.peer_python)
  elif options.what == 'mmdit':
    command = peer.mmdit_command(options.peer_python)
  else:
    command = peer.clone_command(peer.CLONES[options.what], options.peer, options.peer_python)
  with peer.Peer(command) as other:
    return train_step.bench_train_step(experiment, steps=options.steps, peer=other, peer_usage=other.usage)


def _encode(options: argparse.Namespace):
  from jaxgen.bench import encode, peer

  if options.peer is None:
    return encode.bench_encode(rounds=options.steps)
  command = peer.encode_command(options.peer_python, batch_size=encode.BATCH_SIZE, size=encode.SIZE)
  with peer.Peer(command) as other:
    return encode.bench_encode(rounds=options.steps, peer=other)


def _input(options: argparse.Namespace):
  from jaxgen.bench import input as loaders
  from jaxgen.bench import peer

  folder = options.files and pathlib.Path(options.files)
  if options.peer is None:
    return loaders.bench_input(folder=folder, rounds=options.steps)

  def start(folder: pathlib.Path) -> peer.Peer:
    sizes = {'batch_size': loaders.BATCH_SIZE, 'size': loaders.SIZE}
    return peer.Peer(peer.input_command(options.peer_python, folder, **sizes))

  return loaders.bench_input(folder=folder, rounds=options.steps, peer=start)


def _fid(num: int):
  """FID of the model that comes with jaxgen against its training data, sampling and features included."""
  import tempfile

  from jaxgen import model_folder, sample
  from jaxgen.cli.config import load_run
  from jaxgen.evaluate import Samples, measure

  path = model_folder.resolved('jaxgen/avatars')
  config, module = load_run(path)
  trained = sample.of_config(module.build, config, path)
  samples = Samples(num, 0, 256, sample.conditioning(trained.stage, num))
  with tempfile.TemporaryDirectory() as folder:
    found = measure(trained, pathlib.Path(folder), samples, metrics=['fid'], about={'run': 'jaxgen/avatars'})
  return {} if found is None else dict(found.values)
