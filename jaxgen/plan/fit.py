"""Changes that make a program fit: of its mesh, its rematerialisation policy and its micro-batches.

A candidate is a set of changes to a config's fields. Cheap things rule candidates out: the state's bytes are known
from the shardings; once a candidate did not compile, so are its activations A (what was needed, less the state), and
one that keeps as much, on as few devices, will need about A / k in k micro-batches. What remains is compiled, in the
order of the time that is expected of it:

  expected = max(operations / peak, bytes of fully sharded data parallelism / interconnect)        (1)

so nothing is reported to fit that was not compiled. Eq. 1 knows no memory traffic, which what is kept for the backward
pass decides; so `best` compiles the first that fits of every rematerialisation policy, and takes the one with the
smallest roofline.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxgen import flops, sharding, stage_setup
from jaxgen.experiment import Experiment
from jaxgen.plan.chips import GIB, Topology
from jaxgen.plan.plan import DoesNotFit, abstract_frozen, attention_of, bare, fsdp_theory, plan, state_bytes
from jaxgen.typing import Report

Changes = dict[str, Any]
Build = Callable[[Changes], Experiment]
_REMAT = ('none', 'dots', 'full')
_PARTS = (1, 2, 4, 8, 16, 32)  # micro-batches
_MARGIN = 0.05  # share of the memory that `best` leaves free
_ROOM = 1.25  # a candidate that seems to need more than this times the memory is not compiled


class Candidate(NamedTuple):
  """Changes, what Eq. 1 expects of them in seconds, and bytes of the state on a device."""

  changes: Changes
  expected: float
  state: int


def search(
  build: Build,
  fields: Mapping[str, Any],
  machine: Topology,
  *,
  say: Report,
  wanted: int = 1,
  margin: float = 0.0,
) -> Iterator[tuple[Changes, dict[str, Any]]]:
  """Yields the first `wanted` candidates that fit, the fastest expected ones first, each with its plan.

  Args:
    build: an Experiment from changes to the config; a ValueError says that they do not go together.
    fields: the config's fields that may be changed, with their values: `mesh.data`, `mesh.fsdp`, `remat`, `accumulate`.
    machine: the machine that it must fit on.
    say: called with a line before each compilation.
    wanted: number of candidates to yield.
    margin: share of a device's memory that has to stay free.
  """
  failed: list[tuple[Candidate, float]] = []
  for candidate in candidates(build, fields, machine):
    if not wanted:
      return
    if _hopeless(candidate, failed, fields, machine):
      continue
    say(f'trying {as_flags(candidate.changes) or "no change"}')
    try:
      found = plan(build(candidate.changes), machine)
    except DoesNotFit as error:
      say(f'  {error}')
      failed.append((candidate, error.needed or 0.0))
      continue
    memory = found['memory']
    if memory['peak'] > (1 - margin) * memory['limit']:
      say(f'  it needs {memory["peak"] / GIB:.2f} GiB, which leaves less than {margin:.0%} of the memory free')
      failed.append((candidate, memory['peak']))
      continue
    wanted -= 1
    yield candidate.changes, found


def best(
  build: Build, fields: Mapping[str, Any], machine: Topology, *, say: Report
) -> list[tuple[Changes, dict[str, Any]]]:
  """What fits, one candidate of each rematerialisation policy, the smallest roofline first.

  A candidate fits if its peak leaves a share of `_MARGIN` of the memory free. Arguments as for `search`.
  """
  found = []
  for kept in _choices(fields, 'remat', _REMAT):
    rest = {name: value for name, value in fields.items() if name not in kept}
    changed = {name: value for name, value in kept.items() if value != fields[name]}

    def build_kept(changes: Changes, changed: Changes = changed) -> Experiment:
      return build(changed | changes)

    fitting = search(build_kept, rest, machine, say=say, wanted=1, margin=_MARGIN)
    found += [(changed | changes, made) for changes, made in fitting]
  return sorted(found, key=lambda pair: pair[1]['roofline']['step'])


def candidates(build: Build, fields: Mapping[str, Any], machine: Topology) -> list[Candidate]:
  """All that go together, by the time expected of them, then by the number of changes."""
  found = []
  work: dict[Any, int] = {}  # operations by what is kept; neither mesh nor micro-batches change them
  for mesh in _meshes(fields, len(machine.devices)):
    try:
      stage = build(mesh)
      abstract = stage_setup.abstract_state(stage)
    except ValueError:  # a batch or a dimension that does not divide
      continue
    frozen = abstract_frozen(stage)
    state = sum(state_bytes(abstract, frozen).values())
    shapes = bare((abstract, frozen, stage.data.spec))
    for kept, parts in itertools.product(_choices(fields, 'remat', _REMAT), _choices(fields, 'accumulate', _PARTS)):
      if parts and not _divides(stage, parts['accumulate']):
        continue
      changes = {name: value for name, value in (mesh | kept | parts).items() if value != fields[name]}
      key = kept.get('remat')
      if key not in work:
        with attention_of(machine):
          work[key] = flops.count(stage_setup.mesh_step(build(mesh | kept)), *shapes, jax.random.key(0))
      compute = work[key] / (machine.chips * machine.chip.flops)
      sent = fsdp_theory(abstract, stage.mesh.shape, parts.get('accumulate', stage.accumulate))
      expected = max(compute, machine.chip.devices * sent / machine.chip.interconnect)  # Eq. 1
      found.append(Candidate(changes, expected, state))
  return sorted(found, key=lambda c: (c.expected, len(c.changes), c.changes.get('accumulate', 1), c.state))


def as_flags(changes: Changes) -> str:
  """Changes as they are written on the command line."""
  return ' '.join(f'--config.{field}={value}' for field, value in changes.items())


def choice(found: Sequence[tuple[Changes, Mapping[str, Any]]]) -> list[str]:
  """The result of `best` in lines: the changes to make, their limit, and the cost of the others."""
  (changes, made), *others = found
  step = made['roofline']['step']
  lines = [f'fits best: {as_flags(changes) or "as it is"}, limited by {made["roofline"]["limited_by"]}']
  for changes, other in others:
    memory, ratio = other['memory'], other['roofline']['step'] / step
    lines.append(
      f'  {ratio:.2f} times the step, limited by {other["roofline"]["limited_by"]}, '
      f'{memory["peak"] / GIB:.2f} GiB: {as_flags(changes) or "as it is"}'
    )
  return lines


def _meshes(fields: Mapping[str, Any], devices: int) -> list[Changes]:
  """All ways to share the devices between `data` and `fsdp`; sequence and tensor stay."""
  if not {'mesh.data', 'mesh.fsdp'} <= fields.keys():
    return [{}]
  left = devices // fields.get('mesh.tensor', 1) // fields.get('mesh.sequence', 1)
  return [{'mesh.data': left // size, 'mesh.fsdp': size} for size in range(1, left + 1) if left % size == 0]


def _choices(fields: Mapping[str, Any], field: str, values: Sequence[Any]) -> list[Changes]:
  return [{field: value} for value in values] if field in fields else [{}]


def _divides(stage: Experiment, parts: int) -> bool:
  batch_size = stage.data.identity['batch_size']
  try:
    sharding.check_batch_size(batch_size, stage.mesh, accumulate=parts)
  except ValueError:
    return False
  return True


def _hopeless(candidate: Candidate, failed, fields: Mapping[str, Any], machine: Topology) -> bool:
  """Whether the state alone, or with the activations that another candidate had, is far too much."""
  limit = machine.chip.memory / machine.chip.devices
  if candidate.state > limit:
    return True
  for other, needed in failed:
    activations = (needed - other.state) * _share(candidate, fields) / _share(other, fields)
    keeps = _REMAT.index(candidate.changes.get('remat', fields.get('remat', 'full')))
    kept = _REMAT.index(other.changes.get('remat', fields.get('remat', 'full')))
    if keeps <= kept and candidate.state + activations > _ROOM * limit:
      return True
  return False


def _share(candidate: Candidate, fields: Mapping[str, Any]) -> float:
  """The share of the batch that is worked on at once; all meshes split it over all devices."""
  return 1 / candidate.changes.get('accumulate', fields.get('accumulate', 1))


def advice(build: Build, fields: Mapping[str, Any], machine: Topology, error: DoesNotFit, *, say) -> str:
  """What does not fit, and the three cheapest changes with which it does."""
  found = list(search(build, fields, machine, say=say, wanted=3))
  found.sort(key=lambda pair: pair[1]['roofline']['step'])
  if not found:
    options = ', '.join(fields) or 'none of mesh, remat and accumulate'
    return f'{error}. No change of {options} makes it fit: take more chips, a smaller batch or a smaller network'
  with_these = '; '.join(
    f'{as_flags(changes)} ({fitting["memory"]["peak"] / GIB:.2f} GiB, at least '
    f'{1e3 * fitting["roofline"]["step"]:.0f} ms a step)'
    for changes, fitting in found
  )
  return f'{error}. With these it fits: {with_these}'
