"""The `jaxgen` program: start-up, mistakes, configs and overrides, and training and sampling through it."""

import errno
import importlib
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import types

import numpy as np
import pytest

from jaxgen import sample, writer
from jaxgen.cli import config as configs
from jaxgen.cli import main as program
from jaxgen.cli.configs import field_comments
from jaxgen.data import sources
from jaxgen.metrics_file import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = str(ROOT / 'tests' / 'tiny_config.py')
DATASETS = ', '.join(map(repr, sources.NAMED))
HEAVY = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'numpy', 'ml_collections', 'absl', 'PIL', 'tensorflow_datasets'}


@pytest.fixture(scope='module', autouse=True)
def one_process():
  """The tests' process has used its devices already, so it can join no job any more."""
  from jaxgen import distributed

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(distributed, 'start', lambda *_: None)
    yield


@pytest.fixture
def run_command(monkeypatch, tmp_path):
  """Runs a command whose module holds the given source: (exit code)."""
  monkeypatch.setenv('JAXGEN_HOME', str(tmp_path))
  for name in ('JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', 'XLA_FLAGS'):
    monkeypatch.setenv(name, os.environ.get(name, ''))

  def run(source, *argv):
    module = types.ModuleType('config_file.fake')
    exec(compile(source, 'fake.py', 'exec'), module.__dict__)
    monkeypatch.setitem(sys.modules, 'config_file.fake', module)
    monkeypatch.setitem(program._COMMANDS, 'fake', ('config_file.fake', ''))
    return program.main(['fake', *argv])

  return run


def test_help_answers_at_once_and_imports_nothing_heavy():
  code = """
import sys
from jaxgen.cli.main import main
assert main(['--help']) == 0
print('MODULES', *sys.modules)
"""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  text, _, names = out.partition('MODULES')
  assert {name.split('.')[0] for name in names.split()} & HEAVY == set()
  # Processor time: what another process takes meanwhile does not count.
  assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
  for command in program._COMMANDS:
    assert re.search(rf'^  {command} ', text, re.MULTILINE)


def test_help_of_every_command_imports_nothing_heavy():
  code = """
import contextlib, io, sys
from jaxgen.cli import main as program
for command in program._COMMANDS:
  with contextlib.redirect_stdout(io.StringIO()) as out:
    try:
      code = program.main([command, '--help'])
    except SystemExit as end:
      code = end.code
  assert code == 0 and out.getvalue().startswith(f'usage: jaxgen {command}'), (command, code, out.getvalue())
print(*sys.modules)
"""
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
  assert {name.split('.')[0] for name in out.split()} & HEAVY == set()


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ("def main(argv): raise ValueError('batch_size 7\\n  does not divide')", 'batch_size 7 does not divide'),
    ("def main(argv): raise RuntimeError('too many bad steps')", 'too many bad steps'),
    ("def main(argv): open('/nowhere/at/all')", 'No such file or directory: /nowhere/at/all'),
    (
      f"import os\ndef main(argv): raise OSError({errno.ENOSPC}, os.strerror({errno.ENOSPC}), 'runs/a/9')",
      'No space left on device: runs/a/9',
    ),
    ("def main(argv): raise FileNotFoundError('no weights; `jaxgen weights get`')", 'no weights; `jaxgen weights get`'),
  ],
)
def test_a_users_mistake_is_one_line(run_command, capsys, source, message):
  assert run_command(source) == 2
  assert capsys.readouterr().err == f'jaxgen: error: {message}\n'


@pytest.mark.parametrize(
  'source',
  [
    "def main(argv): int('seven')",  # an expression, not a message
    "import fractions\ndef main(argv): fractions.Fraction('seven')",  # raised by a library
    "def main(argv): raise TypeError('a bug')",
    'def main(argv): {}[1]',
  ],
)
def test_a_bug_keeps_its_traceback(run_command, capsys, source):
  assert run_command(source) == 1
  assert capsys.readouterr().err.startswith('Traceback')


