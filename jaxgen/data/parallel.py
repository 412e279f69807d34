"""An ordered map over threads with a bounded read-ahead."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar('T')
S = TypeVar('S')


def parallel_map(function: Callable[[T], S], items: Iterable[T]) -> Iterator[S]:
  """`map(function, items)` on all cores, in order, with a bounded number of results waiting.

  `ThreadPoolExecutor.map` takes all of `items` at once, which for a million images is all of memory.
  """
  threads = os.cpu_count() or 1
  waiting: collections.deque = collections.deque()
  with ThreadPoolExecutor(threads) as pool:
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > 2 * threads:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
