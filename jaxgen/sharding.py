"""Where arrays live: the mesh, and a NamedSharding for every leaf of the state.

Axes of the mesh, slowest first:

  data      copies of the model; the batch is sharded. Across slices or nodes this is the slow axis, unless `dcn` of
            `make_mesh` says that others are.
  fsdp      the batch is sharded, and so are parameters, moments and averages (fully sharded data parallel).
  sequence  the queries of attention are sharded; each device attends from its own to all keys (context
            parallelism), for images too large for one device.
  tensor    heads and hidden units are sharded.

A leaf's PartitionSpec comes from the first rule whose pattern is found in its path; without one, its largest dimension
that divides goes over `fsdp`. Rules stand beside the networks: `RULES` of the network's or the layer's module, which
`models/rules.py` collects, so that no config repeats them. Paths are joined with '/', and a parameter, its Adam moments
and its average end alike (`.../blocks/mlp/up/kernel`), so one pattern covers all of them. This is the only module that
writes a PartitionSpec.
"""

import contextlib
import contextvars
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import EllipsisType
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.extend import core
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ('data', 'fsdp', 'sequence', 'tensor')
BATCH_AXES = ('data', 'fsdp')
_inside_by_features: contextvars.ContextVar[bool] = contextvars.ContextVar('inside_by_features', default=False)
_devices: contextvars.ContextVar[Sequence[Any] | None] = contextvars.ContextVar('devices', default=None)

# (pattern, axes): for each dimension of the leaf an axis, several, None for whole, or `...` for open. Of the open ones,
# and beside them of those whose axes have size 1, the largest that divides goes over `fsdp`. The first rule that
# divides holds.
Rule = tuple[str, tuple[str | tuple[str, ...] | EllipsisType | None, ...]]


@contextlib.contextmanager
def devices_are(devices: Sequence[Any]) -> Iterator[None]:
  """Within it, `make_mesh` covers these devices, such as a topology's, in place of those that are here."""
  token = _devices.set(devices)
  try:
    yield
  finally:
    _devices.reset(token)


