"""Where a run's time goes, summed over restarts; traces of steps; the learning rate in the metrics."""

import json

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxgen import goodput, report
from jaxgen.goodput import Goodput
from jaxgen.metrics_file import read_metrics
from jaxgen.optimizers import learning_rates
from jaxgen.profiling import Profile, memory_if_full
from jaxgen.train import train
from tests import toys


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass only when they are told to."""
  now = [0.0]
  monkeypatch.setattr(goodput.time, 'perf_counter', lambda: now[0])
  monkeypatch.setattr(goodput.time, 'time', lambda: 1000.0 + now[0])
  return now


def test_time_is_of_the_state_it_was_spent_in(clock):
  life = Goodput(None)
  clock[0] += 2
  life.enter('step')
  clock[0] += 5
  with life.within('checkpoint'):
    clock[0] += 1
  clock[0] += 2
  life.window(0.7, waited=3.0)
  assert {state: seconds for state, seconds in life.seconds.items() if seconds} == {
    'init': 2,
    'step': 4,
    'input': 3,
    'checkpoint': 1,
  }
  assert life.share == 0.4


def test_steps_that_are_done_again_are_lost_and_the_time_between_lives_counts(clock, tmp_path):
  life = Goodput(tmp_path)
  life.enter('step')
  clock[0] += 10
  life.window(1.0, waited=0.0)
  (tmp_path / goodput.NAME).write_text(life.record(10))
  clock[0] += 20
  again = Goodput(tmp_path, resume_step=6)
  assert {state: seconds for state, seconds in again.seconds.items() if seconds} == {'step': 6, 'lost': 4, 'down': 20}
  assert again.share == 0.2


@pytest.mark.parametrize('text', ['{', '[]', '{"seconds": 3}', '{"seconds": {"step": "x"}, "time": null, "step": -1}'])
def test_a_damaged_record_adds_nothing(text, tmp_path):
  (tmp_path / goodput.NAME).write_text(text)
  assert sum(Goodput(tmp_path, resume_step=3).seconds.values()) < 1
  assert sum(goodput.read(tmp_path).values()) == 0


def test_a_run_says_where_its_time_went_and_what_its_learning_rate_was(tmp_path):
  schedule = optax.linear_schedule(0.0, 1.2, 12)
  stage = toys.experiment(optimizers={'net': optax.adamw(schedule)}, learning_rates={'net': schedule})
  train(stage, tmp_path, profile=Profile(steps=2))
  lines = [line for line in read_metrics(tmp_path / 'metrics.jsonl') if 'loss' in line]
  assert [round(line['learning_rate'], 5) for line in lines] == [round(0.1 * (line['step'] - 1), 5) for line in lines]
  assert all(0 < line['goodput'] < 1 for line in lines)
  kept = json.loads((tmp_path / goodput.NAME).read_text())
  assert kept['step'] == 12
  assert all(kept['seconds'][state] > 0 for state in ('init', 'compile', 'step', 'checkpoint'))
  assert '>goodput<' in report.write(tmp_path).read_text()
  assert list(tmp_path.glob('profile/**/*.xplane.pb'))


def test_a_run_that_runs_out_of_memory_leaves_what_its_device_holds(tmp_path, capsys):
  with pytest.raises(jax.errors.JaxRuntimeError, match='other'), memory_if_full(tmp_path):
    raise jax.errors.JaxRuntimeError('other')
  assert not list(tmp_path.iterdir())
  with pytest.raises(jax.errors.JaxRuntimeError, match='RESOURCE_EXHAUSTED'), memory_if_full(tmp_path):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 8 GiB')
  assert (tmp_path / 'memory.prof').stat().st_size
  assert f'what it holds is in {tmp_path / "memory.prof"}' in capsys.readouterr().err


def test_rates_of_several_networks_have_their_names():
  state = {name: optax.adam(optax.constant_schedule(1.0)).init({'w': jnp.zeros(2)}) for name in ('a', 'b')}
  schedules = {'a': lambda count: 0.5 + count, 'b': lambda count: 2.0}
  assert learning_rates(schedules, state) == {'learning_rate/a': 0.5, 'learning_rate/b': 2.0}
  with pytest.raises(ValueError, match="the optimizer of 'a' counts no updates"):
    learning_rates({'a': schedules['a']}, {'a': optax.identity().init({})})
