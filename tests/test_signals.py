"""Told to stop at any moment, or hung: the process ends soon, with the right code, and what was done is saved."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from jaxgen import distributed, signals
from jaxgen.checkpoint import Checkpoints
from jaxgen.metrics_file import read_metrics
from jaxgen.train import train
from jaxgen.watchdog import Waiting, Watchdog
from tests import toys

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The `jaxgen` program with a hook: PLACE is where it does ACT.
PROGRAM = """
import faulthandler, os, signal, sys, threading, time
faulthandler.enable()
from jaxgen.cli import main as cli
place, act, workdir = sys.argv[1:4]

def happen():
  print('HERE', flush=True)
  if act == 'hang':
    threading.Event().wait()
  if act == 'hang_in_c':  # no handler of Python's runs, as in a compiler or a collective
    import ctypes
    for _ in range(500): ctypes.CDLL(None).sleep(1000)  # which a signal ends
  if act == 'swallow':
    for _ in range(500):
      try: time.sleep(1000)
      except KeyboardInterrupt: print('SWALLOWED', flush=True)

def hook(module, name, at=1):
  import importlib
  module = importlib.import_module(module)
  before, calls = getattr(module, name), []
  def hooked(*args, **options):
    calls.append(1)
    if len(calls) == at: happen()
    return before(*args, **options)
  setattr(module, name, hooked)

if place == 'import': hook('jaxgen.cli.config', 'load_config')
if place == 'restore': hook('jaxgen.train', 'abstract_state')
if place == 'compile': hook('jaxgen.train', 'compile_step')
if place == 'evaluation': hook('jaxgen.evaluators.samples', 'to_host', 2)
if place == 'data':
  from jaxgen.data.loader import Batches
  hooked, n = Batches.__next__, []
  def late(self):
    n.append(1)
    if len(n) == 6: happen()
    return hooked(self)
  Batches.__next__ = late
if place == 'step':
  import importlib
  train = importlib.import_module('jaxgen.train')
  compiled = train.compiled
  def slow(*args):
    step, n = compiled(*args), []
    def hung(*arguments):
      n.append(1)
      if len(n) == 6: happen()
      return step(*arguments)
    return hung
  train.compiled = slow
if place == 'save':
  from jaxgen.checkpoint import Checkpoints
  save = Checkpoints.save
  def hung(self, *args):
    happen()
    return save(self, *args)
  Checkpoints.save = hung
