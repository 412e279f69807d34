"""Initial parameters from published weights or from another run.

  InitFrom('runs/base')                                       # the averages of a run's newest checkpoint
  InitFrom('DiT-XL-2-256', fresh=('label_embed',))            # a folder of diffusers; a label table of its own
  InitFrom('stable-diffusion/unet', widened=('conv_in',))     # four more input channels, which start at zero
  InitFrom('0100000.pt', average='ema')                       # a checkpoint of DiT's own train.py, and the like
  InitFrom('ffhq.npz', fresh=('discriminator',))              # StyleGAN2's state dicts as arrays, `G_ema.` and `D.`

Every leaf has to have its counterpart, of its shape. Patterns name the exceptions, found anywhere in a path such as
`net/blocks/attention/qkv/kernel`; whatever else does not fit is an error.
"""

import functools
import os
import re
import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from jaxgen import model_folder
from jaxgen.checkpoint import Checkpoints
from jaxgen.frozen import Frozen, frozen, tree_hash
from jaxgen.objectives.base import Objective
from jaxgen.sharding import path_name

# A published network has no name of its own; it goes to the first of these that is trained.
NETWORKS = ('net', 'autoencoder', 'generator')
_NOTHING: Mapping[str, nn.Module] = types.MappingProxyType({})


class InitFrom(NamedTuple):
  """The source of a run's first parameters.

  Attributes:
    path: the folder of a run, or of a published network (or its file).
    fresh: patterns of parameters that are initialised anew, whatever the source has.
    widened: patterns of parameters that may be larger than the source's: the common part is copied, the rest is zero.
    narrowed: patterns of parameters of which the source may have more along the first axis, such as the layers of a
      stack: the first ones are copied.
    unused: patterns of the source's arrays that have no place here.
    renamed: pairs of a pattern and what takes its place in the paths of the source's arrays.
    average: which average of a run; None for each network's own, 'none' for the parameters themselves. Of a
      checkpoint of the original code the part, such as 'ema' or 'model'; None for the one to sample with.
  """

  path: str | os.PathLike
  fresh: Sequence[str] = ()
  widened: Sequence[str] = ()
  unused: Sequence[str] = ()
  renamed: Sequence[tuple[str, str]] = ()
  narrowed: Sequence[str] = ()
  average: str | None = None


def initialised(
  params: Mapping[str, Any], source: InitFrom, *, networks: Mapping[str, nn.Module] = _NOTHING
) -> dict[str, Any]:
  """The parameters with those of `source` in their places, sharded as they are.

  Args:
    params: parameters by the names of `state.params`.
    source: the source.
    networks: Flax modules by the same names, which say how a file of the original code is read.

  Raises:
    FileNotFoundError: there is nothing at the path.
    ValueError: some parameters have no counterpart; the first five are listed.
  """
  trained = list(NETWORKS) if source.renamed else list(params)
  if 'generator' in params and epath.Path(source.path).is_file():
    from jaxgen.pretrained import stylegan2  # which most runs do without

    if stylegan2.is_file(source.path):
      return merged(params, stylegan2.params_like(source.path, params), source)
  from jaxgen.pretrained import original

  if original.is_file(source.path) and epath.Path(source.path).exists():
    return merged(params, _of_file(source, params, networks), source)
  return merged(params, read(source.path, trained=trained, average=source.average), source)


def _of_file(source: InitFrom, params: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> dict[str, Any]:
  from jaxgen.pretrained import original

  name = next((name for name in NETWORKS if name in params and name in networks), None)
  if name is None:
    raise ValueError(f'{source.path} is of one network, and this run trains {", ".join(params)}; give a folder')
  return {name: original.params_like(source.path, networks[name], params[name], part=source.average)}


def read(path: str | os.PathLike, *, trained: Sequence[str] = NETWORKS, average: str | None = None) -> dict[str, Any]:
  """Trees of host arrays by the names of `state.params`; those of published networks are read when they are used.

  Args:
    path: the folder of a run, of a model (model_folder.py), or of a published network, or its file.
    trained: the names to which a published network may go.
    average: see InitFrom.
  """
  at = epath.Path(model_folder.resolved(path))
  if not at.exists():
    raise FileNotFoundError(f'no run and no published network at {path}')
  if (at / 'checkpoints').exists():
    checkpoints = Checkpoints(at / 'checkpoints', None)
    try:
      return _of_run(*checkpoints.model(), average=average, path=at)
    finally:
      checkpoints.close()
  if model_folder.is_model(at):
    if average is not None:
      raise ValueError(f'{path} holds one set of weights, so no average {average!r} can be chosen')
    return {name: tree for name, tree in model_folder.read(at).items() if name != 'extra'}
  names = [name for name in NETWORKS if name in trained]
  if not names:
    raise ValueError(f'a published network goes to one of {", ".join(NETWORKS)}; this run trains {", ".join(trained)}')
  from jaxgen.pretrained import published  # every network that is published, which most runs do without

  it = published.lazily(at)
  return {names[0]: it.denoiser.params if isinstance(it, published.Pipeline) else it.params}


def from_source(path: str | os.PathLike, *, name: str = 'net', average: str | None = None, dtype: Any = None) -> Frozen:
  """A frozen network from a run or from published weights, for `Experiment.frozen`.

  Args:
    path, average: as in `read`.
    name: the network of the run.
    dtype: dtype of its floating-point arrays on the devices.
  """
  trees = read(path, trained=(name, *NETWORKS), average=average)
  if name not in trees:
    raise ValueError(f'{path} has no network {name!r}; it has {", ".join(sorted(trees))}')
  return frozen(trees[name], dtype=dtype)


def later(
  source: str | os.PathLike | InitFrom, objective: Objective, spec: Mapping[str, Any], *, dtype: Any = None
) -> dict[str, Frozen]:
  """The networks of a run, frozen, for an objective that adapts them: shapes now, arrays when they are placed.

  Args:
    source: the run's folder, or an InitFrom whose patterns name what may differ; nothing in it is `fresh`.
    objective: its objective.
    spec: shapes of its batches.
    dtype: dtype of the floating-point arrays on the devices.
  """
  source = source if isinstance(source, InitFrom) else InitFrom(source)
  if source.fresh:
    raise ValueError(
      f'{", ".join(source.fresh)} cannot be fresh: a frozen network has no initial parameters of its own'
    )
  shapes = jax.eval_shape(lambda key, batch: objective.init(key, {}, batch)['params'], jax.random.key(0), dict(spec))
  trees = functools.cache(lambda: read(source.path, trained=tuple(shapes), average=source.average))
  hashes = functools.cache(lambda name: tree_hash(trees()[name]))
  return {
    name: Frozen(tree, partial(_frozen_tree, trees, name, tree, source), partial(hashes, name), dtype)
    for name, tree in shapes.items()
  }


def _frozen_tree(trees: Callable[[], Mapping[str, Any]], name: str, wanted: Any, source: InitFrom) -> Any:
  if name not in trees():
    raise ValueError(f'{source.path} has no network {name!r}; it has {", ".join(sorted(trees()))}')
  return merged({name: wanted}, {name: trees()[name]}, source, put=lambda leaf, found: found)[name]


def _sharded(leaf: jax.Array, found: Any) -> jax.Array:
  array = np.asarray(found, leaf.dtype)
  return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])


