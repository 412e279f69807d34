"""The shape of the house: who may import whom, what every module may mention, what the package ships."""

import ast
import importlib.metadata
import io
import pathlib
import re
import shutil
import subprocess
import sys
import tokenize

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Imports point down only. In the first three levels they also never go sideways, but for FROM_SIDE.
LEVELS = [
  {'typing', 'home', 'xla_flags', 'flops', 'files', 'npz_file', 'digests', 'signals'},
  {'processes', 'models', 'data', 'metrics', 'sharding'},
  {'samplers', 'adapters', 'pretrained', 'objectives'},
  {
    'generation',
    'train_state',
    'train_step',
    'ema',
    'optimizers',
    'adam8bit',
    'checkpoint',
    'local_checkpoints',
    'best',
    'model_folder',
    'destination',
    'frozen',
    'init_from',
    'distributed',
    'evaluators',
    'writer',
    'report',
    'observers',
    'terminal',
    'metrics_file',
    'event_files',
    'image_grid',
    'animation',
    'vote',
    'step_window',
    'goodput',
    'profiling',
    'watchdog',
    'sweep',
    'compare',
  },
  {
    'experiment',
    'config_parts',
    'text_parts',
    'stage_setup',
    'run',
    'train',
    'sample',
    'kept_experiment',
    'generated',
    'from_weights',
    'evaluate',
    'bench',
    'encode',
    'plan',
    'export',
    'model_card',
  },
  {'configs'},
  {'cli'},
  {'library'},
  {'__main__'},
]
FROM_SIDE = {
  ('objectives', 'samplers'),
  ('objectives', 'adapters'),  # an adapter is data: objectives/adapted.py trains it
  ('adapters', 'pretrained'),  # files of adapters name the tensors of published networks
  ('pretrained', 'objectives'),  # a published pipeline is an objective
  ('pretrained', 'samplers'),
  ('models', 'sharding'),  # attention runs on each device's own part
  ('metrics', 'data'),  # one lister and one decoder of images
}
FOREIGN = {'torch', 'tensorflow', 'diffusers', 'transformers', 'torch_fidelity'}


def level(part):
  return next((i for i, parts in enumerate(LEVELS) if part in parts), None)


def part_of(module):
  """'jaxgen.models.dit' -> 'models'; 'configs.emoji_dit' -> 'configs'; None for other packages."""
  names = module.split('.')
  if names[0] == 'configs':
    return 'configs'
  return names[1] if names[0] == 'jaxgen' and len(names) > 1 else None