def test_traceback_can_be_asked_for(run_command, capsys, monkeypatch):
  source = "def main(argv):\n  assert argv == ['--x']\n  raise ValueError('no')"
  assert run_command(source, '--x', '--traceback') == 1
  assert 'Traceback' in capsys.readouterr().err
  monkeypatch.setenv('JAXGEN_TRACEBACK', '1')
  assert run_command(source, '--x') == 1
  assert 'Traceback' in capsys.readouterr().err


def test_interrupt_is_a_clean_line(run_command, capsys):
  assert run_command('def main(argv): raise KeyboardInterrupt') == 130
  assert capsys.readouterr().err == '\njaxgen: interrupted\n'


def test_a_reader_that_leaves_is_no_error():
  read, write = os.pipe()
  os.close(read)
  code = 'import sys; from jaxgen.cli.main import main; sys.exit(main(["--help"]))'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
  os.close(write)
  assert (done.returncode, done.stderr) == (1, '')


def test_unknown_command_says_what_was_meant(capsys):
  assert program.main(['trian']) == 2
  assert capsys.readouterr().err == "jaxgen: error: unknown command 'trian'; did you mean 'train'?\n"


def test_compiled_programs_are_kept_in_jaxgen_home_unless_told_otherwise(run_command, monkeypatch, tmp_path):
  source = "import os\ndef main(argv): print(os.environ['JAX_COMPILATION_CACHE_DIR']); return 0"
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  run_command(source)
  assert os.environ['JAX_COMPILATION_CACHE_DIR'] == str(tmp_path / 'compilation')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/elsewhere')
  run_command(source)
  assert os.environ['JAX_COMPILATION_CACHE_DIR'] == '/elsewhere'


@pytest.mark.parametrize(
  ('arguments', 'field', 'value'),
  [
    (['--config.steps=5'], 'steps', 5),
    (['--config.steps', '5'], 'steps', 5),
    (['--config.optimizer.learning_rate=1'], 'optimizer.learning_rate', 1.0),
    (['--config.optimizer.nesterov=true'], 'optimizer.nesterov', True),
    (['--config.optimizer.nesterov'], 'optimizer.nesterov', True),
    (['--config.optimizer.betas=(0.5,0.6)'], 'optimizer.betas', (0.5, 0.6)),
    (['--config.note=a=b c'], 'note', 'a=b c'),
    (['--config.limit=3'], 'limit', 3),
    (['--config.steps=5', '--config.steps=6'], 'steps', 6),
    ({'steps': 7}, 'steps', 7),
    ({'optimizer.betas': (0.1, 0.2)}, 'optimizer.betas', (0.1, 0.2)),
    ({'nothing': 3}, 'nothing', 3),
    ({'sizes': [3]}, 'sizes', [3]),
  ],
)
def test_overrides_change_one_field(arguments, field, value):
  config, module = configs.load_config(TINY, arguments)
  want = writer.flat(module.get_config().to_dict()) | {field: value}
  assert writer.flat(config.to_dict()) == want


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config.stesp=5'], "no field 'stesp'; did you mean 'steps'?"),
    ({'stesp': 5}, "no field 'stesp'; did you mean 'steps'?"),
    (['--config.optimizer.learning_rat=1'], "did you mean 'optimizer.learning_rate'?"),
    (['--config.learning_rate=1'], "did you mean 'optimizer.learning_rate'?"),
    (['--config.bets=1'], "did you mean 'optimizer.betas'?"),
    (['--config.zzz=1'], 'it has: batch_size, checkpoint_every,'),
    (['--config.optimizer=adam'], "'optimizer' is a group; set one of its fields: optimizer.betas,"),
    (['--config.steps=many'], "'steps' is of type int (now 4); got 'many'"),
    (['--config.steps=1e3'], "'steps' is of type int (now 4); got '1e3'"),
    ({'steps': 'many'}, "'steps' is of type int (now 4); got 'many'"),
    (['--config.nothing=1'], "'nothing' is None, which tells no type"),
    (['--config.sizes=1'], "'sizes' is a list"),
    (['--stesp=5'], 'unknown option --stesp'),
    (['steps=5'], "unexpected argument 'steps=5'"),
    (['--config.steps'], 'Missing value for flag --config.steps'),
    (['--config.optimizer.learning_rate=nan'], "'optimizer.learning_rate' is nan; it must be finite"),
    ({'optimizer.betas': (0.9, float('inf'))}, "'optimizer.betas' is (0.9, inf); it must be finite"),
  ],
)
def test_overrides_that_cannot_be_say_why(arguments, message):
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    configs.load_config(TINY, arguments)
  assert program.is_message(caught.value)


