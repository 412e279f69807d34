#!/usr/bin/env python3
"""Prints a JobSet that trains on GKE: one Job for each TPU slice, one pod for each of its hosts; JSON, for kubectl.

  python launch/gke_jobset.py --run xl2 --topology v5e:16x16 --slices 2 --spot --image IMAGE \\
      --bucket gs://mine/jaxgen -- --config dit_xl2_imagenet256 --config.mesh.data=2 --config.batch_size=512 \\
      --config.sampling.batch_size=512 --config.fid.batch_size=512 | kubectl apply -f -

IMAGE is of launch/Dockerfile. FID's weights and prepared datasets are looked for in BUCKET/home; put them there once:
`JAXGEN_HOME=gs://mine/jaxgen/home jaxgen weights get inception`. The cluster needs JobSet (https://jobset.sigs.k8s.io)
and a node pool of that topology for each slice. JAX finds the processes by what GKE tells TPU pods. A pod that ends
with 75 (told to stop, and saved) or is evicted starts all of them again, as often as it takes; any other failure does
so --max-failures times, and is not counted where the run has saved a checkpoint since it started. The run's folder is
BUCKET/RUN, so what starts again goes on.

Not run on a cluster yet: the manifest was checked against the schema of JobSet v1alpha2.
"""

import argparse
import json
import math
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from jaxgen import xla_flags

# Names that GKE gives to a generation's nodes, and the chips of a host in a slice of several hosts.
ACCELERATORS = {
  'v4': ('tpu-v4-podslice', 4),
  'v5e': ('tpu-v5-lite-podslice', 4),
  'v5p': ('tpu-v5p-slice', 4),
  'v6e': ('tpu-v6e-slice', 4),
  'tpu7x': ('tpu7x', 4),
}
STOP_SECONDS = 180  # from SIGTERM to SIGKILL: time to save


