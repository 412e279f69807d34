"""Aspect-ratio buckets: each batch of one shape, the bucket of a step a function of (seed, step)."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxgen import data, sharding
from jaxgen.data.buckets import BucketLoader, bucket_shapes, nearest_shape
from jaxgen.experiment import Experiment
from jaxgen.objectives.base import Aux, Objective, Phase
from jaxgen.stage_setup import abstract_state, compile_step, initial_state

SHAPES = ((4, 8), (6, 6), (8, 4))


def bucket(shape, size: int, first: int) -> data.Dataset:
  """Images whose value is their own number."""
  numbers = np.arange(first, first + size, dtype=np.float32)[:, None, None, None] / 1000 - 0.5
  return data.from_arrays(numbers * np.ones((1, *shape, 3), np.float32), name=f'bucket {shape}')


def loader(sizes=(9, 20, 3), *, batch_size=4, seed=0) -> BucketLoader:
  firsts = np.cumsum((0, *sizes))
  buckets = [bucket(shape, size, first) for shape, size, first in zip(SHAPES, sizes, firsts, strict=False)]
  return BucketLoader(buckets, batch_size=batch_size, seed=seed)


def numbers(batch) -> list[int]:
  return np.round((batch['image'][:, 0, 0, 0] + 0.5) * 1000).astype(int).tolist()


def test_each_batch_has_one_shape_and_all_images_come_equally_often():
  made = loader()
  seen, shapes = collections.Counter(), collections.Counter()
  for step in range(4 * 8):  # 32 images: four epochs are 32 batches
    batch = made.rows(step, range(4))
    seen.update(numbers(batch))
    shapes[batch['image'].shape[1:3]] += 1
  assert shapes == {(4, 8): 9, (6, 6): 20, (8, 4): 3}  # Eq. 1: exactly as many as there are images
  assert seen == dict.fromkeys(range(32), 4)


def test_the_batch_is_a_function_of_seed_and_step():
  straight, other = loader(), loader(seed=1)
  again = loader()
  for step in (31, 7, 0, 1000, 7):  # in any order, with nothing remembered
    np.testing.assert_array_equal(straight.rows(step, range(4))['image'], again.rows(step, range(4))['image'])
    np.testing.assert_array_equal(straight.rows(step, [2])['image'][0], again.rows(step, range(4))['image'][2])
  places = [[made.place(step) for step in range(64)] for made in (straight, other)]
  assert places[0] != places[1]
  epochs = [[k for k, _ in places[0][first : first + 32]] for first in (0, 32)]
  assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])
  assert len(set(places[0])) == 64  # no batch twice
  assert [k for k, _ in places[0][:8]] != sorted(k for k, _ in places[0][:8])


@pytest.mark.parametrize('sizes', [(1, 1, 30), (100, 1, 1), (7,), (5, 5, 5)])
def test_every_step_has_a_place_whatever_the_sizes(sizes):
  made = loader(sizes)
  places = [made.place(step) for step in range(3 * sum(sizes))]
  assert len(set(places)) == len(places)
  for k in range(len(sizes)):  # of each bucket the batches are numbered without a gap
    own = sorted(number for bucket_, number in places if bucket_ == k)
    assert own == list(range(len(own)))
    assert abs(len(own) - len(places) * sizes[k] / sum(sizes)) <= len(sizes)


def test_mistakes_are_named():
  with pytest.raises(ValueError, match='3 images in all buckets are less than a batch of 4'):
    loader((1, 1, 1))
  labelled = data.from_arrays(np.full((4, 4, 4, 3), -0.5), [0, 1, 0, 1])
  with pytest.raises(ValueError, match='classes must be the same'):
    BucketLoader([bucket((4, 8), 4, 0), labelled], batch_size=4, seed=0)
  assert loader().identity != loader(seed=1).identity != loader((9, 20, 4)).identity


def test_shapes_have_the_pixels_of_a_square():
  shapes = bucket_shapes(512)
  assert (512, 512) in shapes and set(shapes) == {shape[::-1] for shape in shapes}
  assert all(height % 64 == width % 64 == 0 for height, width in shapes)
  assert all(0.85 * 512**2 < height * width <= 512**2 for height, width in shapes)
  assert nearest_shape((3000, 4000), shapes) == (448, 576) and nearest_shape((4000, 1), shapes) == shapes[0]
  with pytest.raises(ValueError, match='size 500 is no multiple of 64'):
    bucket_shapes(500)


def test_a_folder_is_sorted_into_buckets_once(tmp_path, capsys):
  for i, (height, width) in enumerate([(40, 80), (50, 90), (60, 60), (90, 40)]):
    kind = tmp_path / 'in' / ('cat', 'dog')[i % 2]
    kind.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (width, height), (10 * i, 0, 0)).save(kind / f'{i}.png')
  options = {'data_dir': tmp_path / 'data', 'progress': True}
  buckets = data.image_buckets(tmp_path / 'in', SHAPES, **options)
  assert '4x8: 2, 6x6: 1, 8x4: 1' in capsys.readouterr().err
  assert [b.read(0)['image'].shape[:2] for b in buckets] == [(4, 8), (6, 6), (8, 4)]
  assert [b.num_examples for b in buckets] == [2, 1, 1]
  assert {b.class_names for b in buckets} == {('cat', 'dog')}
  again = data.image_buckets(tmp_path / 'in', SHAPES, **options)
  assert capsys.readouterr().err == ''
  assert [b.fingerprint for b in again] == [b.fingerprint for b in buckets]
  Image.new('RGB', (80, 40)).save(tmp_path / 'in' / 'cat' / 'new.png')
  assert data.image_buckets(tmp_path / 'in', SHAPES, **options)[0].num_examples == 3


def test_a_step_is_compiled_for_each_shape():
  made = loader((8, 8), batch_size=8)

  def loss(params, state, frozen, batch, key):
    value = jnp.mean((batch['image'] - params['net']['mean']) ** 2)
    return value, Aux({'loss': value, 'height': jnp.float32(batch['image'].shape[1])})

  objective = Objective(
    lambda key, *_: {'params': {'net': {'mean': jnp.zeros(())}}, 'extra': {}}, (Phase('mse', 'net', loss),), None
  )
  mesh = sharding.make_mesh()
  stage = Experiment(
    objective=objective, optimizers={'net': optax.sgd(0.5)}, averages={}, data=made, steps=4, mesh=mesh
  )
  abstract = abstract_state(stage)
  step, state = compile_step(stage, abstract, {}), initial_state(stage, abstract)
  heights = []
  with made.iterate(0, sharding.batch_sharding(mesh)) as batches:
    for number in range(4):
      state, metrics = step(state, {}, next(batches), jax.random.key(number))
      heights.append(float(metrics['height'].total))  # of one step
  assert sorted(heights) == [4, 4, 6, 6]
  np.testing.assert_allclose(heights, [SHAPES[made.place(number)[0]][0] for number in range(4)])