@pytest.fixture
def experiments(tmp_path, monkeypatch):
  """A folder with configs of one's own: `base`, and `variant` that edits it."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').mkdir()
  base = (
    'from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({"a": 1})\ndef build(c): return c\n'
  )
  (tmp_path / 'configs' / 'h5_base.py').write_text(base)
  variant = (
    'from configs import h5_base\nfrom configs.h5_base import build\n'
    'def get_config():\n  c = h5_base.get_config()\n  c.a = 2\n  return c\n'
  )
  (tmp_path / 'configs' / 'h5_variant.py').write_text(variant)
  yield tmp_path
  for name in [name for name in sys.modules if name.startswith(('configs.h5_', 'config_file.'))]:
    del sys.modules[name]


@pytest.mark.parametrize('name', ['h5_variant', 'configs/h5_variant.py', './configs/h5_variant.py'])
def test_a_config_is_found_by_name_or_path_and_can_edit_another(experiments, name):
  config, module = configs.load_config(name)
  assert config.a == 2
  file = str(experiments / 'configs' / 'h5_variant.py')
  assert configs.record(config, module) == {'name': 'h5_variant', 'file': file, 'config': {'a': 2}}


def test_a_config_elsewhere_is_found_by_path(experiments):
  path = (experiments / 'configs' / 'h5_base.py').rename(experiments / 'mine.py')
  config, module = configs.load_config('./mine.py')
  assert configs.record(config, module) == {'name': 'mine', 'file': str(path), 'config': {'a': 1}}


def test_the_configs_of_the_checkout_are_found_from_any_folder(experiments):
  assert 'emoji_dit' in configs.available_configs()


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('h5_varian', "no config named 'h5_varian'; did you mean 'h5_variant'?"),
    ('nowhere/mine.py', 'no config file nowhere/mine.py'),
    ('mine', '(for a file, write ./mine.py)'),
  ],
)
def test_a_config_that_is_missing_names_those_that_are_there(experiments, name, message):
  (experiments / 'mine.py').touch()
  with pytest.raises(FileNotFoundError, match=re.escape(message)) as caught:
    configs.load_config(name)
  assert 'h5_base, h5_variant' in str(caught.value)


def test_a_file_that_is_no_config_says_so(experiments):
  (experiments / 'mine.py').write_text('x = 1\n')
  with pytest.raises(ValueError, match=r'mine.py is no config: it has no function get_config\(\)'):
    configs.load_config('./mine.py')
  (experiments / 'mine.yaml').write_text('x: 1\n')
  with pytest.raises(ValueError, match=r'mine.yaml is no config: wanted a Python file'):
    configs.load_config('./mine.yaml')


def jaxgen(*argv):
  return program.main([str(arg) for arg in argv])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The folder of a run of the smallest config, trained through the program."""
  folder = tmp_path_factory.mktemp('runs') / 'tiny'
  argv = ('train', '--config', TINY, '--workdir', folder, '--config.optimizer.learning_rate=8.0', '--config.limit=9')
  assert jaxgen(*argv) == 0
  return folder


