"""Files of LoRA and its kin: what people exchange, read as corrections of named weights, and written.

With W as PyTorch keeps it, (out, in) or (out, in, rows, columns), and s = alpha / rank, or 1 where there is no alpha:

  LoRA   W' = W + s up down                                                                   (1)   Hu et al. 21
  LoHa   W' = W + s (w1_a w1_b) * (w2_a w2_b)                                                 (2)   Hyeon-Woo et al. 22
  LoKr   W' = W + s kron(w1, w2), each whole or a product                                     (3)   Yeh et al. 24
  DoRA   W' = m V / |V|,  V = W + s up down, the norm over the inputs of each output          (4)   Liu et al. 24

  peft, diffusers   unet.down_blocks.0.attentions.0.proj_in.lora_A.weight         .lora_B.weight  .lora_magnitude_vector
  kohya, LyCORIS    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight .lora_up.weight  .alpha  .dora_scale

Underscores hide where one name ends, so kohya's names are looked up among those of the network's modules. A network may
have several sets of names (`Leaves`): diffusers', the original code's, jaxgen's own. A weight of 1 is the file's own
strength. A module that no network has is an error: it would be lost in silence.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from jaxgen.adapters.lora import Kernel
from jaxgen.pretrained import safetensors_file, torch_file
from jaxgen.pretrained.state_dict import Leaf, Leaves
from jaxgen.typing import Params

# Endings of a module's tensors -> what they are. The last six are former names of diffusers, and x-labs'.
_PARTS = {
  'lora_A.weight': 'down',
  'lora_B.weight': 'up',
  'lora_A.default.weight': 'down',
  'lora_B.default.weight': 'up',
  'lora_magnitude_vector': 'magnitude',
  'lora_magnitude_vector.weight': 'magnitude',
  'lora_magnitude_vector.default.weight': 'magnitude',
  'lora_down.weight': 'down',
  'lora_up.weight': 'up',
  'lora_mid.weight': 'mid',
  'alpha': 'alpha',
  'dora_scale': 'magnitude',
  'diff': 'diff',
  **{f'hada_{name}': f'hada_{name}' for name in ('w1_a', 'w1_b', 'w2_a', 'w2_b', 't1', 't2')},
  **{f'lokr_{name}': f'lokr_{name}' for name in ('w1', 'w1_a', 'w1_b', 'w2', 'w2_a', 'w2_b', 't2')},
  'lora.down.weight': 'down',
  'lora.up.weight': 'up',
  'lora_linear_layer.down.weight': 'down',
  'lora_linear_layer.up.weight': 'up',
  'down.weight': 'down',
  'up.weight': 'up',
}
_ENDINGS = sorted(_PARTS, key=len, reverse=True)
_KOHYA = {'lora_unet_': 'net', 'lora_transformer_': 'net', 'lora_te_': 'text_encoder', 'lora_te1_': 'text_encoder',
          'lora_te2_': 'text_encoder_2', 'lora_te3_': 'text_encoder_3'}  # fmt: skip
_DOTTED = {'unet.': 'net', 'transformer.': 'net', 'diffusion_model.': 'net', 'text_encoder.': 'text_encoder',
           'text_encoder_2.': 'text_encoder_2', 'text_encoder_3.': 'text_encoder_3', 'base_model.model.': 'net',
           '': 'net'}  # fmt: skip
_RANK_OF = ('down', 'hada_w1_b', 'lokr_w1_b', 'lokr_w2_b')  # the first that is there has the rank in front
Parts = dict[str, np.ndarray]


class Target(NamedTuple):
  """A weight that a module of a file corrects, whole or in part.

  Attributes:
    name: the tensor's name among the network's leaves.
    rows: the module's outputs (first, last + 1) that are this weight's; None for all.
    swapped: the two halves of the outputs are in the other order.
  """

  name: str
  rows: tuple[int, int] | None = None
  swapped: bool = False


class Update(NamedTuple):
  """A correction of one tensor."""

  parts: Parts
  target: Target
  module: str

  @property
  def kind(self) -> str:
    """'lora', 'loha', 'lokr', 'diff', and 'dora' for a norm of its own on any of them."""
    if 'magnitude' in self.parts:
      return 'dora'
    first = next(iter(set(self.parts) - {'alpha'}))
    return {'hada': 'loha', 'lokr': 'lokr', 'diff': 'diff'}.get(first[:4], 'lora')

  @property
  def scale(self) -> float:
    """s."""
    ranks = [len(self.parts[name]) for name in _RANK_OF if name in self.parts]
    return float(self.parts['alpha']) / ranks[0] if 'alpha' in self.parts and ranks else 1.0


class Network(NamedTuple):
  """A network that files may correct.

  Attributes:
    names: sets of names of its tensors.
    aliases: modules of other codes -> the tensors they are here, such as a fused product's three.
  """

  names: Sequence[Leaves]
  aliases: Mapping[str, Sequence[Target]] = {}


def read(path: str | os.PathLike) -> dict[str, Parts]:
  """The tensors of a file by module and part.

  Raises:
    ValueError: it holds something else, a value that is not finite, or a LoRA of rank 0.
  """
  tensors = safetensors_file.read(path) if str(path).endswith('.safetensors') else torch_file.state_dict(path)
  modules: dict[str, Parts] = {}
  strangers = []
  for name, tensor in tensors.items():
    ending = next((ending for ending in _ENDINGS if name.endswith(f'.{ending}')), None)
    if ending is None:
      strangers.append(name)
      continue
    array = np.asarray(tensor, np.float32)
    if not np.isfinite(array).all():
      raise ValueError(f'{path}: {name} has values that are not finite; the file is damaged or its training diverged')
    modules.setdefault(name.removesuffix(f'.{ending}'), {})[_PARTS[ending]] = array
  if strangers or not modules:
    raise ValueError(f'{path} is no LoRA file: {_some(strangers) or "it is empty"}')
  for module, parts in modules.items():
    _check(path, module, parts)
  if str(path).endswith('.safetensors'):
    _add_alphas(modules, safetensors_file.metadata(path))
  return modules


def _check(path: str | os.PathLike, module: str, parts: Parts) -> None:
  """Raises ValueError where the parts of a module are not whole."""
  for ours, others in (('down', 'up'), ('up', 'down'), ('hada_w1_a', 'hada_w2_b'), ('mid', 'down')):
    if ours in parts and others not in parts:
      raise ValueError(f'{path}: {module} has {ours} and no {others}; the file is not whole')
  if not set(parts) - {'alpha', 'magnitude'}:
    raise ValueError(f'{path}: {module} has {_some(sorted(parts))} alone; the file is not whole')
  if 'down' in parts and (len(parts['down']) == 0 or parts['up'].shape[1] != len(parts['down'])):
    raise ValueError(
      f'{path}: {module} has the ranks {len(parts["down"])} and {parts["up"].shape[1]}; wanted one number, 1 or more'
    )


def _add_alphas(modules: dict[str, Parts], metadata: Mapping[str, str]) -> None:
  """The alphas that diffusers keeps beside the tensors, as peft's configuration."""
  try:
    config = json.loads(metadata.get('lora_adapter_metadata', '{}'))
  except ValueError:
    config = {}
  for name, parts in modules.items():
    prefix = next((prefix for prefix in _DOTTED if prefix and name.startswith(prefix)), '')
    within = name.removeprefix(prefix)
    default = config.get(f'{prefix}lora_alpha')
    patterns = config.get(f'{prefix}alpha_pattern') or {}
    alpha = next((value for pattern, value in patterns.items() if re.match(rf'(.*\.)?({pattern})$', within)), default)
    if alpha is None or 'alpha' in parts or 'down' not in parts:
      continue
    rank = len(parts['down'])
    parts['alpha'] = np.asarray(alpha * rank**0.5 if config.get(f'{prefix}use_rslora') else alpha, np.float32)


