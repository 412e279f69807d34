"""U-Nets of residual blocks and attention, from DDPM to Stable Diffusion: one network, configured.

  c = time(t) + label(y)                                                                    (1)
  h = conv(resize(silu(norm(x))))                                                           (2)
  h = silu(norm(h + shift(c)))                           shift: DDPM                        (3)
  h = silu(norm(h) (1 + scale(c)) + shift(c))            scale-shift: IDDPM, ADM ("AdaGN")  (4)
  block(x) = skip(resize(x)) + conv(dropout(h))                                             (5)
  attend(x) = x + out(attention(norm(x)))                                                   (6)

An encoder of blocks halves the image between its levels and keeps every result; a decoder doubles it back, each block
reading one kept result beside its input. A level changes size by a strided or an enlarging convolution, or within a
block (`resize` of Eqs. 2 and 5: ADM). Last convolutions of blocks, outputs of attention and the output start at zero.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (DDPM). Nichol and Dhariwal 2021, "Improved Denoising
Diffusion Probabilistic Models" (IDDPM). Dhariwal and Nichol 2021, "Diffusion Models Beat GANs" (ADM).
Rombach et al. 2022: Eq. 6 becomes a transformer that reads text (layers/transformer.py; Stable Diffusion).
Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations": Fourier features of time.
Podell et al. 2023, "SDXL": deeper transformers at smaller sizes, and Eq. 1 has one more term, of the pooled text and of
numbers such as the image's size: + vector([pooled, sinusoid(size)]).
Ramesh et al. 2022 (DALL-E 2) and Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models with Deep Language
Understanding" (Imagen): Eq. 6 attends to the text's tokens in the same softmax (`joined`), and Eq. 1 has one more term,
a vector that is given (models/unclip.py) or the noise level of a small image that is enlarged (`level`).
Differs from IDDPM and ADM: layers start from DDPM's uniform samples of unit fan average, not from PyTorch's defaults.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxgen import sharding
from jaxgen.models.layers.attention_block import AttentionBlock, TextAttentionBlock
from jaxgen.models.layers.attention_edit import Edits
from jaxgen.models.layers.conv import Conv
from jaxgen.models.layers.embedding import LabelEmbedding, ddpm_timestep_embedding, timestep_embedding
from jaxgen.models.layers.group_norm import GroupNorm
from jaxgen.models.layers.image_prompt import ImagePrompt
from jaxgen.models.layers.linear import Linear
from jaxgen.models.layers.remat import Policy, chosen
from jaxgen.models.layers.resample import depth_to_space, double, halve, space_to_depth
from jaxgen.models.layers.text_pool import TextPool
from jaxgen.models.layers.transformer import Transformer
from jaxgen.typing import Array, Cond, Float

Resize = Callable[[Array], Array] | None
_xavier = nn.initializers.xavier_uniform()
_normal = nn.initializers.normal(1.0)
_zeros = nn.initializers.zeros_init()

# Over `tensor`: hidden features of a block and of a transformer's MLP, and whole heads. Attention of a number of heads
# that does not divide (3, 5, 9) is whole there. A rule that does not name `fsdp` leaves it to the largest dimension.
RULES: tuple[sharding.Rule, ...] = (
  (r'(block|resize|block_\d+)/conv_in/kernel$', (..., ..., ..., 'tensor')),
  (r'(block|resize|block_\d+)/conv_out/kernel$', (..., ..., 'tensor', ...)),
  (r'(block|resize|block_\d+)/modulation/kernel$', (..., None, 'tensor')),
  (r'attention(_\d+)?/qkv/kernel$', (..., None, 'tensor', ...)),
  (r'attention(_\d+)?/out/kernel$', ('tensor', ..., ...)),
  (r'(self|cross)/(query|key|value)/kernel$', (..., 'tensor', ...)),
  (r'attention/text_(key|value)/kernel$', (..., 'tensor', ...)),
  (r'(self|cross)/out/kernel$', ('tensor', ..., ...)),
  (r'mlp_in/kernel$', (..., None, 'tensor')),
  (r'mlp_out/kernel$', ('tensor', ...)),
)


class Style(NamedTuple):
  """Differences between the published U-Nets.

  Attributes:
    scale_shift: Eq. 4 rather than Eq. 3.
    resize_in_blocks: a block halves or doubles the image (Eqs. 2 and 5), rather than a convolution between blocks.
    half_padding: pixels of zeros before and after each side, for the strided convolution.
    time_features: `(t, width) -> features`, the sinusoid.
    eps: added to the variances of the group norms.
    act: activation of the blocks, of time's embedding and before the output.
    skip_scale: divides the sum of Eq. 5; sqrt(2) keeps its variance (Imagen's efficient U-Net).
  """

  scale_shift: bool = True
  resize_in_blocks: bool = True
  half_padding: tuple[int, int] = (1, 1)
  time_features: Callable[[Array, int], Array] = timestep_embedding
  eps: float = 1e-5
  act: Callable[[Array], Array] = nn.silu
  skip_scale: float = 1.0


ADM = Style()
IDDPM = Style(resize_in_blocks=False)
STABLE = IDDPM._replace(scale_shift=False)
DDPM = Style(
  scale_shift=False,
  resize_in_blocks=False,
  half_padding=(0, 1),  # TensorFlow's 'SAME'
  time_features=ddpm_timestep_embedding,
  eps=1e-6,
)


class Size(NamedTuple):
  """The shape of a published U-Net; the attributes are UNet's."""

  multipliers: tuple[float, ...]
  attention: tuple[int, ...]
  width: int = 128
  blocks: int = 2
  heads: int = 1
  head_size: int | None = None
  dropout: float = 0.0
  transformer: int | tuple[int, ...] = 0
  size_features: int = 0


DDPM_SIZES = {
  'cifar10': Size((1, 2, 2, 2), attention=(1,), dropout=0.1),
  '256': Size((1, 1, 2, 2, 4, 4), attention=(4,)),
}
IDDPM_SIZES = {
  'cifar10': Size((1, 2, 2, 2), attention=(1, 2), blocks=3, heads=4, dropout=0.3),
  'imagenet64': Size((1, 2, 3, 4), attention=(2, 3), blocks=3, heads=4),
}
STABLE_SIZES = {
  '1.5': Size((1, 2, 4, 4), attention=(0, 1, 2), width=320, heads=8, transformer=1),
  '2.1': Size((1, 2, 4, 4), attention=(0, 1, 2), width=320, head_size=64, transformer=1),
  'xl': Size((1, 2, 4), attention=(1, 2), width=320, head_size=64, transformer=(0, 2, 10), size_features=256),
  'xl-refiner': Size((1, 2, 4, 4), attention=(1, 2), width=384, head_size=64, transformer=4, size_features=256),
}
ADM_SIZES = {
  64: Size((1, 2, 3, 4), attention=(1, 2, 3), width=192, blocks=3, head_size=64, dropout=0.1),
  128: Size((1, 1, 2, 3, 4), attention=(2, 3, 4), width=256, heads=4),
  256: Size((1, 1, 2, 2, 4, 4), attention=(3, 4, 5), width=256, head_size=64),
  512: Size((0.5, 1, 1, 2, 2, 4, 4), attention=(4, 5, 6), width=256, head_size=64),
}


class Stage(NamedTuple):
  """One step of the encoder or the decoder: a block, attention after it, a change of size; each may be absent."""

  features: int
  block: bool = True
  attention: bool = False
  resize: bool = False
  transformer: int = 0  # depth of the one that the attention is
  heads: int = 1  # heads of the attention


class UNet(nn.Module):
  """The network: `(x, t, cond) -> output`, both images.

  Attributes:
    width: features that `multipliers` multiply; the time's and label's embedding is four times as wide.
    multipliers: features of each level, in widths; level i works at 1 / 2^i of the image's side.
    blocks: residual blocks in each level of the encoder, one number for all or one for each; the decoder has one more.
    attention: the levels with attention after each block.
    heads, head_size: number of attention heads, one for all levels or one for each, of which the last is the middle's
      too; or their size, which then decides their number.
    middle_attention: the middle has attention too.
    transformer: depth of the transformers that stand in for Eq. 6 and read `cond['text']`, one for all levels or one
      for each, of which the last is the middle's too; 0 for Eq. 6.
    joined: Eq. 6 reads the tokens of `cond['text']` too, in one softmax; not with `transformer`.
    text_norm: with `joined`, tokens are normalised before their keys and values.
    text_alone: with `joined`, pixels attend to the text and not to each other.
    text_features: features that a text's tokens are projected to before anything reads them; 0 for no projection.
    pool_heads: heads of the attention that pools the text's tokens to a vector that joins the time; 0 for none.
    time_width: width of time's embedding; 0 for 4 widths.
    level: `cond['level']`, the time of the noise in `cond['concat']`, joins the time.
    size_features: features of each number of `cond['size']`, which joins the time with `cond['pooled']`; 0 for neither.
    fourier: deviation of the frequencies of random Fourier features of log t, which stand in for the sinusoid; the
      output is then divided by t, which is a deviation of noise (Song et al. 2021). 0 for the sinusoid.
    num_classes: labels are 0 to num_classes - 1, and num_classes, the null label, adds nothing; 0 is unconditional.
    patch: side of the squares of pixels that the first convolution reads as one and the last writes; 1 in the published
      ones, 2 or 4 where pixels are many (Hoogeboom et al. 2023, "simple diffusion").
    learn_sigma: the output has twice the input's channels, the second half for a learned variance.
    dropout: rate within the blocks (Eq. 5), when training.
    groups: number of groups in each group norm; divides every level's features.
    style: `DDPM`, `IDDPM`, `ADM` or `STABLE`.
    dtype: dtype of activations; parameters, statistics of norms, the conditioning and the output are float32.
    remat: policy of `jax.checkpoint` for each block (`layers.remat.policy(name)`); None keeps everything.
  """

  width: int
  multipliers: tuple[float, ...]
  blocks: int | tuple[int, ...]
  attention: tuple[int, ...] = ()
  heads: int | tuple[int, ...] = 1
  head_size: int | None = None
  middle_attention: bool = True
  transformer: int | tuple[int, ...] = 0
  joined: bool = False
  text_norm: bool = False
  text_alone: bool = False
  text_features: int = 0
  pool_heads: int = 0
  time_width: int = 0
  level: bool = False
  size_features: int = 0
  fourier: float = 0.0
  num_classes: int = 0
  patch: int = 1
  learn_sigma: bool = False
  dropout: float = 0.0
  groups: int = 32
  style: Style = ADM
  dtype: Any = jnp.float32
  remat: Policy = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], t: Float[Array, 'b'], cond: Cond, *, train: bool = False
  ) -> Float[Array, 'b h w o']:
    """Denoises.

    Args:
      x: images or latents.
      t: time as the sinusoid sees it, of the order of 0 to 1000 (`Process.network_time`).
      cond: `'label'`, int32 b, if there are classes; `'text'`, float b k e, if there are transformers; for them also,
        if given, `'text_mask'`, bool b k; `'attention_edit'`, `Edits` of layers/attention_edit.py; `'image_prompt'`,
        float b m e, tokens of an image, with `'image_prompt_scale'`, float b, one for all stages or by their names,
        {'decoder_1': b}, 0 for all others. `'residuals'`, those of a control branch (models/controlnet.py).
        `'pooled'`, float b p, and `'size'`, float b s, if there are size features. `'concat'`, float b h w e, more
        channels to read beside x, if given: inpainting's mask and masked image, a picture to edit, an enlarged
        image. `'level'`, float b, as t. `'vector'`, float b 4 width, added to time's embedding, if given.
      train: whether dropout is on; its rng is 'dropout'.
    """
    self._check(x.shape)
    channels = x.shape[-1] * (1 + self.learn_sigma)
    c = conditioned(self, t, cond)
    if self.text_features:
      cond = {**cond, 'text': Linear(self.text_features, dtype=self.dtype, name='text_in')(cond['text'])}
    if 'concat' in cond:
      x = jnp.concatenate([x, cond['concat']], axis=-1)
    dropout = self.dropout if train else 0.0
    x = conv_in(self, x)
    kept = [x]
    for i, stage in enumerate(encoder(self)):
      x = run(self, stage, x, c, cond, halve, dropout=dropout, name=f'encoder_{i}')
      kept.append(x)
    for i, stage in enumerate(middle(self)):
      x = run(self, stage, x, c, cond, None, dropout=dropout, name=f'middle_{i}')
    if 'residuals' in cond:  # models/controlnet.py
      *residuals, last = cond['residuals']
      kept, x = [h + r for h, r in zip(kept, residuals, strict=True)], x + last
    for i, stage in enumerate(decoder(self)):
      x = jnp.concatenate([x, kept.pop()], axis=-1)
      x = run(self, stage, x, c, cond, double, dropout=dropout, name=f'decoder_{i}')
    x = self.style.act(_norm(self.groups, self.style.eps, self.dtype, name='norm_out')(x))
    x = _conv(self.patch**2 * channels, dtype=self.dtype, kernel_init=_zeros, name='conv_out')(x)
    x = depth_to_space(x, self.patch).astype(jnp.float32)
    return x / t[:, None, None, None] if self.fourier else x

  def _check(self, shape: tuple[int, ...]) -> None:
    factor = self.patch * 2 ** (len(self.multipliers) - 1)
    if shape[1] % factor or shape[2] % factor:
      raise ValueError(
        f'images of {shape[1]}x{shape[2]} cannot be halved {len(self.multipliers) - 1} times; '
        f'the sides of the images must divide by {factor}, or `multipliers` be fewer'
      )
    for level, features in enumerate(_features(self)):
      if features % self.groups:
        raise ValueError(f'level {level}: {features} features do not divide into {self.groups} groups')


