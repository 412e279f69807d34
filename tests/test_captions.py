"""Captions of a step: chosen by the loader's random numbers, as token ids."""

import collections
import logging

import numpy as np
import pytest

from jaxgen import data
from jaxgen.data import captions, tokenizers
from jaxgen.data.datasets import avatars, avatars_captions

NUM = 24


def dataset(caption) -> data.Dataset:
  def decode(index):
    return {'image': np.zeros((2, 2, 3), np.float32), 'label': np.int32(index), 'caption': caption(index)}

  return data.Dataset('toys', 'train', range(NUM), decode, 'fingerprint')


def test_a_batch_holds_token_ids_of_phrasings_that_vary():
  two = dataset(lambda index: f'toy {index}\nnumber {index}\n')
  tokenizer = tokenizers.from_captions(captions.sample_captions(two, number=200))
  loader = data.Loader(two, batch_size=8, seed=1, cache=True, transform=captions.tokenized(tokenizer))
  assert loader.spec['text'].shape == (8, 2)
  seen = collections.defaultdict(set)
  for step in range(24):
    batch = loader.rows(step, range(8))
    for label, (noun, number) in zip(batch['label'], batch['text'], strict=True):
      assert tokenizer.vocabulary[number - 2] == str(label)
      seen[int(label)].add(tokenizer.vocabulary[noun - 2])
  assert all(found == {'toy', 'number'} for found in seen.values())


def test_tags_change_their_order():
  describe = captions.tags(keep_first=1)
  record = {'caption': 'sks, red, tall , happy,'}
  found = {describe(record, np.random.default_rng(seed)) for seed in range(60)}
  assert len(found) == 6
  assert all(text.startswith('sks, ') and sorted(text.split(', ')) == ['happy', 'red', 'sks', 'tall'] for text in found)
  few = [captions.tags(keep_first=1, drop=0.5)(record, np.random.default_rng(seed)) for seed in range(60)]
  assert 1.0 < np.mean([len(text.split(', ')) for text in few]) - 1 < 2.0


def test_captions_that_are_cut_off_are_counted(caplog):
  tokenizer = tokenizers.from_captions(['a b c'], length=2)
  transform = captions.tokenized(tokenizer)
  with caplog.at_level(logging.WARNING):
    for _ in range(25):
      transform({'caption': 'a b c'}, np.random.default_rng(0))
  assert [record.message.split(' ')[0] for record in caplog.records] == ['1', '10']


def test_a_dataset_without_captions():
  captions.check_captions(dataset(lambda index: 'a toy' if index == 12 else ''), look_at=NUM)
  with pytest.raises(ValueError, match=r'none of 24 records of toys \(train\) has a caption; add NAME.txt'):
    captions.check_captions(dataset(lambda index: ' '))


def test_avatars_words_cover_their_captions():
  vocabulary = avatars_captions.all_words()
  tokenizer = tokenizers.words.words(vocabulary, length=avatars_captions.LENGTH)
  longest = 0
  for number in range(240):
    choice = avatars.record_choice(avatars.DEFAULT, 'test', number)[1]
    record = {'attributes': avatars.encode_words(choice.words)}
    text = avatars_captions.describe(record, np.random.default_rng(number))
    assert not tokenizer.unknown(text), text
    longest = max(longest, len(tokenizer.pieces(text)))
  assert longest <= avatars_captions.LENGTH
  assert not tokenizer.unknown('a smiling woman with red hair and glasses')
