"""The tokenizers of published models, through the `tokenizers` library (`pip install 'jaxgen[text]'`).

  clip       byte-level BPE over lower-cased text (Radford et al., 2021), rows of 77 with start 49406 and end 49407.
             CLIP L pads with the end's id; the second encoder of SDXL and that of Stable Diffusion 2 pad with 0.
  t5         SentencePiece's unigram model (Raffel et al., 2019), end 1, padding 0, no start.
  qwen       byte-level BPE; a text is what the user says in a chat, whose tokens stand around it (Yang et al., 2025).
  wordpiece  BERT's, uncased (Devlin et al., 2018), start [CLS], end [SEP], padding 0.

`jaxgen weights get clip-bpe`, `t5-tokenizer` and `minilm-tokenizer` fetch the files that these read; `from_folder`
reads the tokenizer's folder of a published pipeline.

Differs from transformers on purpose: where 0 is the padding, transformers turns a typed "!" (which is token 0) into
padding, and OpenCLIP, with which those models were trained, gives it its own id as the end of a word; so does this.
Text that spells a special token is text here, so that a prompt cannot contain an end token.
"""

import gzip
import hashlib
import json
import os
import pathlib
from typing import Any

from jaxgen.data.tokenizers.tokenizer import Tokenizer

_CLIP_MERGES = 49152 - 256 - 2
_CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_LENGTH = 77


def clip(merges: bytes, *, pad: int | None = None, length: int = CLIP_LENGTH) -> Tokenizer:
  """CLIP's tokenizer.

  Args:
    merges: OpenCLIP's `bpe_simple_vocab_16e6.txt.gz`, or its text, or a `merges.txt` of transformers.
    pad: id of padding; the end's own id when None (CLIP L), 0 for Stable Diffusion 2 and SDXL's second encoder.
    length: length of a row.

  Raises:
    ValueError: the file has too few merges, or `tokenizers` is not installed.
  """
  ids, pairs = _clip_vocabulary(merges)
  start = len(ids)
  return _clip(ids, pairs, start=start, pad=start + 1 if pad is None else pad, length=length)


def clip_files(merges: bytes, *, pad: int | None = None) -> dict[str, bytes]:
  """The files of a folder that `from_folder` and transformers read as `clip` of the same arguments."""
  ids, pairs = _clip_vocabulary(merges)
  start = len(ids)
  ids = ids | {'<|startoftext|>': start, '<|endoftext|>': start + 1}
  pad_token = '<|endoftext|>' if pad is None else next(piece for piece, number in ids.items() if number == pad)
  config = {
    'tokenizer_class': 'CLIPTokenizer',
    'model_max_length': CLIP_LENGTH,
    'bos_token': '<|startoftext|>',
    'eos_token': '<|endoftext|>',
    'unk_token': '<|endoftext|>',
    'pad_token': pad_token,
  }
  lines = ['#version: 0.2', *(' '.join(pair) for pair in pairs), '']
  return {
    'vocab.json': json.dumps(ids, ensure_ascii=False).encode(),
    'merges.txt': '\n'.join(lines).encode(),
    'tokenizer_config.json': json.dumps(config, indent=2).encode(),
  }


def _clip_vocabulary(merges: bytes) -> tuple[dict[str, int], list[tuple[str, ...]]]:
  """Ids of the pieces, without those of start and end, and the merges."""
  text = gzip.decompress(merges) if merges[:2] == b'\x1f\x8b' else merges
  lines = [line for line in text.decode('utf-8').split('\n')[1 : _CLIP_MERGES + 1] if line.strip()]
  pairs = [tuple(line.split()) for line in lines]
  if len(pairs) < _CLIP_MERGES or any(len(pair) != 2 for pair in pairs):
    raise ValueError(f'a BPE file of CLIP has {_CLIP_MERGES} merges of two pieces; this has {len(pairs)}')
  letters = _byte_letters()
  pieces = [*letters, *(f'{letter}</w>' for letter in letters), *(''.join(pair) for pair in pairs)]
  return {piece: number for number, piece in enumerate(pieces)}, pairs


