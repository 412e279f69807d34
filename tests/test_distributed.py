"""Real processes make one run: alike on any number of them, stopped together, and none waits for one that is gone."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from PIL import Image

from jaxgen import digests, distributed
from jaxgen.checkpoint import Checkpoints
from jaxgen.metrics_file import read_metrics
from jaxgen.train import train
from tests import worker

ROOT = pathlib.Path(__file__).resolve().parents[1]
END = 12  # steps of a whole run


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _together(command: list[str], processes: int, **environment: str) -> list[subprocess.CompletedProcess]:
  """Runs a command as several processes of eight devices together."""
  port = _free_port()
  started = []
  for index in range(processes):
    env = os.environ | {
      'JAX_NUM_CPU_DEVICES': str(8 // processes),
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': str(processes),
      'JAX_PROCESS_ID': str(index),
    }
    started.append(
      subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=env | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  outputs = [process.communicate(timeout=300) for process in started]
  return [
    subprocess.CompletedProcess(command, process.returncode, *output)
    for process, output in zip(started, outputs, strict=True)
  ]


def _run(workdir, steps: int, processes: int, what: str = '', **environment: str) -> list[subprocess.CompletedProcess]:
  environment = {'JAXGEN_HOME': str(workdir / 'home')} | environment
  return _together(['-m', 'tests.worker', str(workdir), str(steps), what], processes, **environment)


def _codes(done) -> list[int]:
  return [process.returncode for process in done]


def _values(workdir, name: str) -> dict[int, float]:
  return {record['step']: record[name] for record in read_metrics(workdir / 'metrics.jsonl') if name in record}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An uninterrupted run of one process with eight devices: its folder and its last state."""
  workdir = tmp_path_factory.mktemp('whole')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAXGEN_HOME', str(workdir / 'home'))
    return workdir, train(worker.experiment(END, patch.setattr), workdir)


def _resumes_to_the_same_end(workdir, whole, monkeypatch) -> None:
  """Ends a run with one process of eight devices, and compares everything with the run that was never interrupted."""
  monkeypatch.setenv('JAXGEN_HOME', str(workdir / 'home'))
  state = train(worker.experiment(END, monkeypatch.setattr), workdir)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), whole[1], state)
  _same_values(workdir, whole[0], END)


def _same_values(workdir, other, end: int) -> None:
  for name, steps in (('loss', range(1, end + 1)), ('fid_40', range(4, end + 1, 4))):
    values, expected = _values(workdir, name), _values(other, name)
    assert list(values) == list(steps)
    np.testing.assert_allclose(list(values.values()), [expected[step] for step in steps], rtol=1e-5, err_msg=name)


def test_two_processes_are_stopped_together_and_one_goes_on(whole, tmp_path, monkeypatch):
  done = _run(tmp_path, END, 2, 'term')
  assert _codes(done) == [75, 75], done[0].stderr[-3000:]
  stopped = Checkpoints(tmp_path / 'checkpoints').latest()
  assert worker.STEP <= stopped < END
  assert f'Told to stop: saved at step {stopped}.' in done[0].stdout
  # Only process 0 speaks; Gloo itself does not know that, and tears its lines.
  for message in ('step', 'Told', 'Compiled', 'loss'):
    assert message in done[0].stdout and message not in done[1].stdout
  assert not re.search('Involuntary full rematerialization', done[0].stderr)
  np.testing.assert_allclose(_values(tmp_path, 'fid_40')[4], _values(whole[0], 'fid_40')[4], rtol=1e-5)
  _resumes_to_the_same_end(tmp_path, whole, monkeypatch)


@pytest.mark.slow
def test_damage_that_the_second_process_alone_reads_is_agreed_on(whole, tmp_path, monkeypatch):
  """Each process checks every second file; both then go on from the checkpoint before."""
  assert _codes(_run(tmp_path, END, 2)) == [0, 0]
  newest = tmp_path / 'checkpoints' / str(END)
  names = [line.partition('  ')[2] for line in (newest / digests.NAME).read_text().splitlines()]
  path = newest / next(name for name in names[1::2] if name.startswith('params/'))
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  done = _run(tmp_path, END, 2)
  assert _codes(done) == [0, 0], done[0].stderr[-3000:]
  assert f'checkpoint {END} is damaged (another process found it so)' in done[0].stdout
  assert (tmp_path / 'checkpoints' / f'{END}.damaged').exists()
  _same_values(tmp_path, whole[0], END)


@pytest.mark.slow
def test_ctrl_c_of_one_process_stops_both_together(tmp_path):
  done = _run(tmp_path, END, 2, 'interrupt')
  assert _codes(done) == [75, 130], done[1].stderr[-3000:]
  assert worker.STEP <= Checkpoints(tmp_path / 'checkpoints').latest() < END


