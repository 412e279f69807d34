"""A run's evaluators on what it trained: the metrics of its config, of any checkpoint, average or sampler."""

import os
import sys
from collections.abc import Collection

from etils import epath

from jaxgen import distributed
from jaxgen import writer as writers
from jaxgen.evaluators.base import Context
from jaxgen.sample import Trained


def evaluate(
  trained: Trained, workdir: str | os.PathLike, *, only: Collection[str] = ()
) -> dict[str, dict[str, float]]:
  """Runs the evaluators of the stage that a run is in.

  Args:
    trained: from `sample.restore`; every network is evaluated by what it is sampled with.
    workdir: where grids, metrics.jsonl and protocols.json go; not the run's own folder, which holds what it
      measured while it trained.
    only: names of evaluators; all by default.

  Returns:
    The scalars of each evaluator by its name.

  Raises:
    ValueError: there is no evaluator of that name, or `workdir` is the folder of a run.
    FileNotFoundError: the weights that one needs are missing.
  """
  evaluators = {evaluator.name: evaluator for evaluator in trained.stage.evaluators}
  unknown = sorted(set(only) - evaluators.keys())
  if unknown:
    raise ValueError(f'this run has no evaluator named {unknown[0]!r}; it has {", ".join(evaluators) or "none"}')
  folder, results = epath.Path(workdir), {}
  if (folder / 'checkpoints').exists():
    raise ValueError(f'{folder} is the folder of a run, whose records would be lost; give another (--out)')
  chosen = [evaluators[name] for name in only or evaluators]
  for evaluator in chosen:
    evaluator.check()
  with writers.Writer(folder, stream=sys.stderr) if distributed.is_first() else writers.silent() as writer:
    for evaluator in chosen:
      distributed.ready(f'{evaluator.name} at step {trained.step}')
      values = evaluator.run(Context(trained.step, trained.state, trained.frozen, writer, folder))
      writer.scalars(trained.step, values)
      results[evaluator.name] = dict(values)
  return results
