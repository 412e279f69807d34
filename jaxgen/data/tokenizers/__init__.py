"""Tokenizers: text to rows of token ids, the same ids as the published models were trained on."""

from jaxgen.data.tokenizers.prompt_weights import parse, weighted
from jaxgen.data.tokenizers.published import clip, from_folder, t5, wordpiece
from jaxgen.data.tokenizers.tokenizer import Row, Tokenizer, encode, encode_all, with_tokens
from jaxgen.data.tokenizers.words import from_captions, load_words, save_words

__all__ = [
  'Row',
  'Tokenizer',
  'clip',
  'encode',
  'encode_all',
  'from_captions',
  'from_folder',
  'load_words',
  'parse',
  'save_words',
  't5',
  'weighted',
  'with_tokens',
  'wordpiece',
]
