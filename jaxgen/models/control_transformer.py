"""ControlNet for transformers: a trainable copy of some blocks that reads a control picture.

  h_0 = embed(x) + hint(patches(control))                                                    (1)
  r_i = zero_i(h_i),  h_i = copy_i(h_(i-1), ...),  i = 1 ... n                               (2)
  net(x), with scale r_i added behind each of the depth / n blocks that it stands for        (3)

`hint` and all zero_i start at zero, so that the first step is the net's. The copy is the network itself with n blocks
and without its last layer, so that DiT, MMDiT and PixArt have branches by two seams: `cond['patch_hint']` and `head`.
Chen et al. 2024, "PixArt-delta"; as in Stable Diffusion 3's branches of diffusers, a residual stands for several
blocks in turn. Differs from PixArt-delta, whose branch stands for the first blocks alone.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.models.controlnet import scales_of
from jaxgen.models.dit import patchify, with_hint
from jaxgen.models.layers.linear import Linear
from jaxgen.models.mmdit import MMDiT
from jaxgen.typing import Array, Cond, Float

_zeros = nn.initializers.zeros_init()
_STACK = 'blocks'


class ControlTransformer(nn.Module):
  """The branch: `(x, t, cond) -> residuals`, Eqs. 1 and 2.

  Attributes:
    net: the network whose blocks it has: DiT, PixArt, or an MMDiT as Stable Diffusion 3's.
    blocks: n.
    field: the entry of `cond` that it reads, float b h w c as large as x or a multiple of it; FIELD_scale, float b or
      b n, if it is given, multiplies all residuals or each.
  """

  net: Any
  blocks: int
  field: str = 'control'

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, ' b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'r b l d']:
    net = self._copy()
    hint = Linear(net.width, kernel_init=_zeros, dtype=net.dtype, name='hint')(self._patches(x, cond[self.field]))
    seen = {**cond, 'patch_hint': with_hint(hint, cond)}
    if not self.has_variable('params', 'net'):
      made: Any = net.init(self.make_rng('params'), x, t, seen, train=train)
      self.put_variable('params', 'net', made['params'])
    variables = {'params': self.get_variable('params', 'net')}
    _, kept = net.apply(variables, x, t, seen, train=train, mutable=['states'], rngs=_rngs(self))
    states: Any = kept['states'][_STACK]
    states = states[0] if isinstance(states, tuple) else states  # MMDiT has two streams; the first is the image's
    zeros = [Linear(net.width, kernel_init=_zeros, dtype=net.dtype, name=f'zero_{i}') for i in range(self.blocks)]
    residuals = jnp.stack([zero(state) for zero, state in zip(zeros, states, strict=True)])
    return residuals * scales_of(cond, self.field, self.blocks)[..., None, None].astype(residuals.dtype)

  def _copy(self) -> Any:
    """The network with n blocks, and nothing behind them."""
    net = self.net
    if isinstance(net, MMDiT) and (net.single or net.dual):
      raise ValueError('control branches are of stacks of one kind of block; this MMDiT has `single` or `dual` ones')
    return net.clone(depth=self.blocks, head=False, parent=None)

  def _patches(self, x: Array, control: Array) -> Array:
    (height, width), (h, w) = control.shape[1:3], x.shape[1:3]
    factor = height // h
    if not factor or (height, width) != (factor * h, factor * w):
      raise ValueError(
        f'{self.field} is {height}x{width}; for images or latents of {h}x{w} it must be as large or a multiple of it'
      )
    return patchify(control.astype(self.net.dtype), factor * self.net.patch)


class ControlledTransformer(nn.Module):
  """Eq. 3: a transformer under control, whose own parameters stay at the top of the tree.

  Attributes:
    net: the network.
    controls: the branches, each with a `field` of its own.
  """

  net: Any
  controls: tuple[ControlTransformer, ...]

  def setup(self) -> None:
    nn.share_scope(self, self.net)

  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, ' b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b h w o']:
    made = [control(x, t, cond, train=train) for control in self.controls]
    if self.is_initializing():
      return self.net(x, t, cond, train=train)
    params = {name: tree for name, tree in self.variables['params'].items() if not name.startswith('controls_')}
    depth = jax.tree.leaves(params[_STACK])[0].shape[0]
    total = sum(spread(residuals, depth) for residuals in made)
    if isinstance(self.net, MMDiT):
      total = (total, jnp.zeros(depth))  # the text is left alone
    net: Any = self.net.clone(parent=None)
    return net.apply({'params': params, 'residuals': {_STACK: total}}, x, t, cond, train=train, rngs=_rngs(self))


def spread(residuals: Float[Array, 'r b l d'], depth: int) -> Float[Array, 'n b l d']:
  """One residual behind each of `depth` blocks, each for as many in turn."""
  count = len(residuals)
  if count > depth:
    raise ValueError(f'a control branch of {count} blocks for a network of {depth}; use {depth} or fewer')
  return residuals[jnp.arange(depth) * count // depth]


def _rngs(module: nn.Module) -> dict[str, Array]:
  return {'dropout': module.make_rng('dropout')} if module.has_rng('dropout') else {}
