"""What only observes a run never stops or blocks it, and damaged records never end a restart."""

import json
import os
import shutil
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from tensorboardX import event_file_writer

from jaxgen import files, observers, report, writer
from jaxgen.checkpoint import Checkpoints
from jaxgen.event_files import EventFiles
from jaxgen.metrics_file import read_metrics
from jaxgen.train import train
from tests import toys


@pytest.fixture
def warnings():
  return []


def test_calls_are_made_in_order_and_waited_for_where_that_is_asked(warnings):
  seen, watch = [], observers.Observers(warnings.append)
  for number in range(100):
    watch.call('a', lambda number=number: seen.append(number))
  assert watch.call('a', lambda: seen.append('last'), wait=True)
  assert seen == [*range(100), 'last']
  assert (warnings, watch.failures) == ([], 0)
  watch.close()
  assert not watch.call('a', seen.clear)


def test_a_call_that_raises_costs_one_warning_and_a_count(warnings):
  watch = observers.Observers(warnings.append)
  for _ in range(3):
    assert not watch.call('the report', lambda: 1 / 0, wait=True)
  assert watch.call('the report', lambda: None, wait=True)
  assert warnings == ['Warning: the report failed, and the run goes on: ZeroDivisionError: division by zero']
  assert watch.failures == 3


def test_one_that_hangs_is_waited_for_once_and_its_calls_are_dropped_at_last(warnings):
  watch, gate = observers.Observers(warnings.append, patience=0.2), threading.Event()
  began = time.monotonic()
  assert not watch.call('a', gate.wait, wait=True)
  for _ in range(300):
    watch.call('a', lambda: None, wait=True)
  assert watch.call('b', lambda: None, wait=True)  # others go on
  assert not watch.flush(0.2)
  assert time.monotonic() - began < 2
  assert warnings == ['Warning: a failed, and the run goes on: it has not answered in 0 s']
  assert watch.failures == 1 + 300 - 256
  gate.set()
  assert watch.flush(10)
  assert watch.call('a', lambda: None, wait=True)


def test_of_calls_that_do_the_same_one_waits(warnings):
  watch, gate, seen = observers.Observers(warnings.append), threading.Event(), []
  watch.call('a', gate.wait)
  while not watch._threads['a']._queue.empty():
    time.sleep(0.001)
  for _ in range(5):
    watch.call('a', lambda: seen.append(1), once=True)
  gate.set()
  watch.close()
  assert seen == [1]


def _never(*_, **__):
  threading.Event().wait()


def _full(*_, **__):
  return open('/dev/full', 'wb')


@pytest.mark.parametrize('fault', ['hangs', 'full', 'raises'])
def test_training_goes_on_beside_a_broken_tensorboard_and_a_broken_report(fault, tmp_path, monkeypatch, capsys):
  whole = train(toys.experiment(steps=8), tmp_path / 'whole')
  monkeypatch.setattr(writer, '_CLOSE_SECONDS', 0.5)
  if fault == 'full':
    monkeypatch.setattr('tensorboardX.record_writer.open_file', _full)
    monkeypatch.setattr('jaxgen.event_files._FLUSH_SECONDS', -1.0)
  elif fault == 'hangs':
    monkeypatch.setattr(event_file_writer.EventsWriter, 'write_event', _never)
  else:
    monkeypatch.setattr(EventFiles, '_add', lambda *_, **__: {}['the clock'])
    monkeypatch.setattr(report, 'write', lambda workdir: {}['the page'])
  state = train(toys.experiment(steps=8), tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, state, whole)
  shown = capsys.readouterr().out
  assert shown.count('Warning: tensorboard failed, and the run goes on: ') == 1
  assert 'writes that only observe failed, were late or were dropped' in shown
  records = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
  assert [record['step'] for record in records] == [2, 4, 6, 8]
  assert fault == 'hangs' or records[-1]['observer_failures'] >= 3
  assert 'observer_failures' not in read_metrics(tmp_path / 'whole' / 'metrics.jsonl')[-1]


@pytest.mark.parametrize('act', [_never, lambda text: 1 / 0])
def test_a_terminal_that_is_stuck_or_gone_stops_nothing(act, tmp_path, monkeypatch):
  began = time.monotonic()
  with writer.Writer(tmp_path, stream=types.SimpleNamespace(isatty=lambda: False, write=act)) as run:
    for step in range(1, 600):
      run.progress(step, 600, {'loss': 0.5})
    run.text('nobody hears this')
    assert run.failures > 100
  assert time.monotonic() - began < 15


def test_a_report_in_a_loop_does_not_disturb_the_writer_of_the_run(tmp_path):
  with writer.Writer(tmp_path) as run:
    run.scalars(1, {'loss': 1.0})
    with ThreadPoolExecutor(8) as pool:
      assert len(list(pool.map(lambda _: report.write(tmp_path), range(200)))) == 200
  assert not [path for path in tmp_path.iterdir() if path.name.endswith('.tmp')]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / 'a.json'
  files.write_whole(path, 'old')
  with pytest.raises(ZeroDivisionError), files.replacing(path) as file:
    file.write(b'%d' % (1 / 0))
  assert [p.name for p in tmp_path.iterdir()] == ['a.json']
  assert path.read_text() == 'old'