LATE = """
import time, jax
from jaxgen import digests, distributed
distributed.start()
distributed.ready('the start')
if jax.process_index() == 1: time.sleep(60)
try: distributed.ready('the checkpoint of step 4')
except distributed.Missing as error: distributed.fail(error)
"""


TOLD = """
import ctypes, os, signal, sys, time
from jaxgen import distributed, signals
with signals.listening(exits=True) as told:
  distributed.start(told)
  distributed.ready('the start')
  if os.environ['JAX_PROCESS_ID'] == sys.argv[1]: os.kill(os.getpid(), int(sys.argv[2]))
  for _ in range(9): ctypes.CDLL(None).sleep(60)  # as in a compiler; a signal ends one
"""


@pytest.mark.parametrize(
  ('index', 'number', 'codes'),
  [(1, signal.SIGTERM, [75, 75]), pytest.param(0, signal.SIGINT, [130, 75], marks=pytest.mark.slow)],
)
def test_before_the_first_step_all_leave_at_once_where_one_is_told_to(index, number, codes):
  began = time.time()
  done = _together(['-c', TOLD, str(index), str(int(number))], 2)
  assert _codes(done) == codes, done[0].stderr
  assert all('there was nothing new to save' in process.stderr for process in done)
  assert time.time() - began < 240  # of the 540 that they would sleep


@pytest.mark.slow
def test_a_process_that_does_not_come_is_named_and_ends_too():
  began = time.time()
  done = _together(['-c', LATE], 2, JAXGEN_READY_SECONDS='2')
  assert _codes(done) == [1, 1]
  host = socket.gethostname()
  message = (
    "1 of 2 processes did not come to 'the checkpoint of step 4' within 2 s (JAXGEN_READY_SECONDS): "
    f"process 1 ({host}), last at 'the start'"
  )
  assert message in done[0].stderr
  # The late one learns it from the first, and does not sleep on.
  assert f'jaxgen: process 0 ({host}) failed: {message}' in done[1].stderr
  assert time.time() - began < 50


@pytest.mark.slow
def test_a_run_goes_over_from_2_to_1_to_4_processes(whole, tmp_path, monkeypatch):
  for processes, steps in ((2, 4), (1, 8), (4, END)):
    done = _run(tmp_path, steps, processes)
    assert _codes(done) == [0] * processes, done[0].stderr[-3000:]
  _same_values(tmp_path, whole[0], END)
  _resumes_to_the_same_end(tmp_path, whole, monkeypatch)


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(tmp_path):
  """`jaxgen evaluate` shares samples and features, killed in its middle or not; the first process alone speaks."""
  tiny = str(ROOT / 'tests' / 'tiny_config.py')
  rng, real = np.random.default_rng(0), tmp_path / 'real'
  real.mkdir()
  for i in range(24):
    Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(real / f'{i}.png')
  home = {'JAXGEN_HOME': str(tmp_path / 'home')}
  trained = _together(['-m', 'jaxgen', 'train', '--config', tiny, '--workdir', str(tmp_path / 'run')], 1, **home)
  assert _codes(trained) == [0], trained[0].stderr[-3000:]
  call = ['-c', 'import sys; from tests import worker; sys.exit(worker.evaluate(sys.argv[1:]))', '--run']
  call += [str(tmp_path / 'run'), '--config', tiny, '--metrics', 'fid,kid,precision_recall', '--num', '48']
  call += ['--batch-size', '8', '--reference', str(real), '--save-samples', 'png']
  found = {}
  for processes in (1, 2):
    out = tmp_path / f'out_{processes}'
    done = _together([*call, '--out', str(out)], processes, **home)
    assert _codes(done) == [0] * processes, done[-1].stderr[-3000:]
    assert not any('fid' in each.stdout for each in done[1:])
    found[processes] = json.loads(done[0].stdout[done[0].stdout.index('{') :])  # Gloo writes before it
    assert len(list(out.rglob('*.png'))) == 48
  assert {'fid_48', 'kid', 'precision', 'recall'} <= found[1].keys()
  for name in ('fid_48', 'kid', 'precision', 'recall'):
    np.testing.assert_allclose(found[2][name], found[1][name], rtol=1e-5, atol=1e-6, err_msg=name)
  first, second = (sorted((tmp_path / f'out_{n}').rglob('*.png')) for n in (1, 2))
  for a, b in zip(first, second, strict=True):
    assert np.abs(np.asarray(Image.open(a), np.int32) - np.asarray(Image.open(b), np.int32)).max() <= 1


