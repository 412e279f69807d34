"""InstructPix2Pix: pairs with one change, two scales of guidance, and networks that start as their bases."""

import argparse
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen.cli import edit, prompts
from jaxgen.data.dataset import BadRecord
from jaxgen.data.datasets import avatars, avatars_pairs
from jaxgen.data.datasets.avatars_styles import ATTRIBUTES
from jaxgen.data.datasets.own_pairs import own_pairs
from jaxgen.evaluators.edits import scores
from jaxgen.models.concatenated import Concatenated
from jaxgen.models.dit import DiT
from jaxgen.objectives.conditioning import always, labels
from jaxgen.objectives.instruct import instructed, two_scales
from jaxgen.processes import parameterisation
from jaxgen.processes.rectified_flow import rectified_flow
from tests.toys import write_pairs


@pytest.mark.parametrize('split', ['train', 'test'])
def test_a_pair_differs_in_one_attribute_that_an_instruction_names(split):
  changes, texts = set(), set()
  for number in range(180):
    style, before = avatars.record_choice(avatars_pairs.DEFAULT, split, number)
    after = avatars_pairs.changed(style, before, np.random.default_rng([number, 1]), held=split == 'train')
    was, attributes = (avatars.encode_words(choice.words) for choice in (before, after))
    name = ATTRIBUTES[avatars_pairs.difference(was, attributes)]
    assert not np.any((was < 0) & (attributes >= 0)), 'nothing comes into sight'
    assert split != 'train' or not avatars.held_out(style, avatars.bound_pair(style, after.words))
    changes.add(name)
    record = {'was': was, 'attributes': attributes}
    for seed in range(3):
      text = avatars_pairs.instruction(record, np.random.default_rng(seed))
      assert text == avatars_pairs.instruction(record, np.random.default_rng(seed))
      texts.add(text)
  assert len(changes) > 12 and len(texts) > 150
  assert not any('none' in text or 'an one' in text for text in texts)
  with pytest.raises(ValueError, match='0 attributes that differ; wanted one'):
    avatars_pairs.instruction({'was': was, 'attributes': was}, np.random.default_rng(0))


def test_the_two_pictures_of_a_record_come_apart(tmp_path):
  write_pairs(tmp_path)
  dataset = avatars_pairs.avatars_pairs('train', data_dir=tmp_path)
  record = dataset.read(3)
  assert record['image'].shape == record['before'].shape == (32, 32, 3)
  assert (record['before'] == -1).all() and (record['image'] == 1).all()
  avatars_pairs.difference(record['was'], record['attributes'])


def test_own_pairs_are_paired_by_name(tmp_path):
  for side, value in (('before', 0), ('after', 255)):
    (tmp_path / side).mkdir()
    for i, name in enumerate(('b', 'a', 'c')):
      picture = np.full((8, 8, 3), abs(value - 60 * i) if name != 'c' else 77, np.uint8)
      Image.fromarray(picture).save(tmp_path / side / f'{name}.png')
      if side == 'after':
        (tmp_path / side / f'{name}.txt').write_text(f'make it {name}')
  pairs = own_pairs(tmp_path, size=8, data_dir=tmp_path / 'data')
  found = {}
  for i in range(3):
    try:
      record = pairs.read(i)
      found[record['caption']] = tuple(round(float((record[f].mean() + 1) * 127.5)) for f in ('before', 'image'))
    except BadRecord as error:
      found['bad'] = 'the same picture' in str(error)
  assert found == {'make it b': (0, 255), 'make it a': (60, 195), 'bad': True}
  (tmp_path / 'before' / 'b.png').rename(tmp_path / 'before' / 'd.png')
  with pytest.raises(ValueError, match='has b without its one partner'):
    own_pairs(tmp_path, size=8, data_dir=tmp_path / 'data')


def test_own_pairs_are_never_paired_by_chance(tmp_path):
  def write(*names):
    shutil.rmtree(tmp_path, ignore_errors=True)
    for i, name in enumerate(names):
      (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / name)

  refused = lambda text: pytest.raises(ValueError, match=text)  # noqa: E731
  write('before/x/b.png', 'before/y/a.png', 'after/a.png', 'after/b.png')
  with refused('has a without its one partner'):
    own_pairs(tmp_path, size=8, data_dir=tmp_path / 'data')
  write('before/a.jpg', 'before/a.k.jpg', 'after/a.png', 'after/a.k.png')  # 'a.k.png' is before 'a.png'
  with refused(r'sorts a(\.k)? differently in before and after'):
    own_pairs(tmp_path, size=8, data_dir=tmp_path / 'data')
  write('before/a.jpg', 'before/a.png', 'after/a.png', 'after/a.jpg')
  with refused('has a without its one partner'):
    own_pairs(tmp_path, size=8, data_dir=tmp_path / 'data')


