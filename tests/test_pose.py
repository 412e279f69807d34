"""Pictures of poses and depths."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxgen.data.pose import COLORS, LIMBS, depth, keypoints, pose, read_depth


def _person(points):
  made = np.zeros((18, 3))
  for number, (x, y) in points.items():
    made[number] = x, y, 1
  return made


def test_a_limb_lies_between_its_joints_in_its_color():
  people = _person({2: (40, 120), 3: (200, 120)})[None]  # right shoulder and elbow
  image = pose(people, height=240, width=256)
  limb = LIMBS.index((2, 3))
  np.testing.assert_allclose(image[120, 120], 0.6 * np.array(COLORS[limb]) / 255, atol=0.01)
  np.testing.assert_allclose(image[120, 40], np.array(COLORS[2]) / 255, atol=0.1)
  assert not image[40].any() and image[120, 44:196].any(axis=-1).all()
  one_end = pose(_person({2: (40, 120)})[None], height=240, width=256)
  assert one_end[120, 40].any() and not one_end[120, 120].any()


def test_people_are_read_from_each_kind_of_file(tmp_path):
  coco = np.arange(17 * 3, dtype=float).reshape(17, 3) + 1
  body = np.arange(25 * 3, dtype=float).reshape(25, 3)
  files = {
    'coco': [{'keypoints': coco.ravel().tolist()}],
    'annotations': {'annotations': [{'keypoints': coco.ravel().tolist()}]},
    'body25': {'people': [{'pose_keypoints_2d': body.ravel().tolist()}]},
  }
  found = {}
  for name, content in files.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
    found[name] = keypoints(tmp_path / f'{name}.json')
    assert found[name].shape == (1, 18, 3)
  np.testing.assert_array_equal(found['coco'], found['annotations'])
  np.testing.assert_array_equal(found['coco'][0, [2, 5, 17]], coco[[6, 5, 3]])  # shoulders, left ear
  np.testing.assert_array_equal(found['coco'][0, 1, :2], coco[[5, 6], :2].mean(axis=0))
  np.testing.assert_array_equal(found['body25'][0, [8, 17]], body[[9, 18]])
  for content, message in (('{', 'is no JSON'), ('{"people": []}', 'no keypoints of anybody'),
                           ('[{"keypoints": [1, 2, 3]}]', '1 keypoints of a person; wanted 17')):  # fmt: skip
    (tmp_path / 'bad.json').write_text(content)
    with pytest.raises(ValueError, match=message):
      keypoints(tmp_path / 'bad.json')


def test_the_nearest_is_white(tmp_path):
  millimetres = np.array([[500, 1000], [4000, 0]], np.uint16)
  Image.fromarray(millimetres).save(tmp_path / 'depth.png')
  values = read_depth(tmp_path / 'depth.png')
  np.testing.assert_array_equal(values, millimetres)
  made = depth(values, of_distance=True, near=0.0)
  assert made[0, 0, 0] == 1 and made[1, 0, 0] == made[1, 1, 0] == 0 and 0.3 < made[0, 1, 0] < 0.5
  np.testing.assert_allclose(depth(np.array([[1.0, 3.0]]), near=0.0)[0, :, 0], [0, 1])
  with pytest.raises(ValueError, match='no depth is known'):
    depth(np.zeros((2, 2)), of_distance=True)
  (tmp_path / 'no.png').write_text('no')
  with pytest.raises(ValueError, match='is no picture'):
    read_depth(tmp_path / 'no.png')
