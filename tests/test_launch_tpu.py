"""launch/tpu_queued and launch/tpu_worker with a stand-in for gcloud that answers by script; nothing sleeps."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jaxgen import xla_flags

ROOT = pathlib.Path(__file__).resolve().parents[1]

# The flags that gcloud's reference gives to what we call; any other is refused, as gcloud would.
FLAGS = {
  'queued-resources create': 'accelerator-type runtime-version node-id node-count node-prefix spot reserved '
  'service-account scopes labels async',
  'queued-resources delete': 'force async',
  'queued-resources describe': 'format',
  'queued-resources ssh': 'node worker batch-size command tunnel-through-iap internal-ip',
  'tpu-vm describe': 'format',
}

# Each kind of call takes the next line of its script; the last line is for good. `!text` is an error with that text.
GCLOUD = f"""#!/usr/bin/env bash
printf '%s\\t' "$@" >> "$LOG"
echo >> "$LOG"
next() {{
  local file=$SCRIPTS/$1 lines
  [ -e "$file" ] || return 0
  mapfile -t lines < "$file"
  [ "${{#lines[@]}}" = 1 ] || printf '%s\n' "${{lines[@]:1}}" > "$file"
  case ${{lines[0]}} in
    '!'*) echo "ERROR: (gcloud) ${{lines[0]#!}}" >&2 && exit 1 ;;
    *) echo -e "${{lines[0]}}" ;;
  esac
}}
if [ "$1" = storage ]; then cp "$3" "$SCRIPTS/code.tar.gz"; exit; fi
declare -A flags=({' '.join(f"['{verb}']=' {names} '" for verb, names in FLAGS.items())})
allowed="${{flags[$3 $4]}} zone project quiet "
for argument in "${{@:5}}"; do
  case $argument in
    --*) name=${{argument#--}} && name=${{name%%=*}}
      [[ "$allowed" == *" $name "* ]] || {{ echo "ERROR: unrecognized arguments: $argument" >&2 && exit 2; }} ;;
  esac
done
case "$3 $4 $*" in
  'queued-resources describe '*yaml*) echo "because: $(cat "$SCRIPTS/why" 2> /dev/null)" ;;
  'queued-resources ssh '*'status'*) next status ;;
  'queued-resources ssh '*'tpu_worker setup'*) next setup ;;
  'queued-resources ssh '*'tpu_worker start'*) next start ;;
  'queued-resources ssh '*'worker log'*) echo the end of the log ;;
  'queued-resources ssh '*) ;;
  *) next "$3-$4" ;;
