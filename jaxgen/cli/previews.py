"""`jaxgen sample --previews`: x0 as a sampler sees it, from the first call of the network to the last.

FOLDER            a grid for each call, CALL_tTIME.png
FILE.png          a strip: a row for each image, from left to right in time
FILE.gif, ...     the grids in order, as an animation that rests on the last
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  import numpy as np

  from jaxgen.samplers.preview import Show
  from jaxgen.typing import Float, UInt8

ANIMATIONS = ('.webp', '.gif', '.mp4')
_COLUMNS = 10  # images of a strip
_FPS, _REST = 8, 12  # frames a second, and frames more of the last


class Previews(NamedTuple):
  """Attributes: show, for a watched sampler; finish, to be called with the number of images when they are made."""

  show: Show
  finish: Callable[[int], None]


def check(path: pathlib.Path) -> None:
  """Raises ValueError where nothing can be written under this name."""
  if path.suffix.lower() in ANIMATIONS:
    from jaxgen import animation

    animation.check(path)


def previews(path: pathlib.Path) -> Previews:
  """What saves previews under a name, on the first process."""
  from jaxgen import distributed

  if not distributed.is_first():
    return Previews(lambda t, x0: None, lambda num: None)
  return _file(path) if path.suffix.lower() in (*ANIMATIONS, '.png') else _folder(path)


def _folder(folder: pathlib.Path) -> Previews:
  from jaxgen import writer
  from jaxgen.cli import output

  output.clear_matching(folder, r'\d{4}_t\d\.\d{3}\.png')
  calls = iter(range(10**6))

  def show(t: np.ndarray, x0: np.ndarray) -> None:
    writer.save_png(folder / f'{next(calls):04d}_t{t[0]:.3f}.png', writer.grid(_to_uint8(x0)))

  return Previews(show, lambda num: None)


def _file(path: pathlib.Path) -> Previews:
  seen: list[np.ndarray] = []

  def finish(num: int) -> None:
    import jax
    import numpy as np
    from etils import epath

    from jaxgen import animation, writer

    jax.effects_barrier()
    frames = together(seen, num)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == '.png':
      chosen = frames[np.linspace(0, len(frames) - 1, min(_COLUMNS, len(frames))).round().astype(int)]
      rows = chosen.swapaxes(0, 1)
      writer.save_png(path, writer.grid(rows.reshape(-1, *rows.shape[2:]), columns=len(chosen)))
      return
    grids = [writer.grid(frame) for frame in frames]
    animation.write(epath.Path(path), np.stack(grids + grids[-1:] * _REST), frames_per_second=_FPS)

  return Previews(lambda t, x0: seen.append(_to_uint8(x0)), finish)


def together(seen: Sequence[UInt8[np.ndarray, 'b h w c']], num: int) -> UInt8[np.ndarray, 'f n h w c']:
  """Frames of all `num` images, of what was seen batch after batch."""
  import numpy as np

  batches = -(-num // len(seen[0]))
  calls = len(seen) // batches
  parts = [np.stack(seen[batch * calls : (batch + 1) * calls]) for batch in range(batches)]
  return np.concatenate(parts, axis=1)[:, :num]


def _to_uint8(x0: Float[np.ndarray, 'b h w c']) -> UInt8[np.ndarray, 'b h w c']:
  import numpy as np

  return np.clip(np.round((x0 + 1) * 127.5), 0, 255).astype(np.uint8)