def test_edits_are_right_where_they_change_what_was_asked_and_nothing_else():
  was = np.array([[0, 1, 2, -1], [0, 1, 2, 0]])
  wanted = np.array([[3, 1, 2, -1], [0, 4, 2, -1]])
  assert scores(wanted, was, wanted) == (1, 1)
  assert scores(was, was, wanted) == (0, 1)
  half = np.array([[3, 1, 0, 9], [0, 1, 2, 9]])
  assert scores(half, was, wanted) == (0.5, 0.75)
  with pytest.raises(ValueError, match='no pair changes an attribute'):
    scores(was, was, was)


NET = DiT(patch=2, depth=2, width=8, heads=2, num_classes=3)


def test_a_network_that_reads_a_picture_too_starts_as_it_was():
  net = Concatenated(NET)
  rng = np.random.default_rng(0)
  x, picture = (jnp.asarray(rng.standard_normal((2, 4, 4, 3)), jnp.float32) for _ in range(2))
  t, cond = jnp.full(2, 500.0), {'label': jnp.array([0, 2])}
  edited = {**cond, 'concat': picture}
  shapes = jax.eval_shape(net.init, jax.random.key(0), x, t, edited)['params']
  assert set(shapes) == {*jax.eval_shape(NET.init, jax.random.key(0), x, t, cond)['params'], 'concat_embed'}
  params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), shapes)
  rest = {name: tree for name, tree in params.items() if name != 'concat_embed'}
  run = jax.jit(lambda net_params, cond: net.apply({'params': net_params}, x, t, cond))
  base = jax.jit(lambda tree: NET.apply({'params': tree}, x, t, cond))(rest)
  zero = rest | {'concat_embed': {'kernel': jnp.zeros_like(params['concat_embed']['kernel'])}}
  np.testing.assert_allclose(run(zero, edited), base, rtol=0, atol=1e-6)
  assert np.abs(run(params, edited) - base).max() > 1e-3
  # V patches(x) with V = W is W patches(x + picture).
  same = rest | {'concat_embed': {'kernel': rest['patch_embed']['kernel']}}
  both = jax.jit(lambda tree: NET.apply({'params': tree}, x + picture, t, cond))(rest)
  np.testing.assert_allclose(run(same, edited), both, rtol=0, atol=1e-4)
  with pytest.raises(ValueError, match='want both alike'):
    jax.eval_shape(net.apply, {'params': params}, x, t, {**cond, 'concat': picture[:, :2]})


def test_drops_are_exclusive_and_guidance_has_two_scales():
  conditioner = instructed(labels(4), shape=(2, 2, 3), drop_rate=0.2)
  batch = {'image': jnp.zeros((4000, 2, 2, 3)), 'label': jnp.zeros(4000, int), 'before': jnp.ones((4000, 2, 2, 3))}
  cond, _ = conditioner.dropped({}, {}, batch, drop_key=jax.random.key(0), encode_key=jax.random.key(1))
  no_text, no_picture = np.asarray(cond['label']) == 4, np.asarray(cond['concat']).max(axis=(1, 2, 3)) == 0
  for share in (no_text & no_picture, no_text & ~no_picture, ~no_text & no_picture):
    assert abs(share.mean() - 0.2) < 0.02
  process = rectified_flow()
  space = parameterisation.x0(process)

  def denoise(x_t, t, cond):
    return space.predict(x_t + 10.0 * (cond['label'] != 4)[:, None, None, None] + cond['concat'], x_t, t)

  cond, without = conditioner.condition(
    {}, {}, {n: a[:1] for n, a in batch.items()}, jax.random.split(jax.random.key(0), 1)
  )
  guided = two_scales(conditioner, text=3.0, image=2.0)(denoise, process, without)
  x = jnp.zeros((1, 2, 2, 3))
  np.testing.assert_allclose(guided(x, jnp.full(1, 0.5), cond).x0, jnp.full(x.shape, 2.0 * 1 + 3.0 * 10), rtol=1e-5)


def _args(**given):
  options = dict.fromkeys(('edit', 'inpaint', 'mask', 'repeats', 'invert', 'prompt', 'prompts', 'instruction'))
  return argparse.Namespace(**options | {'negative': None, 'image_guidance': None, 'num': 2} | given)


def _trained(conditioner):
  return types.SimpleNamespace(stage=types.SimpleNamespace(objective=types.SimpleNamespace(conditioner=conditioner)))


def test_instructions_that_do_not_fit_are_refused(tmp_path):
  with pytest.raises(ValueError, match='this model takes no instruction'):
    edit.instruction_fields(_args(edit=tmp_path, instruction=['make it red']), _trained(always('text')))
  with pytest.raises(ValueError, match='give it --edit IMAGE and --instruction TEXT'):
    edit.instruction_fields(_args(edit=tmp_path), _trained(instructed(labels(2), shape=(2, 2, 3))))
  with pytest.raises(ValueError, match='give it with --edit IMAGE'):
    edit.check(_args(instruction=['make it red']))
  with pytest.raises(ValueError, match='--instruction and --prompt are both given'):
    prompts.read(_args(instruction=['make it red'], prompt=['a cat']))
  with pytest.raises(ValueError, match='--instruction is empty'):
    prompts.read(_args(instruction=[' ']))
