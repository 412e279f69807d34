"""DiT: a transformer over image patches, conditioned by adaptive layer norms that start as the identity.

  c = time(t) + label(y) + interval(t - r), the last only with `interval`                   (1)
  shift1, scale1, gate1, shift2, scale2, gate2 = modulation(silu(c))                        (2)
  x <- x + gate1 * attention(norm(x) (1 + scale1) + shift1)                                 (3)
  x <- x + gate2 * mlp(norm(x) (1 + scale2) + shift2)                                       (4)

The modulations and the last layer start at zero: each block is the identity and the output is zero.
Peebles and Xie 2023, "Scalable Diffusion Models with Transformers".

Later changes, each a field of `DiT` and off by default:

  q <- g_q * q / rms(q),  k <- g_k * k / rms(k), for each head                              (5)    qk_norm
  norm(x) = g * x / rms(x)                                                                  (6)    rms_norm
  mlp(x) = out(silu(gate(x)) * in(x))                                                       (7)    swiglu

Eq. 5: Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters", with Esser et al. 2024's RMS norm.
Eq. 6: Zhang and Sennrich 2019. Eq. 7: Shazeer 2020. `rope`: `layers/rope.py`. `registers`: Darcet et al. 2024, "Vision
Transformers Need Registers". `bottleneck`: Li and He 2025, "Back to Basics: Let Denoising Generative Models Denoise".
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxgen import sharding
from jaxgen.models.layers.attention import Attention
from jaxgen.models.layers.embedding import LabelEmbedding, sincos_2d, timestep_embedding
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.remat import Policy
from jaxgen.models.layers.resample import depth_to_space, space_to_depth
from jaxgen.models.layers.rope import Angles, angles_2d
from jaxgen.models.layers.stack import TRANSFORMER_RULES, in_segments, stack
from jaxgen.typing import Array, Cond, Float

_TIME_FEATURES = 256
_normal = nn.initializers.normal(0.02)
_zeros = nn.initializers.zeros_init()
RULES = TRANSFORMER_RULES


class Size(NamedTuple):
  """The shape of a transformer."""

  depth: int
  width: int
  heads: int


SIZES = {
  'S': Size(depth=12, width=384, heads=6),
  'B': Size(depth=12, width=768, heads=12),
  'L': Size(depth=24, width=1024, heads=16),
  'XL': Size(depth=28, width=1152, heads=16),
}
PATCHES = (2, 4, 8)
JIT_SIZES = {  # with the width of the bottleneck
  'B': (SIZES['B'], 128),
  'L': (SIZES['L'], 128),
  'H': (Size(depth=32, width=1280, heads=16), 256),
}
JIT_PATCHES = (16, 32)


class DiT(nn.Module):
  """The network: `(x, t, cond) -> output`, both images.

  Attributes:
    patch: side of a square patch, in pixels; divides the image's sides.
    depth, width, heads: number of blocks, width of a token, attention heads of size width / heads.
    num_classes: labels are 0 to num_classes - 1, and num_classes is the null label; 0 is unconditional.
    mlp_ratio: hidden width of the MLP, in widths.
    learn_sigma: the output has twice the input's channels, the second half for a learned variance.
    frequency_shift: 1 for a sinusoid of time that ends at 10000^-1, as diffusers' DiT is trained; 0 as published.
    interval: the length t - r of a jump is a condition too, as in MeanFlow and shortcut models.
    guided: the scale of guidance is a condition too, `cond['guidance']`, as in improved MeanFlow.
    qk_norm: RMS-normalises queries and keys per head, Eq. 5.
    rms_norm: RMS norm with a learned scale in place of the layer norm without one, Eq. 6.
    swiglu: a gated MLP, Eq. 7, of 2/3 of the hidden width (up to a multiple of 8), so about as large.
    rope: rotary positions on queries and keys in place of the sin-cos positions added to the tokens.
    registers: number of learned tokens that attend with the others, at no position, and are dropped at the end.
    bottleneck: width of a linear layer between the patches and their embedding; 0 is none. 128 in JiT-B/16.
    dtype: dtype of activations; parameters, the conditioning and the output are float32.
    remat: policy of `jax.checkpoint` for each block (`layers.remat.policy(name)`); None keeps everything.
    hidden: depths after which the tokens leave in the collection 'hidden', as `depth_K`, if it is mutable (REPA: Yu et
      al. 2025).
    route: blocks (start, stop) that see the tokens `cond['kept']` alone, int32 b m, if it is given; the others pass by
      (TREAD: Krause et al. 2025).
    head: the last layer; without it the output is the tokens behind the blocks, as a control branch wants.
  """

  patch: int
  depth: int
  width: int
  heads: int
  num_classes: int = 0
  mlp_ratio: int = 4
  learn_sigma: bool = False
  frequency_shift: int = 0
  interval: bool = False
  guided: bool = False
  qk_norm: bool = False
  rms_norm: bool = False
  swiglu: bool = False
  rope: bool = False
  registers: int = 0
  bottleneck: int = 0
  dtype: Any = jnp.float32
  remat: Policy = None
  hidden: tuple[int, ...] = ()
  route: tuple[int, int] | None = None
  head: bool = True

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, 'b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b h w o'] | Float[Array, 'b l d']:
    """Denoises.

    Args:
      x: images or latents.
      t: time as the sinusoid sees it, of the order of 0 to 1000 (`Process.network_time`).
      cond: `{'label': int32 b}`, or anything if the network is unconditional; with `interval` also
        `{'interval': float32 b}`, of the order of 0 to 1000 like `t`. `patch_hint`, float b l d, if it is given, is
        added to the embedded patches.
      train: part of every network's signature; DiT behaves the same.
    """
    height, width, channels = x.shape[1:]
    if height % self.patch or width % self.patch:
      raise ValueError(f'images of {height}x{width} do not divide into patches of {self.patch}')
    grid = (height // self.patch, width // self.patch)
    c = TimeEmbedding(self.width, self.frequency_shift, name='time_embed')(t)
    if self.num_classes:
      c += LabelEmbedding(self.num_classes, self.width, name='label_embed')(cond['label'])
    if self.interval:
      c += TimeEmbedding(self.width, name='interval_embed')(cond['interval'])
    if self.guided:
      c += TimeEmbedding(self.width, name='guidance_embed')(1000 / cond['guidance'])  # 1000 is unguided
    c = nn.silu(c).astype(self.dtype)  # b d
    x = patchify(x.astype(self.dtype), self.patch)  # b l ppc
    if self.bottleneck:
      x = Linear(self.bottleneck, dtype=self.dtype, name='patch_bottleneck')(x)
    x = with_hint(Linear(self.width, dtype=self.dtype, name='patch_embed')(x), cond)
    if not self.rope:
      x += jnp.asarray(sincos_2d(*grid, self.width), self.dtype)[None]
    tokens = x.shape[1]
    if self.registers:
      x = self._with_registers(x)
    x = self._run(x, c, self._angles(grid) if self.rope else None, cond)
    if not self.head:
      return x
    channels *= 1 + self.learn_sigma
    x = FinalLayer(self.patch**2 * channels, self.dtype, self.rms_norm, name='final')(x[:, :tokens], c)
    return unpatchify(x, grid, self.patch).astype(jnp.float32)

  def _with_registers(self, x: Float[Array, 'b l d']) -> Float[Array, 'b m d']:
    """The tokens with the registers after them."""
    extra = self.param('register_tokens', _normal, (self.registers, self.width), jnp.float32)
    extra = jnp.broadcast_to(extra.astype(x.dtype)[None], (len(x), *extra.shape))
    return jnp.concatenate([x, extra], axis=1)

  def _angles(self, grid: tuple[int, int]) -> Float[Array, 'l r']:
    """Rotary angles of the patches; the registers' are 0, which is no rotation."""
    angles = angles_2d(*grid, self.width // self.heads)
    return jnp.pad(jnp.asarray(angles), ((0, self.registers), (0, 0)))

  def _run(self, x: Float[Array, 'b l d'], c: Array, angles: Array | None, cond: Cond) -> Float[Array, 'b l d']:
    """The stack, in segments that end where tokens leave or are routed."""
    options = {'qk_norm': self.qk_norm, 'rms_norm': self.rms_norm, 'swiglu': self.swiglu}
    block = partial(Block, self.heads, self.mlp_ratio, self.dtype, **options)

    def run(x: Array, kept: Array | None, **part: Any) -> Array:
      some = angles if angles is None or kept is None else angles[kept]
      return stack(self, block, x, c, some, depth=self.depth, remat=self.remat, **part)

    return in_segments(
      run,
      x,
      depth=self.depth,
      hidden=() if self.is_initializing() else self.hidden,
      route=self.route,
      kept=cond.get('kept'),
      leave=lambda depth, x: self.sow('hidden', f'depth_{depth}', x),
    )


def dit(
  size: str,
  *,
  num_classes: int = 0,
  learn_sigma: bool = False,
  dtype: Any = jnp.float32,
  remat: Policy = None,
) -> DiT:
  """A published size by name: `dit('XL/2', num_classes=1000, learn_sigma=True)`.

  The fields that came later are set on what it returns: `dit('B/4').clone(rope=True)`.
  """
  name, _, patch = size.partition('/')
  if name not in SIZES or patch not in map(str, PATCHES):
    raise ValueError(f'DiT size {size!r} is unknown; wanted one of {", ".join(SIZES)}, then /2, /4 or /8')
  return DiT(
    patch=int(patch),
    **SIZES[name]._asdict(),
    num_classes=num_classes,
    learn_sigma=learn_sigma,
    dtype=dtype,
    remat=remat,
  )


def jit(
  size: str,
  *,
  num_classes: int = 0,
  dtype: Any = jnp.float32,
  remat: Policy = None,
) -> DiT:
  """JiT by name, `jit('B/16', num_classes=1000)`: a DiT on large patches of pixels that predicts x0 (Li and He 2025).

  Train it on rectified flow, with `parameterisation.x0(process, margin=0.05)` and the loss in its velocity. Differs
  from Li and He: they also add sin-cos positions, and give the class as 32 more tokens from a middle block on.
  """
  name, _, patch = size.partition('/')
  if name not in JIT_SIZES or patch not in map(str, JIT_PATCHES):
    raise ValueError(f'JiT size {size!r} is unknown; wanted one of {", ".join(JIT_SIZES)}, then /16 or /32')
  shape, bottleneck = JIT_SIZES[name]
  options = {'qk_norm': True, 'rms_norm': True, 'swiglu': True, 'rope': True, 'bottleneck': bottleneck}
  run = {'dtype': dtype, 'remat': remat}
  return DiT(patch=int(patch), **shape._asdict(), num_classes=num_classes, **options, **run)


def with_hint(x: Float[Array, 'b l d'], cond: Cond) -> Float[Array, 'b l d']:
  """Embedded patches and, if there is one, `cond['patch_hint']`, what another layer read in the same places."""
  return x + cond['patch_hint'].astype(x.dtype) if 'patch_hint' in cond else x


def patchify(x: Float[Array, 'b h w c'], patch: int) -> Float[Array, 'b l ppc']:
  """Cuts images into rows of tokens; a token is a patch in row-major order, channels last."""
  x = space_to_depth(x, patch)
  return x.reshape(x.shape[0], -1, x.shape[-1])


def unpatchify(x: Float[Array, 'b l ppc'], grid: tuple[int, int], patch: int) -> Float[Array, 'b h w c']:
  """The inverse of `patchify` for a grid of (rows, columns) of patches."""
  return depth_to_space(x.reshape(x.shape[0], *grid, x.shape[-1]), patch)


def norm(x: Float[Array, 'b l d']) -> Float[Array, 'b l d']:
  """Layer norm with no parameters; its statistics are float32."""
  h = x.astype(jnp.float32)
  mean = h.mean(-1, keepdims=True)
  variance = jnp.square(h - mean).mean(-1, keepdims=True)
  return ((h - mean) * lax.rsqrt(variance + 1e-6)).astype(x.dtype)


def rms_or_layer_norm(rms: bool, x: Float[Array, 'b l d'], name: str) -> Float[Array, 'b l d']:
  """Eq. 6, or `norm`; call it inside a compact module."""
  return nn.RMSNorm(dtype=x.dtype, name=name)(x) if rms else norm(x)  # Flax's statistics are float32 too


def modulation(parts: int, x: Float[Array, 'b l d'], c: Float[Array, 'b d']) -> list[Float[Array, 'b 1 d']]:
  """Eq. 2: shifts, scales and gates for `x`; call it inside a compact module."""
  dense = Linear((parts, x.shape[-1]), kernel_init=_zeros, dtype=x.dtype, name='modulation')
  return [part[:, None] for part in jnp.unstack(sharding.by_features(dense, c), axis=1)]


def modulate(
  x: Float[Array, 'b l d'], shift: Float[Array, 'b 1 d'], scale: Float[Array, 'b 1 d']
) -> Float[Array, 'b l d']:
  return x * (1 + scale) + shift


class TimeEmbedding(nn.Module):
  """time(t) of Eq. 1, in float32; of an interval's length just as well."""

  width: int
  frequency_shift: int = 0

  @nn.compact
  def __call__(self, t: Float[Array, 'b']) -> Float[Array, 'b d']:
    h = timestep_embedding(t, _TIME_FEATURES, frequency_shift=self.frequency_shift)
    h = nn.silu(Linear(self.width, kernel_init=_normal, name='in')(h))
    return Linear(self.width, kernel_init=_normal, name='out')(h)


class Block(nn.Module):
  """Eqs. 2 to 4."""

  heads: int
  mlp_ratio: int
  dtype: Any
  qk_norm: bool = False
  rms_norm: bool = False
  swiglu: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b l d'], c: Float[Array, 'b d'], angles: Angles | None = None
  ) -> Float[Array, 'b l d']:
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation(6, x, c)
    h = modulate(rms_or_layer_norm(self.rms_norm, x, 'norm1'), shift1, scale1)
    qk_norm = nn.RMSNorm if self.qk_norm else None  # Eq. 5
    h = Attention(self.heads, qk_norm=qk_norm, dtype=self.dtype, name='attention')(h, angles=angles)
    x = x + gate1 * h
    h = modulate(rms_or_layer_norm(self.rms_norm, x, 'norm2'), shift2, scale2)
    h = Mlp(self.mlp_ratio, self.dtype, self.swiglu, name='mlp')(h)
    return x + gate2 * h


class Mlp(nn.Module):
  """Two layers with a GELU (its tanh form) between, or Eq. 7."""

  ratio: int
  dtype: Any
  swiglu: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d']) -> Float[Array, 'b l d']:
    d = x.shape[-1]
    hidden = -(-2 * self.ratio * d // 24) * 8 if self.swiglu else self.ratio * d
    h = Linear(hidden, dtype=self.dtype, name='in')(x)
    h = nn.silu(Linear(hidden, dtype=self.dtype, name='gate')(x)) * h if self.swiglu else nn.gelu(h)
    return Linear(d, dtype=self.dtype, name='out')(h)


class FinalLayer(nn.Module):
  """From tokens to patches, under one more modulation (shift, scale)."""

  features: int
  dtype: Any
  rms_norm: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, 'b l d'], c: Float[Array, 'b d']) -> Float[Array, 'b l o']:
    shift, scale = modulation(2, x, c)
    x = modulate(rms_or_layer_norm(self.rms_norm, x, 'norm'), shift, scale)
    return Linear(self.features, dtype=self.dtype, kernel_init=_zeros, name='linear')(x)
