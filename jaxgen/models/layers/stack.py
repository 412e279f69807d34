"""A stack of equal blocks, whose parameters have an axis for the depth in front.

  x <- block_i(x, *shared, each_i) [+ residual_i],  i = start ... stop - 1                              (1)

The residuals come in the collection 'residuals', and the x behind each block leaves in the collection 'states', if it
is mutable; both are trees like x under the stack's name, with an axis for all blocks in front. So a control branch
(models/control_transformer.py) can be added to a network without a change of its code.

On accelerators, and where a policy decides what is kept, a `lax.scan` runs it: the program does not grow with the
depth, and compiles once for all blocks. On a CPU, where everything is kept, a loop runs over slices of the same
parameters: a scan copies what the forward pass keeps in and out of stacked arrays. The numbers are the same up to
reassociation; docs/results.md has the times. The platform is that of the mesh in sight, as for attention.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxgen import sharding
from jaxgen.models.layers.remat import Policy, chosen
from jaxgen.typing import Array, Float, Int, MakeModule

# (params, keys, x, shared, inputs) of one block -> x, and what it sowed
_Run = Callable[[Any, Any, Any, Any, Any], tuple[Any, Any]]
_SOWN = ('maps', 'intermediates')  # collections that a block may fill when they are mutable
_RESIDUALS, _STATES = 'residuals', 'states'
_BOTH = ('tensor', 'fsdp')
# Attention and MLP of the transformers whose stack is called `blocks`: DiT, CLIP, BERT and T5. Over `tensor`: whole
# heads and hidden units on a device, one all-reduce after each pair of products (Shoeybi et al. 2019, Megatron-LM).
# Over `fsdp` the same dimension where it divides: a TPU's compiler scatters the gradients of what is sharded by whole
# heads or hidden units; by the 72 features that each of 16 has of 1152, it sums them everywhere. The first axis is the
# depth's.
TRANSFORMER_RULES: tuple[sharding.Rule, ...] = (
  (r'blocks/attention/qkv/kernel$', (None, None, None, _BOTH, None)),
  (r'blocks/attention/qkv/kernel$', (None, 'fsdp', None, 'tensor', None)),
  (r'blocks/attention/qkv/bias$', (None, None, 'tensor', None)),
  (r'blocks/attention/out/kernel$', (None, _BOTH, None, None)),
  (r'blocks/attention/out/kernel$', (None, 'tensor', None, 'fsdp')),
  (r'blocks/mlp/(in|gate)/kernel$', (None, None, _BOTH)),
  (r'blocks/mlp/(in|gate)/kernel$', (None, 'fsdp', 'tensor')),
  (r'blocks/mlp/(in|gate)/bias$', (None, 'tensor')),
  (r'blocks/mlp/out/kernel$', (None, _BOTH, None)),
  (r'blocks/mlp/out/kernel$', (None, 'tensor', 'fsdp')),
)


def stack(
  module: nn.Module,
  block: MakeModule,
  x: Any,
  *shared: Any,
  depth: int,
  name: str = 'blocks',
  each: Any = None,
  remat: Policy = None,
  start: int = 0,
  stop: int | None = None,
) -> Any:
  """Runs `x` through the blocks from `start` to `stop`, Eq. 1; call it inside a compact module.

  A stack that runs in segments is called once for each, with one name and depth: all read the same parameters.

  Args:
    module: the one that has the stack; the parameters are its `name`.
    block: makes a block, `block()`: a module with `(x, *shared) -> x`, or `(x, *shared, each_i) -> x`.
    x: the carry from block to block, an array or several.
    shared: given to every block.
    depth: number of blocks.
    name: name of the parameters.
    each: arrays with an axis in front for the `stop - start` blocks, such as the residuals of a control branch.
    remat: policy of `jax.checkpoint` for each block; None keeps everything, but for `remat.each_block`.
    start, stop: the blocks that run; None for the last.
  """
  stop, remat = depth if stop is None else stop, chosen(remat)
  if not 0 <= start <= stop <= depth:
    raise ValueError(f'blocks {start} to {stop} are not in a stack of {depth}')
  if not module.has_variable('params', name):
    rest = shared if each is None else (*shared, jax.tree.map(lambda leaf: leaf[0], each))
    _initialise(module, block, x, rest, depth=depth, name=name)
  if start == stop:
    return x
  params = jax.tree.map(lambda leaf: leaf[start:stop], module.get_variable('params', name))
  layer, sown = block(parent=None), []
  if not module.is_initializing():
    sown = [kind for kind in _SOWN if module.is_mutable_collection(kind)]
  states = not module.is_initializing() and module.is_mutable_collection(_STATES)
  residuals = module.get_variable(_RESIDUALS, name)
  if residuals is not None:
    residuals = jax.tree.map(lambda leaf: leaf[start:stop], residuals)

  def run(params: Any, keys: Any, x: Any, shared: Any, inputs: Any) -> Any:
    inputs, residual = inputs
    more = () if inputs is None else (inputs,)
    x, kept = layer.apply({'params': params}, x, *shared, *more, rngs=keys, mutable=sown)
    if residual is not None:
      x = jax.tree.map(lambda x, r: x + r.astype(x.dtype), x, residual)
    return x, ({**kept, _STATES: x} if states else kept)

  loop = sharding.platform() == 'cpu' and remat is None
  if remat is not None:
    run = jax.checkpoint(run, policy=remat, prevent_cse=False)  # a scan needs no such fence
  keys = {}
  if module.has_rng('dropout'):
    keys['dropout'] = jax.random.split(module.make_rng('dropout'), stop - start)
  x, kept = (_loop if loop else _scan)(run, x, shared, (params, keys, (each, residuals)), stop - start)
  for kind in kept:
    before = module.get_variable(kind, name)
    whole = kept[kind] if before is None else jax.tree.map(lambda *parts: jnp.concatenate(parts), before, kept[kind])
    module.put_variable(kind, name, whole)
  return x


@runtime_checkable
class RunSegment(Protocol):
  """Runs some blocks on the tokens `kept`, or on all."""

  def __call__(self, x: Array, kept: Int[Array, 'b m'] | None, /, *, start: int, stop: int) -> Array: ...


def in_segments(
  run: RunSegment,
  x: Float[Array, 'b l d'],
  *,
  depth: int,
  hidden: Sequence[int] = (),
  route: tuple[int, int] | None = None,
  kept: Int[Array, 'b m'] | None = None,
  leave: Callable[[int, Array], Any] = lambda depth, x: None,
) -> Float[Array, 'b l d']:
  """Runs a stack of `depth` blocks in segments that end where tokens leave or are routed.

  Args:
    run: `stack` with its block.
    x: the tokens.
    depth: number of blocks.
    hidden: depths after which `leave(depth, x)` is given the tokens.
    route: blocks (start, stop) that see the tokens `kept` alone, if they are given; the others pass by.
    kept: numbers of those tokens.
    leave: takes the tokens.
  """
  first, last = route if route and kept is not None else (depth, depth)
  images = jnp.arange(len(x))[:, None]
  for start, stop in itertools.pairwise(sorted({0, *hidden, first, last, depth})):
    if first <= start < last:
      x = x.at[images, kept].set(run(x[images, kept], kept, start=start, stop=stop))
    else:
      x = run(x, None, start=start, stop=stop)
    if stop in hidden:
      leave(stop, x)
  return x


def _scan(run: _Run, x: Any, shared: Any, per_block: Any, length: int) -> tuple[Any, Any]:
  def body(x: Any, per_block: Any) -> tuple[Any, Any]:
    params, keys, inputs = per_block
    return run(params, keys, x, shared, inputs)

  return lax.scan(body, x, per_block, length=length)


def _loop(run: _Run, x: Any, shared: Any, per_block: Any, length: int) -> tuple[Any, Any]:
  leaves, treedef = jax.tree.flatten(per_block)
  # The gradient of a split is one concatenation; that of slices would be a sum of whole stacks, mostly zeros.
  leaves = [[part.squeeze(0) for part in lax.split(leaf, [1] * length)] for leaf in leaves]
  # Traced once for all blocks; a trace of Flax's modules takes longer than all else before the first step.
  one = jax.jit(lambda params, keys, x, inputs: run(params, keys, x, shared, inputs), inline=True)
  kept = []
  for parts in zip(*leaves, strict=True):
    params, keys, inputs = jax.tree.unflatten(treedef, parts)
    x, sown = one(params, keys, x, inputs)
    kept.append(sown)
  return x, jax.tree.map(lambda *parts: jnp.stack(parts), *kept)


def _initialise(module: nn.Module, block: Any, x: Any, rest: Sequence[Any], *, depth: int, name: str) -> None:
  """Makes the parameters of all blocks, each with a key of its own."""
  scanned = nn.scan(
    _Body,
    variable_axes={'params': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=nn.broadcast,
    length=depth,
  )
  scanned(block, parent=module, name=name)(x, *rest)


class _Body(nn.Module):
  """A block as a scan wants it, under the block's own names."""

  block: MakeModule

  def setup(self) -> None:
    self.inner = self.block()
    nn.share_scope(self, self.inner)

  def __call__(self, x: Any, *rest: Any) -> tuple[Any, None]:
    return self.inner(x, *rest), None