def make_mesh(
  *,
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  sequence: int = 1,
  dcn: Mapping[str, int] | None = None,
  devices=None,
) -> Mesh:
  """The mesh over all devices; one size may be -1, and is then whatever is left.

  Args:
    data, fsdp, tensor, sequence: sizes of the axes.
    dcn: by axis, how many of its parts are slices, which the slow network joins; one may be -1. They multiply to the
      number of slices: {'fsdp': 2} shards parameters over two slices. None for {'data': -1}.
    devices: devices of the mesh; all by default.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or those of `dcn` to that of slices.
  """
  devices = devices or _devices.get() or jax.devices()
  sizes = [data, fsdp, sequence, tensor]
  known = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) == 1 and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  if -1 in sizes or math.prod(sizes) != len(devices):
    raise ValueError(
      f'mesh data={data} fsdp={fsdp} sequence={sequence} tensor={tensor} does not cover {len(devices)} devices; '
      'set config.mesh so that the sizes multiply to that number (one of them may be -1)'
    )
  return Mesh(arranged(sizes, devices, dcn), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arranged(sizes: Sequence[int], devices: Sequence[Any], dcn: Mapping[str, int] | None = None) -> np.ndarray:
  """Devices such that fast axes are near neighbours; only the axes of `dcn`, or `data`, go from slice to slice."""
  slices = len({slice_of(device) for device in devices})
  across = _across(slices, dcn or {'data': -1})
  if slices == 1:
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  for axis, size, parts in zip(AXES, sizes, across, strict=True):
    if size % parts:
      raise ValueError(f'mesh {axis}={size} does not divide over {parts} slices; use a multiple of {parts}')
  within = [size // parts for size, parts in zip(sizes, across, strict=True)]
  return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def _across(slices: int, dcn: Mapping[str, int]) -> list[int]:
  """The number of slices that each axis spans."""
  unknown = sorted(set(dcn) - set(AXES))
  if unknown:
    raise ValueError(f'mesh dcn names {unknown[0]!r}; the axes are {", ".join(AXES)}')
  sizes = [dcn.get(axis, 1) for axis in AXES]
  known = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) == 1 and slices % known == 0:
    sizes[sizes.index(-1)] = slices // known
  if -1 in sizes or math.prod(sizes) != slices:
    raise ValueError(
      f'mesh dcn={dict(dcn)} does not cover {slices} slices; set it so that the sizes multiply to that number (one of '
      'them may be -1)'
    )
  return sizes


def slice_of(device: Any) -> int:
  """The slice that a device is in: all its neighbours by the fast interconnect."""
  return getattr(device, 'slice_index', None) or 0


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis is sharded over all devices that hold a copy or a shard of the model."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def under(mesh: Mesh, function: Callable) -> Callable:
  """`function`, traced with `mesh` in sight: attention asks it for the platform and for each device's part.

  The outputs of its networks' modules stay sharded as a batch. For a product of activations that are sharded by images
  and a parameter that is sharded by features, both over `fsdp`, the partitioner may otherwise gather the images and
  have every device work on all of them. Where that is wanted, a network asks for it: `by_features`.
  """

  @functools.wraps(function)
  def traced(*args):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.intercept_methods(_returns_split):
      return function(*args)

  return traced


def _returns_split(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
  if context.method_name != '__call__' or _inside_by_features.get():
    return call(*args, **kwargs)
  return jax.tree.map(split_batch, call(*args, **kwargs))


def by_features(layer: Callable[[Any], Any], c: Any) -> Any:
  """`layer(c)`, `b d` to `b p d`, where each device of `fsdp` works out its own features of all their images.

  For a layer with little input and a large kernel, such as a block's modulation, whose input is a vector an image: its
  kernel's gradient then needs no sum over `fsdp`, and the vectors are sent instead. Outside of a mesh it is the layer.
  """
  token = _inside_by_features.set(True)
  try:
    return split_batch(_each_its_features(layer, c))
  finally:
    _inside_by_features.reset(token)


def _each_its_features(layer: Callable[[Any], Any], c: Any) -> Any:
  mesh = jax.sharding.get_abstract_mesh()
  sizes = mesh.shape
  if not set(BATCH_AXES) <= set(sizes) or sizes['fsdp'] == 1 or c.ndim != 2 or c.shape[0] % sizes['data']:
    return layer(c)
  made = layer(jax.lax.with_sharding_constraint(c, NamedSharding(mesh, PartitionSpec('data', None))))
  if made.ndim != 3 or made.shape[-1] % sizes['fsdp']:
    return made
  return jax.lax.with_sharding_constraint(made, NamedSharding(mesh, PartitionSpec('data', None, 'fsdp')))


def split_batch(x: Any) -> Any:
  """An array, such as noise that a computation makes, sharded by its first axis as a batch, if a mesh is in sight.

  Without it every device may compute all of what follows, or worse. Where a dense layer's output becomes an image, the
  sharding of its kernel becomes one of rows. Rows that meet a convolution's kernel that is sharded over the same axis,
  one of two, come out wrong (XLA's partitioner, jaxlib 0.10.2 and 0.12.0.1): the gradient of a GAN's generator was a
  quarter of what it is on one device. tests/test_sharding.py fails when that is fixed.
  """
  mesh = jax.sharding.get_abstract_mesh()
  parts = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
  if parts == 1 or not np.ndim(x) or x.shape[0] % parts:
    return x
  others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(BATCH_AXES, *others)))


def platform() -> str:
  """Where the computation that is traced goes, 'tpu', 'gpu' or 'cpu': by the mesh in sight, else the default device."""
  device: Any = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    device = jax.config.jax_default_device  # pyrefly: ignore[missing-attribute]
  if device is None:
    return jax.default_backend()
  return device if isinstance(device, str) else device.platform


