"""One process of a run: `python -m tests.worker WORKDIR STEPS`; the environment says which."""

import sys

from jaxgen import distributed, sharding
from tests import toys


def main() -> None:
  distributed.start()
  from jaxgen.train import train

  workdir, steps = sys.argv[1], int(sys.argv[2])
  try:
    train(toys.experiment(steps=steps, mesh=sharding.make_mesh(data=2, fsdp=4)), workdir)
  except distributed.Preempted as stopped:
    sys.exit(stopped.exit_code)


if __name__ == '__main__':
  main()
