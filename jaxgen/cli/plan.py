"""`jaxgen plan`: memory, communication and time of a config on TPUs or GPUs that are not here."""

import argparse
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from jaxgen.cli.numbers import finite

_FIELDS = ('mesh.data', 'mesh.fsdp', 'mesh.sequence', 'mesh.tensor', 'remat', 'accumulate')


def main(argv: list[str]) -> int:
  args, overrides = _parser().parse_known_args(argv)
  from jaxgen import xla_flags

  if args.print_flags:
    print(xla_flags.tpu_init_args(args.print_flags))
    return 0
  if not args.config or not args.topology:
    raise ValueError('a plan needs --config and --topology, such as --config dit_xl2_imagenet256 --topology v5e:4x4')
  from jaxgen.plan import chips

  chips.set_environment()  # before JAX starts
  if chips.generation(args.topology) in xla_flags.TPU_FLAGS:
    os.environ.setdefault('LIBTPU_INIT_ARGS', xla_flags.tpu_init_args(chips.generation(args.topology)))
  machine = chips.topology(args.topology, args.slices)
  build, fields = _builder(args, overrides, machine)

  from jaxgen.plan.fit import advice, best, choice
  from jaxgen.plan.plan import DoesNotFit, cost, plan, plan_sample, row, text

  if args.fit:
    found = best(build, fields, machine, say=_say)
    if not found:
      raise ValueError(f'nothing fits on {args.topology}: take more chips, a smaller batch or a smaller network')
    changes, made = found[0]
    print('\n'.join(choice(found)))
  else:
    changes = {}
    try:
      made = plan(build({}), machine)
    except DoesNotFit as error:
      raise ValueError(advice(build, fields, machine, error, say=_say)) from None
  made = {'config': args.config, 'changes': changes} | made
  if args.sample:
    made['sample'] = plan_sample(build(changes), machine, batch_size=args.sample)
  print(row(made) if args.row else text(made))
  if args.images or args.price:
    print(cost(made, images=args.images, price=args.price))
  if args.json:
    args.json.write_text(json.dumps(made, indent=2) + '\n', encoding='utf-8')
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='jaxgen plan',
    description='Compiles the train step of a config for a topology of TPUs or GPUs, with none present, and reports '
    'memory, collectives, operations and a roofline of the time. It needs jax[tpu], or jax-cuda13-plugin and '
    'jax-cuda13-pjrt.',
    epilog='Any field of the config can be changed: --config.batch_size=512 --config.remat=dots',
    allow_abbrev=False,
  )
  parser.add_argument('--config', help='path of a config file, or the bare name of one in configs/')
  parser.add_argument('--topology', help='GENERATION:SHAPE of a slice: v5e:4x4, v5p:4x4x4; or GPU:NODESxGPUS: h100:2x8')
  parser.add_argument('--slices', type=int, default=1, help='number of such slices of TPUs, joined by the network (1)')
  parser.add_argument('--mesh', type=_mesh, default={}, help="mesh in place of the config's: data=1,fsdp=16")
  parser.add_argument('--sample', type=int, metavar='N', help='also compile the sampler, for N images at a time')
  parser.add_argument(
    '--fit', action='store_true', help='search mesh, remat and accumulation for the fastest that fits'
  )
  parser.add_argument(
    '--images', type=finite, help='images of the training whose cost is printed (default: those of the run)'
  )
  parser.add_argument('--price', type=finite, metavar='PER_CHIP_HOUR', help='price of a chip-hour, in any currency')
  parser.add_argument('--json', type=pathlib.Path, metavar='FILE', help='write the numbers as JSON too')
  parser.add_argument('--row', action='store_true', help='print a row of a Markdown table instead')
  parser.add_argument('--print-flags', metavar='GENERATION', help='print LIBTPU_INIT_ARGS for v5e, v5p, ... and stop')
  return parser


def _mesh(text: str) -> dict[str, int]:
  try:
    return {axis: int(size) for axis, _, size in (part.partition('=') for part in text.split(','))}
  except ValueError:
    raise argparse.ArgumentTypeError(f'{text!r} is not understood; wanted AXIS=SIZE,...: data=1,fsdp=16') from None


def _builder(
  args: argparse.Namespace, overrides: list[str], machine: Any
) -> tuple[Callable[[dict[str, Any]], Any], dict[str, Any]]:
  """`build(changes)` of the config for the machine's devices, and the fields that a search may change."""
  from jaxgen import sharding
  from jaxgen.cli.config import load_config
  from jaxgen.experiment import NoSuchChoice, as_stages

  wanted: dict[str, Any] = {f'mesh.{axis}': size for axis, size in args.mesh.items()}

  def build(changes: dict[str, Any]) -> Any:
    config, module = load_config(args.config, overrides)
    with config.unlocked():
      config.update_from_flattened_dict(_known(config, wanted | changes))
    with sharding.devices_are(machine.devices):
      if not args.fit:
        _check_batches(config)
      return as_stages(module.build(config))[0]

  config, _ = load_config(args.config, overrides)
  try:
    stage = build({})
  except FileNotFoundError as missing:  # a plan needs the shapes of the data only
    if 'dataset' not in config:
      raise
    wanted['dataset'] = 'synthetic'
    try:
      stage = build({})
    except (FileNotFoundError, KeyError, NoSuchChoice):
      raise missing from None
    _say(f'{missing}. Planning with noise of its shape')
  fields = {name: _get(config, name) for name in _FIELDS if _get(config, name) is not None}
  return build, fields | {f'mesh.{axis}': size for axis, size in stage.mesh.shape.items() if f'mesh.{axis}' in fields}


def _check_batches(config: Any) -> None:
  """Refuses batches that do not divide over the devices, all at once, and says which would."""
  from jaxgen import sharding
  from jaxgen.writer import flat

  if 'mesh' not in config:
    return
  shape = sharding.make_mesh(**config.mesh).shape
  devices = math.prod(shape[axis] for axis in sharding.BATCH_AXES)
  wrong = []
  for name, size in flat(config.to_dict()).items():
    parts = devices * (config.get('accumulate') or 1 if name == 'batch_size' else 1)
    if name.rpartition('.')[2] == 'batch_size' and isinstance(size, int) and size % parts:
      wrong.append(f'--config.{name}={max(round(size / parts), 1) * parts} (is {size})')
  if wrong:
    raise ValueError(f'batches that do not divide over {devices} devices; these would: {" ".join(wrong)}')


def _known(config: Any, values: dict[str, Any]) -> dict[str, Any]:
  """The values, checked to be fields of the config."""
  for name in values:
    if _get(config, name) is None:
      raise ValueError(f'the config has no field {name!r} to set')
  return values


def _get(config: Any, name: str) -> Any:
  for part in name.split('.'):
    config = config.get(part) if config is not None else None
  return config


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
