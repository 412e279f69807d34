"""Control pictures such as edges, made from images: the conditions of control branches.

A control is float32 h w 3 in [0, 1], and is made of an image in [-1, 1] by a function, `Make`, such as `canny`. Edges
of Canny 1986, "A Computational Approach to Edge Detection", on luminance in [0, 1]:

  g = gradient of the image under a Gaussian                                                 (1)
  thin  = |g| is no less than at both neighbours along g                                     (2)
  edges = thin pixels over `low` that are connected to one over `high`                       (3)

Differs from OpenCV's: gradients are those of a Gaussian, not Sobel's, so that thresholds do not depend on the size of
pixels' values; they are shares of the steepest step there is.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float32

from jaxgen.data.dataset import Record

FIELD = 'control'  # entry of a batch
Image = Float32[np.ndarray, 'h w 3']
Make = Callable[[Image], Image]
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_EIGHT = np.ones((3, 3), int)  # neighbours that are connected


def canny(image: Image, *, sigma: float = 0.7, low: float = 0.06, high: float = 0.12) -> Image:
  """White edges on black.

  Args:
    image: the image.
    sigma: standard deviation of the Gaussian, in pixels.
    low, high: thresholds of |g|, of which a step from black to white has about 0.4 / sigma.
  """
  if not 0 < low <= high:
    raise ValueError(f'thresholds of edges are {low} and {high}; wanted 0 < low <= high')
  edges = canny_edges(image, sigma=sigma, low=low, high=high)
  return np.repeat(edges[..., None].astype(np.float32), 3, axis=-1)


def canny_edges(image: Image, *, sigma: float = 0.7, low: float = 0.06, high: float = 0.12) -> Bool[np.ndarray, 'h w']:
  """Eqs. 1 to 3."""
  from scipy import ndimage

  gray = (image + 1) / 2 @ _LUMINANCE
  down, across = (
    ndimage.gaussian_filter(gray, sigma, order=order, mode='nearest') for order in ((1, 0), (0, 1))
  )  # Eq. 1
  steep = np.hypot(down, across)
  steps = np.stack([down, across]) / np.maximum(steep, 1e-12)
  rows, columns = np.indices(gray.shape)
  beside = [
    ndimage.map_coordinates(steep, [rows + sign * steps[0], columns + sign * steps[1]], order=1, mode='nearest')
    for sign in (1, -1)
  ]
  # Eq. 2: on one side strictly, so that a flat ridge of two pixels is one pixel wide.
  thin = (steep > low) & (steep >= beside[0]) & (steep > beside[1])
  parts, count = ndimage.label(thin, _EIGHT)
  strong = np.zeros(count + 1, bool)
  strong[np.unique(parts[thin & (steep > high)])] = True
  strong[0] = False
  return strong[parts]  # Eq. 3


def edge_f1(seen: Bool[np.ndarray, 'h w'], wanted: Bool[np.ndarray, 'h w'], *, reach: int = 1) -> float:
  """F1 of edges: harmonic mean of the shares of each that the other has within `reach` pixels; 1 if neither has any.

  Args:
    seen: edges of a sample.
    wanted: edges that it should have.
    reach: how far an edge may be off, in pixels; 0 for the same pixel.
  """
  from scipy import ndimage

  if not seen.any() and not wanted.any():
    return 1.0
  square = np.ones((2 * reach + 1, 2 * reach + 1), bool)
  near_seen, near_wanted = (ndimage.binary_dilation(edges, square) for edges in (seen, wanted))
  right = (seen & near_wanted).sum() / max(seen.sum(), 1)
  found = (wanted & near_seen).sum() / max(wanted.sum(), 1)
  return float(2 * right * found / max(right + found, 1e-12))


def with_control(
  transform: Callable[[Record, np.random.Generator], Record], make: Make, *, field: str = FIELD
) -> Callable[[Record, np.random.Generator], Record]:
  """A transform of the loader that adds the control of each image, at a scale of 1, to what `transform` makes."""

  def add(record: Record, rng: np.random.Generator) -> Record:
    control = {field: make(np.asarray(record['image'], np.float32)), f'{field}_scale': np.float32(1)}
    return transform(record, rng) | control

  return add


def with_scale(
  transform: Callable[[Record, np.random.Generator], Record], *, field: str = FIELD
) -> Callable[[Record, np.random.Generator], Record]:
  """A transform of the loader for records that have a control already: adds a scale of 1 to what `transform` makes."""

  def add(record: Record, rng: np.random.Generator) -> Record:
    if field not in record:
      raise ValueError(
        f'the records have no {field!r}; make it of images, or take a dataset with it, such as avatars_segments'
      )
    return transform(record, rng) | {f'{field}_scale': np.float32(1)}

  return add


MAKERS: dict[str, Make] = {'canny': canny, 'picture': lambda image: (image + 1) / 2}