def main(argv: list[str]) -> int:
  options, training = _parse(argv)
  print(json.dumps(jobset(options, training), indent=2))
  return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  at = argv.index('--') if '--' in argv else len(argv)
  about, _, more = (__doc__ or '').partition('\n\n')
  parser = argparse.ArgumentParser(
    description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument('--run', required=True, help="the run's name: of the JobSet and of the folder in the bucket")
  parser.add_argument('--topology', required=True, help='of one slice, such as v5e:4x4, v5p:4x4x8, v6e:16x16')
  parser.add_argument('--image', required=True, help='built from launch/Dockerfile')
  parser.add_argument('--bucket', required=True, help='gs://BUCKET[/FOLDER], for runs and compiled programs')
  parser.add_argument('--slices', type=int, default=1)
  parser.add_argument('--chips-per-host', type=int, help='default: 4, or all chips of a smaller slice')
  parser.add_argument('--spot', action='store_true', help='on spot nodes')
  parser.add_argument('--max-failures', type=int, default=3, help='default: 3')
  parser.add_argument('--namespace', default='default')
  parser.add_argument('--service-account', help='of Kubernetes, with access to the bucket')
  parser.add_argument('--queue', help="Kueue's local queue")
  parser.add_argument('--env', action='append', default=[], metavar='NAME=VALUE', help='may be repeated')
  options = parser.parse_args(argv[:at])
  training = argv[at + 1 :]
  if not re.fullmatch(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?', options.run):
    parser.error(f"--run is {options.run!r}; it must be at most 40 lower case letters, digits and '-'")
  if not re.fullmatch(rf'({"|".join(ACCELERATORS)}):\d+x\d+(x\d+)?', options.topology):
    parser.error(f'--topology is {options.topology!r}; wanted GENERATION:AxB or AxBxC, of {", ".join(ACCELERATORS)}')
  if not options.bucket.startswith('gs://'):
    parser.error(f'--bucket is {options.bucket!r}; wanted gs://BUCKET or gs://BUCKET/FOLDER')
  if any('=' not in pair for pair in options.env):
    parser.error(f'--env is {options.env}; wanted NAME=VALUE')
  if options.slices < 1 or options.max_failures < 0:
    parser.error('--slices must be 1 or more, --max-failures 0 or more')
  if any(argument.startswith('--workdir') for argument in training):
    parser.error('--workdir is set by --bucket and --run')
  return options, training


def jobset(options: argparse.Namespace, training: list[str]) -> dict:
  """The manifest, as JobSet v1alpha2 has it."""
  generation, _, topology = options.topology.partition(':')
  accelerator, on_a_host = ACCELERATORS[generation]
  chips = math.prod(int(size) for size in topology.split('x'))
  on_a_host = options.chips_per_host or min(on_a_host, chips)
  if chips % on_a_host:
    raise SystemExit(f'gke_jobset: error: {chips} chips do not divide over hosts of {on_a_host}; set --chips-per-host')
  hosts = chips // on_a_host
  bucket = options.bucket.rstrip('/')
  selector = {'cloud.google.com/gke-tpu-accelerator': accelerator, 'cloud.google.com/gke-tpu-topology': topology}
  tolerations = [{'key': 'google.com/tpu', 'operator': 'Exists', 'effect': 'NoSchedule'}]
  if options.spot:
    selector['cloud.google.com/gke-spot'] = 'true'
    tolerations.append(
      {'key': 'cloud.google.com/gke-spot', 'operator': 'Equal', 'value': 'true', 'effect': 'NoSchedule'}
    )
  pod = {
    'restartPolicy': 'Never',  # an ended pod ends its Job, and the JobSet starts all of them
    'terminationGracePeriodSeconds': STOP_SECONDS,
    'nodeSelector': selector,
    'tolerations': tolerations,
    'containers': [_container(options, ['--workdir', f'{bucket}/{options.run}', *training], generation, on_a_host)],
    'volumes': [{'name': 'shm', 'emptyDir': {'medium': 'Memory'}}],
  }
  if options.service_account:
    pod['serviceAccountName'] = options.service_account
  job = {
    'completionMode': 'Indexed',
    'completions': hosts,
    'parallelism': hosts,
    'backoffLimit': 0,
    'podFailurePolicy': {
      'rules': [
        {'action': 'FailJob', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]},
        {'action': 'FailJob', 'onExitCodes': {'operator': 'In', 'values': [75]}},
      ]
    },
    'template': {'spec': pod},
  }
  metadata = {
    'name': options.run,
    'namespace': options.namespace,
    'labels': {'jaxgen-run': options.run} | ({'kueue.x-k8s.io/queue-name': options.queue} if options.queue else {}),
    # A slice is a node pool of its own: pods of two Jobs never share one.
    'annotations': {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'},
  }
  # A Job that a rule of its podFailurePolicy ended was preempted; the others have failed, and count.
  preempted = {
    'name': 'preempted',
    'action': 'RestartJobSetAndIgnoreMaxRestarts',
    'onJobFailureReasons': ['PodFailurePolicy'],
  }
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': metadata,
    'spec': {
      'failurePolicy': {'maxRestarts': options.max_failures, 'rules': [preempted]},
      'replicatedJobs': [{'name': 'slice', 'replicas': options.slices, 'template': {'spec': job}}],
    },
  }


def _container(options: argparse.Namespace, training: list[str], generation: str, chips: int) -> dict:
  bucket = options.bucket.rstrip('/')
  variables = {
    'JAXGEN_RESTARTS': '1',
    'JAXGEN_HOME': f'{bucket}/home',  # weights, datasets and statistics that all pods share
    'JAX_COMPILATION_CACHE_DIR': f'{bucket}/compilation',
  }
  if generation in xla_flags.TPU_FLAGS:
    variables['LIBTPU_INIT_ARGS'] = xla_flags.tpu_init_args(generation)
  variables |= dict(pair.split('=', 1) for pair in options.env)
  return {
    'name': 'jaxgen',
    'image': options.image,
    'command': ['jaxgen', 'train'],
    'args': training,
    'env': [{'name': name, 'value': value} for name, value in variables.items()],
    'ports': [{'containerPort': 8471}, {'containerPort': 8080}],  # of libtpu, and between slices
    'resources': {'requests': {'google.com/tpu': chips}, 'limits': {'google.com/tpu': chips}},
    'volumeMounts': [{'name': 'shm', 'mountPath': '/dev/shm'}],
  }


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