esac
"""
NEW = ['!NOT_FOUND: no such resource', 'ACTIVE']
DONE = r'jaxgen-worker a exit 0\njaxgen-worker b exit 0'
RUNNING = r'jaxgen-worker a running\njaxgen-worker b running\njaxgen-progress step 100/400'
PREEMPTED = r'jaxgen-worker a exit 75\njaxgen-worker b running'
FAILED = r'jaxgen-worker a running\njaxgen-worker b exit 1'
HALTED = r'jaxgen-worker a halted\njaxgen-worker b exit 0'
OPTIONS = ['--run', 'xl', '--zone', 'us-a', '--accelerator', 'v5litepod-16', '--bucket', 'gs://b/runs/']


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
  folder = tmp_path_factory.mktemp('checkout')
  (folder / 'launch').mkdir()
  shutil.copy(ROOT / 'launch' / 'tpu_queued', folder / 'launch')
  for words in ('init -q', 'add .', '-c user.name=a -c user.email=b commit -qm c'):
    subprocess.run(['git', *words.split()], cwd=folder, check=True)
  return folder


@pytest.fixture
def cloud(tmp_path, checkout):
  for name in ('bin', 'scripts'):
    (tmp_path / name).mkdir()
  (tmp_path / 'bin' / 'gcloud').write_text(GCLOUD)
  (tmp_path / 'bin' / 'nap').write_text('#!/usr/bin/env bash\necho "wait $1" >> "$LOG"\n')
  for path in (tmp_path / 'bin').iterdir():
    path.chmod(0o755)
  (tmp_path / 'checkout').symlink_to(checkout)
  return tmp_path


def run(cloud, *argv, path=None, **scripts):
  """Exit code, output, and the verbs that were called, with `wait` for each pause."""
  for name, lines in scripts.items():
    text = ''.join(f'{line}\n' for line in ([lines] if isinstance(lines, str) else lines))
    (cloud / 'scripts' / name.replace('_', '-')).write_text(text)
  (cloud / 'log').write_text('')
  environment = os.environ | {
    'PATH': path or f'{cloud}/bin:{os.environ["PATH"]}',
    'LOG': f'{cloud}/log',
    'SCRIPTS': f'{cloud}/scripts',
    'JAXGEN_SLEEP': 'nap',
    'TMPDIR': str(cloud),
  }
  done = subprocess.run(
    [cloud / 'checkout' / 'launch' / 'tpu_queued', *argv], env=environment, capture_output=True, text=True, timeout=120
  )
  return done.returncode, done.stdout + done.stderr, [_verb(line) for line in calls(cloud)]


def calls(cloud):
  return (cloud / 'log').read_text().splitlines()


def _verb(call):
  """'create', 'ssh start', 'wait', ...: what a line of the log is about."""
  words = call.split('\t')
  if words[0].startswith('wait'):
    return 'wait'
  if words[0] == 'storage':
    return 'upload'
  command = re.search(r'worker (\w+) xl', call)
  kind = 'describe node' if words[1:4] == ['tpus', 'tpu-vm', 'describe'] else words[3]
  kind = 'explain' if 'yaml(state)' in call else kind
  return f'{kind} {command[1]}' if command else kind


def counted(verbs, verb):
  return sum(one == verb for one in verbs)


def test_a_run_is_queued_set_up_started_watched_and_deleted(cloud):
  states = [NEW[0], 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
  argv = [*OPTIONS, '--spot', '--', '--config', 'emoji_dit', '--config.note=two words']
  code, output, verbs = run(cloud, 'run', *argv, queued_resources_describe=states, status=[RUNNING, DONE])
  assert code == 0, output
  assert verbs == [
    'upload',
    *['describe', 'create', 'wait', 'describe', 'wait', 'describe', 'wait', 'describe'],
    *['ssh setup', 'ssh start', 'ssh status', 'wait', 'ssh status', 'delete'],
  ]
  create, start = (next(c for c in calls(cloud) if _verb(c) == verb) for verb in ('create', 'ssh start'))
  assert '--node-id=xl\t' in create and '--spot\t' in create and '--runtime-version=v2-alpha-tpuv5-lite\t' in create
  assert '--node=all\t--worker=all\t' in start
  remote = shlex.split(start.split('--command=')[1].split('\t')[0])
  after = remote[remote.index('start') :]
  assert after[1] == 'xl'
  assert {'JAX_COMPILATION_CACHE_DIR=gs://b/runs/compilation', 'JAXGEN_TPU=v5e'} <= set(after)
  assert after[after.index('--') + 1 :] == [
    *['--workdir', 'gs://b/runs/xl', '--config', 'emoji_dit', '--config.note=two words']
  ]
  assert 'step 100/400' in output


def test_the_hosts_get_the_checkout_as_it_is_and_the_same_one_each_time(cloud, checkout):
  (cloud / 'checkout').unlink()
  shutil.copytree(checkout, cloud / 'checkout')
  with (cloud / 'checkout' / 'launch' / 'tpu_queued').open('a') as file:
    file.write('# changed\n')
  for _ in range(2):
    assert run(cloud, 'run', *OPTIONS, queued_resources_describe='ACTIVE', status=DONE)[0] == 0
    shown = subprocess.run(
      ['tar', '-xzOf', cloud / 'scripts' / 'code.tar.gz', 'launch/tpu_queued'],
      capture_output=True,
      text=True,
      check=True,
    )
    assert shown.stdout.endswith('# changed\n')
  version = re.search(r'gs://b/runs/xl/code/(\w{12})\.tar\.gz', calls(cloud)[0])[1]
  assert all(f'/jaxgen/xl/{version}' in call for call in calls(cloud) if _verb(call) in ('ssh setup', 'ssh start'))
  assert not list(cloud.glob('jaxgen-*'))


def test_several_slices_are_one_resource(cloud):
  argv = [
    *OPTIONS,
    '--slices',
    '3',
    '--reserved',
    '--project=p',
    '--weights',
    'inception',
    '--env',
    'A=b c',
    '--data=gs://d/e',
  ]
  code, output, _ = run(cloud, 'run', *argv, queued_resources_describe=NEW, status=DONE)
  assert code == 0, output
  create = next(c for c in calls(cloud) if _verb(c) == 'create')
  assert '--node-count=3\t--node-prefix=xl\t' in create and '--node-id' not in create
  assert all('--project=p' in call for call in calls(cloud) if call.startswith('compute'))
  setup, start = (next(c for c in calls(cloud) if _verb(c) == verb) for verb in ('ssh setup', 'ssh start'))
  assert 'setup xl --data gs://d/e inception' in setup
  assert r'A=b\ c -- ' in start


def test_a_second_launcher_finds_the_run_and_only_watches(cloud):
  code, _, verbs = run(cloud, 'run', *OPTIONS, '--keep', queued_resources_describe='ACTIVE', status=[RUNNING, DONE])
  assert code == 0
  assert 'create' not in verbs and 'delete' not in verbs


def test_hosts_that_save_and_stop_are_started_again_as_often_as_it_takes(cloud):
  argv = [*OPTIONS, '--max-failures', '0']
  status = [RUNNING, PREEMPTED] * 5 + [DONE]
  code, output, verbs = run(cloud, 'run', *argv, queued_resources_describe='ACTIVE', status=status)
  assert code == 0, output
  assert counted(verbs, 'ssh start') == 6
  assert counted(verbs, 'ssh stop') == 5
  assert 'create' not in verbs


@pytest.mark.parametrize('then', ['SUSPENDING', 'SUSPENDED', '!NOT_FOUND'])
def test_machines_that_are_taken_away_are_asked_for_again(then, cloud):
  states = ['ACTIVE', then, 'SUSPENDED', '!NOT_FOUND', 'PROVISIONING', 'ACTIVE']
  code, output, verbs = run(
    *[cloud, 'run', *OPTIONS, '--max-failures=0'], queued_resources_describe=states, status=[RUNNING, '!ssh', DONE]
  )
  assert code == 0, output
  assert verbs.index('delete') < verbs.index('create')
  assert counted(verbs, 'create') == 1 and counted(verbs, 'ssh start') == 2
  assert 'explain' in verbs


def test_a_preempted_node_in_an_active_resource_is_found(cloud):
  states = ['ACTIVE', 'ACTIVE', 'SUSPENDING', '!NOT_FOUND', 'ACTIVE']
  code, output, verbs = run(
    *[cloud, 'run', *OPTIONS, '--slices=2', '--max-failures=0'],
    queued_resources_describe=states,
    tpu_vm_describe=['READY', 'PREEMPTED'],
    status=['!ssh', DONE],
  )
  assert code == 0, output
  assert 'xl-1 was preempted' in output
  assert counted(verbs, 'describe node') == 2 and counted(verbs, 'create') == 1


def test_failures_are_counted_and_the_last_one_ends_it_with_the_logs(cloud):
  argv = [*OPTIONS, '--max-failures=2']
  code, output, verbs = run(cloud, 'run', *argv, queued_resources_describe='ACTIVE', status=[RUNNING, FAILED])
  assert code == 1
  assert counted(verbs, 'ssh start') == 3
  assert verbs[-2:] == ['ssh log', 'delete']
  assert 'jaxgen-worker b exit 1' in output and 'jaxgen-worker a running' not in output
  assert 'the end of the log' in output
  assert 'failed 3 times, and --max-failures is 2' in output


def test_a_host_without_a_run_and_hosts_that_never_answer_are_failures(cloud):
  argv = [*OPTIONS, '--max-failures=0']
  absent = r'jaxgen-worker a running\njaxgen-worker b absent'
  assert run(cloud, 'run', *argv, queued_resources_describe='ACTIVE', status=absent)[0] == 1
  code, output, verbs = run(
    *[cloud, 'run', *argv], queued_resources_describe='ACTIVE', tpu_vm_describe='READY', status='!ssh'
  )
  assert code == 1
  assert counted(verbs, 'ssh status') == 10
  assert 'have not answered 10 times' in output


def test_a_few_lost_looks_are_no_failure(cloud):
  status = ['!ssh'] * 9 + [RUNNING] + ['!ssh'] * 9 + [DONE]
  code, output, verbs = run(
    *[cloud, 'run', *OPTIONS, '--max-failures=0'],
    queued_resources_describe=['ACTIVE', '!timeout', 'ACTIVE'],
    tpu_vm_describe='READY',
    status=status,
  )
  assert code == 0, output
  assert counted(verbs, 'ssh start') == 1


def test_a_failed_set_up_is_tried_again(cloud):
  code, output, verbs = run(
    cloud, 'run', *OPTIONS, queued_resources_describe='ACTIVE', tpu_vm_describe='READY', setup=['!pip', ''], status=DONE
  )
  assert code == 0, output
  assert counted(verbs, 'ssh setup') == 2 and counted(verbs, 'ssh start') == 1


def test_a_resource_that_fails_is_explained_and_counted(cloud):
  states = ['FAILED', 'DELETING', '!NOT_FOUND', 'FAILED']
  code, output, verbs = run(
    cloud, 'run', *OPTIONS, '--max-failures=1', queued_resources_describe=states, why='no quota for v5litepod'
  )
  assert code == 1
  assert output.count('because: no quota for v5litepod') == 2
  assert counted(verbs, 'create') == 1
  assert 'ssh setup' not in verbs


def test_a_request_that_is_refused_is_counted(cloud):
  code, output, verbs = run(
    *[cloud, 'run', *OPTIONS, '--max-failures=1'],
    queued_resources_describe='!NOT_FOUND',
    queued_resources_create='!PERMISSION_DENIED: ask for the role',
  )
  assert code == 1
  assert counted(verbs, 'create') == 2
  assert 'PERMISSION_DENIED: ask for the role' in output


def test_a_resource_that_is_stuck_is_given_back_and_counted(cloud):
  argv = [*OPTIONS, '--max-failures=0', '--stuck-minutes=2', '--interval=30']
  code, output, verbs = run(cloud, 'run', *argv, queued_resources_describe='PROVISIONING')
  assert code == 1
  assert counted(verbs, 'wait') == 4
  assert counted(verbs, 'delete') == 2  # what is stuck, and at the end
  assert 'PROVISIONING for 2 minutes' in output


def test_the_queue_is_waited_for_as_long_as_asked(cloud):
  argv = [*OPTIONS, '--wait-hours=1', '--interval=600']
  code, output, verbs = run(cloud, 'run', *argv, queued_resources_describe='WAITING_FOR_RESOURCES')
  assert code == 1
  assert counted(verbs, 'wait') == 6
  assert 'no TPUs within 1 hours' in output


def test_a_gcloud_that_says_nothing_is_not_asked_for_ever(cloud):
  code, output, verbs = run(cloud, 'run', *OPTIONS, queued_resources_describe='!network unreachable')
  assert code == 1
  assert counted(verbs, 'describe') == 20
  assert 'network unreachable' in output
  assert 'create' not in verbs and 'delete' not in verbs  # what is there is left alone


def test_a_run_that_was_stopped_by_hand_stays_so(cloud):
  code, output, verbs = run(cloud, 'run', *OPTIONS, queued_resources_describe='ACTIVE', status=[RUNNING, HALTED])
  assert code == 75
  assert 'stopped by hand' in output
  assert 'delete' not in verbs and 'ssh stop' not in verbs


def test_the_other_commands(cloud):
  few = ['--run', 'xl', '--zone', 'us-a']
  code, output, verbs = run(cloud, 'status', *few, queued_resources_describe='ACTIVE', status=RUNNING)
  assert (code, verbs) == (0, ['describe', 'ssh status'])
  assert 'queued resource xl: ACTIVE' in output and 'jaxgen-worker b running' in output
  assert run(cloud, 'logs', *few)[1:] == ('the end of the log\n', ['ssh log'])
  assert run(cloud, 'stop', *few)[2] == ['ssh halt']
  assert run(cloud, 'delete', *few)[2] == ['delete']
  assert '--force' in calls(cloud)[0]


def test_a_dry_run_prints_every_command_and_calls_nothing(cloud):
  code, output, verbs = run(cloud, 'run', *OPTIONS, '--slices=2', '--dry-run', '--', '--config=x')
  assert (code, verbs) == (0, [])
  lines = [line for line in output.splitlines() if line.startswith(('gcloud', 'git'))]
  parts = ['git -C', 'storage cp', ' create xl', 'describe', 'setup', 'start', 'status', ' delete xl']
  assert len(lines) == len(parts) and all(part in line for part, line in zip(parts, lines, strict=True))
  # What it prints is what runs: the stand-in takes the first command on a resource as it stands.
  words = shlex.split(lines[2])
  assert subprocess.run(['bash', '-n', '-c', lines[5]], check=False).returncode == 0
  assert words[:6] == ['gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'xl']
  assert not list(cloud.glob('jaxgen-*'))


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['go'], "unknown command 'go'"),
    (['run', '--zone=a'], '--run is missing'),
    (['run', '--run=Xl', '--zone=a'], "--run is 'Xl'; it must be"),
    (['run', '--run=xl'], '--zone is missing'),
    (['run', '--run=xl', '--zone=a'], '--accelerator is missing'),
    (['run', *OPTIONS, '--bucket=/data'], "--bucket is '/data'; wanted gs://"),
    (['run', *OPTIONS, '--accelerator=v9-8'], "accelerator 'v9-8' is not one of"),
    (['run', *OPTIONS, '--slices=two'], "--slices is 'two'; it must be a whole number"),
    (['run', *OPTIONS, '--slices=0'], '--slices must be 1 or more'),
    (['run', *OPTIONS, '--interval=0'], '--interval must be 1 or more'),
    (['run', *OPTIONS, '--slice=2'], 'unknown option --slice'),
    (['run', *OPTIONS, '--env=x'], "--env is 'x'; wanted NAME=VALUE"),
    (['run', *OPTIONS, '--data=/disk'], "--data is '/disk'; wanted gs://"),
    (['run', *OPTIONS, 'config'], "unexpected argument 'config'"),
    (['run', *OPTIONS, '--max-failures'], '--max-failures needs a value'),
    (['run', *OPTIONS, '--', '--workdir=x'], '--workdir is set by --bucket and --run: gs://b/runs/xl'),
  ],
)
def test_a_wrong_option_is_said_before_anything_is_called(argv, message, cloud):
  code, output, verbs = run(cloud, *argv)
  assert (code, verbs) == (2, [])
  assert output.startswith('launch/tpu_queued: error: ') and message in output


def test_help_names_every_option_that_is_read():
  text = (ROOT / 'launch' / 'tpu_queued').read_text()
  shown = subprocess.run([ROOT / 'launch' / 'tpu_queued', '--help'], capture_output=True, text=True, check=True).stdout
  options = set(re.findall(r'^ +(--[a-z-]+)(?: \| (--[a-z-]+))?\)', text, re.MULTILINE))
  names = {name for pair in options for name in pair if name} - {'--help'}
  assert len(names) == 20
  assert {name for name in names if name not in shown} == set()


# --- The worker


@pytest.fixture
def host(tmp_path):
  """A home folder, and a checkout whose installation and `jaxgen` are stand-ins."""
  checkout = tmp_path / 'checkout'
  for name, text in (
    ('launch/local', '#!/usr/bin/env bash\necho "local $JAXGEN_EXTRAS $*" >> "$LOG"\n'),
    ('.venv/bin/jaxgen', '#!/usr/bin/env bash\necho "jaxgen $VALUE $*" >> "$LOG"\n. "$DOES"\n'),
    ('.venv/bin/python', f'#!/usr/bin/env bash\ncd {ROOT}\nexec {sys.executable} "$@"\n'),
    ('bin/gcloud', '#!/usr/bin/env bash\necho "gcloud $*" >> "$LOG"\n'),
  ):
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).write_text(text)
    (checkout / name).chmod(0o755)
  shutil.copy(ROOT / 'launch' / 'tpu_worker', checkout / 'launch')
  yield tmp_path
  worker(tmp_path, 'stop', 'xl', stop_seconds='0')
  assert status(tmp_path)[0] != 'running'


def worker(host, *argv, does='', stop_seconds='10'):
  (host / 'log').touch()
  if does:
    (host / 'does').write_text(does)
  environment = os.environ | {
    'HOME': str(host),
    'LOG': str(host / 'log'),
    'DOES': str(host / 'does'),
    'PATH': f'{host}/checkout/bin:{os.environ["PATH"]}',
    'JAXGEN_STOP_SECONDS': stop_seconds,
  }
  command = [host / 'checkout' / 'launch' / 'tpu_worker', *argv]
  return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def status(host):
  lines = worker(host, 'status', 'xl').stdout.splitlines()
  return lines[0].split(' ', 2)[2], *lines[1:]


def ended(host):
  for _ in range(200):
    if status(host)[0] != 'running':
      return status(host)[0]
    time.sleep(0.05)
  raise AssertionError('still running')


def logged(host):
  return (host / 'log').read_text().splitlines()


@pytest.mark.parametrize('code', [0, 75, 3])
def test_a_host_keeps_the_code_its_run_ended_with(code, host):
  assert status(host) == ('absent',)
  now = '2026-12-01 04:07:28'
  does = f'echo "{now}  step 5/9  loss 1"; echo "{now}  step 5  samples took 1 s"; exit {code}'
  arguments = ['VALUE=a b', f'JAXGEN_LOGS={host}/logs', '--', '--workdir', 'gs://b/x y']
  assert worker(host, 'start', 'xl', *arguments, does=does).returncode == 0
  assert ended(host) == f'exit {code}'
  assert logged(host)[0] == 'jaxgen a b train --workdir gs://b/x y'
  assert any(line.startswith('gcloud storage cp') and f'{host}/logs/' in line for line in logged(host))
  assert status(host)[1:] == ('jaxgen-progress step 5/9  loss 1',)
  assert f'ended with {code}' in worker(host, 'log', 'xl').stdout


def test_a_run_is_started_once_and_stopped_with_time_to_save(host):
  does = 'trap "echo saved; exit 75" TERM; echo ready; while true; do sleep 0.05; done'
  worker(host, 'start', 'xl', '--', does=does)
  first = (host / 'jaxgen/xl/process').read_text()
  assert 'already running' in worker(host, 'start', 'xl', '--').stdout
  assert (host / 'jaxgen/xl/process').read_text() == first
  _wait_for(host / 'jaxgen/xl/log', 'ready')
  worker(host, 'stop', 'xl')
  assert status(host) == ('exit 75',)
  assert 'saved' in (host / 'jaxgen/xl/log').read_text()
  assert len(logged(host)) == 1
  # After a stop by hand the same, but it says so until it is started again.
  worker(host, 'start', 'xl', '--')
  assert worker(host, 'halt', 'xl').returncode == 0
  assert status(host) == ('halted',)
  worker(host, 'start', 'xl', '--', does='exit 0')
  assert ended(host) == 'exit 0'


def _wait_for(path, text):
  for _ in range(200):
    if text in path.read_text():
      return
    time.sleep(0.05)
  raise AssertionError(path.read_text())


def test_what_does_not_stop_is_killed_and_what_is_not_ours_is_not(host):
  does = 'trap "" TERM; sleep 1000 & echo "child $!"; wait'
  worker(host, 'start', 'xl', '--', does=does)
  _wait_for(host / 'jaxgen/xl/log', 'child')
  child = int(re.search(r'child (\d+)', (host / 'jaxgen/xl/log').read_text())[1])
  bystander = subprocess.Popen(['sleep', '1000'], start_new_session=True)
  worker(host, 'stop', 'xl', stop_seconds='0')
  assert status(host) == ('exit 137',)
  _gone(child)
  # A number that another program has by now is not taken for the run.
  (host / 'jaxgen/xl/process').write_text(f'{bystander.pid}\n')
  assert status(host)[0] == 'exit 137'
  worker(host, 'stop', 'xl', stop_seconds='0')
  assert bystander.poll() is None
  bystander.kill()
  bystander.wait()


def test_a_run_leaves_no_process_behind(host):
  worker(host, 'start', 'xl', '--', does='sleep 1000 & echo "child $!"; exit 1')
  assert ended(host) == 'exit 1'
  _gone(int(re.search(r'child (\d+)', (host / 'jaxgen/xl/log').read_text())[1]))


def _gone(pid):
  for _ in range(100):
    path = pathlib.Path(f'/proc/{pid}/stat')
    if not path.exists() or path.read_text().split()[2] == 'Z':
      return
    time.sleep(0.05)
  os.kill(pid, signal.SIGKILL)
  raise AssertionError(f'{pid} was left')


def test_a_generation_brings_its_flags_unless_they_are_given(host):
  for generation, given, flags in (
    ('v6e', '', xla_flags.tpu_init_args('v6e')),
    ('v6e', '--mine=1', '--mine=1'),
    ('v4', '', ''),
  ):
    variables = [f'JAXGEN_TPU={generation}', f'LIBTPU_INIT_ARGS={given}']
    worker(host, 'start', 'xl', *variables, '--', does='echo "flags:$LIBTPU_INIT_ARGS:$JAXGEN_HOME" >> "$LOG"; exit 0')
    assert ended(host) == 'exit 0'
    assert logged(host)[-1] == f'flags:{flags}:{host}/jaxgen'


def test_setting_up_installs_with_what_tpus_and_buckets_need(host):
  for _ in range(2):
    done = worker(host, 'setup', 'xl', '--data', 'gs://d', 'inception')
    assert done.returncode == 0, done.stderr
  data = f'gcloud storage rsync --quiet --recursive gs://d {host}/jaxgen/data'
  assert logged(host) == ['local tpu,gcs --version', data, 'local tpu,gcs weights get inception'] * 2
  assert (host / 'jaxgen/xl/worker').resolve() == host / 'checkout/launch/tpu_worker'
  assert worker(host, 'setup').returncode == 2


@pytest.mark.parametrize('name', ['a b', "a'b", 'a"b', 'a;touch ran', '$(touch ran)', '`touch ran`', 'a&&touch ran|x'])
def test_a_hostile_bucket_is_one_word_on_a_host(name, cloud):
  """The command of a host is run by a shell there, which must hand the name to gcloud as it is."""
  options = ['--run', 'xl', '--zone', 'us-a', '--accelerator', 'v5litepod-16', '--bucket', f'gs://bucket/{name}']
  code, out, _ = run(cloud, 'run', *options, tpu_vm_describe='READY', queued_resources_describe=NEW, status=DONE)
  assert code == 0, out
  (command,) = {
    word.removeprefix('--command=') for line in calls(cloud) for word in line.split('\t') if 'tpu_worker setup' in word
  }
  home = cloud / 'host'
  home.mkdir()
  (cloud / 'bin' / 'gcloud').write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {cloud}/asked\n')
  environment = os.environ | {'HOME': str(home), 'PATH': f'{cloud}/bin:{os.environ["PATH"]}'}
  subprocess.run(['bash', '-c', command], env=environment, cwd=home, capture_output=True, check=False)
  assert (cloud / 'asked').read_text().startswith(f'storage\ncat\ngs://bucket/{name}/xl/code/')
  assert not list(home.rglob('ran')) and not (cloud / 'ran').exists()


def test_the_code_is_not_written_through_a_link_of_somebody_else(cloud, checkout):
  tree = subprocess.run(['git', 'rev-parse', '--short=12', 'HEAD^{tree}'], cwd=checkout, capture_output=True, text=True)
  victim = cloud / 'victim'
  victim.write_text('mine')
  (cloud / f'jaxgen-xl-{tree.stdout.strip()}.tar.gz').symlink_to(victim)
  assert run(cloud, 'run', *OPTIONS, queued_resources_describe=NEW, status=DONE)[0] == 0
  assert victim.read_text() == 'mine'


def test_a_bucket_with_a_line_break_is_refused(cloud):
  options = ['--run', 'xl', '--zone', 'us-a', '--accelerator', 'v5litepod-16', '--bucket', 'gs://bucket/a\nb']
  code, out, _ = run(cloud, 'run', *options)
  assert code == 2 and 'wanted gs://BUCKET' in out