def imported(tree):
  """Every module that is imported anywhere in a file, functions included."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def violations(module, source):
  """What a module may not import or mention, as sentences."""
  part, tree = part_of(module), ast.parse(source)
  if part is None:
    return
  if level(part) is None:
    yield f'{module}: {part} has no level; add it to DESIGN section 2 and LEVELS'
    return
  for name in imported(tree):
    if name.split('.')[0] in FOREIGN:
      yield f'{module} imports {name}; reference implementations belong in tests'
    other = part_of(name)
    if other is None or other == part or level(other) is None:
      continue
    sideways = level(other) == level(part) < 3 and (part, other) not in FROM_SIDE
    if level(other) > level(part) or sideways:
      yield f'{module} imports {name}: {part} (level {level(part)}) may not see {other} (level {level(other)})'
  names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
  names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
  names |= {name.rpartition('.')[2] for name in imported(tree)}
  if 'PartitionSpec' in names and part != 'sharding':
    yield f'{module} writes a PartitionSpec; only sharding.py does'


def modules():
  for path in [*ROOT.glob('jaxgen/**/*.py'), *ROOT.glob('configs/*.py')]:
    name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    yield name.removesuffix('.__init__'), path


@pytest.mark.parametrize(('module', 'path'), sorted(modules()))
def test_imports_point_down(module, path):
  assert list(violations(module, path.read_text(encoding='utf-8'))) == []


@pytest.mark.parametrize(
  ('module', 'source'),
  [
    ('jaxgen.models.dit', 'from jaxgen.data import loader'),
    ('jaxgen.models.dit', 'import jaxgen.metrics.fid'),
    ('jaxgen.data.loader', 'import jaxgen.metrics.fid'),
    ('jaxgen.metrics.fid', 'from jaxgen.models import inception'),  # functions of features only
    ('jaxgen.models.dit', 'def f():\n  from jaxgen import train'),
    ('jaxgen.samplers.euler', 'from jaxgen.objectives.diffusion import diffusion'),
    ('jaxgen.objectives.base', 'from jaxgen.generation.edit import edited'),
    ('jaxgen.train_step', 'from jaxgen.experiment import Experiment'),
    ('jaxgen.train', 'import configs.emoji_dit'),
    ('configs.emoji_dit', 'from jaxgen.cli.config import load_config'),
    ('jaxgen.objectives.gan.gan', 'from jax.sharding import PartitionSpec as P'),
    ('jaxgen.models.dit', 'import jax\njax.sharding.PartitionSpec()'),
    ('jaxgen.metrics.fid', 'import torch'),
    ('jaxgen.utils', 'x = 1'),
  ],
)
def test_the_rule_sees_what_breaks_it(module, source):
  assert list(violations(module, source))


@pytest.mark.parametrize(
  ('module', 'source'),
  [
    ('jaxgen.objectives.diffusion.diffusion', 'from jaxgen.samplers.euler import euler'),
    ('jaxgen.train_step', 'from jaxgen.ema import Average\nfrom jaxgen.objectives.base import Objective'),
    ('jaxgen.models.dit', 'from jaxgen.models.layers.attention import attention'),
    ('jaxgen.sharding', 'from jax.sharding import PartitionSpec'),
    ('configs.emoji_dit_flow', 'from configs import emoji_dit'),
  ],
)
def test_the_rule_allows_what_the_design_allows(module, source):
  assert list(violations(module, source)) == []


def test_a_config_is_complete_or_changes_one_that_is():
  bases = {
    path.stem: {name.split('.')[1] for name in imported(ast.parse(path.read_text())) if part_of(name) == 'configs'}
    for path in ROOT.glob('configs/*.py')
  }
  assert {name: of for name, of in bases.items() if len(of) > 1} == {}
  assert {name: of for name, of in bases.items() if any(bases[base] for base in of)} == {}


def test_there_is_no_drawer_for_everything_and_files_have_the_names_of_the_field():
  names = {path.stem for _, path in modules()}
  assert not names & {'utils', 'util', 'helpers', 'common', 'misc'}
  assert not names & {'average_velocity', 'continuous_consistency', 'learned_schedule', 'variational', 'bottleneck'}


def test_the_design_page_names_every_module():
  page = (ROOT / 'docs' / 'design.md').read_text()
  found = {path.name for path in (ROOT / 'jaxgen').glob('[a-z]*.py')}
  assert {name for name in found if not re.search(rf'\b{re.escape(name)}', page)} == set()
  folders = [path.parent for path in (ROOT / 'jaxgen').glob('*/__init__.py')]
  folders += [path.parent for path in (ROOT / 'jaxgen' / 'objectives').glob('*/__init__.py')]
  assert {path.name for path in folders if f'{path.name}/' not in page} == set()


RIDDLES = {'told', 'asked', 'said', 'tells', 'says', 'speaks', 'went', 'goes', 'going', 'knows', 'foretell'}
LINES, LINES_OF_FUNCTION, LINES_OF_TRAIN = 520, 95, 320


def habits(module, source):
  """What a module may not do, as sentences: `docs/design.md` and the names of the field."""
  part, tree = part_of(module), ast.parse(source)
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.NAME and RIDDLES & set(token.string.lower().split('_')):
      yield f'{module} has a name that does not say what it is: {token.string}'
  for line in re.findall(r'^ +[a-z_, ]+: of [a-z].*', source, re.MULTILINE):
    yield f'{module} describes an argument by a part of a phrase: {line.strip()}'
  for line in re.findall(r"""help=["']of .*|\S  # of [a-z].*""", source):
    yield f'{module} describes something by a part of a phrase: {line}'
  if re.search(r'\bdata set', source):
    yield f'{module} says data set; the word is dataset'
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef) and (length := node.end_lineno - node.lineno + 1) > LINES_OF_FUNCTION:
      yield f'{module}.{node.name} has {length} lines; at most {LINES_OF_FUNCTION}'
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'isinstance' and 'partial' in ast.unparse(node.args[1]):
      yield f'{module} looks whether a function is a partial; make it data, as Sampler is'
    named = isinstance(node, ast.Compare) and ast.unparse(node.left).endswith('module.name')
    if named:
      yield f"{module} goes by a module's name; the network asks for what it wants"
    if isinstance(node, ast.keyword) and part == 'configs' and node.arg == 'rules':
      yield f'{module} repeats the sharding rules of a network'
  if (lines := source.count('\n')) > (limit := LINES_OF_TRAIN if module == 'jaxgen.train' else LINES):
    yield f'{module} has {lines} lines; at most {limit}'
  yield from _of_part(module, part, tree)