def conditioned(net: UNet, t: Float[Array, 'b'], cond: Cond) -> Float[Array, 'b d']:
  """c of Eq. 1 after the activation, inside a compact module."""
  width, act = net.time_width or 4 * net.width, net.style.act
  if net.fourier:
    features = FourierTime(net.width, net.fourier, name='time_fourier')(t)
  else:
    features = net.style.time_features(t, net.width)
  c = TimeEmbedding(width, act, name='time_embed')(features)
  if net.num_classes:
    table = LabelEmbedding(net.num_classes, width, null_row=False, table_init=_normal, name='label_embed')
    c += table(cond['label'])
  if net.size_features:
    numbers = cond['size']
    features = timestep_embedding(numbers.reshape(-1), net.size_features).reshape(len(numbers), -1)
    vector = jnp.concatenate([cond['pooled'].astype(jnp.float32), features], axis=-1)
    c += TimeEmbedding(width, act, name='vector_embed')(vector)
  if net.level:
    c += TimeEmbedding(width, act, name='level_embed')(net.style.time_features(cond['level'], net.width))
  if 'vector' in cond:
    c += cond['vector'].astype(jnp.float32)
  if net.pool_heads:
    c += TextPool(width, net.pool_heads, net.dtype, name='text_pool')(cond['text']).astype(jnp.float32)
  return act(c).astype(net.dtype)


