"""Bottlenecks of autoencoders, and their losses.

A Gaussian (Kingma & Welling 2014), per value of the image so that it compares with a mean error:

  (1)  z = mean + std eps,   L = w sum_j max(KL_j, free bits) / values of an image

where KL_j of a latent is averaged over the batch and over the places of its channel, and free bits (in nats; Kingma et
al. 2016, "Inverse Autoregressive Flow") leave KLs below them alone.

A codebook (van den Oord et al. 2017), e the code's vector, sg a stopped gradient:

  (2)  z_q = z + sg[e - z],   L = beta mean |z - sg[e]|^2 + mean |sg[z] - e|^2

VQGAN's released loss (`legacy` there) has beta before the other term: `codebook(commitment=1.0, learning=0.25)`. Its
reconstruction is a mean over all values, as here; where released losses of latent diffusion sum over an image's values,
errors and KL alike, weights stay as they are: here both are divided by the same number.

Without the last term of Eq. 2, moving averages of the vectors that chose each code (App. A.1 there):

  (3)  N <- g N + (1 - g) n,   m <- g m + (1 - g) sum z,   e = m / N

A code with N below `revive` takes a vector of the batch (Dhariwal et al. 2020, "Jukebox"); all do at the first step.
FSQ (Mentzer et al. 2024) has no codebook to train and no loss.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.models.autoencoder import Gaussian
from jaxgen.models.vq import VQModel, direction, nearest, straight_through
from jaxgen.typing import Array, Float, Int, Key, Metrics, Params


class Code(NamedTuple):
  """The output of a bottleneck for a batch.

  Attributes:
    z: latents for the decoder.
    loss: loss of the bottleneck.
    params: parameters of the whole network, the codebook included.
    metrics: scalars.
    extra: entries of `state.extra` to replace.
  """

  z: Array
  loss: Array
  params: Params
  metrics: Metrics
  extra: Mapping[str, Any] = {}


class Bottleneck(NamedTuple):
  """A bottleneck.

  Attributes:
    init: the network's parameters -> (those trained by gradients, `state.extra`).
    encode: `(net, params, extra, images, key) -> Code`.
    generate: `(net, params, keys) -> images` of the bottleneck's own prior.
  """

  init: Callable[[Params], tuple[Params, dict[str, Any]]]
  encode: Callable[[Any, Params, dict[str, Any], Array, Array], Code]
  generate: Callable[[Any, Params, Array], Array]


def gaussian(weight: float, *, side: int, free_bits: float = 0.0) -> Bottleneck:
  """Eq. 1.

  Args:
    weight: weight of the KL: beta of a VAE, 1e-6 in latent diffusion.
    side: side of the grid of latents, to sample from the prior.
    free_bits: nats for each latent.
  """

  def encode(net: Any, params: Params, extra: dict[str, Any], images: Array, key: Array) -> Code:
    posterior: Any = net.apply({'params': params}, images, method='encode')
    kl = jnp.mean(posterior.kl(), axis=(0, 1, 2))  # z
    latents, values = posterior.mean[0].size, images[0].size
    cost = jnp.sum(jnp.maximum(kl, free_bits)) * (latents // kl.size) / values
    metrics = {'kl': jnp.sum(kl) * (latents // kl.size), 'latent_std': jnp.mean(posterior.std)}
    z = posterior.sample(jax.random.split(key, len(images)))
    return Code(z, weight * cost, params, metrics)

  def generate(net: Any, params: Params, keys: Key[Array, ' b']) -> Array:
    shape = (len(keys), side, side, net.latent)
    z = Gaussian(jnp.zeros(shape), jnp.zeros(shape)).sample(keys)
    made: Any = net.apply({'params': params}, z, method='decode')
    return made

  return Bottleneck(lambda params: (params, {}), encode, generate)


def codebook(*, commitment: float = 0.25, learning: float = 1.0) -> Bottleneck:
  """Eq. 2, the codebook trained by its gradient; or FSQ, if that is what the network has.

  Args:
    commitment: beta of Eq. 2, which pulls the vectors to their codes.
    learning: weight of the last term, which pulls the codes to the vectors.
  """

  def encode(net: VQModel, params: Params, extra: dict[str, Any], images: Array, key: Array) -> Code:
    z: Any = net.apply({'params': params}, images, method='encode')
    if net.levels:
      codes: Any = net.apply({'params': params}, z, method='quantize')
      return Code(codes.z, jnp.float32(0), params, usage(codes.index, net.codes_in_all))
    z = direction(z) if net.cosine else z
    codes = nearest(z, params['codebook'], cosine=net.cosine)
    commit = jnp.mean((z - jax.lax.stop_gradient(codes.z)) ** 2)
    learn = jnp.mean((jax.lax.stop_gradient(z) - codes.z) ** 2)
    metrics = {'commitment': commit, **usage(codes.index, net.codes)}
    return Code(straight_through(z, codes.z), commitment * commit + learning * learn, params, metrics)

  return Bottleneck(lambda params: (params, {}), encode, _no_prior)


def moving_codebook(*, commitment: float = 0.25, decay: float = 0.99, revive: float = 0.1) -> Bottleneck:
  """Eqs. 2 and 3: the codebook is in `state.extra['codebook']`.

  Args:
    commitment: beta of Eq. 2.
    decay: g of Eq. 3.
    revive: codes that are chosen less often than this, per batch, take another vector.
  """

  def init(params: Params) -> tuple[Params, dict[str, Any]]:
    vectors = params['codebook']
    rest = {name: tree for name, tree in params.items() if name != 'codebook'}
    counts = jnp.zeros(len(vectors))
    return rest, {'codebook': {'vectors': vectors, 'counts': counts, 'sums': jnp.zeros_like(vectors)}}

  def encode(net: VQModel, params: Params, extra: dict[str, Any], images: Array, key: Array) -> Code:
    book = extra['codebook']
    whole = params | {'codebook': book['vectors']}
    z: Any = net.apply({'params': whole}, images, method='encode')
    z = direction(z) if net.cosine else z
    codes = nearest(z, book['vectors'], cosine=net.cosine)
    commit = jnp.mean((z - jax.lax.stop_gradient(codes.z)) ** 2)
    flat = jax.lax.stop_gradient(z.reshape(-1, z.shape[-1]))
    moved = move(book, flat, codes.index.ravel(), key, decay=decay, revive=revive, cosine=net.cosine)
    metrics = {'commitment': commit, **usage(codes.index, net.codes)}
    metrics['revived'] = jnp.mean(jnp.float32(moved['counts'] == 1.0))
    return Code(straight_through(z, codes.z), commitment * commit, whole, metrics, {'codebook': moved})

  return Bottleneck(init, encode, _no_prior)


def move(
  book: dict[str, Array],
  z: Float[Array, 'n d'],
  index: Int[Array, ' n'],
  key: Array,
  *,
  decay: float,
  revive: float,
  cosine: bool,
) -> dict[str, Array]:
  """Eq. 3, and the revival of unused codes: the codebook after a batch.

  Args:
    book: vectors k d, counts k, sums k d.
    z: the batch's vectors.
    index: the code that each chose.
    key: key of the vectors of revived codes.
    decay, revive, cosine: as in `moving_codebook` and VQModel.
  """
  codes = len(book['counts'])
  chose = jax.nn.one_hot(index, codes)  # a product adds up in one order; scattered additions do not on a GPU
  counts = decay * book['counts'] + (1 - decay) * chose.sum(0)
  sums = decay * book['sums'] + (1 - decay) * jnp.dot(chose.T, z, precision='highest')
  dead = counts < revive
  drawn = z[jax.random.randint(key, (codes,), 0, len(z))]
  counts = jnp.where(dead, 1.0, counts)
  sums = jnp.where(dead[:, None], drawn, sums)
  vectors = sums / counts[:, None]
  return {'vectors': direction(vectors) if cosine else vectors, 'counts': counts, 'sums': sums}


def usage(index: Int[Array, '...'], codes: int) -> Metrics:
  """The share of codes that a batch chose, and the perplexity of its choice: exp of its entropy, at most `codes`."""
  share = jnp.zeros(codes).at[index.ravel()].add(1.0) / index.size
  entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-12)), 0.0))
  return {'codes_used': jnp.mean(jnp.float32(share > 0)), 'perplexity': jnp.exp(entropy)}


def _no_prior(net: Any, params: Params, keys: Array) -> Array:
  raise ValueError('an autoencoder of codes cannot sample images by itself; train a generator on its latents')


def whole(params: dict[str, Any]) -> Params:
  """All parameters of the network, the codebook included, from those to sample with (`sampling_params`)."""
  extra = params.get('extra', {})
  book = {'codebook': extra['codebook']['vectors']} if 'codebook' in extra else {}
  return params['autoencoder'] | book
