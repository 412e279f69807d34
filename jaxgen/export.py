"""Exports a run's model as a folder, with a model card.

  README.md               the model card: data, training, numbers with how they were measured, a grid, how to use it
  samples.png
  NAME/                   each network: as diffusers keeps it, or by jaxgen's own names in `model.safetensors`
  model_index.json, scheduler/, vae/      where diffusers has a pipeline for the whole; a published generator that was
                                          trained on comes back whole, with its encoders and tokenizers
  sampler.stablehlo       the whole sampler as one program of jax.export, for serving without jaxgen, and its arrays,
  sampler.safetensors     where it is asked for

Or, for users of jaxgen, the model alone in half precision, with the run's config (model_folder.py).

The program is `(arrays, fields, seed) -> uint8 images`, of one number of images.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxgen import model_folder, sharding
from jaxgen.data import described
from jaxgen.evaluators.generate import to_uint8
from jaxgen.files import write_whole
from jaxgen.models.autoencoder import AutoencoderKL
from jaxgen.models.dit import DiT
from jaxgen.models.latents import Scaling
from jaxgen.models.unet import UNet
from jaxgen.objectives.base import Denoising
from jaxgen.objectives.network import NET, weights
from jaxgen.pretrained import networks as layouts
from jaxgen.pretrained import pipeline as pipelines
from jaxgen.pretrained import published, safetensors_file, schedulers
from jaxgen.pretrained.layout import Meta, Pretrained
from jaxgen.pretrained.pipeline import Pipeline
from jaxgen.processes.process import Process
from jaxgen.sample import Trained

_LEARNS_ONLY = ('discriminator',)  # networks that only training uses
PLATFORMS = ('cpu', 'cuda', 'tpu')


class Exported(NamedTuple):
  """The contents of an exported folder.

  Attributes:
    networks: by name, the layout that each is in: 'diffusers' or 'safetensors'.
    pipeline: the pipeline of diffusers that loads the folder, if there is one.
    program: whether the sampler is there as a program.
    model: whether it opens as the run does.
  """

  networks: Mapping[str, str]
  pipeline: str | None = None
  program: bool = False
  model: bool = False


def networks(trained: Trained, out: epath.Path) -> Exported:
  """Writes each network of a run, as a pipeline of diffusers where there is one that samples as the run does."""
  pipeline = _fine_tuned(trained) or _pipeline(trained)
  if pipeline is not None:
    pipelines.save(pipeline, out)
    return Exported(dict.fromkeys(pipeline.components, 'diffusers'), pipeline.kind)
  params, made = trained.params, {}
  for name, tree in params.items():
    if name != 'extra' and name not in _LEARNS_ONLY:
      net, state = trained.stage.objective.networks.get(name), params.get('extra', {}).get(name, {})
      made[name] = _network(out / name, net, tree, state, trained)
  autoencoder = _autoencoder(trained)
  if autoencoder is not None:
    published.save(autoencoder, out / 'vae')
    made['vae'] = 'diffusers'
  return Exported(made)


def model(
  trained: Trained, out: epath.Path, record: Mapping[str, Any], notes: Mapping[str, Any] | None = None
) -> Exported:
  """Writes a folder that opens as the run does (model_folder.py).

  Args:
    trained: from `sample.restore`.
    out: the folder.
    record: config.json of the run.
    notes: what its config read of the data (data/described.py), which are kept where no condition is a picture; None
      for a folder that opens where the data are.
  """
  transform = model_folder.transform_of(trained.stage.data.identity)
  model_folder.write(out, trained.params, step=trained.step, transform=transform)
  write_whole(out / 'config.json', json.dumps(dict(record), indent=2, default=repr) + '\n')
  spec = trained.stage.data.spec
  if notes and all(len(spec[name].shape) <= 2 for name in trained.stage.objective.conditioner.fields if name in spec):
    described.write(out, notes)
  return Exported({}, model=True)


def _network(out: epath.Path, net: Any, tree: Any, state: Any, trained: Trained) -> str:
  """One network, in its published layout if there is one, with the name of the layout."""
  it = None if state else _published(net, tree, trained)
  if it is not None:
    published.save(it, out)
    return 'diffusers'
  arrays = {'params': tree} | dict(state) if state else tree
  out.mkdir(parents=True, exist_ok=True)
  about = {'network': None if net is None else type(net).__name__, 'fields': _fields(net)}
  safetensors_file.write(out / 'model.safetensors', flat(arrays), metadata={'format': 'jaxgen'})
  write_whole(out / 'config.json', json.dumps(about, indent=2, default=repr) + '\n')
  return 'safetensors'


def _published(net: Any, tree: Any, trained: Trained) -> Pretrained | None:
  """A network that has a published layout; None for others, and for options that the published network has not."""
  if type(net) not in layouts.WRITERS:
    return None
  it = Pretrained(net, jax.device_get(tree), Meta({'sample_size': _side(trained)}))
  try:
    layouts.WRITERS[type(net)](it.net, it.params, it.meta)
  except ValueError:
    return None
  return it


def _autoencoder(trained: Trained) -> Pretrained | None:
  """The frozen autoencoder of a run on latents, in float32, if diffusers has such a one."""
  net, frozen = trained.stage.objective.networks.get('autoencoder'), trained.frozen.get('autoencoder')
  if frozen is None or net is None:
    return None
  frozen = jax.device_get(frozen)
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), frozen['params'])
  it = _published(net, params, trained)
  scaling = Scaling(np.asarray(frozen['shift']), np.asarray(frozen['scale']))
  return None if it is None else it._replace(meta=Meta(scaling=scaling))


def _fields(net: Any) -> dict[str, Any]:
  if not dataclasses.is_dataclass(net):
    return {}
  hidden = ('parent', 'name')  # fields that Flax adds
  return {field.name: getattr(net, field.name) for field in dataclasses.fields(net) if field.name not in hidden}


def _side(trained: Trained) -> int:
  parts = trained.stage.objective.denoising
  return parts.shape[0] if parts else trained.stage.data.spec['image'].shape[1]


def flat(tree: Any) -> dict[str, np.ndarray]:
  """A tree of arrays as `{'blocks/mlp/in/kernel': array}`, on the host."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {sharding.path_name(path): np.asarray(leaf) for path, leaf in leaves}


