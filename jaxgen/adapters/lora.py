"""LoRA: corrections of low rank that are trained in the place of a network's kernels (Hu et al. 2021).

  W' = W + s a b,   s = alpha / r                                                         (1)
  W' = W + sum_k w_k s_k a_k b_k = W + [a_1 a_2 ...] [w_1 s_1 b_1; w_2 s_2 b_2; ...]       (2)    several, weighted

b starts at zero, so that the first step is the base's. The network multiplies by Eq. 1 without forming it
(models/layers/low_rank.py); `low_rank.merged` forms it. Any kernel of a `Linear` or a `Conv` can be corrected. A LoRA
is a tree like the networks', {'a': ..., 'b': ...} or {'a', 'b', 'scale'} in the place of each kernel that it corrects:

  {'net': {'blocks': {'attention': {'qkv': {'kernel': {'a': d r, 'b': r 3 n h}}}}}}

Differs from Hu et al.: a starts as in their code, uniform within 1 / sqrt(inputs), not normal as in the paper.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen.adapters.added import Added
from jaxgen.models.layers.conv import Conv
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.low_rank import LowRank
from jaxgen.typing import Array, Key, Params

# Queries, keys, values and outputs of attention, in every network.
ATTENTION = r'(^|/)(query|key|value|(image_|text_)?qkv)$|(self|cross)/out$|(^|/)attention(_\d+)?/(image_|text_)?out$'
NAME = 'lora'  # the key of `state.params`
Trees = Mapping[str, Any]  # networks by name, as in `state.params`


class LoRA(NamedTuple):
  """The layers that are adapted, and how.

  Attributes:
    rank: r.
    alpha: s r, so that the learning rate need not change with the rank; None for r.
    on: patterns of the products that are corrected, found anywhere in a path such as 'net/blocks/attention/qkv'.
    dropout: rate at which a's inputs are dropped in training.
  """

  rank: int = 8
  alpha: float | None = None
  on: Sequence[str] = (ATTENTION,)
  dropout: float = 0.0

  @property
  def scale(self) -> float:
    """s of Eq. 1."""
    return 1.0 if self.alpha is None else self.alpha / self.rank

  def check(self) -> None:
    """Raises ValueError where no network can be corrected so."""
    if self.rank < 1:
      raise ValueError(f'the rank of a LoRA is {self.rank}; it must be 1 or more')
    if not 0 <= self.dropout < 1:
      raise ValueError(f'the dropout of a LoRA is {self.dropout}; it must be in [0, 1)')


class Kernel(NamedTuple):
  """How the kernel of a product lies.

  Attributes:
    shape: shape of the parameter.
    stacked: number of its first axes that count layers.
    inputs: number of the axes after them that are contracted; a convolution's are height, width and features.
    conv: whether it is a convolution's.
  """

  shape: tuple[int, ...]
  stacked: int
  inputs: int
  conv: bool

  @property
  def layers(self) -> tuple[int, ...]:
    return self.shape[: self.stacked]

  @property
  def ins(self) -> tuple[int, ...]:
    return self.shape[self.stacked : self.stacked + self.inputs]

  @property
  def outs(self) -> tuple[int, ...]:
    return self.shape[self.stacked + self.inputs :]

  def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a and b."""
    b = (1, 1, rank, *self.outs) if self.conv else (rank, *self.outs)
    return (*self.layers, *self.ins, rank), (*self.layers, *b)


def kernels(make: Callable[[Key[Array, '']], Trees], *, of: Trees | None = None) -> dict[str, Kernel]:
  """The kernels of all `Linear` and `Conv` by the path of their module, such as 'net/blocks/attention/qkv'.

  Args:
    make: makes the networks' first parameters by name; it is traced, not run.
    of: the networks, of arrays or shapes, where they are not what `make` returns, such as an adapter's frozen base.
  """
  seen: dict[tuple[str, tuple[int, ...]], set[tuple[int, bool]]] = {}

  def note(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    made, module = call(*args, **kwargs), context.module
    if (
      isinstance(module, Linear | Conv)
      and context.method_name == '__call__'
      and module.has_variable('params', 'kernel')
    ):
      conv, shape = isinstance(module, Conv), module.get_variable('params', 'kernel').shape
      seen.setdefault(('/'.join(module.path), shape), set()).add(
        (3 if isinstance(module, Conv) else module.inputs, conv)
      )
    return made

  with nn.intercept_methods(note):
    trees = jax.eval_shape(make, jax.random.key(0))
  found = {}
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(trees if of is None else of), sep='/')
  for path, leaf in flat.items():
    module = path.removesuffix('/kernel')
    within = module.partition('/')[2]
    for stacked in range(len(leaf.shape)):
      kinds = seen.get((within, leaf.shape[stacked:]), ()) if module != path else ()
      if len(kinds) > 1:
        raise ValueError(f'two networks have a {within} of one shape, whose products differ; adapt one of them')
      for inputs, conv in kinds:
        found.setdefault(module, Kernel(tuple(leaf.shape), stacked, inputs, conv))
  return found


def matching(known: Mapping[str, Kernel], patterns: Sequence[str]) -> dict[str, Kernel]:
  """The kernels whose path a pattern is found in.

  Raises:
    ValueError: a pattern is found in none.
  """
  for pattern in patterns:
    if not any(re.search(pattern, path) for path in known):
      raise ValueError(f'the pattern {pattern!r} is found in no product; the paths are {_some(sorted(known))}')
  return {path: kernel for path, kernel in known.items() if any(re.search(pattern, path) for pattern in patterns)}


