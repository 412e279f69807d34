"""Makes tests/golden/encoders.npz: what transformers' (5.23.0) encoders answer. Their weights follow from their names.

  python tests/transformers_models.py tests/golden/encoders.npz

`folder(name, path)` also writes one of them as transformers does.
"""

import pathlib
import sys
import zlib

import numpy as np

BEGIN, END = 97, 98
CLIP_TEXT = {
  'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'intermediate_size': 48, 'vocab_size': 99,
  'max_position_embeddings': 16, 'projection_dim': 24, 'bos_token_id': BEGIN, 'eos_token_id': END, 'pad_token_id': 0,
}  # fmt: skip
CLIP_VISION = {
  'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'intermediate_size': 48, 'image_size': 28,
  'patch_size': 7, 'projection_dim': 24,
}  # fmt: skip
T5 = {
  'vocab_size': 100, 'd_model': 32, 'd_kv': 8, 'd_ff': 48, 'num_layers': 3, 'num_heads': 6,
  'feed_forward_proj': 'gated-gelu',
}  # fmt: skip
BERT = {
  'vocab_size': 100, 'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'intermediate_size': 48,
  'max_position_embeddings': 20,
}  # fmt: skip
DINOV2 = {
  'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'mlp_ratio': 2, 'image_size': 28,
  'patch_size': 7,
}  # fmt: skip
QWEN3 = {
  'vocab_size': 100, 'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 3, 'num_attention_heads': 4,
  'num_key_value_heads': 2, 'head_dim': 16, 'rope_parameters': {'rope_theta': 1e4, 'rope_type': 'default'},
}  # fmt: skip
# Parameters of DINOv2 in memory -> in files, which weights follow from.
IN_FILES = {
  'attention.q_proj': 'attention.attention.query',
  'attention.k_proj': 'attention.attention.key',
  'attention.v_proj': 'attention.attention.value',
  'attention.o_proj': 'attention.output.dense',
}
# name -> (class of transformers, class of its configuration, configuration)
MODELS = {
  'clip_text': ('CLIPTextModelWithProjection', 'CLIPTextConfig', CLIP_TEXT),
  'clip_text_plain': ('CLIPTextModel', 'CLIPTextConfig', CLIP_TEXT),
  'clip_text_gelu': ('CLIPTextModelWithProjection', 'CLIPTextConfig', CLIP_TEXT | {'hidden_act': 'gelu'}),
  'clip_text_legacy': ('CLIPTextModelWithProjection', 'CLIPTextConfig', CLIP_TEXT | {'eos_token_id': 2}),
  'clip_vision': ('CLIPVisionModelWithProjection', 'CLIPVisionConfig', CLIP_VISION),
  'clip': (
    'CLIPModel', 'CLIPConfig', {'text_config': CLIP_TEXT, 'vision_config': CLIP_VISION, 'projection_dim': 24}
  ),
  't5': ('T5EncoderModel', 'T5Config', T5),
  'bert': ('BertModel', 'BertConfig', BERT),
  'dinov2': ('Dinov2Model', 'Dinov2Config', DINOV2),
  'qwen3': ('Qwen3Model', 'Qwen3Config', QWEN3),
}  # fmt: skip


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A weight that follows from its name alone."""
  noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
  if len(shape) > 1:
    return np.asarray(
      noise * (1.0 if 'embed' in name or 'shared' in name else 2 * np.prod(shape[1:]) ** -0.5), np.float32
    )
  return np.asarray(0.1 * noise + ('norm' in name.lower() and name.endswith('weight')), np.float32)


def inputs() -> dict[str, np.ndarray]:
  """Texts with the end in the middle, at once, and at the last place; masks; images."""
  rng = np.random.default_rng(0)
  ids = rng.integers(1, BEGIN, (3, 16))
  ids[:, 0] = BEGIN
  ids[0, 7:], ids[1, 1:], ids[2, 15:] = 0, 0, END
  ids[0, 7], ids[1, 1] = END, END
  long = rng.integers(2, 100, (2, 150))  # as far apart as the last bucket of T5
  mask = np.arange(150)[None] < np.array([[150], [9]])
  return {
    'ids': ids,
    'mask': np.arange(16)[None] <= np.array([[7], [1], [15]]),
    'long': long,
    'long_mask': mask,
    'image': rng.normal(size=(2, 28, 28, 3)).astype(np.float32),
  }


def import_transformers():
  """transformers without torchvision, which need not fit a CPU build of torch."""
  sys.modules.setdefault('torchvision', None)
  import transformers

  return transformers


def model(name: str):
  """A model of transformers with the weights of `tensor`."""
  import torch

  transformers = import_transformers()
  kind, config, values = MODELS[name]
  made = getattr(transformers, kind)(getattr(transformers, config)(**values)).eval()
  with torch.no_grad():
    for key, parameter in made.named_parameters():
      prefix = 'text_model.' if kind == 'CLIPTextModel' and not key.startswith('text_model.') else ''
      for old, new in IN_FILES.items() if name == 'dinov2' else ():
        key = key.replace(old, new)
      parameter.copy_(torch.from_numpy(tensor(prefix + key, tuple(parameter.shape))))
  return made


def folder(name: str, path: pathlib.Path, **options) -> None:
  model(name).save_pretrained(path, **options)


def answers() -> dict[str, np.ndarray]:
  import torch

  given = {name: torch.from_numpy(array) for name, array in inputs().items()}
  found = {}
  with torch.no_grad():
    for name in ('clip_text', 'clip_text_gelu', 'clip_text_legacy'):
      made = model(name)
      for suffix, mask in (('', None), ('_masked', given['mask'].long())):
        out = made(given['ids'], attention_mask=mask, output_hidden_states=True)
        found |= {
          f'{name}{suffix}/penultimate': out.hidden_states[-2],
          f'{name}{suffix}/last': out.last_hidden_state,
          f'{name}{suffix}/projected': out.text_embeds,
        }
        if name == 'clip_text':
          found[f'{name}{suffix}/normed'] = made.text_model.final_layer_norm(out.hidden_states[-2])
          found[f'{name}{suffix}/pooled'] = made.text_model(given['ids'], attention_mask=mask).pooler_output
    made = model('clip_vision')
    pixels = given['image'].permute(0, 3, 1, 2)
    out = made(pixels, output_hidden_states=True)
    found |= {
      'clip_vision/penultimate': out.hidden_states[-2],
      'clip_vision/last': out.last_hidden_state,
      'clip_vision/projected': out.image_embeds,
      'clip_vision/pooled': made.vision_model(pixels).pooler_output,
    }
    out = model('clip')(given['ids'][:2], pixels)
    found['clip/logits'] = out.logits_per_text
    made = model('t5')
    found['t5/last'] = made(given['long']).last_hidden_state
    found['t5_masked/last'] = made(given['long'], attention_mask=given['long_mask'].long()).last_hidden_state
    made, ids, mask = model('bert'), given['ids'], given['mask'].long()
    for suffix, mask in (('', None), ('_masked', given['mask'].long())):
      out = made(ids, attention_mask=mask)
      found |= {f'bert{suffix}/last': out.last_hidden_state, f'bert{suffix}/pooled': out.pooler_output}
    out = model('qwen3')(given['ids'], output_hidden_states=True)
    found |= {'qwen3/last': out.last_hidden_state, 'qwen3/penultimate': out.hidden_states[-2]}
  made, wide = model('dinov2'), torch.nn.functional.interpolate(pixels, (42, 21))
  found |= {'dinov2/pooled': made(pixels).pooler_output, 'dinov2/wide': made(wide).pooler_output}
  return {name: array.detach().numpy() for name, array in found.items()}


if __name__ == '__main__':
  np.savez_compressed(sys.argv[1], **answers())
