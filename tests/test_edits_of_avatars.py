"""Prompt-to-Prompt on the model that comes with jaxgen: what an edit of a color leaves alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import model_folder, sample
from jaxgen.cli.config import load_run
from jaxgen.data.datasets import avatars, avatars_pairs
from jaxgen.data.datasets.avatars_captions import caption
from jaxgen.evaluators.edits import scores
from jaxgen.generation.prompt_to_prompt import aligned, prompt_to_prompt
from jaxgen.models.layers.attention_edit import Edit
from jaxgen.objectives.base import sample_from, split_keys
from jaxgen.pretrained import attribute_classifier
from jaxgen.processes.process import image_noise
from jaxgen.samplers.clipping import clip

COLORS = ('hair_color', 'skin', 'clothes_color', 'background', 'hat_color', 'color')
PAIRS = 32


def _swaps():
  """Captions of held-out pictures, the same with one color changed, and the attributes of both."""
  found, number = [], 0
  while len(found) < PAIRS:
    style, before = avatars.record_choice(avatars_pairs.DEFAULT, 'test', number)
    after = avatars_pairs.changed(style, before, np.random.default_rng(number))
    was, wanted = (avatars.encode_words(choice.words) for choice in (before, after))
    texts = [caption(words, np.random.default_rng(number), keep=1.0) for words in (was, wanted)]
    differ = [a != b for a, b in zip(*map(str.split, texts), strict=False)]
    name = avatars.ATTRIBUTES[avatars_pairs.difference(was, wanted)]
    if name in COLORS and sum(differ) == 1 and len(set(map(len, map(str.split, texts)))) == 1:
      found.append((texts, was, wanted))
    number += 1
  return found


def _shapes(images):
  """Where pictures are not of the color that most of their border has."""
  x = images / 255.0
  border = np.concatenate([x[:, :2].reshape(len(x), -1, 3), x[:, :20, :2].reshape(len(x), -1, 3)], axis=1)
  return np.linalg.norm(x - np.median(border, axis=1)[:, None, None], axis=-1) > 0.2


@pytest.mark.slow
def test_colors_change_and_shapes_stay():
  config, module = load_run(model_folder.resolved('jaxgen/avatars'))
  trained = sample.restore(module.build(config), model_folder.resolved('jaxgen/avatars'))
  swaps = _swaps()
  ids = trained.stage.tokenize([text for texts, *_ in swaps for text in texts])['text']
  was, wanted = (np.stack([swap[i] for swap in swaps]) for i in (1, 2))
  rows = ids.tolist()
  edits = [aligned(*rows[i : i + 2]) for i in range(0, len(rows), 2)]
  edit = Edit(*map(jnp.concatenate, zip(*edits, strict=True)))
  d, classify = trained.stage.objective.denoising, attribute_classifier.load()

  def again(params, frozen, cond, keys):  # the target's own prompt, with the source's noise
    keys = jnp.repeat(keys[::2], 2, axis=0)
    return sample_from(d, params, frozen, cond, image_noise(split_keys(keys)[0], d.shape), keys)

  found = {}
  edited = prompt_to_prompt(d, edit, scale=2.0, cross=1.0, itself=0.8, after=(clip(),))
  for name, sample_fn in (('edited', edited), ('sampled again', again)):
    images = sample.sample(trained, {'text': ids}, num=len(ids), batch_size=len(ids), sample_fn=sample_fn)
    source, target = (_shapes(images[i::2].astype(np.float32)) for i in (0, 1))
    overlap = (source & target).sum(axis=(1, 2)) / np.maximum((source | target).sum(axis=(1, 2)), 1)
    changed, _ = scores(classify(images[1::2] / np.float32(127.5) - 1), was, wanted)
    found[name] = float(overlap.mean())
    print(f'{name}: IoU of shapes {overlap.mean():.3f}, colors as asked {changed:.3f}')
    assert changed > 0.85, changed
  assert found['edited'] > 0.9 and found['edited'] > found['sampled again'], found