def init(key: Key[Array, ''], known: Mapping[str, Kernel], spec: LoRA) -> dict[str, Any]:
  """A LoRA that changes nothing yet."""
  spec.check()
  made = {}
  for i, (path, kernel) in enumerate(sorted(matching(known, spec.on).items())):
    a, b = kernel.shapes(spec.rank)
    bound = np.prod(kernel.ins) ** -0.5
    made[f'{path}/kernel/a'] = jax.random.uniform(jax.random.fold_in(key, i), a, jnp.float32, -bound, bound)
    made[f'{path}/kernel/b'] = jnp.zeros(b, jnp.float32)
  return traverse_util.unflatten_dict(made, sep='/')


def lora(spec: LoRA, *, base: Sequence[str] = ('net',), also: Callable[[Key[Array, '']], Trees] | None = None) -> Added:
  """The LoRA `params['lora']` of networks that are frozen, for `objectives/adapted.py`.

  Args:
    spec: the layers that are adapted, and their ranks.
    base: the networks of the objective; `Experiment.frozen` has them.
    also: makes the first parameters of other frozen networks that are corrected, such as a text encoder's.
  """

  def make_init(key: Key[Array, ''], make: Callable[[Key[Array, '']], Trees]) -> dict[str, Any]:
    known = kernels(make) | ({} if also is None else kernels(also))
    return {NAME: init(key, known, spec)}

  def join(params: dict[str, Any], frozen: Any) -> tuple[dict[str, Any], Any]:
    trees = {
      name: joined(frozen[name], part, scale=spec.scale, dropout=spec.dropout) for name, part in params[NAME].items()
    }
    rest = {name: tree for name, tree in params.items() if name != NAME}
    return rest | {name: trees.get(name, frozen[name]) for name in base}, {**frozen, **trees}

  spec.check()
  return Added(make_init, join, (NAME,))


def joined(base: Params, lora: Params, *, scale: float = 1.0, dropout: float = 0.0) -> Params:
  """A network's tree with a LowRank in the place of each kernel that is corrected, Eq. 1.

  Args:
    base: the network's tree.
    lora: the LoRA's for it; a 'scale' of its own goes before `scale`.
    scale: s.
    dropout: see LoRA.
  """
  tree = dict(base)
  for name, part in lora.items():
    if name not in tree:
      raise ValueError(f'the LoRA corrects {name!r}, which this network does not have; it is of another base')
    if not is_pair(part):
      tree[name] = joined(tree[name], part, scale=scale, dropout=dropout)
      continue
    layers = stacked(tree[name], part)
    own = part.get('scale', jnp.full(tree[name].shape[:layers], scale, jnp.float32))
    tree[name] = LowRank(tree[name], part['a'], part['b'], own, dropout)
  return tree


def stacked(base: Any, pair: Params) -> int:
  """The number of axes in front that count layers."""
  a, b = pair['a'].shape, pair['b'].shape
  conv = len(a) == len(b) == len(base.shape) and b[-4:-2] == (1, 1)
  layers = len(base.shape) - 4 if conv else len(a) + len(b) - len(base.shape) - 2
  ins = len(a) - 1
  outs = b[-1:] if conv else b[layers + 1 :]
  if layers < 0 or (*a[:ins], *outs) != tuple(base.shape) or a[-1] != b[-2 if conv else layers]:
    raise ValueError(
      f'a LoRA of shapes {a} and {b} does not fit a kernel of {tuple(base.shape)}; it is of another base'
    )
  return layers


def is_pair(tree: Any) -> bool:
  """Whether it stands in the place of a kernel."""
  return isinstance(tree, Mapping) and {'a', 'b'} <= set(tree) <= {'a', 'b', 'scale'}


def pairs(tree: Mapping[str, Any], path: str = '') -> Iterator[tuple[str, Params]]:
  """The corrections of a LoRA, by the path of their kernel."""
  for name, part in tree.items():
    if is_pair(part):
      yield f'{path}{name}', part
    else:
      yield from pairs(part, f'{path}{name}/')


def scaled(lora: Params, base: Params, scale: float) -> Params:
  """A LoRA with its scales, which then stands alone."""
  made = {}
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(base), sep='/')
  for path, pair in pairs(lora):
    layers = flat[path].shape[: stacked(flat[path], pair)]
    made[path] = {'scale': np.full(layers, scale, np.float32), **pair}
  return _nested(made)


def summed(loras: Sequence[tuple[Params, float]]) -> Params:
  """One LoRA of several that stand alone, each with a weight, Eq. 2."""
  found: dict[str, list[tuple[Params, float]]] = {}
  for lora, weight in loras:
    for path, pair in pairs(lora):
      found.setdefault(path, []).append((pair, weight))
  return _nested({path: _side_by_side(each) for path, each in found.items()})


def _side_by_side(each: Sequence[tuple[Params, float]]) -> Params:
  a = jnp.concatenate([pair['a'] for pair, _ in each], axis=-1)
  bs, layers = [], each[0][0]['scale'].ndim
  conv = each[0][0]['b'].shape[layers : layers + 2] == (1, 1) and each[0][0]['b'].ndim == layers + 4 == a.ndim
  for pair, weight in each:
    factor = weight * pair['scale']
    bs.append(pair['b'] * factor.reshape(*factor.shape, *[1] * (pair['b'].ndim - factor.ndim)))
  b = jnp.concatenate(bs, axis=layers + 2 if conv else layers)
  return {'a': a, 'b': b, 'scale': jnp.ones_like(each[0][0]['scale'])}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.unflatten_dict({tuple(path.split('/')): pair for path, pair in flat.items()})


def _some(names: Sequence[str]) -> str:
  return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
