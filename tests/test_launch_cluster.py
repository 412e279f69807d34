"""What launches jaxgen on clusters: SLURM's script with stand-ins, the JobSet by its schema, the image, SkyPilot."""

import json
import math
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

from jaxgen import sharding, xla_flags
from jaxgen.cli.config import load_config

ROOT = pathlib.Path(__file__).resolve().parents[1]

# --- SLURM


@pytest.fixture
def site(tmp_path):
  """A checkout that was submitted from, with srun and scontrol that only write down how they were called."""
  for name, text in (
    ('.venv/bin/jaxgen', 'exit 0'),
    ('bin/srun', 'echo "srun $*" >> "$LOG"; eval "$DOES"'),
    ('bin/scontrol', 'echo "scontrol $*" >> "$LOG"'),
  ):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
    (tmp_path / name).chmod(0o755)
  return tmp_path


def slurm(site, *argv, does='', **environment):
  """The job script, started; what SLURM copies and runs is a file elsewhere."""
  (site / 'log').write_text('')
  (site / 'spool').write_text((ROOT / 'launch' / 'slurm').read_text())
  environment = {'SLURM_JOB_ID': '7', 'SLURM_SUBMIT_DIR': str(site), 'LOG': f'{site}/log', 'DOES': does} | environment
  environment = os.environ | {'PATH': f'{site}/bin:{os.environ["PATH"]}'} | environment
  return subprocess.Popen(
    ['bash', site / 'spool', *argv], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def finished(process):
  output, _ = process.communicate(timeout=60)
  return process.returncode, output


TRAIN = 'srun --kill-on-bad-exit=1 .venv/bin/jaxgen train'


def test_a_job_trains_once(site):
  assert finished(slurm(site, '--config', 'x', '--workdir', 'a b')) == (0, '')
  assert (site / 'log').read_text().splitlines() == [f'{TRAIN} --config x --workdir a b']


def test_a_preempted_job_is_queued_again_and_not_counted(site):
  for _ in range(5):
    assert finished(slurm(site, does='exit 75', JAXGEN_MAX_FAILURES='0'))[0] == 0
    assert (site / 'log').read_text().splitlines() == [TRAIN, 'scontrol requeue 7']
  assert not list(site.glob('*.failures'))


def test_failures_are_counted_over_requeues(site):
  for _ in range(2):
    assert finished(slurm(site, does='exit 3', JAXGEN_MAX_FAILURES='2'))[0] == 0
    assert 'scontrol requeue 7' in (site / 'log').read_text()
  code, output = finished(slurm(site, does='exit 3', JAXGEN_MAX_FAILURES='2'))
  assert code == 3
  assert 'ended with 3; failed 3 times, and JAXGEN_MAX_FAILURES is 2' in output
  assert 'requeue' not in (site / 'log').read_text()
  assert finished(slurm(site))[0] == 0
  assert not list(site.glob('*.failures'))  # a run that ends well forgets them


@pytest.mark.parametrize('option', [['--workdir', 'a b/run'], ['--workdir=a b/run']])
def test_failures_are_forgotten_after_a_new_checkpoint(site, option):
  def fail(step=None):
    if step is not None:
      (site / 'a b' / 'run' / 'checkpoints' / str(step)).mkdir(parents=True)
    return finished(slurm(site, *option, does='exit 3', JAXGEN_MAX_FAILURES='1'))[0]

  assert [fail(), fail(4), fail(12)] == [0, 0, 0]
  assert fail() == 3  # for the second time since checkpoint 12
  assert (site / 'jaxgen-7.failures').read_text() == '2 12\n'


HOSTILE = ['a b', '$(touch pwned)', '`touch pwned`', "'; touch pwned; '", '"; touch pwned; "', 'a\nb', '*', '-n', '\\']


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_name_is_one_word_in_a_job(site, name):
  (site / 'bin' / 'srun').write_text('#!/usr/bin/env bash\nprintf "%s\\0" "$@" > "$LOG"\n')
  assert finished(slurm(site, '--workdir', name, does='exit 3'))[0] == 0
  assert (site / 'log').read_text().split('\0')[-3:] == ['--workdir', name, '']
  assert not list(site.rglob('pwned'))


def test_a_signal_to_the_script_waits_for_the_run_to_save(site):
  process = slurm(site, does='sleep 1; exit 75')
  for _ in range(200):
    if 'srun' in (site / 'log').read_text():
      break
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  assert finished(process) == (0, 'launch/slurm: saved; queueing again\n')


def test_slurm_says_what_is_missing(site):
  code, output = finished(slurm(site, SLURM_JOB_ID=''))
  assert (code, output) == (2, 'launch/slurm: error: not inside a job; start it with sbatch (see --help)\n')
  (site / '.venv' / 'bin' / 'jaxgen').unlink()
  assert 'JAXGEN_EXTRAS=cuda13 ./launch/local --version' in finished(slurm(site))[1]
  assert finished(slurm(site, '--help', SLURM_JOB_ID=''))[1].startswith('usage: sbatch')
  # sbatch reads its options above the first command only.
  lines = (ROOT / 'launch' / 'slurm').read_text().splitlines()
  options = [i for i, line in enumerate(lines) if line.startswith('#SBATCH')]
  assert options == list(range(1, len(options) + 1))


# --- GKE

# The fields of JobSet v1alpha2, batch/v1 Job and core/v1 Pod that we write: a type, [the type of each item], {field:
# what it is}, or {str: type} for names that are free. '!' marks what the schema requires.
POD = {
  'containers!': [
    {
      'name!': str,
      'image': str,
      'command': [str],
      'args': [str],
      'env': [{'name!': str, 'value': str}],
      'ports': [{'containerPort!': int}],
      'resources': {'requests': {str: int}, 'limits': {str: int}},
      'volumeMounts': [{'name!': str, 'mountPath!': str}],
    }
  ],
  'restartPolicy': str,
  'terminationGracePeriodSeconds': int,
  'nodeSelector': {str: str},
  'tolerations': [{'key': str, 'operator': str, 'value': str, 'effect': str}],
  'serviceAccountName': str,
  'volumes': [{'name!': str, 'emptyDir': {'medium': str}}],
}
JOB = {
  'completionMode': str,
  'completions': int,
  'parallelism': int,
  'backoffLimit': int,
  'podFailurePolicy': {
    'rules!': [
      {
        'action!': str,
        'onExitCodes': {'operator!': str, 'values!': [int]},
        'onPodConditions': [{'type!': str, 'status': str}],
      }
    ]
  },
  'template!': {'spec': POD},
}
JOBSET = {
  'apiVersion!': str,
  'kind!': str,
  'metadata!': {'name!': str, 'namespace': str, 'labels': {str: str}, 'annotations': {str: str}},
  'spec!': {
    'failurePolicy': {
      'maxRestarts': int,
      'rules': [{'name!': str, 'action!': str, 'onJobFailureReasons': [str]}],
    },
    'replicatedJobs': [{'name!': str, 'replicas': int, 'template!': {'spec': JOB}}],
  },
}


def wrong(value, schema, path='jobset'):
  """What does not fit the schema, as sentences."""
  if isinstance(schema, type):
    if type(value) is not schema:
      yield f'{path} is {value!r}, wanted {schema.__name__}'
  elif isinstance(schema, list):
    for i, item in enumerate(value):
      yield from wrong(item, schema[0], f'{path}[{i}]')
  elif str in schema:
    for name, item in value.items():
      yield from wrong(item, schema[str], f'{path}.{name}')
  else:
    fields = {name.rstrip('!'): what for name, what in schema.items()}
    yield from (f'{path}.{name} is not known' for name in value.keys() - fields.keys())
    yield from (f'{path}.{name[:-1]} is missing' for name in schema if name.endswith('!') and name[:-1] not in value)
    for name in value.keys() & fields.keys():
      yield from wrong(value[name], fields[name], f'{path}.{name}')


def gke(*argv, check=True):
  command = [sys.executable, ROOT / 'launch' / 'gke_jobset.py', *argv]
  done = subprocess.run(command, capture_output=True, text=True, cwd='/')
  assert not check or done.returncode == 0, done.stderr
  return done


OPTIONS = ['--run', 'xl', '--image', 'r/jaxgen:1', '--bucket', 'gs://b/runs/']


def test_a_jobset_fits_its_schema_and_says_what_was_asked():
  extra = ['--spot', '--slices=2', '--max-failures=5', '--queue=q', '--service-account=s', '--env', 'A=b=c']
  argv = [*OPTIONS, '--topology=v5e:16x16', *extra, '--', '--config', 'x', '--config.mesh.data=2']
  jobset = json.loads(gke(*argv).stdout)
  assert list(wrong(jobset, JOBSET)) == []
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  assert jobset['metadata']['labels']['kueue.x-k8s.io/queue-name'] == 'q'
  (replicated,) = jobset['spec']['replicatedJobs']
  job = replicated['template']['spec']
  assert (replicated['replicas'], job['completions'], job['parallelism']) == (2, 64, 64)  # 256 chips, 4 a host
  pod = job['template']['spec']
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '16x16',
    'cloud.google.com/gke-spot': 'true',
  }
  (container,) = pod['containers']
  assert container['command'] + container['args'] == [
    *['jaxgen', 'train', '--workdir', 'gs://b/runs/xl', '--config', 'x', '--config.mesh.data=2']
  ]
  assert {pair['name']: pair['value'] for pair in container['env']} == {
    'JAXGEN_RESTARTS': '1',
    'JAXGEN_HOME': 'gs://b/runs/home',
    'JAX_COMPILATION_CACHE_DIR': 'gs://b/runs/compilation',
    'LIBTPU_INIT_ARGS': xla_flags.tpu_init_args('v5e'),
    'A': 'b=c',
  }
  assert container['resources']['limits'] == {'google.com/tpu': 4}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_name_is_one_string_of_a_jobset(name):
  """Kubernetes starts the command without a shell."""
  argv = [*OPTIONS[:2], f'--image={name}', f'--bucket=gs://b/{name}', '--topology=v5e:4x4', f'--env=A={name}']
  manifest = json.loads(gke(*argv, f'--service-account={name}', '--', f'--config.dataset={name}').stdout)
  pod = manifest['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
  (container,) = pod['containers']
  assert (container['image'], pod['serviceAccountName']) == (name, name)
  assert container['command'] == ['jaxgen', 'train']
  assert container['args'] == ['--workdir', f'gs://b/{name}/xl', f'--config.dataset={name}']
  assert {'name': 'A', 'value': name} in container['env']


def test_preemption_is_free_and_failures_count():
  spec = json.loads(gke(*OPTIONS, '--topology=v5p:4x4x4', '--max-failures=5').stdout)['spec']
  job = spec['replicatedJobs'][0]['template']['spec']
  # A pod that ends with 75 or is evicted ends its Job for the reason PodFailurePolicy; others for BackoffLimitExceeded.
  rules = job['podFailurePolicy']['rules']
  assert [rule['action'] for rule in rules] == ['FailJob', 'FailJob']
  assert rules[0]['onPodConditions'] == [{'type': 'DisruptionTarget', 'status': 'True'}]
  assert rules[1]['onExitCodes'] == {'operator': 'In', 'values': [75]}
  assert job['backoffLimit'] == 0 and job['template']['spec']['restartPolicy'] == 'Never'
  assert spec['failurePolicy']['maxRestarts'] == 5
  (rule,) = spec['failurePolicy']['rules']
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  assert job['completions'] == 16


@pytest.mark.parametrize('page', ['launch/gke_jobset.py', 'docs/many_machines.md'])
def test_the_example_of_a_page_is_a_run_that_fits_its_chips(page):
  """Its command as a shell reads it; the config of its pods is one whose mesh and batches divide over them."""
  text = (ROOT / page).read_text()
  example = re.search(r'^ *python launch/gke_jobset.py (.*?)\| kubectl', text, re.MULTILINE | re.DOTALL)
  assert example is not None
  jobset = json.loads(gke(*shlex.split(example[1].replace('\\\\\n', ' '))).stdout)
  assert list(wrong(jobset, JOBSET)) == []
  replicated = jobset['spec']['replicatedJobs'][0]
  job, slices = replicated['template']['spec'], replicated['replicas']
  (container,) = job['template']['spec']['containers']
  env = {pair['name']: pair['value'] for pair in container['env']}
  assert env['JAXGEN_HOME'] == 'gs://mine/jaxgen/home'
  assert re.search(r'gs://mine/jaxgen/home\s+jaxgen weights get inception', text)
  chips = slices * job['completions'] * container['resources']['limits']['google.com/tpu']
  command = container['command'] + container['args']
  assert (chips, command[:2]) == (512, ['jaxgen', 'train'])
  config, _ = load_config(command[command.index('--config') + 1], [arg for arg in command if '--config.' in arg])
  given = {axis: config.mesh[axis] for axis in sharding.AXES}
  known = math.prod(size for size in given.values() if size != -1)
  sizes = {axis: chips // known if size == -1 else size for axis, size in given.items()}
  assert math.prod(sizes.values()) == chips
  assert sharding._across(slices, dict(config.mesh.dcn)) == [slices, 1, 1, 1] and sizes['data'] % slices == 0
  for batch in (config.batch_size, config.sampling.batch_size, config.fid.batch_size):
    assert batch % (sizes['data'] * sizes['fsdp']) == 0


def test_the_schema_sees_what_does_not_fit():
  jobset = json.loads(gke(*OPTIONS, '--topology=v6e:2x2').stdout)
  assert jobset['spec']['replicatedJobs'][0]['template']['spec']['completions'] == 1
  jobset['spec']['failurePolicy'] |= {'maxRestarts': '3', 'retries': 1}
  del jobset['spec']['replicatedJobs'][0]['template']
  assert sorted(wrong(jobset, JOBSET)) == [
    "jobset.spec.failurePolicy.maxRestarts is '3', wanted int",
    'jobset.spec.failurePolicy.retries is not known',
    'jobset.spec.replicatedJobs[0].template is missing',
  ]


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--topology=v5e:4'], "--topology is 'v5e:4'; wanted GENERATION:AxB"),
    (['--topology=v5e:4x4', '--run=X'], "--run is 'X'; it must be"),
    (['--topology=v5e:4x4', '--bucket=b'], "--bucket is 'b'; wanted gs://"),
    (['--topology=v5e:4x4', '--chips-per-host=3'], '16 chips do not divide over hosts of 3'),
    (['--topology=v5e:4x4', '--slices=0'], '--slices must be 1 or more'),
    (['--topology=v5e:4x4', '--env=A'], "--env is ['A']; wanted NAME=VALUE"),
    (['--topology=v5e:4x4', '--', '--workdir=x'], '--workdir is set by --bucket and --run'),
  ],
)
def test_a_wrong_option_is_said(argv, message):
  done = gke(*OPTIONS, *argv, check=False)
  assert done.returncode != 0 and done.stdout == ''
  assert message in done.stderr


