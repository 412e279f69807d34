"""Makes tests/golden/adapters.npz: a ControlNet and two IP-Adapters for a small U-Net, and what diffusers answers.

  python tests/adapter_models.py tests/golden/adapters.npz      # in an environment with torch and diffusers (0.42.1)
  python tests/adapter_models.py --embedding tests/golden/embedding_a1111.pt

The U-Net is that of tests/golden/diffusers_unet_condition.npz.
"""

import importlib.util
import json
import pathlib
import sys

_find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name.split('.')[0] == 'torchvision' else _find(name, *args)

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

BASE = pathlib.Path(__file__).parent / 'golden' / 'diffusers_unet_condition.npz'


def base():
  with np.load(BASE) as file:
    arrays = dict(file)
  model = diffusers.UNet2DConditionModel.from_config(json.loads(str(arrays['config']))).eval()
  state = {name[3:]: torch.from_numpy(np.float32(a)) for name, a in arrays.items() if name.startswith('sd/')}
  model.load_state_dict(state)
  return model, [torch.from_numpy(np.float32(arrays[name])) for name in ('x', 't', 'text')]


def drawn(shapes, rng) -> dict[str, np.ndarray]:
  made = {}
  for name, shape in shapes.items():
    fan_in = max(int(np.prod(shape[1:])), 1)
    values = rng.standard_normal(shape) / np.sqrt(fan_in)
    values = 1 + 0.2 * values if 'norm' in name and name.endswith('weight') and len(shape) == 1 else values
    made[name] = (0.1 * values if name.endswith('bias') else values).astype(np.float16)
  return made


def torched(arrays):
  return {name: torch.from_numpy(np.float32(array)) for name, array in arrays.items()}


@torch.no_grad()
def control(rng) -> dict[str, np.ndarray]:
  model, inputs = base()
  branch = diffusers.ControlNetModel.from_unet(model, conditioning_channels=3, load_weights_from_unet=False,
                                               conditioning_embedding_out_channels=(4, 6)).eval()  # fmt: skip
  state = drawn({name: tuple(tensor.shape) for name, tensor in branch.state_dict().items()}, rng)
  branch.load_state_dict(torched(state))
  picture = rng.uniform(0, 1, (2, 3, 16, 24)).astype(np.float32)
  made = {f'control/sd/{name}': array for name, array in state.items()}
  made |= {'control/picture': picture, 'control/config': np.array(json.dumps(dict(branch.config), default=list))}
  x, t, text = inputs
  for name, options in {'out': {}, 'half': {'conditioning_scale': 0.5}, 'guess': {'guess_mode': True}}.items():
    down, mid = branch(x, t, text, torch.from_numpy(picture), return_dict=False, **options)
    kwargs = {'down_block_additional_residuals': down, 'mid_block_additional_residual': mid}
    made[f'control/{name}'] = model(x, t, text, **kwargs).sample.numpy()
  return made


@torch.no_grad()
def image_prompt(kind: str, rng) -> dict[str, np.ndarray]:
  model, (x, t, text) = base()
  width, features = 6, 5
  cross = [name for name in model.attn_processors if 'attn2' in name]
  shapes = {}
  for i, name in enumerate(cross):
    out = model.get_submodule(name.removesuffix('.processor')).to_k.weight.shape[0]
    shapes |= {f'ip_adapter.{2 * i + 1}.{part}.weight': (out, width) for part in ('to_k_ip', 'to_v_ip')}
  if kind == 'basic':
    shapes |= {'image_proj.proj.weight': (4 * width, features), 'image_proj.proj.bias': (4 * width,)}
    shapes |= {f'image_proj.norm.{part}': (width,) for part in ('weight', 'bias')}
    seen = rng.standard_normal((2, 1, features)).astype(np.float32)
  else:
    d = 8
    shapes |= {'image_proj.latents': (1, 3, d)}
    for name, (ins, outs) in {'proj_in': (features, d), 'proj_out': (d, width)}.items():
      shapes |= {f'image_proj.{name}.weight': (outs, ins), f'image_proj.{name}.bias': (outs,)}
    shapes |= {f'image_proj.norm_out.{part}': (width,) for part in ('weight', 'bias')}
    for i in range(4):
      head = f'image_proj.layers.{i}'
      for norm in ('0.norm1', '0.norm2', '1.0'):
        shapes |= {f'{head}.{norm}.{part}': (d,) for part in ('weight', 'bias')}
      shapes |= {f'{head}.0.to_q.weight': (64, d), f'{head}.0.to_kv.weight': (128, d)}
      shapes |= {f'{head}.0.to_out.weight': (d, 64), f'{head}.1.1.weight': (4 * d, d), f'{head}.1.3.weight': (d, 4 * d)}
    seen = rng.standard_normal((2, 1, 7, features)).astype(np.float32)
  state = drawn(shapes, rng)
  file = {part: {name.removeprefix(f'{part}.'): tensor for name, tensor in torched(state).items()
                 if name.startswith(part)} for part in ('image_proj', 'ip_adapter')}  # fmt: skip
  model._load_ip_adapter_weights([file], low_cpu_mem_usage=False)
  made = {f'{kind}/file/{name}': array for name, array in state.items()} | {f'{kind}/seen': seen[:, 0]}
  for name, scale in {'out': 1.0, 'half': 0.5}.items():
    for processor in model.attn_processors.values():
      if hasattr(processor, 'scale'):
        processor.scale = [scale]
    made[f'{kind}/{name}'] = model(
      x, t, text, added_cond_kwargs={'image_embeds': [torch.from_numpy(seen)]}
    ).sample.numpy()
  return made


def main(out: str) -> None:
  rng = np.random.default_rng(0)
  made = control(rng)
  for kind in ('basic', 'plus'):
    made |= image_prompt(kind, rng)
  model, inputs = base()
  with torch.no_grad():
    made['base/out'] = model(*inputs).sample.numpy()
  for name, array in made.items():
    if name.endswith(('/out', '/half', '/guess')):
      print(name, np.abs(array - made['base/out']).max())
  np.savez_compressed(out, **made)


if __name__ == '__main__':
  if sys.argv[1] == '--embedding':
    rows = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    torch.save({'string_to_token': {'*': 265}, 'string_to_param': {'*': rows}, 'name': 'cat', 'step': 7}, sys.argv[2])
  else:
    main(sys.argv[1])