def assigned(modules: Mapping[str, Parts], networks: Mapping[str, Network], *, source: str) -> dict[str, list[Update]]:
  """The corrections of a file, by the network that they are of.

  Args:
    modules: the result of `read`.
    networks: 'net' (U-Net or transformer), 'text_encoder', 'text_encoder_2' and 'text_encoder_3', as far as they are.
    source: the file, for messages.

  Raises:
    ValueError: a module is of no network; the first five are listed.
  """
  tables = {name: _table(network) for name, network in networks.items()}
  found: dict[str, list[Update]] = {name: [] for name in networks}
  unknown = []
  for module, parts in modules.items():
    name, targets = _find(module, tables)
    if targets is None:
      unknown.append(module)
    else:
      found[name] += [Update(parts, target, module) for target in targets]
  if unknown:
    raise ValueError(
      f'{source}: {len(unknown)} of {len(modules)} modules are not of this model ({", ".join(networks)}): '
      f'{_some(unknown)}; it is of another base'
    )
  return {name: updates for name, updates in found.items() if updates}


def _table(network: Network) -> dict[str, Sequence[Target]]:
  """Targets by module, with dots and with underscores."""
  table: dict[str, Sequence[Target]] = {}
  for leaves in network.names:
    for path, leaf in leaves.items():
      if path.endswith('kernel'):
        table |= {_module(name): [Target(name)] for name in leaf.names}
  table |= network.aliases
  return table | {module.replace('.', '_'): targets for module, targets in table.items()}


