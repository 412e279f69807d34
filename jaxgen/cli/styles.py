"""Shared parts of `project`, `mix`, `walk` and `truncate`: a run's generator with styles, and options."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxgen.cli.config import add_trust_options, load_run, step
from jaxgen.cli.numbers import finite

if TYPE_CHECKING:
  import numpy as np


@dataclasses.dataclass(frozen=True)
class Styled:
  """A trained generator.

  Attributes:
    net: a `StyleGenerator`.
    params: as `sampling_params` returns them.
    shape: shape of an image.
    label: the class of all images; None without classes.
  """

  net: Any
  params: Any
  shape: tuple[int, ...]
  label: int | None

  def cond(self, num: int) -> dict[str, Any]:
    """The condition of `num` images."""
    import jax.numpy as jnp

    return {} if self.label is None else {'label': jnp.full(num, self.label, jnp.int32)}

  def latents(self, seeds: Sequence[int]) -> Any:
    """z of each seed."""
    import jax

    return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), (self.net.z_width,)))(jax.numpy.asarray(seeds))

  def styles(self, seeds: Sequence[int], *, truncation: float) -> Any:
    """w of each seed, for each layer."""
    from jaxgen.generation import gan_latents

    return self.net.apply(
      gan_latents.variables(self.params),
      self.latents(seeds),
      self.cond(len(seeds)),
      truncation=truncation,
      method='styles',
    )

  def draw(self, ws: Any) -> np.ndarray:
    """uint8 images of styles, with the generator's own noise."""
    import jax
    import numpy as np

    from jaxgen.evaluators.generate import to_uint8
    from jaxgen.generation import gan_latents
    from jaxgen.models.layers.styles import constant_noise

    made = gan_latents.variables(self.params)
    run = jax.jit(lambda ws: to_uint8(self.net.apply(made, ws, constant_noise, method='images')))
    return np.asarray(run(ws))


def parser(command: str, what: str) -> argparse.ArgumentParser:
  """The options that all four have."""
  made = argparse.ArgumentParser(prog=f'jaxgen {command}', description=what, allow_abbrev=False)
  made.add_argument('--run', required=True, help="the folder of a StyleGAN's run")
  made.add_argument('--out', type=pathlib.Path, required=True, help='the file or folder to write')
  made.add_argument('--label', help='the class of all images, by name or number, where the run has classes (0)')
  made.add_argument('--step', type=step, help="step of the checkpoint, or 'best' by FID (default: the newest)")
  made.add_argument('--ema', help="the average to use, 'none', or 'power:WIDTH' (default: own)")
  add_trust_options(made)
  return made


def add_truncation(made: argparse.ArgumentParser) -> None:
  made.add_argument('--truncation', type=finite, default=1.0, help='psi: 1 as trained, 0 the mean image (1)')


def seeds_of(text: str) -> list[int]:
  """`1,2,5-8` as numbers."""
  found: list[int] = []
  for part in text.split(','):
    first, dash, last = part.partition('-')
    if not first.isdecimal() or (dash and not last.isdecimal()):
      raise argparse.ArgumentTypeError(f'{text!r} is not understood; wanted seeds such as 1,2,5-8')
    found += range(int(first), int(last if dash else first) + 1)
  return found


def load(args: argparse.Namespace, overrides: Sequence[str]) -> Styled:
  """The generator of a run.

  Raises:
    ValueError: it has none with styles, or no such class.
  """
  config, module = load_run(args.run, overrides, config=args.config, trust_code=args.trust)

  from jaxgen import sample
  from jaxgen.models.layers.styles import StyleGenerator

  trained = sample.of_config(module.build, config, args.run, step=args.step, average=args.ema)
  net = trained.stage.objective.networks.get('generator')
  if not isinstance(net, StyleGenerator):
    kind = 'no generator' if net is None else f'a {type(net).__name__}, which has no styles'
    raise ValueError(f'{args.run} has {kind}; project, mix, walk and truncate are for StyleGANs')
  label = sample.class_numbers([args.label or 0], trained.stage.data.class_names)[0] if net.num_classes else None
  if args.label is not None and label is None:
    raise ValueError(f'--label is {args.label}, and this run has no classes')
  return Styled(net, trained.params, trained.stage.data.spec['image'].shape[1:], label)
