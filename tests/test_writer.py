"""What a run leaves on disk and shows on the screen."""

import functools
import io
import itertools
import json
import math
import re
import time
import types

import numpy as np
import pytest

from jaxgen import distributed, terminal, writer
from jaxgen.train import train


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def open_writer(tmp_path):
  return functools.partial(writer.Writer, tmp_path)


TIME = re.compile(r'^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ', re.MULTILINE)


def plain(log):
  """A log without the time that begins what is said."""
  assert TIME.match(log)
  return TIME.sub('', log)


def records(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def test_records_reach_the_file_before_it_is_closed(open_writer, tmp_path):
  run = open_writer()
  run.scalars(10, {'loss': np.float32(0.5), 'images_per_second': np.array([1200.0])})
  assert records(tmp_path) == [{'step': 10, 'loss': 0.5, 'images_per_second': 1200.0}]
  run.close()


def test_a_value_that_is_not_finite_is_null_so_that_the_file_stays_json(open_writer, tmp_path):
  with open_writer() as run:
    run.scalars(1, {'loss': math.nan, 'grad_norm': math.inf, 'rate': 1.0})
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  (record,) = (json.loads(line, parse_constant=pytest.fail) for line in lines)
  assert record == {'step': 1, 'loss': None, 'grad_norm': None, 'rate': 1.0}


def test_resume_drops_what_was_written_beyond_the_step_and_a_line_cut_in_half(open_writer, tmp_path):
  image = np.zeros((1, 8, 8, 3), np.uint8)
  with open_writer() as run:
    for step in (10, 20, 30):
      run.scalars(step, {'loss': step / 10})
      run.images(step, 'samples', image)
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 40, "lo')
  (tmp_path / 'samples' / '.samples_00000030.png.0123abcd.tmp').touch()
  with open_writer(resume_step=20) as run:
    run.scalars(30, {'loss': 7.0})
  assert records(tmp_path) == [
    {'step': 10, 'loss': 1.0},
    {'step': 20, 'loss': 2.0},
    {'step': 30, 'loss': 7.0},
  ]
  assert sorted(path.name for path in (tmp_path / 'samples').iterdir()) == [
    'samples_00000010.png',
    'samples_00000020.png',
  ]


def test_a_new_run_in_an_old_folder_starts_empty(open_writer, tmp_path):
  with open_writer() as run:
    run.scalars(10, {'loss': 1.0})
  (tmp_path / 'tensorboard' / 'events.out.tfevents.0').touch()
  open_writer().close()
  assert records(tmp_path) == []
  assert not (tmp_path / 'tensorboard' / 'events.out.tfevents.0').exists()


def test_a_half_written_line_does_not_swallow_the_next_record(open_writer, tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
  with open_writer(resume_step=5) as run:
    run.scalars(6, {'loss': 6.0})
  assert [record['step'] for record in records(tmp_path)] == [1, 6]


def test_tensorboard_holds_the_scalars_and_purges_on_resume(open_writer, tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  with open_writer() as run:
    run.scalars(10, {'loss': 0.25})
  with open_writer(resume_step=4) as run:
    run.scalars(5, {'loss': 0.5})
  events = []
  for path in sorted((tmp_path / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:  # a record: length, its checksum, the event, its checksum
      length = int.from_bytes(data[:8], 'little')
      events.append(Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  scalars = {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value}
  assert scalars == {(10, 'loss'): 0.25, (5, 'loss'): 0.5}
  assert any(event.session_log.status == 1 and event.step == 5 for event in events)  # START: purges from 5 on


def test_config_is_json_whole_or_absent(open_writer, tmp_path):
  with open_writer() as run:
    run.config({'steps': 5, 'model': {'width': 8}, 'dtype': np.float32})
  kept = json.loads((tmp_path / 'config.json').read_text())
  assert kept['model'] == {'width': 8}
  assert kept['environment']['devices'] == '8 x cpu'
  assert not list(tmp_path.glob('.*'))


def test_values_that_a_run_goes_on_with_are_told_where_they_are_others(open_writer, tmp_path, capsys):
  config = {'config': {'steps': 5, 'betas': (0.9, 0.99), 'model': {'width': 8}}}
  other = {'config': {'steps': 9, 'betas': (0.9, 0.99), 'model': {'width': 8, 'depth': 2}}}
  with open_writer() as run:
    run.config(config)
  with open_writer(resume_step=5) as run:
    run.config(config)
  with open_writer() as run:  # a new run in an old folder
    run.config(other)
    run.config(config)
  assert capsys.readouterr().out == ''
  with open_writer(resume_step=5) as run:
    run.config(other)
    run.config(other)  # of the next stage
  line = 'Going on with other values: model.depth was None, is 2, steps was 5, is 9\n'
  assert plain(capsys.readouterr().out) == line
  (tmp_path / 'config.json').write_text('{"conf')
  with open_writer(resume_step=5) as run:
    run.config(config)
  assert json.loads((tmp_path / 'config.json').read_text())['config']['steps'] == 5


@pytest.mark.parametrize(('n', 'columns'), [(1, 1), (12, 4), (64, 8)])
def test_grid_is_near_square_and_every_image_is_where_it_belongs(n, columns):
  images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
  picture = writer.grid(images, scale=1)
  assert picture.shape == (math.ceil(n / columns) * 6 + 2, columns * 8 + 2, 3)
  for i in range(n):
    top, left = 2 + i // columns * 6, 2 + i % columns * 8
    np.testing.assert_array_equal(picture[top : top + 4, left : left + 6], images[i])
  assert (picture[:2] == 255).all()
  assert (picture[:, :2] == 255).all()


def test_small_images_are_enlarged_by_nearest_neighbour():
  images = np.random.default_rng(0).integers(0, 255, (4, 28, 28, 1), dtype=np.uint8)
  picture = writer.grid(images)
  np.testing.assert_array_equal(picture[2 : 2 + 56 : 2, 2 : 2 + 56 : 2], np.repeat(images[0], 3, axis=2))
  assert picture.shape == (2 * 58 + 2, 2 * 58 + 2, 3)


def test_labelled_rows_stand_left_of_their_images():
  images = np.full((6, 32, 32, 3), 7, np.uint8)
  plain, labelled = writer.grid(images, columns=3), writer.grid(images, rows=['faces', 'signs'])
  np.testing.assert_array_equal(labelled[:, -plain.shape[1] :], plain)
  column = labelled[:, : -plain.shape[1]]
  assert (column[: plain.shape[0] // 2] == 0).any()
  assert (column[plain.shape[0] // 2 :] == 0).any()


@pytest.mark.parametrize(('images', 'rows'), [((0, 4, 4, 3), None), ((2, 4, 4, 4), None), ((3, 4, 4, 3), ['a', 'b'])])
def test_grids_that_cannot_be_are_refused(images, rows):
  with pytest.raises(ValueError, match=r'images|shape'):
    writer.grid(np.zeros(images, np.uint8), rows=rows)


def test_terminal_shows_one_line_that_never_wraps(tmp_path, monkeypatch):
  monkeypatch.setenv('COLUMNS', '40')
  screen = Terminal()
  monkeypatch.setattr('sys.stdout', screen)
  run = writer.Writer(tmp_path)
  for step in range(0, 1001, 500):
    run.progress(step, 1000, {'loss': 0.5, 'images_per_second': 1234.0, 'input_wait': 0.004})
  run.text('saved')
  run.flush()
  shown = screen.getvalue()
  run.close()
  assert shown.count('\n') == 1  # the one that ends 'saved'
  assert all(len(part) < 40 for part in shown.replace('\x1b[K', '').replace('\n', '\r').split('\r'))
  assert shown.split('\n')[1].startswith('step 1,000/1,000')  # the line is drawn again below the text
  assert screen.getvalue().endswith('\n')


def test_a_log_gets_a_plain_line_for_each_call_with_values(open_writer, capsys):
  run = open_writer()
  for step in range(101):
    run.progress(step, 200, {'loss': 0.5} if step % 50 == 0 else None)
  run.flush()
  log = capsys.readouterr().out
  assert plain(log).startswith('step 0/200')
  assert log.count('\n') == len(TIME.findall(log)) == 3
  assert '\r' not in log
  assert '\x1b' not in log


def fake_time(monotonic):
  return types.SimpleNamespace(monotonic=monotonic, strftime=time.strftime)


def test_long_work_says_how_far_it_is_once_a_minute_in_a_log_and_in_the_live_line_of_a_terminal(tmp_path, monkeypatch):
  for stream, lines in ((io.StringIO(), 2), (Terminal(), 0)):
    clock = itertools.count(100.0, 30.0)
    run = writer.Writer(tmp_path, stream=stream)
    monkeypatch.setattr(terminal, 'time', fake_time(lambda clock=clock: next(clock)))
    for done in range(1, 5):
      run.working(f'features: {done:,} of 4')
    run.flush()
    shown = stream.getvalue()
    assert (
      shown.count('\n') == lines and ('features: 3 of 4' in shown) and ('features: 2 of 4' in shown) == (lines == 0)
    )
    monkeypatch.undo()
    run.close()


def test_time_left_counts_only_steps_that_are_known_to_be_done(open_writer, capsys, monkeypatch):
  clock = iter([0.0, 10.0, 20.0])
  run = open_writer()
  monkeypatch.setattr(terminal, 'time', fake_time(lambda: next(clock)))
  run.progress(100, 1000)
  run.progress(200, 1000)  # handed to the device, which may be far behind
  run.progress(200, 1000, {'loss': 0.5})
  run.flush()
  assert plain(capsys.readouterr().out) == 'step 200/1,000  20%  loss 0.5  2:40 left\n'


def test_progress_says_everything_a_person_waits_for():
  values = {'loss': 0.2134, 'images_per_second': 1204.4, 'input_wait': 0.004, 'seconds_left': 723.0}
  assert terminal.progress_text(1200, 20_000, values) == (
    'step 1,200/20,000  6%  loss 0.2134  1,204 images/s  input wait 0.4%  12:03 left'
  )


@pytest.mark.parametrize(
  ('seconds', 'text'), [(42.0, '0:42'), (723.4, '12:03'), (11_229.0, '3:07:09'), (184_020.0, '2d 03:07')]
)
def test_durations(seconds, text):
  assert terminal.duration(seconds) == text


def test_silent_writer_writes_and_says_nothing(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with writer.silent() as run:
    run.config({})
    run.scalars(1, {'loss': 1.0})
    run.images(1, 'samples', np.zeros((1, 4, 4, 3), np.uint8))
    run.text('hello', name='parameters')
    run.progress(1, 2, {'loss': 1.0})
  assert capsys.readouterr().out == ''
  assert list(tmp_path.iterdir()) == []


def test_text_with_a_name_is_kept(open_writer, tmp_path, capsys):
  with open_writer() as run:
    run.text('net: 3', name='parameters')
  assert plain(capsys.readouterr().out) == 'net: 3\n'
  assert (tmp_path / 'parameters.txt').read_text() == 'net: 3\n'


def test_a_run_is_one_process_own_until_it_ends(tmp_path):
  with (
    distributed.alone_in(tmp_path / 'run'),
    pytest.raises(ValueError, match=r'another process trains in .*run; wait until it has ended'),
  ):
    train([], tmp_path / 'run')
  with distributed.alone_in(tmp_path / 'run'):
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['.lock']


def test_a_bucket_cannot_be_kept_for_one(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with distributed.alone_in('gs://bucket/run'), distributed.alone_in('gs://bucket/run'):
    assert not list(tmp_path.iterdir())
