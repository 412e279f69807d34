"""Makes tests/golden/diffusers_*.npz: random models of diffusers (0.42.1), what they answer, and their state dicts.

  python tests/diffusers_models.py OUT [KIND...]  # where there are torch and diffusers, which the tests do not need
  python tests/diffusers_models.py --load FOLDER CLASS      # loads what jaxgen wrote, and says what it answers
  python tests/diffusers_models.py --published FOLDER KIND  # one of a published size: its folder, with answers.npz

Every parameter is drawn anew, so that none is zero or one, and rounded to float16, which halves the files.
"""

import importlib.util
import json
import pathlib
import sys

# Beside a CPU's torch torchvision may not load, and diffusers needs none of it.
_find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name.split('.')[0] == 'torchvision' else _find(name, *args)

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel  # noqa: E402

_JOINED = {
  'block_out_channels': [8, 16],
  'down_block_types': ['ResnetDownsampleBlock2D', 'SimpleCrossAttnDownBlock2D'],
  'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
  'up_block_types': ['SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D'],
  'resnet_time_scale_shift': 'scale_shift',
  'layers_per_block': 1,
  'norm_num_groups': 4,
  'attention_head_dim': 8,
  'in_channels': 6,
  'out_channels': 6,
}
MODELS = {
  'autoencoder_kl': (
    diffusers.AutoencoderKL,
    {
      'block_out_channels': [8, 16],
      'down_block_types': ['DownEncoderBlock2D', 'AttnDownEncoderBlock2D'],
      'up_block_types': ['AttnUpDecoderBlock2D', 'UpDecoderBlock2D'],
      'layers_per_block': 1,
      'latent_channels': 3,
      'norm_num_groups': 4,
      'shift_factor': 0.25,
      'scaling_factor': 0.5,
    },
  ),
  'vq_model': (
    diffusers.VQModel,
    {
      'block_out_channels': [8, 16],
      'down_block_types': ['DownEncoderBlock2D'] * 2,
      'up_block_types': ['UpDecoderBlock2D'] * 2,
      'layers_per_block': 1,
      'latent_channels': 3,
      'norm_num_groups': 4,
      'num_vq_embeddings': 11,
      'vq_embed_dim': 5,
    },
  ),
  'unet': (
    diffusers.UNet2DModel,
    {
      'block_out_channels': [8, 16],
      'down_block_types': ['DownBlock2D', 'AttnDownBlock2D'],
      'up_block_types': ['AttnUpBlock2D', 'UpBlock2D'],
      'layers_per_block': 1,
      'norm_num_groups': 4,
      'attention_head_dim': 8,
      'num_class_embeds': 5,
      'out_channels': 6,
      'freq_shift': 1,
      'flip_sin_to_cos': False,
      'downsample_padding': 0,
      'norm_eps': 1e-6,
    },
  ),
  'unet_resnet': (
    diffusers.UNet2DModel,
    {
      'block_out_channels': [8, 16],
      'down_block_types': ['ResnetDownsampleBlock2D', 'AttnDownBlock2D'],
      'up_block_types': ['AttnUpBlock2D', 'ResnetUpsampleBlock2D'],
      'downsample_type': 'resnet',
      'upsample_type': 'resnet',
      'resnet_time_scale_shift': 'scale_shift',
      'attn_norm_num_groups': 4,
      'layers_per_block': 1,
      'norm_num_groups': 4,
      'attention_head_dim': 8,
    },
  ),
  'unet_fourier': (
    diffusers.UNet2DModel,
    {
      'block_out_channels': [4, 8],
      'down_block_types': ['DownBlock2D', 'AttnDownBlock2D'],
      'up_block_types': ['AttnUpBlock2D', 'UpBlock2D'],
      'layers_per_block': 1,
      'norm_num_groups': 4,
      'attention_head_dim': 4,
      'time_embedding_type': 'fourier',
      'add_attention': False,
    },
  ),
  'unet_heads': (
    diffusers.UNet2DConditionModel,
    {
      'block_out_channels': [4, 8],
      'down_block_types': ['CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'],
      'up_block_types': ['CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'],
      'layers_per_block': 1,
      'norm_num_groups': 4,
      'attention_head_dim': [1, 4],
      'cross_attention_dim': 6,
    },
  ),
  'unet_condition': (
    diffusers.UNet2DConditionModel,
    {
      'block_out_channels': [8, 16],
      'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
      'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
      'layers_per_block': 1,
      'norm_num_groups': 4,
      'attention_head_dim': [1, 2],
      'cross_attention_dim': 6,
      'use_linear_projection': True,
    },
  ),
  'prior': (
    diffusers.PriorTransformer,
    {'num_attention_heads': 2, 'attention_head_dim': 8, 'num_layers': 2, 'embedding_dim': 12, 'num_embeddings': 5},
  ),
  'z_image': (
    diffusers.ZImageTransformer2DModel,
    {
      'in_channels': 4,
      'dim': 24,
      'n_layers': 2,
      'n_refiner_layers': 1,
      'n_heads': 2,
      'n_kv_heads': 2,
      'cap_feat_dim': 10,
      'axes_dims': [4, 4, 4],
      'axes_lens': [128, 16, 16],
    },
  ),
  'unclip_projection': (
    UnCLIPTextProjModel,
    {'clip_extra_context_tokens': 3, 'clip_embeddings_dim': 12, 'time_embed_dim': 32, 'cross_attention_dim': 6},
  ),
  'unet_unclip': (diffusers.UNet2DConditionModel, _JOINED | {'class_embed_type': 'identity', 'cross_attention_dim': 6}),
  'unet_level': (
    diffusers.UNet2DConditionModel,
    _JOINED | {'class_embed_type': 'timestep', 'cross_attention_norm': 'group_norm', 'cross_attention_dim': 32},
  ),
  'unet_imagen': (
    diffusers.UNet2DConditionModel,
    _JOINED
    | {
      'class_embed_type': 'timestep',
      'cross_attention_norm': 'group_norm',
      'cross_attention_dim': 32,
      'act_fn': 'gelu',
      'layers_per_block': [1, 2],
      'only_cross_attention': True,
      'encoder_hid_dim': 12,
      'addition_embed_type': 'text',
      'addition_embed_type_num_heads': 3,
      'time_embedding_dim': 24,
      'time_embedding_act_fn': 'gelu',
      'resnet_skip_time_act': True,
      'resnet_out_scale_factor': 1 / 0.7071,
      'mid_block_scale_factor': 1 / 0.7071,
    },
  ),
}