def conv_in(net: UNet, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
  """The first convolution, inside a compact module."""
  x = space_to_depth(x, net.patch)
  return _conv(int(net.multipliers[0] * net.width), dtype=net.dtype, name='conv_in')(x.astype(net.dtype))


def run(net: UNet, stage: Stage, x: Array, c: Array, cond: Cond, resize: Resize, *, dropout: float, name: str) -> Array:
  """One stage, inside a compact module; `resize` is `halve` in the encoder and `double` in the decoder."""
  block, attend, transform, style = Block, AttentionBlock, Transformer, net.style
  read: Any = TextAttentionBlock
  policy = chosen(net.remat)
  if policy is not None:
    block = nn.remat(block, policy=policy)
    attend = nn.remat(attend, policy=policy)
    transform = nn.remat(transform, policy=policy)
    read = nn.remat(read, policy=policy)
  shared = (style, net.groups, net.dtype)
  if stage.block:
    x = block(stage.features, dropout, None, *shared, name=f'{name}_block')(x, c)
  if stage.attention and stage.transformer:
    layer = transform(stage.heads, stage.transformer, net.groups, net.dtype, name=f'{name}_attention')
    edits: Any = cond.get('attention_edit', Edits())
    x = layer(x, cond['text'], mask=cond.get('text_mask'), edits=edits, image=_image_prompt(cond, name))
  elif stage.attention and net.joined:
    options = (net.dtype, net.text_norm, net.text_alone)
    layer = read(net.groups, style.eps, stage.heads, *options, name=f'{name}_attention')
    x = layer(x, cond['text'], mask=cond.get('text_mask'))
  elif stage.attention:
    x = attend(net.groups, style.eps, stage.heads, dtype=net.dtype, name=f'{name}_attention')(x)
  if not stage.resize:
    return x
  if style.resize_in_blocks:
    return block(stage.features, dropout, resize, *shared, name=f'{name}_resize')(x, c)
  if resize is double:
    return _conv(stage.features, dtype=net.dtype, name=f'{name}_resize')(double(x))
  padding = (style.half_padding, style.half_padding)
  return _conv(stage.features, dtype=net.dtype, strides=2, padding=padding, name=f'{name}_resize')(x)


def _image_prompt(cond: Cond, stage: str) -> ImagePrompt | None:
  """The image prompt of a stage, if there is one."""
  if 'image_prompt' not in cond:
    return None
  scale: Any = cond.get('image_prompt_scale')
  if isinstance(scale, dict):
    scale = scale.get(stage, jnp.zeros(len(cond['image_prompt'])))
  return ImagePrompt(cond['image_prompt'], scale)


def encoder(net: UNet) -> list[Stage]:
  """From the first convolution down; the result of each is kept for the decoder."""
  stages = []
  for level, features in enumerate(_features(net)):
    stages += [_stage(net, level, attention=level in net.attention)] * blocks_of(net, level)
    if level + 1 < len(net.multipliers):
      stages.append(Stage(features, block=False, resize=True))
  return stages


def middle(net: UNet) -> list[Stage]:
  """At the smallest size."""
  last = len(net.multipliers) - 1
  return [_stage(net, last, attention=net.middle_attention), Stage(_features(net)[-1])]


def decoder(net: UNet) -> list[Stage]:
  """Back up; each reads one result of the encoder, the last one first."""
  stages = []
  for level in reversed(range(len(net.multipliers))):
    stage = _stage(net, level, attention=level in net.attention)
    stages += [stage] * blocks_of(net, level) + [stage._replace(resize=level > 0)]
  return stages


def _stage(net: UNet, level: int, *, attention: bool) -> Stage:
  features = _features(net)[level]
  return Stage(features, True, attention, False, depths(net)[level], heads_of(net, level) if attention else 1)


def blocks_of(net: UNet, level: int) -> int:
  """The number of residual blocks of a level of the encoder."""
  if isinstance(net.blocks, int):
    return net.blocks
  if len(net.blocks) != len(net.multipliers):
    raise ValueError(
      f'{len(net.blocks)} numbers of blocks for {len(net.multipliers)} levels; give one, or one for each'
    )
  return net.blocks[level]


def heads_of(net: UNet, level: int) -> int:
  """The number of heads of a level's attention."""
  features = _features(net)[level]
  if isinstance(net.heads, tuple) and len(net.heads) != len(net.multipliers):
    raise ValueError(f'{len(net.heads)} numbers of heads for {len(net.multipliers)} levels; give one, or one for each')
  given = net.heads[level] if isinstance(net.heads, tuple) else net.heads
  heads = features // net.head_size if net.head_size else given
  size = net.head_size or features // heads
  if heads * size != features:
    raise ValueError(f'{features} features are not {heads} heads of size {size}; change heads, head_size or the width')
  return heads


def depths(net: UNet) -> tuple[int, ...]:
  """The depth of the transformers of each level."""
  levels = len(net.multipliers)
  made = net.transformer if isinstance(net.transformer, tuple) else (net.transformer,) * levels
  if len(made) != levels:
    raise ValueError(f'{len(made)} depths of transformers for {levels} levels; give one, or one for each level')
  return made


def _features(net: UNet) -> list[int]:
  return [int(multiplier * net.width) for multiplier in net.multipliers]


def ddpm(name: str, *, dtype: Any = jnp.float32, remat: Policy = None) -> UNet:
  """DDPM's networks, unconditional: `ddpm('cifar10')`, and `ddpm('256')` of LSUN and CelebA-HQ."""
  size = _published('DDPM', DDPM_SIZES, name)
  return UNet(**size._asdict(), style=DDPM, dtype=dtype, remat=remat)


def iddpm(name: str, *, num_classes: int = 0, dtype: Any = jnp.float32, remat: Policy = None) -> UNet:
  """IDDPM's networks, with a learned variance: `iddpm('cifar10')`, `iddpm('imagenet64')`."""
  size = _published('IDDPM', IDDPM_SIZES, name)
  return UNet(**size._asdict(), num_classes=num_classes, learn_sigma=True, style=IDDPM, dtype=dtype, remat=remat)


def adm(resolution: int, *, num_classes: int = 1000, dtype: Any = jnp.float32, remat: Policy = None) -> UNet:
  """ADM's networks for ImageNet, with a learned variance: `adm(64)`, or `adm(256, num_classes=0)` without labels."""
  size = _published('ADM', ADM_SIZES, resolution)
  return UNet(**size._asdict(), num_classes=num_classes, learn_sigma=True, style=ADM, dtype=dtype, remat=remat)


def stable_diffusion(version: str, *, dtype: Any = jnp.float32, remat: Policy = None) -> UNet:
  """Stable Diffusion's networks for latents of 4 channels, conditioned on text: '1.5', '2.1', 'xl', 'xl-refiner'."""
  size = _published('Stable Diffusion', STABLE_SIZES, version)
  return UNet(**size._asdict(), style=STABLE, dtype=dtype, remat=remat)


class FourierTime(nn.Module):
  """sin and cos of 2 pi f log t, with frequencies f that are sampled once and not trained."""

  width: int
  scale: float

  @nn.compact
  def __call__(self, t: Float[Array, 'b']) -> Float[Array, 'b f']:
    # A parameter, so that it is saved with the others; weight decay would reach it, a gradient does not.
    frequencies = self.param('frequencies', nn.initializers.normal(self.scale), (self.width,))
    angles = 2 * jnp.pi * jnp.log(t)[:, None] * lax.stop_gradient(frequencies)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimeEmbedding(nn.Module):
  """time(t) of Eq. 1 from the sinusoid's features, in float32."""

  width: int
  act: Callable[[Array], Array] = nn.silu

  @nn.compact
  def __call__(self, features: Float[Array, 'b f']) -> Float[Array, 'b d']:
    h = self.act(Linear(self.width, name='in')(features))
    return Linear(self.width, name='out')(h)


class Block(nn.Module):
  """Eqs. 2 to 5; `resize` is `halve`, `double` or None."""

  features: int
  dropout: float
  resize: Resize
  style: Style
  groups: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], c: Float[Array, 'b d']) -> Float[Array, 'b h2 w2 o']:
    h = self.style.act(_norm(self.groups, self.style.eps, self.dtype, name='norm_in')(x))
    if self.resize is not None:
      h, x = self.resize(h), self.resize(x)
    h = _conv(self.features, dtype=self.dtype, name='conv_in')(h)  # Eq. 2
    norm = _norm(self.groups, self.style.eps, self.dtype, name='norm_out')
    dense = Linear((1 + self.style.scale_shift, self.features), dtype=self.dtype, name='modulation')
    modulation = jnp.unstack(sharding.by_features(dense, c), axis=1)
    modulation = [part[:, None, None] for part in modulation]  # b 1 1 o
    if self.style.scale_shift:
      scale, shift = modulation
      h = norm(h) * (1 + scale) + shift  # Eq. 4
    else:
      h = norm(h + modulation[0])  # Eq. 3
    h = nn.Dropout(self.dropout, deterministic=False)(self.style.act(h))
    h = _conv(self.features, dtype=self.dtype, kernel_init=_zeros, name='conv_out')(h)
    if x.shape[-1] != self.features:
      x = Linear(self.features, dtype=self.dtype, name='skip')(x)
    return x + h if self.style.skip_scale == 1 else (x + h) / self.style.skip_scale  # Eq. 5


def _norm(groups: int, eps: float, dtype: Any, *, name: str) -> GroupNorm:
  return GroupNorm(groups, eps, dtype, name=name)


def _conv(features: int, *, dtype: Any, name: str, kernel_init=_xavier, strides: int = 1, padding: Any = 1) -> Conv:
  """A 3x3 convolution."""
  return Conv(features, strides=strides, padding=padding, dtype=dtype, kernel_init=kernel_init, name=name)


def _published(paper: str, sizes: dict[Any, Size], name: str | int) -> Size:
  if name not in sizes:
    raise ValueError(f'{paper} has no U-Net {name!r}; wanted one of {", ".join(map(repr, sizes))}')
  return sizes[name]