def _find(module: str, tables: Mapping[str, Mapping[str, Sequence[Target]]]) -> tuple[str, Sequence[Target] | None]:
  for prefix, name in (*_KOHYA.items(), *_DOTTED.items()):
    if module.startswith(prefix) and name in tables:
      within = module.removeprefix(prefix)
      within = re.sub(r'\.processor\.(to_\w+?)_lora$', r'.\1', within)  # diffusers of early 2023
      within = re.sub(r'\.to_out$', '.to_out.0', within)
      targets = tables[name].get(within)
      if targets is not None:
        return name, targets
  return '', None


def apply(update: Update, weight: np.ndarray, strength: float = 1.0) -> np.ndarray:
  """W + strength (W' - W) of Eqs. 1 to 4, float32.

  Raises:
    ValueError: the shapes do not go together.
  """
  weight = np.asarray(weight, np.float32)
  try:
    delta = update.scale * _difference(update.parts, weight.shape)
    delta = _rows(delta, update.target)
    if 'magnitude' in update.parts:
      delta = _normed(weight + delta.reshape(weight.shape), update.parts['magnitude']) - weight
    return weight + np.float32(strength) * delta.reshape(weight.shape)
  except ValueError:
    shapes = ', '.join(f'{name} {part.shape}' for name, part in update.parts.items())
    raise ValueError(
      f'{update.module} has {shapes}; {update.target.name} is {weight.shape}: it is of another base'
    ) from None


def _difference(parts: Parts, shape: tuple[int, ...]) -> np.ndarray:
  if 'diff' in parts:
    return parts['diff']
  if 'mid' in parts:
    return np.einsum('op,pqhw,qi->oihw', _matrix(parts['up']), parts['mid'], _matrix(parts['down']))
  if 'up' in parts:
    return _matrix(parts['up']) @ _matrix(parts['down'])  # Eq. 1
  if 'hada_w1_a' in parts:
    one, two = (_tucker_or_product(parts, f'hada_w{i}', f'hada_t{i}') for i in (1, 2))
    return one * two  # Eq. 2
  one, two = (_tucker_or_product(parts, f'lokr_w{i}', f'lokr_t{i}') for i in (1, 2))
  return np.kron(one.reshape(*one.shape, *[1] * (two.ndim - 2)), two)  # Eq. 3


def _tucker_or_product(parts: Parts, name: str, core: str) -> np.ndarray:
  if name in parts:
    return parts[name]
  a, b = parts[f'{name}_a'], parts[f'{name}_b']
  if core not in parts:
    return a @ _matrix(b) if b.ndim == 2 else (a @ _matrix(b)).reshape(len(a), *b.shape[1:])
  return np.einsum('pqhw,po,qi->oihw', parts[core], a, b)


def _matrix(array: np.ndarray) -> np.ndarray:
  return array.reshape(len(array), -1)


def _rows(delta: np.ndarray, target: Target) -> np.ndarray:
  if target.rows is not None:
    delta = delta[target.rows[0] : target.rows[1]]
  return np.concatenate(np.split(delta, 2)[::-1]) if target.swapped else delta


