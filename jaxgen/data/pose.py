"""Poses and depths as pictures, in the form that published control branches were trained on.

  pose    each limb an ellipse, each joint a disc, in OpenPose's colors on black, of people's keypoints
  depth   near is white and far is black, of a 16-bit picture or an array

Keypoints are those of COCO (17), of OpenPose's COCO model (18) or of its BODY_25: x and y in pixels and a confidence,
of which 0 is a point that is not seen. Cao et al. 2019, "OpenPose"; Zhang et al. 2023, ControlNet, whose renderer has
limbs of 4 pixels for a picture of 512: here they grow with the picture.
"""

import json
import math
import os
import pathlib

import numpy as np
from jaxtyping import Float, Float32

# Of OpenPose's 18 points, 0 the nose and 1 the neck: the ends of each limb, in the order of the colors.
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
         (0, 14), (14, 16), (0, 15), (15, 17))  # fmt: skip
COLORS = (
  (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
  (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
  (255, 0, 170), (255, 0, 85),
)  # fmt: skip
_NECK = 1
_OF_COCO = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)  # -1: between the shoulders
_OF_BODY_25 = (*range(8), *range(9, 19))
_SHOULDERS = (5, 6)
_SIDE = 512  # side of the picture that the renderer's sizes are meant for
_STICK = 4

Points = Float[np.ndarray, 'n 18 3']


def pose(people: Points, *, height: int, width: int) -> Float32[np.ndarray, 'h w 3']:
  """The picture of some people, in [0, 1].

  Args:
    people: OpenPose's 18 points of each.
    height, width: height and width, in the pixels of the points.
  """
  from PIL import Image, ImageDraw

  scale = 4  # drawn larger, so that edges are smooth
  image = Image.new('RGB', (width * scale, height * scale))
  pen = ImageDraw.Draw(image)
  stick = max(_STICK * min(height, width) / _SIDE, 0.75) * scale
  for person in people:
    seen = person[:, 2] > 0
    xy = person[:, :2] * scale
    for (one, other), color in zip(LIMBS, COLORS, strict=False):
      if seen[one] and seen[other]:
        pen.polygon(_ellipse(xy[one], xy[other], stick), fill=tuple(int(0.6 * value) for value in color))
    for (x, y), color, there in zip(xy, COLORS, seen, strict=True):
      if there:
        pen.ellipse((x - stick, y - stick, x + stick, y + stick), fill=color)
  small = image.resize((width, height), Image.Resampling.BOX)
  return np.asarray(small, np.float32) / 255


def _ellipse(one: np.ndarray, other: np.ndarray, stick: float) -> list[tuple[float, float]]:
  """The outline of an ellipse from one joint to another."""
  (x, y), (dx, dy) = (one + other) / 2, (other - one) / 2
  length = max(math.hypot(dx, dy), 1e-6)
  along, across = np.array([dx, dy]), np.array([-dy, dx]) * stick / length
  turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
  return [(float(x + a), float(y + b)) for a, b in np.outer(np.cos(turns), along) + np.outer(np.sin(turns), across)]


def keypoints(path: str | os.PathLike) -> Points:
  """The people of a file: OpenPose's JSON, or COCO's annotations of one picture.

  Args:
    path: {'people': [{'pose_keypoints_2d': [x, y, c, ...]}]}, or [{'keypoints': [...]}] with or without 'annotations'.

  Raises:
    ValueError: it is none, or nobody is in it.
  """
  try:
    content = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path} is no JSON ({error}); wanted keypoints of OpenPose or COCO') from error
  found = content.get('people', content.get('annotations')) if isinstance(content, dict) else content
  people = [
    person.get('pose_keypoints_2d') or person.get('keypoints') for person in found or () if isinstance(person, dict)
  ]
  if not people or not all(people):
    raise ValueError(f'{path} has no keypoints of anybody; wanted those of OpenPose or COCO')
  return np.stack([_points(np.asarray(values, np.float64), path) for values in people])


def _points(values: np.ndarray, path: str | os.PathLike) -> Float[np.ndarray, '18 3']:
  points = values.reshape(-1, 3) if values.size % 3 == 0 else values.reshape(0, 3)
  match len(points):
    case 18:
      return points
    case 25:
      return points[list(_OF_BODY_25)]
    case 17:
      made = points[list(_OF_COCO)]
      made[_NECK] = points[list(_SHOULDERS)].mean(axis=0)
      made[_NECK, 2] = points[list(_SHOULDERS), 2].min()
      return made
  raise ValueError(f'{path} has {values.size / 3:g} keypoints of a person; wanted 17 (COCO), 18 or 25 (OpenPose)')


def depth(
  values: Float[np.ndarray, 'h w'], *, of_distance: bool = False, near: float = 0.02
) -> Float32[np.ndarray, 'h w 3']:
  """The picture of depths, in [0, 1], the nearest white and the farthest black.

  Args:
    values: inverse depths, as MiDaS gives them, or distances; 0 is not known where they are distances, and black.
    of_distance: they are distances, such as millimetres.
    near: share of the nearest and of the farthest that may be cut off.
  """
  known = values > 0 if of_distance else np.isfinite(values)
  if not known.any():
    raise ValueError('no depth is known; wanted values above 0')
  inverse = np.where(known, 1 / np.maximum(values, 1e-9), 0) if of_distance else values
  low, high = np.quantile(inverse[known], [near, 1 - near])
  made = np.clip((inverse - low) / max(high - low, 1e-9), 0, 1) * known
  return np.repeat(np.asarray(made, np.float32)[..., None], 3, axis=-1)


def read_depth(path: str | os.PathLike) -> Float[np.ndarray, 'h w']:
  """The values of a gray picture of 8 or 16 bits; of 16, as they are.

  Raises:
    ValueError: it is none.
  """
  from PIL import Image, UnidentifiedImageError

  try:
    with Image.open(path) as image:
      values = np.asarray(image if image.mode in ('I', 'I;16', 'I;16B', 'F') else image.convert('L'))
  except UnidentifiedImageError as error:
    raise ValueError(f'{path} is no picture; wanted a gray one of 8 or 16 bits') from error
  return values.astype(np.float64)