# Stable Diffusion's autoencoder, VQ-f4 of latent diffusion, DDPM's of 256x256, Stable Diffusion 1.5's.
PUBLISHED = {
  'autoencoder_kl': {
    'block_out_channels': [128, 256, 512, 512],
    'down_block_types': ['DownEncoderBlock2D'] * 4,
    'up_block_types': ['UpDecoderBlock2D'] * 4,
    'layers_per_block': 2,
    'latent_channels': 4,
  },
  'vq_model': {
    'block_out_channels': [128, 256, 512],
    'down_block_types': ['DownEncoderBlock2D'] * 3,
    'up_block_types': ['UpDecoderBlock2D'] * 3,
    'layers_per_block': 2,
    'latent_channels': 3,
    'num_vq_embeddings': 8192,
    'vq_embed_dim': 3,
  },
  'unet': {
    'block_out_channels': [128, 128, 256, 256, 512, 512],
    'down_block_types': [*['DownBlock2D'] * 4, 'AttnDownBlock2D', 'DownBlock2D'],
    'up_block_types': ['UpBlock2D', 'AttnUpBlock2D', *['UpBlock2D'] * 4],
    'attention_head_dim': None,
    'freq_shift': 1,
    'flip_sin_to_cos': False,
    'downsample_padding': 0,
    'norm_eps': 1e-6,
  },
  'unet_condition': {'attention_head_dim': 8, 'cross_attention_dim': 768},
}
SIDES = {'autoencoder_kl': 128, 'vq_model': 128, 'unet': 128, 'unet_condition': 64}  # of the input


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
  fan_in = max(int(np.prod(shape[1:])), 1)
  values = rng.standard_normal(shape) / np.sqrt(fan_in)
  values = 1 + 0.2 * values if 'norm' in name and name.endswith('weight') and len(shape) == 1 else values
  values = 0.1 * values if name.endswith('bias') else values
  return values.astype(np.float16)