def _fine_tuned(trained: Trained) -> Pipeline | None:
  """The published generator that a run went on from, with what it learned, if that is its whole denoiser."""
  source, net = trained.stage.init_from, trained.stage.objective.networks.get(NET)
  if source is None or set(trained.params) != {NET} or not (epath.Path(source.path) / pipelines.INDEX).exists():
    return None
  it, params = pipelines.load(source.path), jax.device_get(weights(trained.params))
  shapes = [jax.tree.map(np.shape, tree) for tree in (it.denoiser.params, params)]
  if type(it.denoiser.net) is not type(net) or shapes[0] != shapes[1]:
    return None
  name = next(name for name in pipelines.DENOISERS if name in it.components)
  return it._replace(components={**it.components, name: it.denoiser._replace(params=params)})


def _pipeline(trained: Trained) -> Pipeline | None:
  """The pipeline of diffusers that makes what a run makes, if there is one."""
  objective, parts = trained.stage.objective, trained.stage.objective.denoising
  net = objective.networks.get(NET)
  schedule = None if parts is None else schedule_of(parts, trained.params)
  if schedule is None or set(trained.params) != {NET} or not set(trained.frozen) <= {'autoencoder'}:
    return None
  it, vae = _published(net, weights(trained.params), trained), _autoencoder(trained)
  if it is None or (vae is None) != ('autoencoder' not in trained.frozen):
    return None
  scheduler = {'scheduler': ['diffusers', schedule.scheduler]}
  if isinstance(net, UNet) and not net.num_classes and not net.transformer and not net.learn_sigma and vae is None:
    index = {'_class_name': 'DDPMPipeline', 'unet': ['diffusers', 'UNet2DModel']} | scheduler
    return Pipeline({'unet': it}, {}, schedule, index)
  if isinstance(net, DiT) and vae is not None and isinstance(vae.net, AutoencoderKL) and _has_one_scale(vae):
    index = {'_class_name': 'DiTPipeline', 'transformer': ['diffusers', 'DiTTransformer2DModel']} | scheduler
    names = {str(i): name for i, name in enumerate(trained.stage.data.class_names)}
    index |= {'vae': ['diffusers', 'AutoencoderKL'], 'id2label': names}
    return Pipeline({'transformer': it, 'vae': vae}, {}, schedule, index)
  return None


