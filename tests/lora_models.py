"""Makes tests/golden/lora.npz: files of LoRA and its kin for a small U-Net, and what diffusers and peft answer.

  python tests/lora_models.py tests/golden/lora.npz      # in an environment with torch, diffusers (0.42.1) and peft

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
import peft  # noqa: E402
import torch  # noqa: E402
from diffusers.loaders.lora_conversion_utils import (  # noqa: E402
  _convert_non_diffusers_lora_to_diffusers,
  _maybe_map_sgm_blocks_to_diffusers,
)

BASE = pathlib.Path(__file__).parent / 'golden' / 'diffusers_unet_condition.npz'
TARGETS = r'down_blocks\.0\..*(to_q|to_k|to_out\.0|proj_in|ff\.net\.0\.proj|conv1|time_emb_proj|downsamplers\.0\.conv)'
CONFIGS = {
  'lora': peft.LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS),
  'dora': peft.LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS, use_dora=True),
  'loha': peft.LoHaConfig(r=2, alpha=3, target_modules=TARGETS),
  'loha_tucker': peft.LoHaConfig(
    r=2, alpha=3, target_modules=r'down_blocks\.0\.resnets\.0\.conv1', use_effective_conv2d=True
  ),
  'lokr': peft.LoKrConfig(r=2, alpha=3, target_modules=TARGETS, decompose_factor=2),
  'lokr_both': peft.LoKrConfig(r=1, alpha=3, target_modules=TARGETS, decompose_both=True),
}


def base():
  with np.load(BASE) as file:
    arrays = dict(file)
  config = json.loads(str(arrays['config']))
  model = diffusers.UNet2DConditionModel.from_config(config).eval()
  state = {name[3:]: torch.from_numpy(np.float32(a)) for name, a in arrays.items() if name.startswith('sd/')}
  model.load_state_dict(state)
  inputs = [torch.from_numpy(np.float32(arrays[name])) for name in ('x', 't', 'text')]
  return model, inputs


@torch.no_grad()
def drawn(model, seed: int) -> None:
  """Values for what an adapter adds, none of them zero, rounded to float16."""
  rng = np.random.default_rng(seed)
  for name, parameter in model.named_parameters():
    if any(part in name for part in ('lora_', 'hada_', 'lokr_')) and 'magnitude' not in name:
      values = 0.4 * rng.standard_normal(tuple(parameter.shape))
      parameter.copy_(torch.from_numpy(values.astype(np.float16).astype(np.float32)))
    elif 'magnitude' in name:
      factor = 1 + 0.2 * rng.standard_normal(tuple(parameter.shape))
      parameter.copy_(parameter * torch.from_numpy(factor.astype(np.float32)))


@torch.no_grad()
def answer(model, inputs) -> np.ndarray:
  return model(*inputs).sample.numpy()


def by_peft(kind: str, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
  model, inputs = base()
  peft.inject_adapter_in_model(CONFIGS[kind], model)
  drawn(model, seed)
  state = peft.get_peft_model_state_dict(model)
  return {f'base_model.model.{name}': value.numpy() for name, value in state.items()}, answer(model, inputs)


def kohya(names) -> dict[str, torch.Tensor]:
  """A file of kohya's with these modules: a shape for each of its inputs and outputs, ranks 2 and 3, an alpha."""
  rng = np.random.default_rng(7)
  state = {}
  for i, (name, (down, up)) in enumerate(names.items()):
    rank = 2 + i % 2
    make = lambda *shape: torch.from_numpy((0.4 * rng.standard_normal(shape)).astype(np.float16).astype(np.float32))  # noqa: E731
    state[f'{name}.lora_down.weight'], state[f'{name}.lora_up.weight'] = make(rank, *down), make(up, rank, *down[1:])
    state[f'{name}.alpha'] = torch.tensor(1.5)
  return state


KOHYA = {
  'lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q': ((8,), 8),
  'lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k': ((6,), 8),
  'lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0': ((8,), 8),
  'lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_ff_net_2': ((32,), 8),
  'lora_unet_mid_block_attentions_0_proj_in': ((16,), 16),
}
SGM = {  # of the original code, as SDXL's files name them
  'lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q': ((8,), 8),
  'lora_unet_middle_block_1_transformer_blocks_0_attn2_to_v': ((6,), 16),
  'lora_unet_output_blocks_2_1_transformer_blocks_0_attn2_to_out_0': ((8,), 8),
}


def by_diffusers(names) -> tuple[dict[str, np.ndarray], np.ndarray]:
  model, inputs = base()
  state = kohya(names)
  file = {name: value.numpy() for name, value in state.items()}
  if any('input_blocks' in name for name in names):
    state = _maybe_map_sgm_blocks_to_diffusers(dict(state), model.config)
  state, alphas = _convert_non_diffusers_lora_to_diffusers(dict(state))
  model.load_lora_adapter(state, network_alphas=alphas, prefix='unet')
  return file, answer(model, inputs)


def main(out: str) -> None:
  made = {}
  jobs = {kind: lambda kind=kind, i=i: by_peft(kind, i) for i, kind in enumerate(CONFIGS)}
  jobs |= {'kohya': lambda: by_diffusers(KOHYA)}
  model, inputs = base()
  made['base/out'] = answer(model, inputs)
  try:
    made |= {f'sgm/{name}': value for name, value in _flat(*by_diffusers(SGM)).items()}
  except Exception as error:
    print('sgm', type(error), error)
  for kind, job in jobs.items():
    made |= {f'{kind}/{name}': value for name, value in _flat(*job()).items()}
    change = np.abs(made[f'{kind}/out'] - made['base/out']).max()
    print(kind, len([n for n in made if n.startswith(f'{kind}/')]), f'changes {change:.3f}')
  np.savez_compressed(out, **made)


def _flat(file, out):
  small = {
    f'file/{name}': value.astype(np.float16) if 'magnitude' not in name else value for name, value in file.items()
  }
  return small | {'out': out}


if __name__ == '__main__':
  main(sys.argv[1])