def pictures(folder):
  from PIL import Image

  return np.stack([np.array(Image.open(path)) for path in sorted(folder.glob('*.png'))])


def test_a_run_leaves_the_folder_that_the_design_says(trained):
  names = {path.name for path in trained.iterdir()}
  assert names >= {'config.json', 'metrics.jsonl', 'tensorboard', 'samples', 'checkpoints', 'report.html'}
  kept = json.loads((trained / 'config.json').read_text())
  assert kept['file'] == TINY
  assert kept['config']['optimizer']['learning_rate'] == 8.0
  config, _ = configs.load_run(trained)
  assert (config.optimizer.learning_rate, config.optimizer.betas, config.limit) == (8.0, (0.9, 0.95), 9)
  assert configs.load_run(trained, ['--config.steps=9'])[0].steps == 9


def test_a_run_that_names_fields_its_config_has_lost_still_opens(tmp_path):
  config, _ = configs.load_config('emoji_edm')
  kept = {'name': 'emoji_edm', 'file': None, 'config': config.to_dict() | {'process': 'cosine', 'margin': 0.05}}
  (tmp_path / 'config.json').write_text(json.dumps(kept))
  assert configs.load_run(tmp_path)[0].to_dict() == config.to_dict()


def test_a_damaged_config_of_a_run_is_one_line(tmp_path, capsys):
  (tmp_path / 'config.json').write_text('{"name": "emo')
  assert jaxgen('sample', '--run', tmp_path, '--out', tmp_path / 'a') == 2
  assert f'{tmp_path}/config.json is damaged' in capsys.readouterr().err


def test_samples_depend_on_seed_and_index_alone(trained, tmp_path):
  options = ('--run', trained, '--label', 'dark', '--label', 1)
  assert jaxgen('sample', *options, '--num', 20, '--out', tmp_path / 'a', '--batch-size', 8) == 0
  assert jaxgen('sample', *options, '--num', 10, '--out', tmp_path / 'b') == 0
  assert jaxgen('sample', *options, '--num', 10, '--out', tmp_path / 'c', '--seed', 1) == 0
  a, b, c = (pictures(tmp_path / name) for name in 'abc')
  np.testing.assert_array_equal(a[:10], b)
  assert (b != c).any(axis=(1, 2, 3)).all()
  assert len(np.unique(b[::2], axis=0)) == 5
  assert a[::2].mean() < a[1::2].mean()  # dark, light, dark, ...
  lines = [json.loads(line) for line in (tmp_path / 'b' / 'metadata.jsonl').read_text().splitlines()]
  assert lines[1] == {'file_name': '000001.png', 'label': 1, 'class': 'light'}


def test_samples_can_be_of_an_earlier_step_and_of_the_parameters_themselves(trained, tmp_path):
  def mean_of(name, *options):
    assert jaxgen('sample', '--run', trained, '--label', 'light', '--out', tmp_path / name, *options) == 0
    return pictures(tmp_path / name).mean()

  averaged, plain, early = mean_of('a'), mean_of('b', '--ema', 'none'), mean_of('c', '--step', 2)
  assert mean_of('d', '--ema', 'net') == averaged
  wide = mean_of('e', '--ema', 'wide')
  assert abs(mean_of('f', '--ema', 'power:0.1') - wide) < 0.1 < abs(mean_of('g', '--ema', 'power:0.2') - wide)
  assert plain > averaged + 1 > early + 2  # the mean climbs towards the light class's, and its average behind it