def _has_one_scale(vae: Pretrained) -> bool:
  """Whether latents are z times one number, which is all that the pipeline of a DiT undoes."""
  scaling = vae.meta.scaling
  return scaling is not None and bool(np.all(scaling.shift == 0) and np.all(scaling.scale == scaling.scale[0]))


def schedule_of(parts: Denoising, params: Mapping[str, Any]) -> schedulers.Schedule | None:
  """The schedule under diffusers' names, for a process of discrete times and a network that predicts eps, x0 or v."""
  process = parts.process(dict(params))
  steps = process.num_steps
  if steps is None or parts.predicts is None:
    return None
  t = (np.arange(steps, dtype=np.float32) + 1) / steps
  if not np.allclose(process.network_time(jnp.asarray(t)), np.arange(steps), atol=0.01):
    return None
  kind = _prediction_type(parts, process)
  alphas = np.asarray(process.alpha(jnp.asarray(t)), np.float64) ** 2
  betas = 1 - alphas / np.append(1.0, alphas[:-1])
  ends = {'beta_start': float(f'{betas[0]:.3g}'), 'beta_end': float(f'{betas[-1]:.3g}')}
  for name in ('linear', 'scaled_linear', 'squaredcos_cap_v2'):
    made = schedulers.Schedule(steps, name, prediction_type=kind or '', scheduler='DDPMScheduler')
    made = made if name == 'squaredcos_cap_v2' else made._replace(**ends)
    same = np.asarray(schedulers.process(made).alpha(jnp.asarray(t)), np.float64) ** 2
    if kind and np.allclose(same, alphas, rtol=1e-3, atol=1e-5):
      return made
  return None


def _prediction_type(parts: Denoising, process: Process) -> str | None:
  """diffusers' name of the network's prediction, found from that of a perfect network."""
  assert parts.predicts is not None
  space, t, one, zero = parts.predicts(process), jnp.full(1, 0.5), jnp.ones((1, 1)), jnp.zeros((1, 1))
  of_data, of_noise = (float(space.target(x0, eps, t)[0, 0]) for x0, eps in ((one, zero), (zero, one)))
  a, s = float(process.alpha(t)[0]), float(process.sigma(t)[0])
  known = {'epsilon': (0.0, 1.0), 'sample': (1.0, 0.0), 'v_prediction': (-s, a)}
  return next((name for name, pair in known.items() if np.allclose(pair, (of_data, of_noise), atol=1e-5)), None)


def program(
  trained: Trained, out: epath.Path, cond: Mapping[str, np.ndarray], *, num: int, platforms: Sequence[str] = PLATFORMS
) -> None:
  """Writes the sampler as one program that needs JAX alone, and the arrays that it takes.

  Args:
    trained: the result of `sample.restore`.
    out: the folder.
    cond: fields of `num` images; their values do not matter.
    num: images that one call makes.
    platforms: platforms that it may run on.
  """
  objective = trained.stage.objective
  tree = {'params': trained.params, 'frozen': trained.frozen}
  leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
  names = [sharding.path_name(path) for path, _ in leaves]

  def run(arrays: dict[str, Any], fields: dict[str, Any], seed: Any) -> Any:
    made = jax.tree.unflatten(structure, [arrays[name] for name in names])
    root = jax.random.key(seed)
    keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(num))
    return to_uint8(objective.sample(made['params'], made['frozen'], fields, keys))

  arrays = {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}
  like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (arrays, dict(cond)))
  exported = jax.export.export(jax.jit(run), platforms=platforms)(*like, jax.ShapeDtypeStruct((), jnp.uint32))
  safetensors_file.write(out / 'sampler.safetensors', arrays, metadata={'format': 'jax.export'})
  write_whole(out / 'sampler.stablehlo', bytes(exported.serialize()))
