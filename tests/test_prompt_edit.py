"""Prompt-to-Prompt from the command line: what options go together, and where a word's tokens are."""

import argparse
import types

import numpy as np
import pytest

from jaxgen.cli import prompt_edit


def _args(**given):
  names = ('to_prompt', 'instruction', 'negative', 'edit', 'inpaint', 'invert', 'until', 'interpolate', 'previews')
  return argparse.Namespace(**{**dict.fromkeys(names), 'emphasis': [], 'num': 2, **given})


@pytest.mark.parametrize(
  ('given', 'words', 'message'),
  [
    ({'emphasis': ['red=2']}, ['a'], '--emphasis is for --to-prompt'),
    ({'to_prompt': 'b'}, ['a', 'c'], 'goes with one --prompt'),
    ({'to_prompt': 'b'}, [], 'goes with one --prompt'),
    ({'to_prompt': 'b', 'edit': 'x.png'}, ['a'], 'samples from noise'),
    ({'to_prompt': 'b', 'num': 3}, ['a'], '--num is 3; it must be even'),
  ],
)
def test_options_that_do_not_go_together_are_refused(given, words, message):
  with pytest.raises(ValueError, match=message):
    prompt_edit.check(_args(**given), words)


def test_the_two_prompts_stand_side_by_side():
  assert prompt_edit.check(_args(to_prompt='b'), ['a']) == ['a', 'b']
  assert prompt_edit.check(_args(), ['a', 'c']) == ['a', 'c']


def test_a_word_is_found_by_its_tokens():
  known = {'red': [7], 'sunflower': [4, 5], '': []}
  tokenize = lambda texts: {'text': np.array([[1, *known[text], 2, 0, 0][:4] for text in texts])}  # noqa: E731
  trained = types.SimpleNamespace(stage=types.SimpleNamespace(tokenize=tokenize))
  assert prompt_edit.places(trained, [1, 7, 4, 5, 7, 2, 0], 'red') == [1, 4]
  assert prompt_edit.places(trained, [1, 7, 4, 5, 7, 2, 0], 'sunflower') == [2, 3]
  with pytest.raises(ValueError, match='--emphasis red: the word is not in --to-prompt'):
    prompt_edit.places(trained, [1, 4, 5, 2], 'red')