def test_a_grid_is_one_picture(trained, tmp_path):
  assert jaxgen('sample', '--run', trained, '--num', 9, '--out', tmp_path / 'grids' / 'a.png') == 0
  assert pictures(tmp_path / 'grids').shape == (1, 3 * 66 + 2, 3 * 66 + 2, 3)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (('--label', 'green'), "label 'green' is no class of this run; its classes are 0 'dark', 1 'light'"),
    (('--label', '2'), "label '2' is no class"),
    (('--step', '3'), 'no checkpoint of step 3'),
    (('--step', 'best'), 'keeps no best model, since it has measured no FID'),
    (('--ema', 'slow'), "no average named 'slow'; this run keeps ['net', 'wide'], none and power:WIDTH"),
    (('--ema', 'power:wide'), "average 'power:wide' is not understood; wanted power:WIDTH"),
    (('--ema', 'power:0.4'), 'average is 0.4; it must be at most 0.3'),
    (('--batch-size', '3'), 'batch_size 3 does not divide over 8 devices'),
    (('--num', '0'), '--num is 0; it must be 1 or more'),
    (('--config.stesp=1',), "did you mean 'steps'?"),
    (('--run', '/nowhere'), '/nowhere is not the folder of a run'),
  ],
)
def test_samples_that_cannot_be_say_why(trained, tmp_path, capsys, options, message):
  assert jaxgen('sample', '--run', trained, '--out', tmp_path / 'a', *options) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


def test_a_run_can_be_evaluated_again(trained, tmp_path, capsys):
  options = ('evaluate', '--run', trained, '--out', tmp_path / 'again', '--step', 2)
  assert jaxgen(*options, '--ema', 'none', '--only', 'mean', '--config.target=0.25') == 0
  again = json.loads(capsys.readouterr().out)
  during = {line['step']: line['mean'] for line in read_metrics(trained / 'metrics.jsonl') if 'mean' in line}
  assert again['step'] == 2 and set(again) == {'step', 'mean', 'protocols'}
  assert again['protocols'] == {'mean': {'target': 0.25}}
  config, module = configs.load_run(trained)
  raw = sample.restore(module.build(config), trained, step=2, average='none').params['net']['means']
  np.testing.assert_allclose(again['mean'], np.mean(raw[1]) - 0.25, rtol=1e-6)
  assert set(during) == {2, 4} and during[2] < again['mean'] + 0.25  # the average lags
  assert not (tmp_path / 'again' / 'samples' / 'samples_00000002.png').exists()
  assert jaxgen(*options) == 0
  assert (tmp_path / 'again' / 'samples' / 'samples_00000002.png').exists()
  assert json.loads(capsys.readouterr().out)['mean'] == during[2]


def test_evaluations_that_cannot_be_say_why(trained, tmp_path, capsys):
  assert jaxgen('evaluate', '--run', trained, '--only', 'fid') == 2
  assert "no evaluator named 'fid'; it has samples, mean" in capsys.readouterr().err
  measured = (trained / 'metrics.jsonl').read_bytes()
  assert jaxgen('evaluate', '--run', trained, '--out', trained) == 2
  assert 'is the folder of a run, whose records would be lost; give another (--out)' in capsys.readouterr().err
  assert (trained / 'metrics.jsonl').read_bytes() == measured
  for options in ((), ('--run', trained, '--images', tmp_path), ('--images', tmp_path)):
    with pytest.raises(SystemExit, match='2'):
      jaxgen('evaluate', *options)
  assert jaxgen('evaluate', '--images', trained / 'samples', '--reference', tmp_path / 'none') == 2
  assert capsys.readouterr().err.endswith(f'jaxgen: error: there is no folder or file {tmp_path}/none\n')


def test_a_mistake_in_build_is_one_line_and_leaves_no_folder(tmp_path, capsys):
  assert jaxgen('train', '--config', TINY, '--workdir', tmp_path / 'run', '--config.batch_size=0') == 2
  assert capsys.readouterr().err == 'jaxgen: error: batch_size is 0; it must be 1 or more\n'
  assert not (tmp_path / 'run').exists()


