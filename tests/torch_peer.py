"""What the PyTorch peers of `jaxgen bench` share: they answer as `jaxgen.bench.peer.Peer` asks."""

import os
import sys
import time

import torch


def serve(make):
  """Prints the seconds of `make()()`, a cycle of steps, for each line that it reads; `ready` after a first one."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))  # what XLA takes
  cycle = make()
  cycle()
  print('ready', flush=True)
  for _ in sys.stdin:
    began = time.perf_counter()
    cycle()
    print(time.perf_counter() - began, flush=True)
