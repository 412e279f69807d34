"""The commands of a pod's user from beginning to end, with real processes.

A queued resource is created, its hosts are set up and train together, are told to stop, are taken away, and go on each
time until the run is done.

Two folders are the hosts, another is the bucket, and a stand-in for gcloud lends them. All else is what runs on a pod:
launch/tpu_queued, launch/tpu_worker, launch/local and `jaxgen train` in two processes of JAX. Only the installation is
this one's own.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
HOSTS = 2
TERM, TAKE = 8, 20  # steps after which a host is told to stop, and all are taken away

# `ssh` runs a command on each host. What happens to them is decided when the launcher asks how far they are.
GCLOUD = f"""#!{sys.executable}
import json, os, pathlib, re, shutil, signal, subprocess, sys

cloud = pathlib.Path(os.environ['CLOUD'])
words = sys.argv[1:]
path = lambda name: cloud / 'bucket' / name.removeprefix('gs://')
hosts = [cloud / 'hosts' / str(number) for number in range({HOSTS})]
state = cloud / 'state'
taken = cloud / 'taken'


def note(text):
  with (cloud / 'calls').open('a') as file:
    print(text, file=file)


def everywhere(command):
  running = []
  for number, host in enumerate(hosts):
    host.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {{'HOME': str(host), 'JAX_PROCESS_ID': str(number), 'LC_ALL': 'C'}}
    environment.pop('JAXGEN_HOME', None)
    running.append(subprocess.Popen(['bash', '-c', command], env=environment, stdout=subprocess.PIPE, text=True))
  answers = [process.communicate()[0] for process in running]
  sys.stdout.write(''.join(answers))
  return max(abs(process.returncode) for process in running), ''.join(answers)


def leaders():
  return [int((host / 'jaxgen' / 'xl' / 'process').read_text()) for host in hosts]


def trainer(leader):
  for process in pathlib.Path('/proc').glob('[0-9]*'):
    if b'in_buckets.py' in (process / 'cmdline').read_bytes():
      if int((process / 'stat').read_text().rpartition(')')[2].split()[1]) == leader:  # its parent
        return int(process.name)


if words[0] == 'storage':
  words = [word for word in words if not word.startswith('-')]
  if words[1] == 'cat':
    sys.stdout.buffer.write(path(words[2]).read_bytes())
  else:
    to = path(words[3])
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path(words[2]), to)
  sys.exit()
verb = words[3]
if verb == 'create':
  note('create')
  state.write_text('ACTIVE')
elif verb == 'delete':
  note('delete')
  state.unlink()
elif verb == 'describe' and words[2] == 'tpu-vm':
  print('READY')
elif verb == 'describe':
  if not state.exists():
    sys.exit('ERROR: (gcloud) NOT_FOUND')
  print(state.read_text())
elif verb == 'ssh':
  if not state.exists() or state.read_text() != 'ACTIVE':
    sys.exit('ERROR: (gcloud) no such node')
  command = next(word for word in words if word.startswith('--command=')).removeprefix('--command=')
  kind = re.search(r'worker (\\w+) xl', command)[1]
  if kind != 'status':
    note(kind)
  code, answer = everywhere(command)
  step = re.search(r'jaxgen-progress step ([0-9,]+)/', answer)
  step = int(step[1]) if step else 0
  done = (cloud / 'calls').read_text().split()
  if kind == 'status' and step >= {TERM} and 'told' not in done:
    note('told')
    os.kill(trainer(leaders()[1]), signal.SIGTERM)
  elif kind == 'status' and step >= {TAKE} and 'taken' not in done:
    note('taken')
    for leader in leaders():
      os.killpg(leader, signal.SIGKILL)
    shutil.rmtree(cloud / 'hosts')
    state.write_text('SUSPENDED')
  sys.exit(code)
"""
# `python -m venv` makes an environment that is this one; what it is asked to install is there.
PYTHON = f"""#!/usr/bin/env bash
if [ "$1 $2" != '-m venv' ]; then exec {sys.executable} "$@"; fi
mkdir -p "$3/bin"
cat > "$3/bin/python" << 'SCRIPT'
#!/usr/bin/env bash
[ "$1 $2" != '-m pip' ] || exit 0
PYTHONPATH=$PWD exec {sys.executable} "$@"
SCRIPT
cat > "$3/bin/jaxgen" << 'SCRIPT'
#!/usr/bin/env bash
cd "$(dirname "$0")/../.."
PYTHONPATH=$PWD exec {sys.executable} "$CLOUD/in_buckets.py" "$@"
SCRIPT
chmod +x "$3"/bin/*
"""
# jaxgen, whose bucket is a folder that all hosts see; tests/test_buckets.py is about real ones.
JAXGEN = """
import os
import sys

from jaxgen.cli.main import main

here = lambda text: text.replace('gs://', os.environ['CLOUD'] + '/bucket/')
os.environ['JAX_COMPILATION_CACHE_DIR'] = here(os.environ['JAX_COMPILATION_CACHE_DIR'])
sys.exit(main([here(word) for word in sys.argv[1:]]))
"""


@pytest.fixture
def cloud(tmp_path):
  for name, text in (('bin/gcloud', GCLOUD), ('bin/python3', PYTHON), ('in_buckets.py', JAXGEN), ('calls', '')):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  yield tmp_path
  for process in tmp_path.glob('hosts/*/jaxgen/xl/process'):  # where the test failed
    subprocess.run(['kill', '-KILL', '--', f'-{process.read_text().strip()}'], check=False)


def metrics(folder: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.slow
def test_a_pod_is_lent_set_up_preempted_taken_away_and_done(cloud):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  environment = os.environ | {'CLOUD': str(cloud), 'PATH': f'{cloud}/bin:{os.environ["PATH"]}', 'TMPDIR': str(cloud)}
  options = ['--run', 'xl', '--zone', 'us-a', '--accelerator', 'v5litepod-16', '--spot', '--interval', '1']
  options += ['--bucket', 'gs://mine/runs']
  for name, value in {
    'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
    'JAX_NUM_PROCESSES': HOSTS,
    'JAX_NUM_CPU_DEVICES': 1,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '',
  }.items():
    options += ['--env', f'{name}={value}']
  training = ['--config', 'tests/tiny_config.py', '--config.steps=40', '--config.checkpoint_every=4']
  done = subprocess.run(
    [ROOT / 'launch' / 'tpu_queued', 'run', *options, '--', *training],
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  said = done.stdout + done.stderr
  assert done.returncode == 0, said
  calls = (cloud / 'calls').read_text().split()
  first, second, third = ['create', 'setup', 'start', 'told'], ['setup', 'start', 'taken'], ['create', 'setup', 'start']
  assert calls == [*first, 'stop', *second, 'delete', *third, 'delete'], textwrap.indent(said, '  ')
  assert said.count('preempted; starting again') == 2
  assert 'done: gs://mine/runs/xl' in said and 'step ' in said
  run = cloud / 'bucket' / 'mine' / 'runs' / 'xl'
  steps = [record['step'] for record in metrics(run) if 'loss' in record]
  assert steps == list(range(1, 41))  # each once: nothing lost, nothing twice
  (log,) = {path.read_text() for path in (run / 'logs').glob('*.log')}
  assert 'jaxgen train --workdir gs://mine/runs/xl --config tests/tiny_config.py' in log
  assert (run / 'report.html').exists() and (run / 'checkpoints' / '40').is_dir()