def merged(
  params: Mapping[str, Any],
  trees: Mapping[str, Any],
  source: InitFrom,
  *,
  put: Callable[[Any, Any], Any] = _sharded,
) -> dict[str, Any]:
  """`params` with the arrays of `trees` in their places.

  Args:
    params: parameters, or their shapes, by the names of `state.params`.
    trees: host arrays by the same names.
    source: where they are from, with the patterns of what may differ.
    put: `(parameter, host array) -> leaf`; by default sharded as the parameter is.

  Raises:
    ValueError: some arrays do not fit; the first five are listed.
  """
  theirs = {_renamed(path_name(path), source): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(dict(trees))}
  ours = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(dict(params))}

  def fits(name: str) -> bool:
    if _named(name, source.fresh) or name not in theirs:
      return _named(name, source.fresh)
    same = theirs[name].shape == ours[name].shape
    wider = _named(name, source.widened) and _is_wider(ours[name], theirs[name])
    return same or wider or (_named(name, source.narrowed) and _is_shorter(ours[name], theirs[name]))

  wrong = [f'{name} {_shape(ours[name])}, there {_shape(theirs.get(name))}' for name in sorted(ours) if not fits(name)]
  wrong += [f'{name} unused' for name in sorted(set(theirs) - set(ours)) if not _named(name, source.unused)]
  if wrong:
    more = f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''
    raise ValueError(
      f'{source.path} does not fit this run in {len(wrong)} arrays: {"; ".join(wrong[:5])}{more}. '
      'Name what may differ: --init-fresh, --init-widened or --init-unused PATTERN, or fields of InitFrom'
    )

  def pick(path: Any, leaf: Any) -> Any:
    name = path_name(path)
    if _named(name, source.fresh):
      return leaf
    found = theirs[name]
    if found.shape != leaf.shape:
      found = _resized(found, leaf, narrowed=_named(name, source.narrowed))
    return put(leaf, found)

  return jax.tree_util.tree_map_with_path(pick, dict(params))


def _resized(found: Any, leaf: Any, *, narrowed: bool) -> np.ndarray:
  """The first of an array's layers if it is narrowed, then zeros up to the shape of `leaf`."""
  array = np.asarray(found)[: leaf.shape[0]] if narrowed else np.asarray(found)
  return np.pad(array, [(0, size - had) for size, had in zip(leaf.shape, array.shape, strict=True)])


def _of_run(params: dict[str, Any], ema: dict[str, Any], *, average: str | None, path: epath.Path) -> dict[str, Any]:
  if average is None:
    return {name: ema.get(name, tree) for name, tree in params.items()}
  if average == 'none':
    return params
  if average not in ema or average not in params:
    raise ValueError(f'no average named {average!r} in {path}; it keeps {", ".join(sorted(ema)) or "none"}')
  return params | {average: ema[average]}


def _renamed(name: str, source: InitFrom) -> str:
  for pattern, other in source.renamed:
    name = re.sub(pattern, other, name)
  return name


def _named(name: str, patterns: Sequence[str]) -> bool:
  return any(re.search(pattern, name) for pattern in patterns)


def _is_wider(ours: Any, theirs: Any) -> bool:
  return len(ours.shape) == len(theirs.shape) and all(a >= b for a, b in zip(ours.shape, theirs.shape, strict=True))


def _is_shorter(ours: Any, theirs: Any) -> bool:
  return ours.shape[1:] == theirs.shape[1:] and ours.shape[0] <= theirs.shape[0]


def _shape(leaf: Any) -> str:
  return 'none' if leaf is None else 'x'.join(map(str, np.shape(leaf))) or 'a number'