def attention_shard(shape: Sequence[int]) -> tuple[int, ...] | None:
  """One device's part of queries `b l n h` on the mesh in sight; None if there is none, or they do not divide."""
  sizes = jax.sharding.get_abstract_mesh().shape
  if not set(AXES) <= set(sizes):
    return None
  parts = (math.prod(sizes[axis] for axis in BATCH_AXES), sizes['sequence'], sizes['tensor'], 1)
  if any(size % part for size, part in zip(shape, parts, strict=True)):
    return None
  return tuple(size // part for size, part in zip(shape, parts, strict=True))


def attend_on_shards(kernel: Callable, q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None) -> Any:
  """An attention that each device runs for its own images, queries and heads, on all keys.

  Args:
    kernel: `(q, k, v, mask, bias) -> out`.
    q, k, v: `b l n h`, and `b k n h` twice.
    mask: `b k` or `b l k`, or None.
    bias: `b n l k`, or None. Axes of mask and bias may be 1.
  """
  queries = PartitionSpec(BATCH_AXES, 'sequence', 'tensor')
  keys = PartitionSpec(BATCH_AXES, None, 'tensor')

  def spec(array: Any, *axes: Any) -> PartitionSpec | None:
    if array is None:
      return None
    return PartitionSpec(*(None if size == 1 else axis for size, axis in zip(array.shape, axes, strict=True)))

  of_pairs = (BATCH_AXES, None) if mask is None or mask.ndim == 2 else (BATCH_AXES, 'sequence', None)
  of_mask, of_bias = spec(mask, *of_pairs), spec(bias, BATCH_AXES, 'tensor', 'sequence', None)
  run = jax.shard_map(kernel, in_specs=(queries, keys, keys, of_mask, of_bias), out_specs=queries, check_vma=False)
  return run(q, k, v, mask, bias)


def check_batch_size(batch_size: int, mesh: Mesh, *, accumulate: int = 1) -> None:
  """Raises ValueError where a batch does not divide over the mesh and the accumulation steps."""
  if batch_size < 1:
    raise ValueError(f'batch_size is {batch_size}; it must be 1 or more')
  parts = accumulate * math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  if batch_size % parts:
    raise ValueError(
      f'batch_size {batch_size} does not divide over {parts // accumulate} devices'
      + (f' times {accumulate} accumulation steps' if accumulate > 1 else '')
      + f'; use a multiple of {parts}'
    )


def path_name(path: Sequence[Any]) -> str:
  """A key path of `jax.tree_util` as 'params/net/blocks/mlp/up/kernel'."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def _over_fsdp(shape: Sequence[int], fsdp: int, dimensions: Iterable[int]) -> int | None:
  """The largest of the dimensions that divides over `fsdp`; of equal ones, the last."""
  divisible = [i for i in dimensions if shape[i] % fsdp == 0 and shape[i] >= fsdp]
  return max(divisible, key=lambda i: (shape[i], i)) if fsdp > 1 and divisible else None


def _closed(axes: Sequence[Any], shape: Sequence[int], mesh: Mesh) -> tuple[Any, ...]:
  """The axes of a rule, with one of those that are open over `fsdp`, unless the rule itself shards one over it."""
  if ... not in axes:
    return tuple(axes)
  if any(entry is not ... and 'fsdp' in _as_tuple(entry) for entry in axes):
    return tuple(None if entry is ... else entry for entry in axes)
  size = [1 if entry is ... else math.prod(mesh.shape[axis] for axis in _as_tuple(entry)) for entry in axes]
  chosen = _over_fsdp(shape, mesh.shape['fsdp'], [i for i, e in enumerate(axes) if e is not None and size[i] == 1])
  return tuple('fsdp' if i == chosen else None if entry is ... else entry for i, entry in enumerate(axes))


def axes_of(place: NamedSharding) -> list[str]:
  """The axes of the mesh that shard an array."""
  return [axis for entry in place.spec for axis in _as_tuple(entry)]


def copies(place: NamedSharding) -> np.ndarray:
  """The devices by the first axis of the mesh, which holds a whole copy of the array at each index."""
  return place.mesh.devices


def on_copy(place: NamedSharding, index: int) -> NamedSharding:
  """How an array is placed on one of its copies."""
  return NamedSharding(Mesh(place.mesh.devices[index : index + 1], place.mesh.axis_names), place.spec)


def stacked_copies(place: NamedSharding) -> NamedSharding:
  """How an array is placed that has the copies of another as its first dimension, each where it is."""
  return NamedSharding(place.mesh, PartitionSpec(place.mesh.axis_names[0], *place.spec))


def check_sequence(jaxpr: core.Jaxpr, mesh: Mesh) -> None:
  """Raises ValueError where `sequence` is to shard the queries of attention and shards none of a traced program."""
  if mesh.shape['sequence'] > 1 and not _shards_queries(jaxpr):
    raise ValueError(
      f'mesh sequence={mesh.shape["sequence"]} shards no attention of this run: its network has none, or its images, '
      'tokens and heads do not divide over the mesh; set config.mesh.sequence=1 and give those devices to data'
    )


def _shards_queries(jaxpr: core.Jaxpr) -> bool:
  for equation in jaxpr.eqns:
    specs = equation.params['in_specs'] if equation.primitive.name == 'shard_map' else ()
    if any('sequence' in _as_tuple(entry) for spec in specs for entry in spec):
      return True
    if any(_shards_queries(inner) for inner in core.jaxprs_in_params(equation.params)):
      return True
  return False


def _as_tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (axes,) if isinstance(axes, str) else axes or ()


def _undivided(shape: Sequence[int], mesh: Mesh, axes: Sequence[str | tuple[str, ...] | None]) -> list[str]:
  parts = [{axis: mesh.shape[axis] for axis in _as_tuple(entry)} for entry in axes]
  return [
    ' x '.join(f'{axis}={count}' for axis, count in part.items())
    for size, part in zip(shape, parts, strict=True)
    if size % math.prod(part.values())
  ]


def _leaf_axes(name: str, shape: Sequence[int], mesh: Mesh, rules: Sequence[Rule], known: Sequence[Rule]):
  # Factored or scalar optimizer statistics end like their parameter but have another rank.
  def meant(rules: Sequence[Rule]) -> list[tuple[str, tuple[Any, ...]]]:
    found = [(pattern, axes) for pattern, axes in rules if len(axes) == len(shape) and re.search(pattern, name)]
    return [(pattern, _closed(axes, shape, mesh)) for pattern, axes in found]

  own = meant(rules)
  for _, axes in own or meant(known):
    if not _undivided(shape, mesh, axes):
      return axes
  if own:
    pattern, axes = own[-1]
    raise ValueError(
      f'{name} of shape {tuple(shape)} does not divide over {", ".join(_undivided(shape, mesh, axes))} '
      f'by the rule {pattern!r} -> {axes}; change config.mesh or the rule'
    )
  chosen = _over_fsdp(shape, mesh.shape['fsdp'], range(len(shape)))
  return tuple('fsdp' if i == chosen else None for i in range(len(shape)))


def shard_tree(tree: Any, mesh: Mesh, rules: Sequence[Rule] = (), *, known: Sequence[Rule] = ()) -> Any:
  """A NamedSharding for each leaf of a tree of arrays or ShapeDtypeStructs.

  Args:
    tree: the state, or the frozen networks.
    mesh: mesh of the leaves.
    rules: rules of this tree.
    known: rules of all networks there are (`models/rules.py`), for leaves that no rule of `rules` is meant for; one
      that matches nothing or does not divide is passed over.

  Raises:
    ValueError: one of `rules` matches no leaf, or shards a dimension that does not divide.
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  names = [path_name(path) for path, _ in leaves]
  for pattern, axes in rules:
    if not any(re.search(pattern, name) for name in names):
      raise ValueError(f'sharding rule {pattern!r} -> {axes} matches no parameter; the paths are like {names[0]!r}')

  def place(path: Any, leaf: Any) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*_leaf_axes(path_name(path), np.shape(leaf), mesh, rules, known)))

  return jax.tree_util.tree_map_with_path(place, tree)


def check_axes(places: Any, mesh: Mesh) -> None:
  """Raises ValueError where `tensor` or `fsdp` shards none of the parameters with these NamedShardings."""
  used = {axis for place in jax.tree.leaves(places) for axis in axes_of(place)}
  for axis, remedy in (('tensor', 'a network whose RULES name it, such as a DiT or a U-Net'), ('fsdp', 'wider layers')):
    if mesh.shape[axis] > 1 and axis not in used:
      raise ValueError(
        f'mesh {axis}={mesh.shape[axis]} shards no parameter of this run; set config.mesh.{axis}=1 and give those '
        f'devices to data, or use {remedy}'
      )
