"""LoRA on the command line: --lora FILE[:WEIGHT] of `jaxgen sample`, and `jaxgen weights lora`."""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import Any

# Names of networks here -> those in files: the part that a run's parameters play, and the prefix.
_PARTS = {'net': 'net', 'text': 'text_encoder'}


def add_options(parser: argparse.ArgumentParser) -> None:
  """The option of adding LoRAs."""
  parser.add_argument(
    '--lora',
    metavar='FILE[:WEIGHT]',
    action='append',
    default=[],
    help='add a LoRA, LoHa, LoKr or DoRA of a file, as strong as WEIGHT (1); may be repeated',
  )


def parsed(text: str) -> tuple[str, float]:
  """The file and its weight."""
  file, colon, weight = text.rpartition(':')
  try:
    return (file, float(weight)) if colon and file else (text, 1.0)
  except ValueError:
    return text, 1.0


def place(file: str) -> str:
  """The file of --lora.

  Raises:
    FileNotFoundError: it is not there.
  """
  found = os.path.realpath(os.path.expanduser(file))
  if not pathlib.Path(found).is_file():
    raise FileNotFoundError(f'--lora {file}: there is no such file')
  return found


def check(options: list[str]) -> None:
  """Raises ValueError where a file is given twice."""
  files = [parsed(option)[0] for option in options]
  places = [os.path.realpath(os.path.expanduser(file)) for file in files]
  for file, where in zip(files, places, strict=True):
    if places.count(where) > 1:
      raise ValueError(f'--lora {file} is given {places.count(where)} times; give it once, with the sum of the weights')


def added(options: list[str], trained: Any) -> Any:
  """A restored run with the LoRAs of --lora merged into what it samples with.

  Raises:
    ValueError: a file does not fit the run's networks.
  """
  if not options:
    return trained
  import jax

  from jaxgen.adapters import lora_file

  files = [parsed(option) for option in options]
  params = dict(trained.params)
  trees = {name: params[name] for name in _PARTS if name in params}
  if not trees:
    raise ValueError(f'this run samples with {", ".join(params)}, which LoRAs are not of; give --run its base')
  named = {_PARTS[name]: network for name, network in _networks(trained, trees).items()}
  ours = {part: name for name, part in _PARTS.items()}
  for file, weight in files:
    updates = lora_file.assigned(lora_file.read(place(file)), named, source=file)
    for part, each in updates.items():
      tree = lora_file.merged(trees[ours[part]], each, named[part].names, weight=weight)
      trees[ours[part]] = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), tree, params[ours[part]])
  state = trained.state.replace(params={**trained.state.params, **trees}, ema={})
  averages = {name: tree for name, tree in params.items() if name in state.params and name not in trees}
  return trained._replace(state=state.replace(params={**state.params, **averages}))


def export(trained: Any, config: Any, path: str | os.PathLike, *, kohya: bool = False) -> int:
  """Writes the LoRA that a run trained; returns how many modules it corrects.

  Raises:
    ValueError: it trained none.
  """
  from jaxgen.adapters import lora, lora_file
  from jaxgen.adapters.lora import LoRA

  mine = trained.params.get(lora.NAME)
  if mine is None:
    raise ValueError(f'this run trains {", ".join(trained.params)}, not a LoRA')
  spec = LoRA(**config.lora)
  bases = {name: trained.frozen[name] for name in mine}
  networks = _networks(trained, bases)
  kernels = lora.kernels(_make(trained), of=bases)
  written, count = {}, 0
  for name, tree in mine.items():
    known = {path.removeprefix(f'{name}/'): k for path, k in kernels.items() if path.startswith(f'{name}/')}
    parts = lora_file.tensors(lora.scaled(tree, bases[name], spec.scale), networks[name].names[0], known)
    count += len(parts)
    published = len(networks[name].names) > 1
    prefix = {'net': 'unet' if published and 'conv_in' in bases[name] else 'transformer', 'text': 'text_encoder'}
    written[prefix.get(name, name)] = parts
  lora_file.write(path, written, kohya=kohya)
  return count


def _make(trained: Any) -> Any:
  """Calls the networks of a run, to be traced."""
  import jax.numpy as jnp

  batch = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in trained.stage.data.spec.items()}
  return lambda key: trained.stage.objective.init(key, trained.frozen, batch)['params']


def _networks(trained: Any, trees: Any) -> Any:
  from jaxgen.adapters import lora_names

  return lora_names.networks(_make(trained), trees)