sys.argv = ['jaxgen', 'train', '--config', 'tests/tiny_config.py', '--workdir', workdir, *sys.argv[4:]]
sys.exit(cli.main())
"""


def _start(workdir, place: str, act: str, *options: str, **env: str) -> subprocess.Popen:
  command = [sys.executable, '-c', PROGRAM, place, act, str(workdir), *options]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '1', 'PYTHONPATH': str(ROOT)} | env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _tell_when_here(process: subprocess.Popen, *numbers: int) -> tuple[float, str]:
  """Sends signals once the program is at its place; seconds until it has ended, and what it said."""
  assert process.stdout is not None
  timer = threading.Timer(240, process.send_signal, (signal.SIGABRT,))
  timer.start()
  output = ''
  for line in process.stdout:
    output += line
    if 'HERE' in line:  # another thread may print within the line
      break
  time.sleep(0.3)
  began = time.monotonic()
  for number in numbers:
    process.send_signal(number)
    time.sleep(0.3)
  out, err = process.communicate(timeout=200)
  timer.cancel()
  return time.monotonic() - began, output + out + err


@pytest.mark.parametrize(
  ('place', 'act', 'number', 'code'),
  [
    ('import', 'hang', signal.SIGTERM, 75),
    pytest.param('restore', 'hang_in_c', signal.SIGTERM, 75, marks=pytest.mark.slow),
    ('compile', 'hang_in_c', signal.SIGTERM, 75),
    pytest.param('compile', 'swallow', signal.SIGINT, 130, marks=pytest.mark.slow),
    ('import', 'swallow', signal.SIGINT, 130),
  ],
)
def test_before_there_is_anything_new_it_leaves_at_once(place, act, number, code, tmp_path):
  process = _start(tmp_path, place, act)
  seconds, output = _tell_when_here(process, number)
  assert (process.returncode, seconds < 4) == (code, True), output
  assert f'told to stop ({signal.Signals(number).name}); there was nothing new to save' in output
  assert 'Traceback' not in output
  assert Checkpoints(tmp_path / 'checkpoints').latest() is None


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_while_data_do_not_come_it_saves_and_leaves(number, code, tmp_path):
  process = _start(tmp_path, 'data', 'hang', '--config.steps=40', '--config.checkpoint_every=100')
  seconds, output = _tell_when_here(process, number)
  assert (process.returncode, seconds < 8) == (code, True), output
  assert 'Told to stop: saved at step 5.' in output
  assert 'Traceback' not in output
  assert Checkpoints(tmp_path / 'checkpoints').latest() == 5
  assert [r['step'] for r in read_metrics(tmp_path / 'metrics.jsonl') if 'loss' in r][-1] == 5


@pytest.mark.slow
@pytest.mark.parametrize('place', ['evaluation', 'step', 'save'])
def test_a_main_thread_that_hangs_is_saved_for_where_that_can_be(place, tmp_path):
  options = ('--config.steps=40', '--config.checkpoint_every=' + ('4' if place == 'save' else '100'))
  process = _start(tmp_path, place, 'hang_in_c', *options)
  seconds, output = _tell_when_here(process, signal.SIGTERM)
  assert process.returncode == 75, output
  assert seconds < 150
  saved = Checkpoints(tmp_path / 'checkpoints').latest()
  assert saved == {'evaluation': 4, 'step': None, 'save': None}[place], output
  assert ('what was done is saved' in output) == (saved is not None)


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
  process = _start(tmp_path, 'step', 'hang_in_c', '--config.steps=40')
  seconds, output = _tell_when_here(process, signal.SIGINT, signal.SIGINT)
  assert (process.returncode, seconds < 4) == (130, True), output
  assert 'interrupted for the second time' in output


@pytest.mark.slow
@pytest.mark.parametrize(('place', 'code', 'saved'), [('data', 75, 5), ('evaluation', 75, 4)])
def test_a_run_that_hangs_says_where_saves_and_ends(place, code, saved, tmp_path):
  options = ('--config.steps=40', '--config.checkpoint_every=100')
  process = _start(tmp_path, place, 'hang', *options, JAXGEN_STALL_SECONDS='12')
  _, output = _tell_when_here(process)
  assert process.returncode == code, output
  assert 'no progress for' in output
  assert 'in happen' in output  # the stacks
  assert 'what was done is saved, and the same command goes on from there' in output
  assert Checkpoints(tmp_path / 'checkpoints').latest() == saved


class _Hanging:
  """A loader whose data end to come after some steps."""

  def __init__(self, data, after: int, then):
    self._data, self._after, self._then = data, after, then
    self.identity, self.spec, self.specs = data.identity, data.spec, data.specs

  def iterate(self, step, place):
    batches = self._data.iterate(step, place)

    def items():
      for number in range(step, 1000):
        if number == self._after:
          self._then()
        yield next(batches)

    return items()


@pytest.mark.parametrize('with_signal', [True, False])
def test_a_library_raises_where_data_do_not_come(with_signal, tmp_path):
  whole = toys.experiment()

  def hang():
    if with_signal:
      os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()

  before = [signal.getsignal(number) for number in signals.EXIT_CODES]
  with pytest.raises(distributed.Preempted, match='stopped at step 5'):
    train(whole._replace(data=_Hanging(whole.data, 5, hang), stall_seconds=None if with_signal else 3.0), tmp_path)
  assert [signal.getsignal(number) for number in signals.EXIT_CODES] == before
  assert Checkpoints(tmp_path / 'checkpoints').latest() == 5
  state = train(whole, tmp_path)
  jax.tree.map(np.testing.assert_array_equal, state, train(whole, tmp_path / 'whole'))
  losses = [[(r['step'], r['loss']) for r in read_metrics(f / 'metrics.jsonl')] for f in (tmp_path, tmp_path / 'whole')]
  assert [loss for step, loss in losses[0] if step in (4, 8, 10, 12)][2:] == [loss for step, loss in losses[1]][4:]
  assert [step for step, _ in losses[0]] == [2, 4, 5, 6, 8, 10, 12]


def test_a_library_hears_the_first_ctrl_c_between_steps_and_raises_at_the_second(tmp_path):
  whole, seen = toys.experiment(), []

  def press():
    os.kill(os.getpid(), signal.SIGINT)
    seen.append(1)

  with pytest.raises(KeyboardInterrupt, match=r'stopped at step [56]'):
    train(whole._replace(data=_Hanging(whole.data, 5, press)), tmp_path)
  assert seen
  assert Checkpoints(tmp_path / 'checkpoints').latest() in (5, 6)
  with signals.listening() as heard:
    os.kill(os.getpid(), signal.SIGINT)
    assert heard.received == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


def test_the_limit_follows_the_steps():
  clock = Watchdog(seconds=0.05, end=None)
  assert clock.limit == 0.05
  for step in range(5):
    clock.step(step)
    time.sleep(0.01)
  assert 0.2 <= clock.limit < 2.0
  assert Watchdog(seconds=None, end=None).limit is None


def test_what_waits_hands_on_items_and_errors_in_order():
  def source():
    yield 1
    yield 2
    raise ValueError('records end')

  waiting = Waiting(source())
  assert [waiting.next(lambda: None) for _ in range(2)] == [1, 2]
  with pytest.raises(ValueError, match='records end'):
    waiting.next(lambda: None)
  waiting.close()


def test_another_command_ends_though_ctrl_c_is_swallowed(tmp_path):
  code = (
    'import signal, sys, time; from jaxgen.cli import main as cli\n'
    'signal.signal(signal.SIGINT, signal.default_int_handler)\n'  # a job in the background ignores it
    'def hang(argv):\n'
    '  print("HERE", flush=True)\n'
    '  while True:\n'
    '    try: time.sleep(1000)\n'
    '    except KeyboardInterrupt: pass\n'
    'cli._run = hang; sys.argv = ["jaxgen", "sample"]; sys.exit(cli.main())'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  seconds, output = _tell_when_here(process, signal.SIGINT)
  assert process.returncode == 130, output
  assert 4 < seconds < 9