def answers(
  kind: str, model: torch.nn.Module, rng: np.random.Generator, *, batch: int = 2, size=(8, 12), tokens: int = 3
) -> dict[str, np.ndarray]:
  if kind == 'z_image':
    return z_image_answers(model, rng)
  if kind in ('prior', 'unclip_projection'):
    return embedding_answers(kind, model, rng)
  channels = model.config.in_channels
  x = torch.from_numpy(rng.standard_normal((batch, channels, *size)).astype(np.float32))
  t = torch.tensor([3.0, 700.0])[-batch:]
  with torch.no_grad():
    match kind:
      case 'autoencoder_kl':
        gaussian = model.encode(x).latent_dist
        made = {'mean': gaussian.mean, 'logvar': gaussian.logvar, 'image': model.decode(gaussian.mean).sample}
      case 'vq_model':
        h = model.encode(x).latents
        index = model.quantize(h)[2][2].reshape(h.shape[0], *h.shape[2:])
        made = {'z': h, 'index': index, 'image': model.decode(h).sample}
      case 'unet' | 'unet_resnet' | 'unet_fourier':
        y = torch.tensor([1, 4])[-batch:] if model.config.num_class_embeds else None
        made = {'t': t, 'out': model(x, t, class_labels=y).sample} | ({} if y is None else {'y': y})
      case 'unet_condition' | 'unet_heads':
        width = model.config.cross_attention_dim
        text = torch.from_numpy(rng.standard_normal((batch, tokens, width)).astype(np.float32))
        made = {'t': t, 'text': text, 'out': model(x, t, encoder_hidden_states=text).sample}
      case 'unet_unclip' | 'unet_level' | 'unet_imagen':
        width = model.config.encoder_hid_dim or model.config.cross_attention_dim
        text = rng.standard_normal((batch, tokens, width)).astype(np.float32)
        given = rng.standard_normal((batch, 32)).astype(np.float32) if kind == 'unet_unclip' else np.float32([90, 250])
        mask = np.arange(tokens)[None] < np.array([[tokens], [tokens if kind == 'unet_imagen' else 2]])
        # Attention to the text alone takes no mask there.
        seen = None if kind == 'unet_imagen' else torch.from_numpy(mask)
        out = model(x, t, torch.from_numpy(text), class_labels=torch.from_numpy(given), attention_mask=seen)
        return {'x': x.numpy(), 't': t.numpy(), 'text': text, 'given': given, 'mask': mask, 'out': out.sample.numpy()}
  return {'x': x.numpy()} | {name: value.numpy() for name, value in made.items()}


def embedding_answers(kind: str, model: torch.nn.Module, rng: np.random.Generator) -> dict[str, np.ndarray]:
  made = {'x': (2, 12), 'pooled': (2, 12), 'text': (2, 5, 12)}
  made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in made.items()}
  x, pooled, text = (torch.from_numpy(array) for array in made.values())
  mask = torch.arange(5)[None] < torch.tensor([[5], [2]])
  with torch.no_grad():
    if kind == 'prior':
      t = torch.tensor([3.0, 700.0])
      out = model(x, t, proj_embedding=pooled, encoder_hidden_states=text, attention_mask=mask)[0]
      return made | {'t': t.numpy(), 'mask': mask.numpy(), 'out': out.numpy()}
    tokens, vector = model(
      image_embeddings=x, prompt_embeds=pooled, text_encoder_hidden_states=text, do_classifier_free_guidance=False
    )
  return made | {'tokens': tokens.numpy(), 'vector': vector.numpy()}


def z_image_answers(model: torch.nn.Module, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Of two texts of unlike lengths; time and velocity are turned, as ZImagePipeline does."""
  x = rng.standard_normal((2, 4, 6, 8)).astype(np.float32)
  text = rng.standard_normal((2, 40, 10)).astype(np.float32)
  lengths, t = (40, 5), np.float32([300, 900])
  with torch.no_grad():
    each = [torch.from_numpy(rows[:length]) for rows, length in zip(text, lengths, strict=True)]
    images = [torch.from_numpy(image)[:, None] for image in x]
    out = model(images, torch.from_numpy((1000 - t) / 1000), each, return_dict=False)[0]
  mask = np.arange(40)[None] < np.array(lengths)[:, None]
  return {'x': x, 't': t, 'text': text, 'mask': mask, 'out': -np.stack([image[:, 0].numpy() for image in out])}


def make(out: pathlib.Path, kinds: list[str]) -> None:
  for kind in kinds or MODELS:
    cls, config = MODELS[kind]
    rng = np.random.default_rng(0)
    model = cls(**config).eval()
    state = {name: draw(name, tuple(tensor.shape), rng) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(array.astype(np.float32)) for name, array in state.items()})
    arrays = {f'sd/{name}': array for name, array in state.items()} | answers(kind, model, rng)
    saved = json.dumps({'_class_name': cls.__name__} | dict(model.config), default=list)
    np.savez_compressed(out / f'diffusers_{kind}.npz', config=np.array(saved), **arrays)


def publish(folder: str, kind: str) -> None:
  rng = np.random.default_rng(0)
  model = MODELS[kind][0](**PUBLISHED[kind]).eval()
  for name, tensor in model.state_dict().items():
    tensor.copy_(torch.from_numpy(draw(name, tuple(tensor.shape), rng).astype(np.float32)))
  model.save_pretrained(folder)
  side = SIDES[kind]
  np.savez(f'{folder}/answers.npz', **answers(kind, model, rng, batch=1, size=(side, side), tokens=77))


def load(folder: str, name: str) -> None:
  model, info = getattr(diffusers, name).from_pretrained(folder, output_loading_info=True)
  count = sum(parameter.numel() for parameter in model.parameters())
  print(json.dumps({key: sorted(map(str, value)) for key, value in info.items()} | {'parameters': count}))


if __name__ == '__main__':
  match sys.argv[1:]:
    case '--load', folder, name:
      load(folder, name)
    case '--published', folder, kind:
      publish(folder, kind)
    case out, *kinds:
      make(pathlib.Path(out), kinds)
