"""kill -9 at random moments, over and over: `python -m tests.kill_campaign KILLS [--seed N] [--tally FILE]`.

A run of the toy experiment is killed and started again until a life reaches its end; then parameters, optimizer,
averages, metrics and sample grids are compared, byte by byte, with those of a run that was never killed. Runs follow
one another until there were KILLS kills. With a tally the result is appended to a file, whose sum is printed: a
campaign goes on over several sittings.

Lives are forks of one process that has imported what the first of them did and touched no device, and share compiled
programs, so one takes a second of a processor. A moment is a random number of files that the life has opened for
writing, renamed or deleted in its folder, and a random while after that, so that a busy machine does not move it. A
kill is of one of three kinds, by what it left on the disk: before the first checkpoint, while a checkpoint was being
written (its temporary folder is there), and at another moment.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib
import json
import os
import pathlib
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from typing import NamedTuple

import jax
import numpy as np

from jaxgen import sharding
from jaxgen.checkpoint import Policy
from jaxgen.evaluators.base import Context, Evaluator
from jaxgen.metrics_file import read_metrics
from jaxgen.train import train
from tests import toys

STEPS = 24
_SHARE = 0.3  # a life is killed within this share of the changes that a whole run makes
_AFTER = 0.2  # seconds after a change, at most
KINDS = ('before the first checkpoint', 'in a save', 'later')
_CHANGES = {'open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.truncate'}
_TIMES = {'step_seconds', 'images_per_second', 'input_wait', 'host_memory_gib', 'goodput', 'grid/seconds'}


def _grid(context: Context) -> dict[str, float]:
  """A picture of the parameters, and a number of them."""
  kernel = np.asarray(context.state.params['net']['kernel'])
  picture = np.uint8(255 / (1 + np.exp(-kernel))).reshape(1, *kernel.shape, 1)
  context.writer.images(context.step, 'kernel', picture)
  return {'norm': float(np.linalg.norm(kernel))}


def _live(workdir: pathlib.Path, steps: int) -> None:
  """One life: trains to the end, and leaves a digest of all that came out."""
  jax.config.update('jax_compilation_cache_dir', str(workdir.parent / 'compilation'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_default_prng_impl', 'rbg')  # it is lowered sooner than threefry
  mesh = sharding.make_mesh()
  experiment = toys.experiment(
    steps=steps, mesh=mesh, log_every=1, checkpoints=Policy(every=4, keep=2), evaluators=(Evaluator('grid', 3, _grid),)
  )
  state = jax.device_get(train(experiment, workdir))
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    digest.update(f'{path}'.encode() + np.asarray(leaf).tobytes())
  for line in read_metrics(workdir / 'metrics.jsonl'):
    digest.update(json.dumps({name: line[name] for name in sorted(line.keys() - _TIMES)}).encode())
  for path in sorted((workdir / 'samples').iterdir()):
    digest.update(path.name.encode() + path.read_bytes())
  (workdir / 'digest').write_text(digest.hexdigest())
  (workdir / 'modules').write_text('\n'.join(sys.modules))


class _Life(NamedTuple):
  """A fork that trains.

  Attributes:
    child: its process.
    changes: a pipe that brings one byte for each change that it makes in its folder.
  """

  child: int
  changes: int


def _fork(workdir: pathlib.Path, steps: int) -> _Life:
  """Starts a life; its output goes to a file of the run."""
  read, write = os.pipe()
  child = os.fork()
  if child:
    os.close(write)
    return _Life(child, read)
  code = 1
  try:
    workdir.mkdir(exist_ok=True)
    log = os.open(workdir / 'log.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.addaudithook(functools.partial(_tell, os.fspath(workdir), write))
    _live(workdir, steps)
    code = 0
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    os._exit(code)


def _tell(workdir: str, pipe: int, event: str, args: tuple) -> None:
  """An audit hook: tells of each change of a file or folder below `workdir`."""
  if event not in _CHANGES or (event == 'open' and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
    return
  if isinstance(args[0], str | os.PathLike) and os.fspath(args[0]).startswith(workdir):
    os.write(pipe, b'.')


def _ended(life: _Life, changes: float, after: float = 0.0) -> int | None:
  """The exit code of a life that ended before it made so many changes; None for one that was killed."""
  seen = 0
  while seen < changes and (got := os.read(life.changes, 1)):  # nothing comes from one that has ended
    seen += len(got)
  if seen >= changes:
    select.select([], [], [], after)
    os.kill(life.child, signal.SIGKILL)
  os.close(life.changes)
  _, status = os.waitpid(life.child, 0)
  code = os.waitstatus_to_exitcode(status)
  return None if code == -signal.SIGKILL else code  # it ended before it was killed


def _kind(workdir: pathlib.Path, before: set[str]) -> str:
  """What the kill of a life left, that began with the checkpoints `before`."""
  found = _checkpoints(workdir)
  if any('tmp' in name for name in found - before):
    return 'in a save'
  return 'later' if any(name.isdecimal() for name in found) else 'before the first checkpoint'


def _checkpoints(workdir: pathlib.Path) -> set[str]:
  return {path.name for path in (workdir / 'checkpoints').glob('*')}


def _whole(workdir: pathlib.Path, steps: int) -> int:
  """A run that is never killed; returns the number of changes that it made in its folder."""
  life, changes = _fork(workdir, steps), 0
  while got := os.read(life.changes, 4096):
    changes += len(got)
  code = _ended(life, float('inf'))
  assert code == 0, (workdir / 'log.txt').read_text()[-3000:]
  return changes


def campaign(kills: int, seed: int, steps: int, folder: pathlib.Path, limit: float = float('inf')) -> dict[str, int]:
  """Counts of kills, of runs that reached their end, and of those that ended otherwise than the whole one."""
  moments, tally = random.Random(seed), dict.fromkeys(('kills', *KINDS, 'runs', 'different', 'failed'), 0)
  changes = _whole(folder / 'whole', steps)
  for module in (folder / 'whole' / 'modules').read_text().splitlines():
    with contextlib.suppress(ImportError):  # of modules that others have made by hand
      importlib.import_module(module)
  wanted = (folder / 'whole' / 'digest').read_text()
  began = time.monotonic()
  while tally['kills'] < kills and time.monotonic() - began < limit:
    workdir = folder / f'run{tally["runs"]}'
    code = None
    while code is None:
      kills_it = tally['kills'] < kills
      # Half of them among the first few changes, as it starts, and half anywhere.
      share = moments.choice([lambda: changes ** (moments.random() - 1), moments.random])()
      moment = 1 + _SHARE * share * changes if kills_it else float('inf')
      before = _checkpoints(workdir)
      code = _ended(_fork(workdir, steps), moment, moments.uniform(0, _AFTER))
      if code is None:
        tally['kills'] += 1
        tally[_kind(workdir, before)] += 1
    tally['runs'] += 1
    same = code == 0 and (workdir / 'digest').read_text() == wanted
    tally['failed'] += code != 0
    tally['different'] += code == 0 and not same
    print(json.dumps(tally), flush=True)  # a sitting that is stopped has said how far it came
    if same:
      shutil.rmtree(workdir)
    else:
      print(f'{workdir}: {"other bytes" if code == 0 else f"ended with {code}"}', file=sys.stderr)
      print((workdir / 'log.txt').read_text()[-2000:], file=sys.stderr)
  return tally


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('kills', type=int)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--steps', type=int, default=STEPS)
  parser.add_argument('--seconds', type=float, default=float('inf'), help='no further run is begun after so long')
  parser.add_argument('--tally', type=pathlib.Path, help='file that the result is appended to')
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    tally = campaign(options.kills, options.seed, options.steps, pathlib.Path(folder), options.seconds)
  print(json.dumps(tally))
  if options.tally:
    with options.tally.open('a') as file:
      file.write(json.dumps({'seed': options.seed, 'steps': options.steps} | tally) + '\n')
    lines = [json.loads(line) for line in options.tally.read_text().splitlines()]
    print(json.dumps({'sittings': len(lines)} | {name: sum(line.get(name, 0) for line in lines) for name in tally}))
  sys.exit(tally['different'] + tally['failed'] > 0)


if __name__ == '__main__':
  main()