def _clip(ids: dict[str, int], pairs: list[tuple[str, ...]], *, start: int, pad: int, length: int) -> Tokenizer:
  library = _library()
  core = library.Tokenizer(
    library.models.BPE(vocab=ids, merges=pairs, continuing_subword_prefix='', end_of_word_suffix='</w>', fuse_unk=False)
  )
  core.normalizer = library.normalizers.Sequence(
    [
      library.normalizers.NFC(),
      library.normalizers.Replace(library.Regex(r'\s+'), ' '),
      library.normalizers.Lowercase(),
    ]
  )
  core.pre_tokenizer = library.pre_tokenizers.Sequence(
    [
      library.pre_tokenizers.Split(library.Regex(_CLIP_PATTERN), behavior='removed', invert=True),
      library.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  return _tokenizer(core, name="CLIP's tokenizer", length=length, start=start, end=start + 1, pad=pad, size=start + 2)


def t5(tokenizer_json: bytes, *, length: int) -> Tokenizer:
  """T5's tokenizer.

  Args:
    tokenizer_json: `tokenizer.json` of transformers.
    length: length of a row; 77 for DeepFloyd, 120 for PixArt, 256 for SD3, 512 for Flux.
  """
  core = _from_json(tokenizer_json, 'Unigram')
  end, pad = _id(core, '</s>'), _id(core, '<pad>')
  return _tokenizer(
    core, name="T5's tokenizer", length=length, start=None, end=end, pad=pad, size=core.get_vocab_size()
  )


def wordpiece(tokenizer_json: bytes, *, length: int) -> Tokenizer:
  """BERT's tokenizer, of MiniLM and other sentence encoders.

  Args:
    tokenizer_json: `tokenizer.json` of transformers.
    length: length of a row.
  """
  core = _from_json(tokenizer_json, 'WordPiece')
  start, end, pad = (_id(core, token) for token in ('[CLS]', '[SEP]', '[PAD]'))
  name, size = "BERT's tokenizer", core.get_vocab_size()
  return _tokenizer(core, name=name, length=length, start=start, end=end, pad=pad, size=size)


def qwen(tokenizer_json: bytes, *, length: int, pad: str = '<|endoftext|>') -> Tokenizer:
  """Qwen3's tokenizer, whose rows hold a chat: the text as the user's, and the start of an answer.

  Args:
    tokenizer_json: `tokenizer.json` of transformers.
    length: length of a row; 512 for Z-Image. A text that is too long loses pieces, and none of the chat around it;
      transformers cuts off the end of the chat.
    pad: token that fills a row.
  """
  core = _from_json(tokenizer_json, 'BPE')
  im_start, im_end = _id(core, '<|im_start|>'), _id(core, '<|im_end|>')

  def ids(text: str) -> list[int]:
    return core.encode(text, add_special_tokens=False).ids

  after = (im_end, *ids('\n'), im_start, *ids('assistant\n'))
  made = _tokenizer(
    core, name="Qwen's tokenizer", length=length, start=None, end=im_end, pad=_id(core, pad), size=core.get_vocab_size()
  )
  # With `user`, since a text's first newlines are one token with that before them.
  return made._replace(pieces=lambda text: ids(f'user\n{text}'), end=None, before=(im_start,), after=after)


def from_folder(folder: str | os.PathLike, *, length: int | None = None) -> Tokenizer:
  """The tokenizer in a folder of a published pipeline, such as `tokenizer_2` of SDXL.

  Args:
    folder: a folder with tokenizer_config.json and vocab.json and merges.txt (CLIP) or tokenizer.json (T5, BERT, Qwen).
    length: length of a row; the folder's `model_max_length` when None.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: it is another kind of tokenizer, or the folder names no length.
  """
  folder = pathlib.Path(folder)
  config = _read_json(folder / 'tokenizer_config.json')
  kind = str(config.get('tokenizer_class', '')).removesuffix('Fast')
  limit = config.get('model_max_length')
  length = length or (int(limit) if isinstance(limit, int | float) and limit < 100_000 else None)
  if length is None:
    raise ValueError(f'{folder} names no model_max_length, so the length of the rows has to be given')
  if kind == 'CLIPTokenizer':
    ids = {str(piece): int(number) for piece, number in _read_json(folder / 'vocab.json').items()}
    lines = _read(folder / 'merges.txt').decode('utf-8').split('\n')
    pairs = [tuple(line.split()) for line in lines if line.strip() and not line.startswith('#version')]
    start, end = ids.get('<|startoftext|>'), ids.get('<|endoftext|>')
    if start is None or end != start + 1:
      raise ValueError(f'{folder}/vocab.json has start {start} and end {end}; want two ids side by side')
    pad = ids[_token(config.get('pad_token')) or '<|endoftext|>']
    return _clip(ids, pairs, start=start, pad=pad, length=length)
  if kind == 'Qwen2Tokenizer':
    pad = _token(config.get('pad_token')) or '<|endoftext|>'
    return qwen(_read(folder / 'tokenizer.json'), length=length, pad=pad)
  if kind in ('T5Tokenizer', 'BertTokenizer'):
    make = t5 if kind == 'T5Tokenizer' else wordpiece
    return make(_read(folder / 'tokenizer.json'), length=length)
  raise ValueError(
    f'{folder} holds a {kind or "tokenizer of no named class"}; want CLIPTokenizer, T5Tokenizer, BertTokenizer or '
    'Qwen2Tokenizer'
  )


def _token(value: Any) -> str | None:
  """A token of a config: its text, or an object with it."""
  return value.get('content') if isinstance(value, dict) else value


def _read(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except FileNotFoundError as error:
    raise FileNotFoundError(f'{path.parent} lacks {path.name}; a folder of a tokenizer has it') from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(_read(path))
  except ValueError as error:
    raise ValueError(f'{path} is not JSON: {error}') from error
  if not isinstance(found, dict):
    raise ValueError(f'{path} holds a {type(found).__name__}; want an object')
  return found


def _library() -> Any:
  try:
    import tokenizers
  except ImportError as error:
    raise ValueError("tokenizers of published models need `pip install 'jaxgen[text]'`") from error
  return tokenizers


def _from_json(data: bytes, model: str) -> Any:
  library = _library()
  try:
    kind = json.loads(data)['model']['type']
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'the file is no tokenizer.json: {error!r}') from error
  if kind != model:
    raise ValueError(f'the tokenizer.json holds a {kind} model; want {model}')
  core = library.Tokenizer.from_str(data.decode('utf-8'))
  core.no_padding()
  core.no_truncation()
  return core


def _id(core: Any, token: str) -> int:
  found = core.token_to_id(token)
  if found is None:
    raise ValueError(f'the tokenizer has no token {token}')
  return found


def _tokenizer(core: Any, *, name: str, length: int, start: int | None, end: int, pad: int, size: int) -> Tokenizer:
  fewest = 2 if start is None else 3
  if length < fewest:
    raise ValueError(f'rows of {length} tokens leave no room for text; want at least {fewest}')
  core.encode_special_tokens = True
  return Tokenizer(
    name=name,
    pieces=lambda text: core.encode(text, add_special_tokens=False).ids,
    length=length,
    start=start,
    end=end,
    pad=pad,
    size=size,
    fingerprint=hashlib.sha256(f'{core.to_str()} {length} {start} {end} {pad}'.encode()).hexdigest(),
  )


def _byte_letters() -> list[str]:
  """The 256 letters that stand for bytes: printable ones for themselves, the others from 256 on (GPT-2)."""
  printable = [*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in printable]
  return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]
