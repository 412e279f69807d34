"""The start-up time of a run: from the command to the end of its first step, in a separate process."""

import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from jaxgen.metrics_file import read_metrics


def bench_start(config: str, overrides: Sequence[str] = (), *, rounds: int = 3) -> dict[str, Any]:
  """Starts `jaxgen train` in new folders and stops it after its first step.

  The first start fills the compilation cache where it is cold; the seconds are of the others.

  Args:
    config: path or name.
    overrides: `--config.FIELD=VALUE`. A config that evaluates before its first step counts that, too, but for
      `--config.evaluate_first=False`.
    rounds: starts that count.

  Raises:
    RuntimeError: the run ended before its first step.
  """
  first, *others = (_seconds(config, overrides) for _ in range(rounds + 1))
  return {'config': config, 'overrides': list(overrides), 'first_seconds': first, 'seconds': others}


def _seconds(config: str, overrides: Sequence[str]) -> float:
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, '-m', 'jaxgen.cli.main', 'train', '--config', config, '--workdir', folder]
    began = time.perf_counter()
    run = subprocess.Popen([*command, '--config.log_every=1', *overrides], stdout=subprocess.DEVNULL)
    try:
      while True:
        ended = run.poll() is not None
        if _stepped(pathlib.Path(folder) / 'metrics.jsonl'):
          return time.perf_counter() - began
        if ended:
          raise RuntimeError(f'the run ended with {run.returncode} before its first step; its own message is above')
        time.sleep(0.02)
    finally:
      run.kill()
      run.wait()


def _stepped(path: pathlib.Path) -> bool:
  return path.exists() and any('images_per_second' in record for record in read_metrics(path))