def _normed(weight: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
  """Eq. 4; LyCORIS has the norm over the outputs of each input, too, which the shape tells."""
  by_output = magnitude.size == len(weight) and (magnitude.ndim < 2 or magnitude.shape[1] in (1, len(weight)))
  axes = tuple(axis for axis in range(weight.ndim) if axis != (0 if by_output else 1))
  norm = np.sqrt(np.square(weight).sum(axes, keepdims=True))
  return magnitude.reshape(norm.shape) * weight / norm


def merged(
  params: Params, updates: Sequence[Update], leaves: Sequence[Leaves], *, weight: float = 1.0
) -> dict[str, Any]:
  """A network's tree with the corrections of a file added; -1 after 1 takes them away again, but not of DoRA.

  Args:
    params: the network's tree, of host arrays or others.
    updates: the result of `assigned`.
    leaves: sets of names of its tensors, as in its `Network`.
    weight: 1 is the file's own strength.
  """
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep='/')
  for path, (leaf, each) in _by_path(updates, leaves).items():
    tensors = leaf.to_torch(np.asarray(flat[path], np.float32))
    for update in each:
      tensors[update.target.name] = apply(update, tensors[update.target.name], weight)
    flat[path] = leaf.to_flax(tensors).astype(flat[path].dtype)
  return traverse_util.unflatten_dict(flat, sep='/')


def _by_path(updates: Sequence[Update], leaves: Sequence[Leaves]) -> dict[str, tuple[Leaf, list[Update]]]:
  """The corrections of each parameter; all of one parameter by one set of names."""
  where = {name: (path, leaf) for names in reversed(leaves) for path, leaf in names.items() for name in leaf.names}
  found: dict[str, tuple[Leaf, list[Update]]] = {}
  for update in updates:
    path, leaf = where[update.target.name]
    if found.setdefault(path, (leaf, []))[0] is not leaf:
      raise ValueError(f'{update.module} and another module of the file name one weight in two ways; convert the file')
    found[path][1].append(update)
  return found


def tree(updates: Sequence[Update], leaves: Sequence[Leaves], kernels: Mapping[str, Kernel]) -> dict[str, Any]:
  """The corrections of a file as a LoRA of `adapters/lora.py`, with its scales: to be trained on, or used unmerged.

  Args:
    updates: the result of `assigned`, plain LoRA only.
    leaves: as for `merged`.
    kernels: the network's, by path within it.
  """
  others = {update.kind for update in updates} - {'lora'} | {'mid' for update in updates if 'mid' in update.parts}
  if others:
    raise ValueError(f'{_some(sorted(others))} cannot be kept apart from its base; merge it')
  made: dict[str, Any] = {}
  for path, (leaf, each) in _by_path(updates, leaves).items():
    kernel = kernels[path.removesuffix('/kernel')]
    by_layer: dict[tuple[int, ...], list[_Pair]] = {}
    for update in each:
      layer, pair = _pair(update, leaf, kernel)
      by_layer.setdefault(layer, []).append(pair)
    layers = {layer: _together(pairs, kernel) for layer, pairs in by_layer.items()}
    made[path] = _stacked(layers, kernel)
  return traverse_util.unflatten_dict({tuple(path.split('/')): pair for path, pair in made.items()})


class _Pair(NamedTuple):
  a: np.ndarray  # *ins r
  b: np.ndarray  # r, and the outs of the part
  part: tuple[int, ...]  # where the part lies along those outs of the kernel that are apart
  outs: tuple[int, ...]  # the outs, of all the kernel's, along which parts lie
  scale: float


def _axes(leaf: Leaf, kernel: Kernel) -> tuple[list[int], list[int]]:
  """The kernel's axes of inputs, and of outputs, in the order in which its tensor has them."""
  assert not leaf.view, leaf
  part_axes = [axis for axis in range(len(leaf.shape)) if axis not in leaf.apart]
  order = [part_axes[i] for i in leaf.order]
  last = kernel.stacked + kernel.inputs
  return [axis for axis in order if axis < last], [axis for axis in order if axis >= last]