def _of_part(module, part, tree):
  subscripts = {ast.unparse(node.slice) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
  if part == 'objectives' and module != 'jaxgen.objectives.network' and "'net'" in subscripts:
    yield f"{module} reads params['net']; use weights(params) of objectives/network.py"
  if part == 'pretrained' and {name.split('.')[0] for name in imported(tree)} & {'importlib', 'pickle'}:
    yield f'{module} imports what a file names'
  if part == 'samplers':
    for node in tree.body:
      arguments = {each.arg for each in (*node.args.args, *node.args.kwonlyargs)} if _is_solver(node) else set()
      if copied := arguments & {'clip', 'limit', 'guide', 'scale', 'null'}:
        yield f'{module}.{node.name} takes {sorted(copied)}; guides wrap the denoiser'


def _is_solver(node):
  """Whether a function is `(denoise, process, x, times, ...)`."""
  first = ['denoise', 'process', 'x', 'times']
  return isinstance(node, ast.FunctionDef) and [each.arg for each in node.args.args[:4]] == first


@pytest.mark.parametrize(('module', 'path'), sorted(modules()))
def test_a_module_has_the_habits_of_the_house(module, path):
  assert list(habits(module, path.read_text(encoding='utf-8'))) == []


@pytest.mark.parametrize(
  ('module', 'source'),
  [
    ('jaxgen.run', 'told = 1'),
    ('jaxgen.run', 'def goes_on():\n  pass'),
    ('jaxgen.run', 'def f(seed):\n  """Draws.\n\n  Args:\n    seed: of the noise.\n  """'),
    ('jaxgen.run', 'x = 4  # of the images'),
    ('jaxgen.cli.main', "parser.add_argument('--step', help='of the checkpoint')"),
    ('jaxgen.run', '# a data set'),
    ('jaxgen.run', 'def f():\n' + '  f()\n' * 95),
    ('jaxgen.run', 'isinstance(sampler, functools.partial)'),
    ('jaxgen.sharding', "module.name == 'modulation'"),
    ('configs.avatars_repa', "lambda module, _: module.name == 'down_2'"),
    ('configs.emoji_dit', 'Experiment(rules=[])'),
    ('jaxgen.run', 'x = 1\n' * 521),
    ('jaxgen.train', 'x = 1\n' * 321),
    ('jaxgen.objectives.embedded', "params['net']"),
    ('jaxgen.pretrained.folder', 'import importlib'),
    ('jaxgen.samplers.euler', 'def euler(denoise, process, x, times, *, clip=None):\n  pass'),
  ],
)
def test_a_habit_that_is_broken_is_seen(module, source):
  assert len(list(habits(module, source))) == 1


def shell_scripts(root):
  paths = sorted(path for folder in ('.ci', 'launch') for path in (root / folder).iterdir() if path.is_file())
  return [path for path in paths if re.match(rb'#!.*\bbash\n', path.read_bytes())]


@pytest.mark.parametrize('command', ['shellcheck', 'shfmt --diff --indent 2 --case-indent --space-redirects'])
def test_every_shell_script_passes(command):
  name, *options = command.split()
  beside = pathlib.Path(sys.executable).with_name(name)
  tool = str(beside) if beside.exists() else shutil.which(name)
  assert tool, f"{name} is missing; install jaxgen's `dev` extra"
  scripts = shell_scripts(ROOT)
  result = subprocess.run([tool, *options, *map(str, scripts)], capture_output=True, text=True)
  assert result.returncode == 0, result.stdout
  for script in scripts:
    assert script.stat().st_mode & 0o100, f'{script} is not executable'


@pytest.fixture(scope='module')
def metadata(tmp_path_factory):
  """What setup.py tells pip, without building anything."""
  folder = tmp_path_factory.mktemp('egg')
  subprocess.run(
    [sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', str(folder)], cwd=ROOT, check=True, timeout=60
  )
  return folder / 'jaxgen.egg-info'


def test_setup_allows_the_supported_versions_and_pulls_neither_torch_nor_tensorflow(metadata):
  requires = (metadata / 'requires.txt').read_text()
  info = (metadata / 'PKG-INFO').read_text()
  base = requires.split('[cuda')[0]
  assert 'jax<0.13,>=0.10' in base
  assert not re.search(r'^(torch|tensorflow(-cpu)?)\b(?!-)', base, re.MULTILINE)
  assert set(re.findall(r'^Provides-Extra: (.+)$', info, re.MULTILINE)) >= {
    'tpu',
    'cuda12',
    'cuda13',
    'hf',
    'parity',
    'dev',
  }
  assert re.search(r'^Requires-Python: (<3.14,>=3.11|>=3.11,<3.14)$', info, re.MULTILINE)
  assert 'jaxgen = jaxgen.cli.main:main' in (metadata / 'entry_points.txt').read_text()


def test_every_import_is_of_a_package_that_setup_py_asks_for(metadata):
  lines = (metadata / 'requires.txt').read_text().splitlines()
  required = {_normal(re.split(r'[\[<>=;~ ]', line)[0]) for line in lines if line and not line.startswith('[')}
  found = {
    name.split('.')[0] for path in (ROOT / 'jaxgen').rglob('*.py') for name in imported(ast.parse(path.read_text()))
  }
  of = {'dicebear': ['dicebear-core']} | importlib.metadata.packages_distributions()
  others = found - sys.stdlib_module_names - {'jaxgen', 'configs'}
  assert {'flax', 'PIL', 'tqdm'} <= others
  assert {name for name in others if not required & {_normal(package) for package in of.get(name, [name])}} == set()


def _normal(name: str) -> str:
  return re.sub('[-_.]+', '-', name).lower()


def test_every_requirement_has_a_pinned_version_and_every_file_that_is_not_python_is_shipped(metadata):
  pinned = {
    re.split('[=;]', line)[0].strip() for line in (ROOT / 'launch' / 'constraints.txt').read_text().splitlines()
  }
  lines = (metadata / 'requires.txt').read_text().split('[parity]')[0].splitlines()
  lines += (metadata / 'requires.txt').read_text().split('[dev]')[1].split('[')[0].splitlines()
  names = {re.split(r'[\[<>=]', line)[0].lower() for line in lines if line and not line.startswith('[')}
  assert names - pinned == set()
  shipped = set((metadata / 'SOURCES.txt').read_text().splitlines())
  files = [path for path in (ROOT / 'jaxgen').rglob('*') if path.is_file() and path.suffix not in ('.py', '.pyc')]
  assert files
  assert {path.relative_to(ROOT).as_posix() for path in files} - shipped == set()