def test_a_preempted_run_exits_75(tmp_path, capsys, monkeypatch):
  from jaxgen import distributed

  def preempted(experiment, workdir, *, record, allow_changes, signals, profile, writers, local):
    assert not writers and local is None
    assert (workdir, record['name'], allow_changes) == (pathlib.Path('runs/tiny_config'), 'tiny_config', True)
    raise distributed.Preempted('stopped at step 7')

  monkeypatch.setattr(importlib.import_module('jaxgen.train'), 'train', preempted)
  assert jaxgen('train', '--config', TINY, '--allow-changes') == 75
  assert capsys.readouterr().err == 'jaxgen: stopped at step 7\n'


def test_report_is_written_again(trained, capsys):
  (trained / 'report.html').unlink()
  assert jaxgen('report', '--run', trained) == jaxgen('report', trained) == 0
  assert (trained / 'report.html').exists()
  assert jaxgen('report', '--run', trained / 'samples') == 2


def test_train_takes_the_default_config(capsys):
  # `./launch/local train` names none; an override that is wrong shows which config it was read against.
  assert program.main(['train', '--config.stesp=5']) == 2
  assert "config avatars has no field 'stesp'" in capsys.readouterr().err


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('dataset=emoji23', f"config.dataset is 'emoji23'; did you mean 'emoji32'? it can be {DATASETS}"),
    ('process=cosin', "config.process is 'cosin'; did you mean 'cosine'? it can be 'cosine', 'flow'"),
    ('sampling.name=Eulr', "config.sampling.name is 'Eulr'; it can be 'DPM-Solver++ 2M', 'UniPC', 'DDIM'"),
    ('ema=2', "an average's decay is 2.0; it must be in [0, 1]"),
    ('samples.per_class=-1', 'per_class is -1; it must be 0, for no grid, or more'),
    ('samples.every=-1', 'every of samples is -1; it must be 1 or more'),
    ('checkpoint.keep=0', 'checkpoints.keep is 0; it must be 1 or more'),
    ('sampling.batch_size=0', 'batch_size is 0; it must be 1 or more'),
  ],
)
def test_a_value_of_a_config_that_cannot_be_is_one_line(override, message, tmp_path, capsys):
  options = ('--config', 'emoji_dit', '--config.fid.num_samples=0')
  argv = ('train', '--workdir', tmp_path / 'run', f'--config.{override}', *options)
  assert jaxgen(*argv) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'jaxgen: error: {message}')
  assert error.count('\n') == 1
  assert not (tmp_path / 'run' / 'metrics.jsonl').exists()


def test_configs_are_listed_by_family(capsys):
  assert program.main(['configs']) == 0
  text = capsys.readouterr().out
  gans, diffusion = text.index('gan:'), text.index('diffusion and flow:')
  assert gans < text.index('\n  emoji_stylegan2 ') < diffusion < text.index('\n  emoji_dit ')
  assert text.index('text to image:') < text.index('\n  avatars ') < text.index('\n  sd15_finetune ') < diffusion
  assert re.search(r'emoji_mean_flow +\w', text[text.index('few steps:') : diffusion])


def test_a_config_is_shown_with_its_fields_and_their_meaning(capsys):
  assert program.main(['configs', 'emoji_unet']) == 0  # a variant: the comments are its base's
  text = capsys.readouterr().out
  assert text.startswith('emoji_dit with a small ADM')
  assert '--config.fid.num_samples=256' in text and '--config.model.width=32' in text
  assert 'the split that FID compares with' in text


def test_field_comments_follow_nested_fields():
  source = """
def get_config():
  return ConfigDict({
    'seed': 0,  # the seed
    'fid': {'every': 5, 'num': 3},  # num=0 for none
    'model': {
      'width': 8,  # features
    },
  })
  c.model.depth = 2  # blocks
"""
  comments = field_comments(source)
  assert comments['model.depth'] == 'blocks'
  assert comments['seed'] == 'the seed' and comments['fid'] == 'num=0 for none'
  assert comments['model.width'] == 'features' and 'fid.num' not in comments