def test_what_dead_processes_left_is_deleted_and_what_living_ones_write_is_not(tmp_path):
  for name, age in (('.a.json.0123abcd.tmp', 7200), ('.b.json.0123abcd.tmp', 1), ('.c.tmp', 7200), ('d', 7200)):
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (time.time() - age,) * 2)
  writer.Writer(tmp_path).close()
  assert {'.b.json.0123abcd.tmp', '.c.tmp', 'd'} <= {path.name for path in tmp_path.iterdir()}
  assert not (tmp_path / '.a.json.0123abcd.tmp').exists()


def test_a_file_that_its_writer_renames_while_left_over_ones_are_looked_for_stops_nothing(tmp_path, monkeypatch):
  temporary = tmp_path / '.a.json.0123abcd.tmp'
  temporary.touch()

  def now():
    temporary.rename(tmp_path / 'a.json')
    return 0.0

  monkeypatch.setattr(files.time, 'time', now)
  files.remove_left_over(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['a.json']


DAMAGE = {
  'empty': b'',
  'half': b'{"step": 4, "config": {"a": 1}, "lo',
  'zeros': b'\0' * 4096,
  'binary': bytes(range(256)) * 4,
  'bad_utf8': b'{"step": 2, "name": "\xff\xfe", "loss": 1.0}\n',
  'list': b'[1, 2, {"step": 3}]',
  'number': b'3',
  'text': b'"text"',
  'null': b'null',
  'wrong_types': b'{"step": "two", "total": [], "time": "now", "config": 3, "environment": "x", "name": [], "fid": 7}',
  'wrong_values': b'{"step": 2, "total": -1e999, "time": 1e300, "loss": "low", "fid": [1], "config": [], "psnr": {}}',
  'bools': b'{"step": true, "total": true, "time": false, "loss": true, "environment": {"devices": []}}',
  'huge': b'{"step": 2, "total": 1' + b'0' * 400 + b', "time": 1' + b'0' * 400 + b', "loss": 1' + b'0' * 400 + b'}',
  'digits': b'{"step": 1' + b'0' * 6000 + b'}',
  'deep': b'[' * 200_000,
  'nan': b'{"step": 2, "total": NaN, "time": Infinity, "loss": NaN}',
}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('finished')
  record = {'name': 'toy', 'config': {'a': 1}}
  return folder, record, train(toys.experiment(steps=4), folder, record=record)


@pytest.mark.parametrize('damage', [*DAMAGE, 'folder', 'dangling'])
@pytest.mark.parametrize('name', ['metrics.jsonl', 'protocols.json', 'status.json', 'config.json'])
def test_a_damaged_record_is_set_aside_and_the_run_is_written_on(name, damage, finished, tmp_path, capsys):
  good = [{'step': 2, 'loss': 0.5}, {'step': 4, 'loss': 0.25}]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in good))
  path = tmp_path / name
  path.unlink(missing_ok=True)
  if damage == 'folder':
    path.mkdir()
    (path / 'inside').touch()
  elif damage == 'dangling':
    path.symlink_to(tmp_path / 'nowhere')
  else:
    path.write_bytes(DAMAGE[damage] + (b'\n{"step": 4, "loss": 0.25}\n' if name == 'metrics.jsonl' else b''))
  with writer.Writer(tmp_path, resume_step=4) as run:
    run.config(finished[1])
    run.protocol('fid', {'samples': 8})
    run.scalars(6, {'loss': 0.125})
    run.progress(6, 8, {'loss': 0.125})
    report.write(tmp_path)
    assert run.failures == 0 or (name, damage) == ('status.json', 'folder'), capsys.readouterr().out
  losses = {record['step']: record.get('loss') for record in read_metrics(tmp_path / 'metrics.jsonl')}
  assert losses[6] == 0.125
  assert name != 'metrics.jsonl' or damage in ('folder', 'dangling') or losses[4] == 0.25
  assert json.loads((tmp_path / 'protocols.json').read_text())['fid'] == {'samples': 8}
  assert json.loads((tmp_path / 'config.json').read_text())['config'] == {'a': 1}
  if damage == 'binary' and name != 'status.json':
    (kept,) = tmp_path.glob(f'{name}.damaged.*')
    assert kept.read_bytes().startswith(DAMAGE['binary'])
    assert f'{name} is damaged' in capsys.readouterr().out


def test_a_whole_restart_with_everything_damaged_and_a_report_of_it(finished, tmp_path):
  folder, record, state = finished
  shutil.copytree(folder, tmp_path / 'run')
  for name in ('metrics.jsonl', 'protocols.json', 'status.json', 'config.json'):
    (tmp_path / 'run' / name).write_bytes(DAMAGE['binary'])
  for name in ('samples', 'tensorboard', 'report.html', 'parameters.txt'):
    shutil.rmtree(tmp_path / 'run' / name, ignore_errors=True)
    (tmp_path / 'run' / name).unlink(missing_ok=True)
  (tmp_path / 'run' / 'samples').touch()
  (tmp_path / 'run' / 'tensorboard').touch()
  (tmp_path / 'run' / 'report.html').mkdir()
  (tmp_path / 'run' / 'parameters.txt').mkdir()
  again = train(toys.experiment(steps=4), tmp_path / 'run', record=record)
  jax.tree.map(np.testing.assert_array_equal, state, again)
  assert Checkpoints(tmp_path / 'run' / 'checkpoints').latest() == 4
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['name'] == 'toy'
