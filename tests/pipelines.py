"""Small random generators in diffusers' layout, with weights that follow from their names, and what diffusers answers.

  python tests/pipelines.py tests/golden/pipelines.npz         # with torch, diffusers 0.42.1 and transformers 5.23
  python tests/pipelines.py tests/golden/pipelines.npz sdxl    # these cases alone; the others stay as they are

`write(kind, folder)` makes a folder without them.
"""

import json
import pathlib
import sys

import numpy as np

from jaxgen.pretrained import folder, networks

try:
  from tests.transformers_models import tensor
except ImportError:  # as a script
  from transformers_models import tensor

PROMPTS = ['a red cat!', 'two dogs']
NEGATIVE = 'blurry'
STEPS = 5  # divides 1000: see pretrained/sampling.py
_LETTERS = 512
MERGES = ['c a', 'ca t</w>', 'r e', 're d</w>', 'd o', 'b l']
START = _LETTERS + len(MERGES)

CLIP = {
  'architectures': ['CLIPTextModel'], 'model_type': 'clip_text_model', 'vocab_size': START + 2, 'hidden_size': 16,
  'intermediate_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'max_position_embeddings': 77,
  'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5, 'projection_dim': 16, 'bos_token_id': START,
  'eos_token_id': START + 1, 'pad_token_id': START + 1,
}  # fmt: skip
UNET = {
  '_class_name': 'UNet2DConditionModel', 'sample_size': 8, 'in_channels': 4, 'out_channels': 4,
  'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'], 'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
  'block_out_channels': [8, 16], 'layers_per_block': 1, 'norm_num_groups': 4, 'attention_head_dim': 2,
  'cross_attention_dim': 16,
}  # fmt: skip
VAE = {
  '_class_name': 'AutoencoderKL', 'block_out_channels': [8, 16], 'down_block_types': ['DownEncoderBlock2D'] * 2,
  'up_block_types': ['UpDecoderBlock2D'] * 2, 'layers_per_block': 1, 'latent_channels': 4, 'norm_num_groups': 4,
  'sample_size': 16, 'scaling_factor': 0.5,
}  # fmt: skip
BETAS = {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear', 'num_train_timesteps': 1000}
DDIM = BETAS | {
  '_class_name': 'DDIMScheduler', 'clip_sample': False, 'set_alpha_to_one': False, 'steps_offset': 1
}  # fmt: skip
SD = {'unet': UNET, 'vae': VAE, 'text_encoder': CLIP, 'tokenizer': {}, 'scheduler': DDIM}
# name -> class of the pipeline, its parts
KINDS = {
  'sd15': ('StableDiffusionPipeline', SD),
  'sd21': (
    'StableDiffusionPipeline',
    SD
    | {
      'unet': UNET | {'attention_head_dim': [2, 4], 'use_linear_projection': True},
      'text_encoder': CLIP | {'hidden_act': 'gelu', 'pad_token_id': 0},
      'tokenizer': {'pad_token': '!'},
      'scheduler': DDIM | {'prediction_type': 'v_prediction'},
    },
  ),
  'inpaint': ('StableDiffusionInpaintPipeline', SD | {'unet': UNET | {'in_channels': 9}}),
  'instruct': ('StableDiffusionInstructPix2PixPipeline', SD | {'unet': UNET | {'in_channels': 8}}),
  'sdxl': (
    'StableDiffusionXLPipeline',
    {
      'unet': UNET
      | {
        'down_block_types': ['DownBlock2D', 'CrossAttnDownBlock2D'],
        'up_block_types': ['CrossAttnUpBlock2D', 'UpBlock2D'],
        'transformer_layers_per_block': [1, 2],
        'attention_head_dim': [2, 4],
        'use_linear_projection': True,
        'cross_attention_dim': 32,
        'addition_embed_type': 'text_time',
        'addition_time_embed_dim': 8,
        'projection_class_embeddings_input_dim': 12 + 6 * 8,
      },
      'vae': VAE,
      'text_encoder': CLIP,
      'text_encoder_2': CLIP
      | {
        'architectures': ['CLIPTextModelWithProjection'],
        'hidden_act': 'gelu',
        'projection_dim': 12,
        'pad_token_id': 0,
      },
      'tokenizer': {},
      'tokenizer_2': {'pad_token': '!'},
      'scheduler': BETAS | {'_class_name': 'EulerDiscreteScheduler', 'timestep_spacing': 'leading', 'steps_offset': 1},
    },
  ),
}
_PROJECTED = {'architectures': ['CLIPTextModelWithProjection'], 'projection_dim': 12}
T5 = {
  'architectures': ['T5EncoderModel'], 'model_type': 't5', 'vocab_size': 32, 'd_kv': 8, 'd_ff': 48, 'num_layers': 2,
  'num_heads': 2, 'feed_forward_proj': 'gated-gelu', 'layer_norm_epsilon': 1e-6, 'is_encoder_decoder': False,
  'eos_token_id': 1, 'pad_token_id': 0,
}  # fmt: skip
_FLOW = {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'num_train_timesteps': 1000, 'shift': 3.0}
_FLOW_VAE = VAE | {'shift_factor': 0.1, 'use_quant_conv': False, 'use_post_quant_conv': False}
_HEADS = {'attention_head_dim': 8, 'num_attention_heads': 2}
KINDS['sd3'] = (
  'StableDiffusion3Pipeline',
  {
    'transformer': {
      '_class_name': 'SD3Transformer2DModel', 'sample_size': 8, 'patch_size': 2, 'in_channels': 4, 'out_channels': 4,
      'num_layers': 3, 'joint_attention_dim': 40, 'caption_projection_dim': 16, 'pooled_projection_dim': 24,
      'pos_embed_max_size': 6, 'dual_attention_layers': [0], 'qk_norm': 'rms_norm', **_HEADS,
    },
    'vae': _FLOW_VAE,
    'text_encoder': CLIP | _PROJECTED,
    'text_encoder_2': CLIP | _PROJECTED | {'hidden_act': 'gelu', 'pad_token_id': 0},
    'text_encoder_3': T5 | {'d_model': 40},
    'tokenizer': {},
    'tokenizer_2': {'pad_token': '!'},
    'tokenizer_3': {'length': 256},
    'scheduler': _FLOW,
  },
)  # fmt: skip
KINDS['flux'] = (
  'FluxPipeline',
  {
    'transformer': {
      '_class_name': 'FluxTransformer2DModel', 'patch_size': 1, 'in_channels': 16, 'num_layers': 2,
      'num_single_layers': 2, 'joint_attention_dim': 32, 'pooled_projection_dim': 16, 'guidance_embeds': True,
      'axes_dims_rope': [4, 2, 2], **_HEADS,
    },
    'vae': _FLOW_VAE,
    'text_encoder': CLIP,
    'text_encoder_2': T5 | {'d_model': 32},
    'tokenizer': {},
    'tokenizer_2': {'length': 512},
    'scheduler': _FLOW
    | {
      'use_dynamic_shifting': True, 'base_shift': 0.5, 'max_shift': 1.15, 'base_image_seq_len': 256,
      'max_image_seq_len': 4096,
    },
  },
)  # fmt: skip
_SDXL = KINDS['sdxl'][1]
KINDS['refiner'] = (
  'StableDiffusionXLImg2ImgPipeline',
  {name: part for name, part in _SDXL.items() if name not in ('text_encoder', 'tokenizer')}
  | {'unet': _SDXL['unet'] | {'cross_attention_dim': 16, 'projection_class_embeddings_input_dim': 12 + 5 * 8}},
)
KINDS['pixart'] = (
  'PixArtAlphaPipeline',
  {
    'transformer': {
      '_class_name': 'PixArtTransformer2DModel', 'sample_size': 8, 'in_channels': 4, 'out_channels': 8,
      'num_layers': 2, 'cross_attention_dim': 16, 'caption_channels': 32, **_HEADS,
    },
    'vae': VAE,
    'text_encoder': T5 | {'d_model': 32},
    'tokenizer': {'length': 120},
    'scheduler': BETAS | {'_class_name': 'DPMSolverMultistepScheduler'},
  },
)  # fmt: skip
_SMALL_UNET = {
  'block_out_channels': [8, 16], 'resnet_time_scale_shift': 'scale_shift', 'layers_per_block': 1,
  'norm_num_groups': 4, 'attention_head_dim': 8,
}  # fmt: skip
_JOINED = _SMALL_UNET | {
  '_class_name': 'UNet2DConditionModel', 'down_block_types': ['ResnetDownsampleBlock2D', 'SimpleCrossAttnDownBlock2D'],
  'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
  'up_block_types': ['SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D'], 'sample_size': 8, 'in_channels': 3,
  'out_channels': 6, 'cross_attention_dim': 16,
}  # fmt: skip
_ENLARGER = _SMALL_UNET | {
  '_class_name': 'UNet2DModel', 'down_block_types': ['ResnetDownsampleBlock2D'] * 2,
  'up_block_types': ['ResnetUpsampleBlock2D'] * 2, 'sample_size': 16, 'in_channels': 6, 'out_channels': 3,
  'add_attention': False,
}  # fmt: skip
_KARLO = {'_class_name': 'UnCLIPScheduler', 'variance_type': 'fixed_small_log', 'clip_sample_range': 1.0}
_DECODE = {
  'decoder': _JOINED | {'class_embed_type': 'identity'},
  'text_proj': {
    '_class_name': 'UnCLIPTextProjModel', 'clip_embeddings_dim': 16, 'time_embed_dim': 32, 'cross_attention_dim': 16,
  },
  'text_encoder': CLIP | {'architectures': ['CLIPTextModelWithProjection']},
  'tokenizer': {},
  'super_res_first': _ENLARGER,
  'super_res_last': _ENLARGER | {'layers_per_block': 2},
  'decoder_scheduler': _KARLO | {'variance_type': 'learned_range'},
  'super_res_scheduler': _KARLO,
}  # fmt: skip
KINDS['unclip'] = (
  'UnCLIPPipeline',
  _DECODE
  | {
    'prior': {
      '_class_name': 'PriorTransformer', 'num_attention_heads': 2, 'attention_head_dim': 8, 'num_layers': 2,
      'embedding_dim': 16, 'num_embeddings': 77,
    },
    'prior_scheduler': _KARLO | {'prediction_type': 'sample', 'clip_sample_range': 5.0},
  },
)  # fmt: skip
KINDS['variation'] = (
  'UnCLIPImageVariationPipeline',
  _DECODE
  | {
    'image_encoder': {
      'architectures': ['CLIPVisionModelWithProjection'], 'model_type': 'clip_vision_model', 'image_size': 8,
      'patch_size': 4, 'hidden_size': 16, 'intermediate_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2,
      'num_channels': 3, 'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5, 'projection_dim': 16,
    },
  },
)  # fmt: skip
_READS = {
  'encoder_hid_dim': 24, 'addition_embed_type': 'text', 'addition_embed_type_num_heads': 3, 'act_fn': 'gelu',
  'cross_attention_norm': 'group_norm', 'cross_attention_dim': 32,
}  # fmt: skip
_IF = BETAS | {
  '_class_name': 'DDPMScheduler', 'beta_schedule': 'squaredcos_cap_v2', 'variance_type': 'learned_range',
  'thresholding': True, 'dynamic_thresholding_ratio': 0.95, 'sample_max_value': 1.5,
}  # fmt: skip
_IF_TEXT = {'text_encoder': T5 | {'d_model': 24}, 'tokenizer': {'length': 77}}
KINDS['deepfloyd'] = ('IFPipeline', {'unet': _JOINED | _READS, 'scheduler': _IF, **_IF_TEXT})
KINDS['deepfloyd_large'] = (
  'IFSuperResolutionPipeline',
  {
    'unet': _JOINED
    | _READS
    | {
      'sample_size': 16, 'in_channels': 6, 'class_embed_type': 'timestep', 'layers_per_block': [1, 2],
      'only_cross_attention': True, 'time_embedding_dim': 16, 'time_embedding_act_fn': 'gelu',
      'resnet_skip_time_act': True, 'resnet_out_scale_factor': 1 / 0.7071, 'mid_block_scale_factor': 1 / 0.7071,
    },
    'scheduler': _IF | {'sample_max_value': 1.0},
    'image_noising_scheduler': BETAS | {'_class_name': 'DDPMScheduler', 'beta_schedule': 'squaredcos_cap_v2'},
    **_IF_TEXT,
  },
)  # fmt: skip
KINDS['z_image'] = (
  'ZImagePipeline',
  {
    'transformer': {
      '_class_name': 'ZImageTransformer2DModel', 'in_channels': 4, 'dim': 24, 'n_layers': 2, 'n_refiner_layers': 1,
      'n_heads': 2, 'n_kv_heads': 2, 'cap_feat_dim': 24, 'axes_dims': [4, 4, 4], 'axes_lens': [640, 16, 16],
      'all_patch_size': [2], 'all_f_patch_size': [1], 't_scale': 1000.0,
    },
    'vae': _FLOW_VAE,
    'text_encoder': {
      'architectures': ['Qwen3Model'], 'model_type': 'qwen3', 'hidden_size': 24, 'intermediate_size': 40,
      'num_hidden_layers': 3, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 8, 'vocab_size': 300,
      'rope_parameters': {'rope_theta': 10000.0, 'rope_type': 'default'}, 'hidden_act': 'silu',
    },
    'tokenizer': {'chat_length': 512},
    'scheduler': _FLOW,
  },
)  # fmt: skip
# Random kernels of these denoisers are half as large: they would amplify rounding to the size of an image, and make
# logits that diffusers' masks, which add -10,000 to them, do not hide.
_TAME = ('sdxl', 'refiner', 'pixart', 'unclip', 'variation', 'deepfloyd', 'deepfloyd_large', 'z_image')
_PNDM = BETAS | {'_class_name': 'PNDMScheduler', 'skip_prk_steps': True, 'set_alpha_to_one': False, 'steps_offset': 1}
# name -> kind, entries of its scheduler
CASES = {
  'ddim': ('sd15', {}),
  'pndm': ('sd15', _PNDM),
  'dpm': ('sd15', BETAS | {'_class_name': 'DPMSolverMultistepScheduler'}),
  'euler': ('sd15', BETAS | {'_class_name': 'EulerDiscreteScheduler'}),
  'v_ddim': ('sd21', {}),
  'inpaint': ('inpaint', {}),
  'img2img': ('sd15', {}),
  'instruct': ('instruct', {}),
  'sd3': ('sd3', {}),
  'sdxl': ('sdxl', {}),
  'sdxl_zeros': ('sdxl', {}),
  'refiner': ('refiner', {}),
  'flux': ('flux', {}),
  'pixart': ('pixart', {}),
  'unclip': ('unclip', {}),
  'variation': ('variation', {}),
  'deepfloyd': ('deepfloyd', {}),
  'z_image': ('z_image', {}),
}
_TAMED = ('unet', 'transformer', 'decoder', 'super_res_first', 'super_res_last')
UNTOLD = ('sdxl_zeros', 'flux')  # without a negative prompt
_DPM, _UNIPC, _EULER, _HEUN = (
  BETAS | {'_class_name': f'{name}Scheduler'}
  for name in ('DPMSolverMultistep', 'UniPCMultistep', 'EulerDiscrete', 'HeunDiscrete')
)
_V = {'prediction_type': 'v_prediction'}
_LEADING, _TRAILING = {'timestep_spacing': 'leading', 'steps_offset': 1}, {'timestep_spacing': 'trailing'}
_KARRAS = {'use_karras_sigmas': True}
SCHEDULERS = {
  'ddim': DDIM,
  'ddim_one': DDIM | {'set_alpha_to_one': True, 'steps_offset': 0},
  'ddim_clipped': DDIM | {'clip_sample': True, 'clip_sample_range': 0.7},
  'ddim_zero_snr': DDIM | _V | _TRAILING | {'rescale_betas_zero_snr': True, 'set_alpha_to_one': True},
  'ddim_thresholded': DDIM | {'thresholding': True, 'sample_max_value': 10.0, 'dynamic_thresholding_ratio': 0.8},
  'pndm': _PNDM,
  'pndm_v': _PNDM | _V,
  'dpm': _DPM,
  'dpm_leading': _DPM | _LEADING,
  'dpm_trailing_v': _DPM | _TRAILING | _V,
  'dpm_karras': _DPM | _KARRAS,
  'dpm_heun': _DPM | {'solver_type': 'heun'},
  'euler': _EULER,
  'euler_leading': _EULER | _LEADING,
  'euler_karras': _EULER | _KARRAS,
  'euler_v': _EULER | _V | {'beta_schedule': 'linear'},
  'heun': _HEUN | _TRAILING,
  'heun_karras': _HEUN | _KARRAS,
  'unipc': _UNIPC,
  'unipc_karras': _UNIPC | _KARRAS | {'solver_type': 'bh1'},
  'cosine': _DPM | _V | {'beta_schedule': 'squaredcos_cap_v2'},
  'flow': {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'shift': 3.0},
}


def write(kind: str, path: pathlib.Path, scheduler: dict | None = None) -> None:
  """The folder of a generator."""
  name, parts = KINDS[kind]
  index = {'_class_name': name, '_diffusers_version': '0.42.1'}
  for part, config in parts.items():
    index[part] = _library(part, config)
    if part.endswith('scheduler'):
      config = scheduler if scheduler and '_class_name' in scheduler else config | (scheduler or {})
      folder.write_config(path / part / 'scheduler_config.json', config)
      index[part] = ['diffusers', config['_class_name']]
    elif 'length' in config:
      t5_tokenizer(path / part, **config)
    elif 'chat_length' in config:
      qwen_tokenizer(path / part, config['chat_length'])
    elif part.startswith('tokenizer'):
      clip_tokenizer(path / part, **config)
    else:
      made = networks.READERS[str(folder.class_of(config))](config)
      tensors = tensors_of(made)
      if part in _TAMED and kind in _TAME:
        tensors = {name: value / 2 if value.ndim > 1 else value for name, value in tensors.items()}
      folder.write(path / part, config, tensors, stem=made.stem)
  if kind in ('sd15', 'sd21', 'inpaint', 'instruct', 'deepfloyd', 'deepfloyd_large'):
    index |= {'safety_checker': [None, None], 'feature_extractor': [None, None], 'requires_safety_checker': False}
  if kind in ('sdxl', 'refiner'):
    index |= {'force_zeros_for_empty_prompt': kind == 'sdxl', 'requires_aesthetics_score': kind == 'refiner'}
  if kind == 'refiner':
    index |= {'text_encoder': [None, None], 'tokenizer': [None, None]}
  folder.write_config(path / 'model_index.json', index)


def tensors_of(made) -> dict[str, np.ndarray]:
  shapes = {name: leaf.tensor_shape for leaf in made.leaves.values() for name in leaf.names}
  return {name: tensor(name, shape) for name, shape in shapes.items()}


def _library(part: str, config: dict) -> list[str]:
  if part.startswith('tokenizer'):
    kinds = {'length': 'T5TokenizerFast', 'chat_length': 'Qwen2Tokenizer'}
    return ['transformers', next((name for entry, name in kinds.items() if entry in config), 'CLIPTokenizer')]
  if part == 'text_proj':
    return ['unclip', 'UnCLIPTextProjModel']  # a module of diffusers' pipelines
  return ['transformers' if 'architectures' in config else 'diffusers', str(folder.class_of(config))]


def clip_tokenizer(path: pathlib.Path, pad_token: str = '<|endoftext|>') -> None:
  from jaxgen.data.tokenizers.published import _byte_letters

  path.mkdir(parents=True)
  letters = _byte_letters()
  pieces = [*letters, *(f'{letter}</w>' for letter in letters), *(merge.replace(' ', '') for merge in MERGES)]
  vocabulary = {piece: i for i, piece in enumerate([*pieces, '<|startoftext|>', '<|endoftext|>'])}
  (path / 'vocab.json').write_text(json.dumps(vocabulary))
  (path / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(MERGES) + '\n')
  config = {
    'tokenizer_class': 'CLIPTokenizer', 'model_max_length': 77, 'pad_token': pad_token, 'unk_token': '<|endoftext|>',
    'bos_token': '<|startoftext|>', 'eos_token': '<|endoftext|>',
  }  # fmt: skip
  (path / 'tokenizer_config.json').write_text(json.dumps(config))


def t5_tokenizer(path: pathlib.Path, length: int) -> None:
  import tokenizers

  letters = 'abcdefghijklmnopqrstuvwxyz!'
  pieces = [('<pad>', 0.0), ('</s>', 0.0), ('<unk>', 0.0), ('▁', -2.0), *((letter, -3.0) for letter in letters)]
  core = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
  core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  core.add_special_tokens(['<pad>', '</s>', '<unk>'])
  path.mkdir(parents=True)
  core.save(str(path / 'tokenizer.json'))
  (path / 'tokenizer_config.json').write_text(
    json.dumps({'tokenizer_class': 'T5Tokenizer', 'model_max_length': length})
  )


SPECIAL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']


def qwen_tokenizer(path: pathlib.Path, length: int) -> None:
  import tokenizers

  from jaxgen.data.tokenizers.published import _byte_letters

  vocabulary = {letter: number for number, letter in enumerate(_byte_letters())}
  merges = [('c', 'a'), ('r', 'e'), ('d', 'o'), ('Ċ', 'Ċ')]  # of two newlines too
  vocabulary |= {''.join(pair): len(vocabulary) + number for number, pair in enumerate(merges)}
  core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
  core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  core.add_special_tokens(SPECIAL)
  path.mkdir(parents=True)
  core.save(str(path / 'tokenizer.json'))
  config = {'tokenizer_class': 'Qwen2Tokenizer', 'model_max_length': length, 'pad_token': SPECIAL[0]}
  (path / 'tokenizer_config.json').write_text(json.dumps(config))


def _chat_tokenizer(path: pathlib.Path):
  """A stand-in for transformers' Qwen2Tokenizer, with the template of Qwen3's chats."""
  import tokenizers
  import torch

  core = tokenizers.Tokenizer.from_file(str(path / 'tokenizer.json'))

  class Stand:
    def apply_chat_template(self, messages, **options):
      (said,) = messages
      return f'<|im_start|>user\n{said["content"]}<|im_end|>\n<|im_start|>assistant\n'

    def __call__(self, prompt, max_length=0, **options):
      rows = [core.encode(text).ids for text in prompt]
      ids = [row + [core.token_to_id(SPECIAL[0])] * (max_length - len(row)) for row in rows]
      mask = [[1] * len(row) + [0] * (max_length - len(row)) for row in rows]
      return type('Encoded', (), {'input_ids': torch.tensor(ids), 'attention_mask': torch.tensor(mask)})()

  return Stand()


def inputs(shape: tuple[int, ...], side: int) -> dict[str, np.ndarray]:
  """Noise of two latents, b h w c, an image in [-1, 1], and a mask that is 1 where it is filled."""
  rng = np.random.RandomState(0)
  noise = rng.standard_normal((2, *shape)).astype(np.float32)
  image = np.tanh(rng.standard_normal((2, side, side, 3))).astype(np.float32)
  mask = np.zeros((2, side, side, 1), np.float32)
  mask[:, side // 4 : side // 2] = 1
  return {'noise': noise, 'image': image, 'mask': mask}


def table(shape: tuple[int, ...]) -> np.ndarray:
  """Noise of a sampler's steps for two images of a shape, h w c; the last row is the first noise."""
  return np.random.RandomState(sum(shape)).standard_normal((12, 2, *shape)).astype(np.float32)


def torch_table(shape: tuple[int, ...]):
  """The same for arrays b c h w, or b d."""
  import torch

  made = table((1, *shape[1:]))[:, :, 0] if len(shape) == 2 else table((*shape[2:], shape[1])).transpose(0, 1, 4, 2, 3)
  return torch.from_numpy(np.ascontiguousarray(made))


def _noise_of_steps(module) -> None:
  """Gives a scheduler of diffusers the noise of `table`."""
  count: dict = {}

  def randn(shape, **options):
    shape = tuple(shape)
    count[shape] = count.get(shape, -1) + 1
    return torch_table(shape)[count[shape]]

  module.randn_tensor = randn


def _exactly(scheduler) -> None:
  """Gives a cosine scheduler tables in float64: in float32, 1 - alpha bar of the first time is 0.05% off."""
  import torch

  total = scheduler.config.num_train_timesteps
  f = np.cos((np.arange(total + 1) / total + 0.008) / 1.008 * np.pi / 2) ** 2
  scheduler.betas = torch.from_numpy(np.minimum(1 - f[1:] / f[:-1], 0.999))
  scheduler.alphas = 1 - scheduler.betas
  scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)


def answer_of_unclip(case: str, path: pathlib.Path) -> np.ndarray:
  """As `answer`, of DALL-E 2's pipelines."""
  import diffusers
  import torch
  from diffusers.pipelines.deprecated import unclip
  from diffusers.schedulers import scheduling_unclip

  from jaxgen.models.clip import preprocess

  name = KINDS[case][0]
  diffusers.pipelines.unclip = unclip  # where folders say that it is
  _noise_of_steps(scheduling_unclip)
  more = {} if case == 'unclip' else {'feature_extractor': None}
  projection = unclip.text_proj.UnCLIPTextProjModel.from_pretrained(path / 'text_proj')
  pipe = getattr(unclip, name).from_pretrained(path, text_proj=projection, **more)
  pipe.set_progress_bar_config(disable=True)
  for part, scheduler in pipe.components.items():
    if part.endswith('scheduler'):
      _exactly(scheduler)
  options = {'decoder_num_inference_steps': STEPS, 'decoder_guidance_scale': 4.0, 'output_type': 'np'}
  options |= {'decoder_latents': torch_table((2, 3, 8, 8))[-1], 'super_res_latents': torch_table((2, 3, 16, 16))[-1]}
  if case == 'unclip':
    options |= {'prior_num_inference_steps': STEPS, 'prior_latents': torch_table((2, 16))[-1], 'prompt': PROMPTS}
  else:
    seen = np.asarray(preprocess(inputs((8, 8, 4), 16)['image'], size=8))
    options |= {'image': torch.from_numpy(seen.transpose(0, 3, 1, 2).copy())}
  return np.float32(2 * pipe(**options).images - 1)


def answer_of_deepfloyd(path: pathlib.Path) -> np.ndarray:
  """As `answer`, of both stages of DeepFloyd IF; the second is in a folder beside the first's."""
  import diffusers
  from diffusers.schedulers import scheduling_ddpm

  write('deepfloyd_large', path / 'large')
  _noise_of_steps(scheduling_ddpm)
  options = {'num_inference_steps': STEPS, 'guidance_scale': 4.0, 'clean_caption': False}
  image = None
  for kind, place, kept in (('deepfloyd', path, 'pt'), ('deepfloyd_large', path / 'large', 'np')):
    stands = _t5_tokenizers(place, kind)
    pipe = getattr(diffusers, KINDS[kind][0]).from_pretrained(place, **dict.fromkeys(stands), watermarker=None)
    pipe.tokenizer = stands['tokenizer']
    pipe.set_progress_bar_config(disable=True)
    for part, scheduler in pipe.components.items():
      if part.endswith('scheduler'):
        _exactly(scheduler)
    rows = iter((-1, -2))
    sys.modules[type(pipe).__module__].randn_tensor = lambda shape, rows=rows, **more: torch_table(tuple(shape))[
      next(rows)
    ]
    given = {} if image is None else {'image': image}
    image = pipe(PROMPTS, negative_prompt=[NEGATIVE] * 2, output_type=kept, **given, **options).images
  return np.float32(2 * image - 1)


def _t5_tokenizers(path: pathlib.Path, kind: str) -> dict:
  """Stand-ins for transformers' T5 tokenizers, which want SentencePiece's file."""
  import torch

  from jaxgen.data.tokenizers import encode_all, from_folder

  class Stand:
    def __init__(self, tokenizer):
      self.tokenizer, self.added_tokens_encoder = tokenizer, {}

    def tokenize(self, prompt):
      return []

    def __call__(self, prompt, max_length=0, **options):
      ids = encode_all(self.tokenizer._replace(length=max_length or self.tokenizer.length), prompt)
      ids = torch.from_numpy(ids).long()
      return type('Encoded', (), {'input_ids': ids, 'attention_mask': (ids != 0).long()})()

  lengths = {part: config for part, config in KINDS[kind][1].items() if 'length' in config}
  made = {part: Stand(from_folder(path / part)) for part in lengths}
  return made | ({'tokenizer': _chat_tokenizer(path / 'tokenizer')} if kind == 'z_image' else {})


def answer(case: str, path: pathlib.Path) -> np.ndarray:
  """Images in [-1, 1] that diffusers makes, b h w c."""
  import diffusers
  import torch

  kind, scheduler = CASES[case]
  write(kind, path, scheduler)
  if kind in ('unclip', 'variation'):
    return answer_of_unclip(case, path)
  if kind == 'deepfloyd':
    return answer_of_deepfloyd(path)
  name = 'StableDiffusionImg2ImgPipeline' if case == 'img2img' else KINDS[kind][0]
  stands = _t5_tokenizers(path, kind)
  pipe = getattr(diffusers, name).from_pretrained(path, **dict.fromkeys(stands))
  for part, stand in stands.items():
    setattr(pipe, part, stand)
  pipe.set_progress_bar_config(disable=True)
  given = inputs((8, 8, 4), 16)
  noise = torch.from_numpy(given['noise'].transpose(0, 3, 1, 2).copy())
  options = {'num_inference_steps': STEPS, 'guidance_scale': 4.0, 'output_type': 'np'}
  if case in ('inpaint', 'img2img', 'refiner'):
    options |= {'image': torch.from_numpy(given['image'].transpose(0, 3, 1, 2).copy())}
    encode = pipe.vae.encode  # the mean, not a sample
    pipe.vae.encode = lambda x: type(
      'Encoded', (), {'latent_dist': type('D', (), {'sample': lambda s, g=None: encode(x).latent_dist.mode()})()}
    )()
  if case == 'instruct':
    image = torch.from_numpy(given['image'].transpose(0, 3, 1, 2).copy())
    options |= {'image': image, 'image_guidance_scale': 1.5}
  if case == 'inpaint':
    options |= {'mask_image': torch.from_numpy(given['mask'].transpose(0, 3, 1, 2).copy())}
  if case in ('img2img', 'refiner'):
    module = sys.modules[type(pipe).__module__]
    module.randn_tensor = lambda *args, **kwargs: noise
    options['strength'] = 0.5
  else:
    options['latents'] = noise
  if case == 'pixart':
    options |= {'height': 16, 'width': 16, 'use_resolution_binning': False, 'clean_caption': False}
  if case == 'flux':
    packed = noise.reshape(2, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 16)
    options |= {'latents': packed, 'height': 16, 'width': 16}
  if case == 'z_image':
    options |= {'height': 16, 'width': 16, 'guidance_scale': 3.0}  # what is 4 elsewhere
  if case not in UNTOLD:
    options['negative_prompt'] = [NEGATIVE] * 2
  return np.float32(2 * pipe(list(PROMPTS), **options).images - 1)


def follow(config: dict, start: np.ndarray) -> np.ndarray:
  """What a scheduler of diffusers makes of noise with `toy`."""
  import diffusers
  import torch

  options = {name: value for name, value in config.items() if name != '_class_name'}
  scheduler = getattr(diffusers, config['_class_name'])(**options)
  scheduler.set_timesteps(STEPS)
  x = torch.from_numpy(start) * getattr(scheduler, 'init_noise_sigma', 1.0)
  for time in scheduler.timesteps:
    seen = scheduler.scale_model_input(x, time) if hasattr(scheduler, 'scale_model_input') else x
    x = scheduler.step(0.8 * torch.sin(2 * seen + time / 200).float(), time, x).prev_sample
  return x.numpy()


def main(out: str, *cases: str) -> None:
  import tempfile

  start = inputs((2, 3, 2), 4)['noise']
  if cases:
    answers = dict(np.load(out))
  else:
    answers = {f'scheduler/{name}': follow(config, start) for name, config in SCHEDULERS.items()}
  with tempfile.TemporaryDirectory() as place:
    for case in cases or CASES:
      images = answers[case] = answer(case, pathlib.Path(place) / case)
      print(case, images.shape, images.min(), images.max(), images.std(), flush=True)
  np.savez_compressed(out, **answers)


if __name__ == '__main__':
  main(*sys.argv[1:])