def _pair(update: Update, leaf: Leaf, kernel: Kernel) -> tuple[tuple[int, ...], _Pair]:
  """The layer that a correction is of, and its factors with the kernel's axes."""
  ins, outs = _axes(leaf, kernel)
  index = np.unravel_index(leaf.names.index(update.target.name), [leaf.shape[axis] for axis in leaf.apart])
  place = dict(zip(leaf.apart, map(int, index), strict=True))
  layer = tuple(place[axis] for axis in range(kernel.stacked))
  apart = tuple(axis for axis in leaf.apart if axis >= kernel.stacked)
  down, up = update.parts['down'], _rows(update.parts['up'], update.target)
  rank, shape = len(down), leaf.shape
  try:
    a = down.reshape(rank, *[shape[axis] for axis in ins]).transpose(*(1 + np.argsort(ins)), 0)
    b = up.reshape(*[shape[axis] for axis in outs], rank).transpose(len(outs), *np.argsort(outs))
  except ValueError:
    raise ValueError(
      f'{update.module} has down {down.shape} and up {up.shape}; {update.target.name} is {leaf.tensor_shape}: '
      'it is of another base'
    ) from None
  return layer, _Pair(a, b, tuple(place[axis] for axis in apart), apart, update.scale)


def _together(pairs: Sequence[_Pair], kernel: Kernel) -> _Pair:
  """The factors of a layer's whole kernel: side by side, or on one a where all parts have it in common."""
  first = pairs[0]
  if not first.outs:
    return first._replace(b=first.b)
  common = all(pair.a.shape == first.a.shape and np.array_equal(pair.a, first.a) for pair in pairs)
  rank = first.a.shape[-1] if common else sum(pair.a.shape[-1] for pair in pairs)
  same = len({pair.scale for pair in pairs}) == 1
  b, start = np.zeros((rank, *kernel.outs), np.float32), 0
  for pair in pairs:
    where: list[Any] = [slice(None)] * b.ndim
    where[0] = slice(0, rank) if common else slice(start, start + pair.a.shape[-1])
    for axis, i in zip(pair.outs, pair.part, strict=True):
      where[1 + axis - kernel.stacked - kernel.inputs] = i
    b[tuple(where)] = pair.b if same else pair.b * np.float32(pair.scale)
    start += pair.a.shape[-1]
  a = first.a if common else np.concatenate([pair.a for pair in pairs], axis=-1)
  return _Pair(a, b, (), (), first.scale if same else 1.0)


def _stacked(layers: Mapping[tuple[int, ...], _Pair], kernel: Kernel) -> dict[str, np.ndarray]:
  """All layers, the smaller ranks padded with zeros."""
  rank = max(pair.a.shape[-1] for pair in layers.values())
  a_shape, b_shape = kernel.shapes(rank)
  a, b, scale = np.zeros(a_shape, np.float32), np.zeros(b_shape, np.float32), np.ones(kernel.layers, np.float32)
  inner = b.reshape(*kernel.layers, rank, *kernel.outs)
  for layer, pair in layers.items():
    own = pair.a.shape[-1]
    a[(*layer, ..., slice(0, own))] = pair.a
    inner[layer][:own] = pair.b
    scale[layer] = pair.scale
  return {'a': a, 'b': b, 'scale': scale}