@pytest.mark.slow
def test_an_evaluation_of_two_processes_is_cut_short(whole, tmp_path, monkeypatch):
  done = _run(tmp_path, END, 2, 'term_look')
  assert _codes(done) == [75, 75], done[1].stderr[-3000:]
  assert 'Told to stop: saved at step 4.' in done[0].stdout
  _resumes_to_the_same_end(tmp_path, whole, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(('what', 'dead', 'processes'), [('kill', 1, 4), ('kill_first', 0, 2)])
def test_the_death_of_one_ends_the_others_within_the_heartbeat(what, dead, processes, whole, tmp_path, monkeypatch):
  began = time.time()
  done = _run(tmp_path, END, processes, what, JAXGEN_HEARTBEAT_SECONDS='10')
  codes = _codes(done)
  assert codes.pop(dead) == -9, done[0].stderr[-3000:]
  assert all(code not in (0, 75) for code in codes)
  del done[dead]
  for process in done:
    # The words are JAX's, which numbers the dead process; without the first there is no coordinator to ask.
    message = r'stopped sending heartbeats\):\s+1\b' if dead else 'Either the leader task was preempted/died/restarted'
    assert re.search(message, process.stderr), process.stderr[-3000:]
  print(f'{time.time() - began:.0f} s with start-up')
  assert Checkpoints(tmp_path / 'checkpoints').latest() == 4
  _resumes_to_the_same_end(tmp_path, whole, monkeypatch)


@pytest.mark.slow
def test_data_that_end_early_on_one_process_end_all_with_the_reason(tmp_path):
  done = _run(tmp_path, END, 2, 'fail')
  assert _codes(done) == [1, 1]
  assert 'ValueError: records end at 80' in done[1].stderr
  assert re.search(r'jaxgen: process 1 \(.+\) failed: records end at 80; ending this process', done[0].stderr)


@pytest.mark.slow
def test_data_that_do_not_come_on_one_process_end_all_with_its_name(tmp_path):
  done = _run(tmp_path, END, 2, 'late', JAXGEN_READY_SECONDS='15')
  assert _codes(done) == [1, 1]
  for process in done:
    assert re.search(
      r"1 of 2 processes did not come to 'step 6' within 15 s .*: process 1 \(.+\), last at", process.stderr
    )


@pytest.mark.slow
def test_local_checkpoints_of_two_processes_are_read_sent_or_left(whole, tmp_path):
  """Process 1 dies at step 7; then both machines have their disks, or one has a new one, or both have."""
  disk = tmp_path / 'disk'
  local = {'LOCAL_CHECKPOINTS': str(disk), 'JAXGEN_HEARTBEAT_SECONDS': '10'}
  assert _codes(_run(tmp_path, END, 2, 'kill', **local))[1] == -9
  assert Checkpoints(tmp_path / 'checkpoints').latest() == 4
  token = next(disk.iterdir())
  names = ('process_0', 'process_1')
  steps = {name: {int(path.name) for path in (token / name).iterdir() if path.name.isdecimal()} for name in names}
  both = steps[names[0]] & steps[names[1]]
  assert 6 in both
  cases = (((), max(both)), (names[1:], max(steps[names[0]])), (names[:1], max(steps[names[1]])), (names, 4))
  for lost, step in cases:
    workdir = tmp_path / f'without_{len(lost)}_{"".join(lost)}'
    shutil.copytree(tmp_path / 'checkpoints', workdir / 'checkpoints')
    for name in ('metrics.jsonl', 'protocols.json', 'goodput.json', 'local_checkpoints.json', 'home'):
      copy = shutil.copytree if (tmp_path / name).is_dir() else shutil.copy
      copy(tmp_path / name, workdir / name)
    shutil.copytree(disk, workdir / 'disk')
    for name in lost:
      shutil.rmtree(workdir / 'disk' / token.name / name)
    done = _run(workdir, END, 2, LOCAL_CHECKPOINTS=str(workdir / 'disk'))
    assert _codes(done) == [0, 0], done[0].stderr[-3000:]
    assert f'Going on from step {step} of {END}' in done[0].stdout
    _same_values(workdir, whole[0], END)
    assert not list((workdir / 'disk').iterdir())


ONE_READS = """
import sys
from jaxgen import distributed
distributed.start()
import jax, numpy as np
from jaxgen import sharding
from jaxgen.checkpoint import Checkpoints, Policy
from jaxgen.train_state import TrainState
noise = np.random.default_rng(0).standard_normal((1 << 18, 1)).astype(np.float32)
counters, params = {'step': np.int32(7), 'bad_steps': np.int32(0)}, {'net': {'kernel': noise}}
state = TrainState(**counters, params=params, opt_state={}, ema={}, extra={})
places = sharding.shard_tree(state, sharding.make_mesh(data=2, fsdp=4))
put = lambda leaf, place: jax.make_array_from_callback(np.shape(leaf), place, lambda index: np.asarray(leaf)[index])
state = jax.tree.map(put, state, places)
saved = Checkpoints(sys.argv[1], Policy())
saved.save(state, {})
saved.wait()
saved = Checkpoints(sys.argv[1])
saved._checked.add(7)  # digests would read the files too
read = lambda: next(int(line.split()[1]) for line in open('/proc/self/io') if line.startswith('rchar'))
shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
before = read()
again = saved.restore(jax.tree.map(shape, state))
print('READ', read() - before)
for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
  assert (one.sharding, one.dtype) == (other.sharding, other.dtype)
  for a, b in zip(one.addressable_shards, other.addressable_shards, strict=True):
    np.testing.assert_array_equal(a.data, b.data)
"""


@pytest.mark.slow
def test_one_of_two_copies_is_read_and_sent_to_the_other(tmp_path):
  done = _together(['-c', ONE_READS, str(tmp_path / 'checkpoints')], 2)
  assert _codes(done) == [0, 0], done[0].stderr[-3000:]
  first, second = (int(process.stdout.partition('READ')[2].split()[0]) for process in done)
  assert first > 2**19 > 5 * second  # bytes; the array has 2^20, compressed a little


@pytest.mark.slow
def test_two_processes_prepare_the_files_that_one_prepares(tmp_path):
  from jaxgen.image_grid import save_png

  (tmp_path / 'in').mkdir()
  for i in range(9):
    save_png(tmp_path / 'in' / f'{i}.png', np.full((8, 8, 3), 20 * i, np.uint8))
  code = (
    'import jaxgen.data.job as j; j.Numbered.__new__.__defaults__ = (2, ())\n'  # shards of two images
    'import sys; from jaxgen.cli import main as cli; sys.exit(cli.main())'
  )
  made = []
  for processes in (1, 2):
    place = tmp_path / str(processes)
    argv = [
      'data',
      'prepare',
      'image_folder',
      '--source',
      str(tmp_path / 'in'),
      '--size',
      '8',
      '--data-dir',
      str(place),
    ]
    done = _together(['-c', code, *argv], processes)
    assert _codes(done) == [0] * processes, done[-1].stderr
    made.append({path.name: path.read_bytes() for path in place.glob('*/*/*')})
  assert made[0] == made[1]
  assert sum('array_record' in name for name in made[0]) == 5


def _start(**env: str) -> subprocess.CompletedProcess:
  code = (
    'from jaxgen import distributed as d; d.start(); import jax;'
    'print(jax.distributed.is_initialized(), jax.process_count(), d.is_first(), d.agree(3))'
  )
  return subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=os.environ | env, capture_output=True, text=True)


