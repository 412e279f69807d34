"""A negative prompt removes what it names: shares of samples that show it, of the model that comes with jaxgen."""

import numpy as np
import pytest

import jaxgen
from jaxgen import model_folder
from jaxgen.data.datasets.avatars_styles import ATTRIBUTES, VOCABULARY
from jaxgen.pretrained import attribute_classifier

# A prompt, what it is led away from, the attribute whose words are counted, and the most of them that may be left. What
# the model draws well at a prompt's word goes altogether; of glasses, which it often leaves out, some stay.
CASES = (
  ('a person', 'a person with red hair', 'hair_color', ('red',), 0.1),
  ('a person', 'a person on a blue background', 'background', ('blue',), 0.1),
  ('a person', 'a person with glasses', 'glasses', ('glasses', 'sunglasses'), 0.8),
)
NUM = 96


@pytest.mark.slow
def test_a_negative_prompt_removes_what_it_names():
  run, classify = jaxgen.load_run(model_folder.resolved('jaxgen/avatars')), attribute_classifier.load()
  for prompt, negative, attribute, words, most in CASES:
    place = ATTRIBUTES.index(attribute)
    values = [VOCABULARY[attribute].index(word) for word in words]

    def share(negative, prompt=prompt, place=place, values=values):
      images = run.sample(NUM, prompt=prompt, negative=negative, seed=3)
      return np.isin(classify(images.astype(np.float32) / 127.5 - 1)[:, place], values).mean()

    without, led = share(None), share(negative)
    print(f'{prompt!r}: {attribute} {words} in {without:.3f} of samples, in {led:.3f} away from {negative!r}')
    assert led <= most * without