def tensors(lora: Params, leaves: Leaves, kernels: Mapping[str, Kernel]) -> dict[str, Parts]:
  """The inverse of `tree`: modules with 'down', 'up' and 'alpha'; ranks that are zeros are left out."""
  from jaxgen.adapters.lora import pairs

  found: dict[str, Parts] = {}
  begun = any(np.any(np.asarray(pair['b'])) for _, pair in pairs(lora))
  for path, pair in pairs(lora):
    leaf, kernel = leaves[path], kernels[path.removesuffix('/kernel')]
    ins, outs = _axes(leaf, kernel)
    a, scale = np.asarray(pair['a'], np.float32), np.asarray(pair['scale'], np.float32)
    b = np.asarray(pair['b'], np.float32).reshape(*kernel.layers, a.shape[-1], *kernel.outs)
    sizes = [leaf.shape[axis] for axis in leaf.apart]
    for name, index in zip(leaf.names, np.ndindex(*sizes), strict=True):
      place = dict(zip(leaf.apart, index, strict=True))
      layer = tuple(place[axis] for axis in range(kernel.stacked))
      where: list[Any] = [slice(None)] * (1 + len(kernel.outs))
      for axis, i in place.items():
        if axis >= kernel.stacked:
          where[1 + axis - kernel.stacked - kernel.inputs] = i
      part = b[layer][tuple(where)]
      used = part.reshape(len(part), -1).any(axis=1) if begun else a[layer].reshape(-1, len(part)).any(axis=0)
      if not used.any():
        continue
      down = _turned(a[layer][..., used], ins, last=True)
      up = _turned(part[used], outs, last=False)
      shape = leaf.tensor_shape
      found[_module(name)] = {
        'down': down.reshape(len(down), *shape[1:]),
        'up': up.reshape(shape[0], -1, *[1] * (len(shape) - 2)),
        'alpha': np.asarray(scale[layer] * len(down), np.float32),
      }
  return found


def _turned(factor: np.ndarray, axes: Sequence[int], *, last: bool) -> np.ndarray:
  """A factor as PyTorch has it: a with the rank in front, b with it at the end, the axes in the tensor's order."""
  order = list(np.argsort(np.argsort(axes)))
  if last:
    return factor.transpose(len(order), *order).reshape(factor.shape[-1], -1)
  return factor.transpose(*(1 + i for i in order), 0).reshape(-1, len(factor))


def write(path: str | os.PathLike, networks: Mapping[str, Mapping[str, Parts]], *, kohya: bool = False) -> None:
  """Writes a file.

  Args:
    path: .safetensors.
    networks: what `tensors` gives, by 'unet', 'transformer', 'text_encoder', 'text_encoder_2'.
    kohya: kohya's names and alphas; else diffusers', which have no alpha: `up` is multiplied by the scale.
  """
  prefixes = {'unet': 'lora_unet_', 'transformer': 'lora_unet_', 'text_encoder': 'lora_te1_' if 'text_encoder_2' in
              networks else 'lora_te_', 'text_encoder_2': 'lora_te2_', 'text_encoder_3': 'lora_te3_'}  # fmt: skip
  arrays = {}
  for network, modules in networks.items():
    for module, parts in modules.items():
      if kohya:
        name = prefixes[network] + module.replace('.', '_')
        arrays[f'{name}.lora_down.weight'], arrays[f'{name}.lora_up.weight'] = parts['down'], parts['up']
        arrays[f'{name}.alpha'] = parts['alpha']
      else:
        name, scale = f'{network}.{module}', parts['alpha'] / np.float32(len(parts['down']))
        arrays[f'{name}.lora_A.weight'], arrays[f'{name}.lora_B.weight'] = parts['down'], parts['up'] * scale
  safetensors_file.write(path, arrays, metadata={'format': 'pt'})


def own_names(kernels: Mapping[str, Kernel]) -> dict[str, Leaf]:
  """Names of a network that no other library has: its paths, 'blocks/attention/qkv' of layer 3 as
  'blocks.3.attention.qkv.weight', as PyTorch would keep it."""
  leaves = {}
  for path, kernel in kernels.items():
    first, _, rest = path.replace('/', '.').partition('.')
    layers = ['.'.join(map(str, index)) for index in np.ndindex(*kernel.layers)]
    names = tuple('.'.join(filter(None, (first, layer, rest, 'weight'))) for layer in layers)
    outs, inputs = len(kernel.outs), kernel.inputs
    ins = (inputs - 1, *range(inputs - 1)) if kernel.conv else tuple(range(inputs))
    shape = (int(np.prod(kernel.outs)), *([kernel.ins[i] for i in ins] if kernel.conv else [int(np.prod(kernel.ins))]))
    order = (*range(inputs, inputs + outs), *ins)
    leaves[f'{path}/kernel'] = Leaf(names, kernel.shape, order, shape, tuple(range(kernel.stacked)))
  return leaves


def _module(name: str) -> str:
  return name.removesuffix('.weight')


def _some(names: Sequence[str]) -> str:
  return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