def test_a_process_without_its_number_is_told_what_to_set():
  failed = _start(JAX_COORDINATOR_ADDRESS='localhost:1')
  assert failed.returncode == 1
  assert 'Set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID' in failed.stderr


@pytest.mark.parametrize(('index', 'count'), [('one', '2'), ('0', 'two'), ('2', '2')])
def test_a_process_that_is_none_of_the_job_s_is_refused(index, count, monkeypatch):
  for name, value in (('COORDINATOR_ADDRESS', 'localhost:1'), ('PROCESS_ID', index), ('NUM_PROCESSES', count)):
    monkeypatch.setenv(f'JAX_{name}', value)
  with pytest.raises(ValueError, match=f"JAX_PROCESS_ID is '{index}' and JAX_NUM_PROCESSES '{count}'; they must be"):
    distributed.start()


def test_a_time_that_is_none_is_refused(monkeypatch):
  monkeypatch.setenv('JAXGEN_HEARTBEAT_SECONDS', 'soon')
  with pytest.raises(ValueError, match="JAXGEN_HEARTBEAT_SECONDS is 'soon'; it must be a whole number of seconds"):
    distributed.start()


def test_a_single_process_starts_alone():
  assert _start().stdout.split() == ['False', '1', 'True', '3']


def test_slurm_is_found_by_its_environment():
  nodes = {'SLURM_STEP_NODELIST': 'localhost,node[07-09]', 'SLURM_STEP_NUM_NODES': '2', 'SLURM_NTASKS': '2'}
  job = nodes | {'SLURM_JOB_ID': '7', 'SLURM_LOCALID': '0', 'JAX_COORDINATOR_PORT': str(_free_port())}
  with ThreadPoolExecutor() as pool:
    tasks = list(pool.map(lambda i: _start(**job, SLURM_PROCID=i, JAX_NUM_CPU_DEVICES='1'), ('0', '1')))
  for started, first in zip(tasks, ('True', 'False'), strict=True):
    assert started.stdout.split()[-4:] == ['True', '2', first, '3'], started.stderr[-2000:]