# --- The image and SkyPilot


def test_the_image_copies_what_is_there_and_all_that_is_installed():
  text = (ROOT / 'launch' / 'Dockerfile').read_text()
  copied = {name for line in re.findall(r'^COPY (.+)$', text, re.MULTILINE) for name in line.split()[:-1]}
  assert all((ROOT / name).exists() for name in copied)
  # What setup.py reads and ships.
  assert copied == {'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'launch/constraints.txt', 'configs', 'jaxgen'}
  # The base is one argument, with an exact tag; a digest may follow it.
  assert re.findall(r'^FROM (.+)$', text, re.MULTILINE) == ['${BASE}']
  (base,) = re.findall(r'^ARG BASE=(.+)$', text, re.MULTILINE)
  version = re.fullmatch(r'python:3\.(\d+)\.\d+-slim-(?:bookworm|trixie)(?:@sha256:[0-9a-f]{64})?', base)[1]
  assert 11 <= int(version) <= 13
  extras = re.search(r'^ARG EXTRAS=(.+)$', text, re.MULTILINE)[1]
  assert all(f"'{extra}':" in (ROOT / 'setup.py').read_text() for extra in extras.split(','))
  assert '--constraint launch/constraints.txt' in text and 'ENTRYPOINT ["jaxgen"]' in text
  assert re.findall(r'^USER (.+)$', text, re.MULTILINE)[-1:] == ['10001']  # not root


def test_the_skypilot_file_is_marked_untested_and_its_commands_are_shell():
  text = (ROOT / 'launch' / 'skypilot.yaml').read_text()
  assert 'UNTESTED' in text.splitlines()[0]
  task = yaml.safe_load(text)
  assert task.keys() == {'name', 'resources', 'num_nodes', 'workdir', 'envs', 'setup', 'run'}
  used = set(re.findall(r'\$([A-Z_]+)', task['setup'] + task['run']))
  assert {name for name in used if not name.startswith(('SKYPILOT_', 'JAX'))} == task['envs'].keys()
  for part in ('setup', 'run'):
    assert subprocess.run(['bash', '-nc', task[part]], check=False).returncode == 0
