"""Two real processes make one run, and one process can go on with it."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np

from jaxgen.train import train
from jaxgen.writer import read_metrics
from tests import toys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _run(workdir, steps: int, processes: int) -> list[str]:
  port = _free_port()
  workers = []
  for index in range(processes):
    env = os.environ | {
      'JAX_NUM_CPU_DEVICES': str(8 // processes),
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': str(processes),
      'JAX_PROCESS_ID': str(index),
    }
    command = [sys.executable, '-m', 'tests.worker', str(workdir), str(steps)]
    workers.append(
      subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    )
  outputs = [worker.communicate(timeout=300) for worker in workers]
  for worker, (_, err) in zip(workers, outputs, strict=True):
    assert worker.returncode == 0, err[-3000:]
  return [out for out, _ in outputs]


def test_two_processes_train_and_one_goes_on(tmp_path):
  uninterrupted = train(toys.experiment(), tmp_path / 'one')
  folder = tmp_path / 'two'
  first, second = _run(folder, steps=6, processes=2)
  assert 'step 6/6' in first
  # Only process 0 speaks; Gloo itself does not know that.
  assert [line for line in second.splitlines() if '[Gloo]' not in line] == []
  state = train(toys.experiment(), folder)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), uninterrupted, state)
  losses = [{r['step']: r['loss'] for r in read_metrics(tmp_path / name / 'metrics.jsonl')} for name in ('one', 'two')]
  assert losses[0].keys() == losses[1].keys()
  np.testing.assert_allclose(list(losses[0].values()), list(losses[1].values()), rtol=1e-5)


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


def test_a_single_process_starts_alone():
  assert _start().stdout.split() == ['False', '1', 'True', '3']


def test_slurm_is_found_by_its_environment():
  slurm = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_STEP_NUM_NODES': '1', 'SLURM_NTASKS': '1'}
  port = {'JAX_COORDINATOR_PORT': str(_free_port())}
  started = _start(**slurm, **port, SLURM_PROCID='0', SLURM_LOCALID='0')
  assert started.stdout.split()[-4:] == ['True', '1', 'True', '3'], started.stderr[-2000:]
