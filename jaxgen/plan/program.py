"""Collectives and memory traffic of a compiled program, read from its text (HLO).

A scan is a `while` in the program; its body counts as often as it runs. The number of iterations is read from
the program: the condition compares a counter with a constant, and the body adds a constant to it.

Bytes that a device sends for an array of S bytes (S: the whole result of a gather, what goes into the others), among n
devices in a ring, which is the least that can be:

  gather, scatter, all-to-all   S (n - 1) / n                                (1)
  all-reduce                    2 S (n - 1) / n                              (2)
  permute                       S                                            (3)

A group that spans s slices does this within each slice, n / s devices, and then among s devices for the S s / n bytes
that each is left with, over the network (4).
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BITS = {'pred': 8, 'token': 0, 'opaque': 0}  # others say it: bf16, s32
_CALLED = re.compile(r'(?:calls|to_apply|\w+_computations?)=(\{[^}]*\}|%[\w.\-]+)')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?')
# These name or wait for what others have made.
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call', 'after-all')


class Instruction(NamedTuple):
  """One line of the program: `NAME = SHAPE OPCODE(OPERANDS), ATTRIBUTES`."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str

  @property
  def kind(self) -> str | None:
    """Which collective it starts or is; None for others, and for the end of one."""
    kind = self.opcode.removesuffix('-start')
    return kind if kind in COLLECTIVES else None


class Computation(NamedTuple):
  """Instructions by name, in order; the last one is the root."""

  name: str
  instructions: dict[str, Instruction]
  root: Instruction

  def parameter(self, index: int) -> str:
    wanted = str(index)
    return next(i.name for i in self.instructions.values() if i.opcode == 'parameter' and i.operands == (wanted,))


class Program(NamedTuple):
  computations: dict[str, Computation]
  entry: Computation


class Collective(NamedTuple):
  """A collective of the program.

  Attributes:
    kind: one of COLLECTIVES.
    times: number of times a step runs it.
    size: bytes of the array, S of Eqs. 1 to 3.
    groups: groups of devices by their place in the mesh, one a row.
    asynchronous: whether it is started at one place of the program and waited for at another, with work between.
  """

  kind: str
  times: int
  size: int
  groups: np.ndarray
  asynchronous: bool = False


def parse(text: str) -> Program:
  """The program in the text of `compiled.as_text()`."""
  computations: dict[str, Computation] = {}
  name, entry, lines = '', '', {}
  root = None
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?%?([\w.\-]+) \(', line) if line.endswith('{') else None
    if head:
      name, lines, root = head.group(2), {}, None
      entry = name if head.group(1) else entry
    elif line.startswith('}') and lines:
      computations[name] = Computation(name, lines, root or list(lines.values())[-1])
    elif ' = ' in line and line.startswith(' '):
      instruction = _instruction(line)
      lines[instruction.name] = instruction
      root = instruction if line.lstrip().startswith('ROOT') else root
  return Program(computations, computations[entry])


def _instruction(line: str) -> Instruction:
  name, _, rest = line.strip().removeprefix('ROOT ').partition(' = ')
  end = _closing(rest) + 1 if rest.startswith('(') else rest.index(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition('(')
  rest = rest[len(opcode) :]
  end = _closing(rest)
  inside = re.sub(r'/\*.*?\*/', '', rest[1:end])
  operands = re.findall(r'%([\w.\-]+)', inside) or [inside.strip()]
  return Instruction(name.removeprefix('%'), shape, opcode, tuple(operands), rest[end + 1 :])


def _closing(text: str) -> int:
  """Where the bracket that `text` starts with closes."""
  depth = 0
  for index, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if depth == 0:
      return index
  raise ValueError(f'a line of the program is cut: {text[:80]}')


def arrays(shape: str, *, memory_only: bool = False) -> list[int]:
  """Bytes of each array of a shape; with `memory_only`, of those outside of the chip: no scalars, and in no memory
  space above 0."""
  found = []
  for dtype, sizes, layout in _ARRAY.findall(shape):
    if memory_only and (not sizes or re.search(r'S\([1-9]', layout)):
      continue
    found.append(math.prod(int(size.lstrip('<=')) for size in sizes.split(',') if size) * _bits(dtype) // 8)
  return found


def _bits(dtype: str) -> int:
  digits = re.search(r'\d+', dtype)  # the first ones: f8e4m3
  return _BITS[dtype] if digits is None else int(digits.group())


def walk(program: Program) -> Iterator[tuple[Instruction, Computation, int, bool]]:
  """Each instruction that runs: with its computation, how often, and whether it is part of a fusion."""

  def visit(computation, times, fused):
    for instruction in computation.instructions.values():
      yield instruction, computation, times, fused
      if instruction.opcode == 'while':
        _, body = _loop(program, instruction)
        yield from visit(body, times * turns(program, computation, instruction), fused)
      elif instruction.opcode in ('fusion', 'call', 'conditional') or instruction.opcode.startswith('async-start'):
        inside = fused or instruction.opcode == 'fusion'
        for callee in called(instruction):
          yield from visit(program.computations[callee], times, inside)

  yield from visit(program.entry, 1, False)


def called(instruction: Instruction) -> list[str]:
  """The computations that it runs, other than a loop's."""
  return [name for group in _CALLED.findall(instruction.attributes) for name in re.findall(r'%([\w.\-]+)', group)]


def turns(program: Program, computation: Computation, loop: Instruction) -> int:
  """Number of iterations of a loop; 1 where the program does not tell."""
  known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known.group(1))
  condition, body = _loop(program, loop)
  limit = next((value for name in condition.root.operands if (value := _constant(condition, name)) is not None), None)
  counters = [condition.instructions.get(name) for name in condition.root.operands]
  counter = next((c for c in counters if c is not None and c.opcode == 'get-tuple-element'), None)
  if limit is None or counter is None or condition.root.opcode != 'compare':
    return 1
  index = int(counter.attributes.partition('index=')[2].partition(',')[0])
  start = _constant(computation, _element(computation, loop.operands[0], index)) or 0
  added = body.instructions.get(body.root.operands[index]) if index < len(body.root.operands) else None
  step = None
  while added is not None and added.opcode == 'add':  # an unrolled body adds more than once
    steps = [_constant(body, name) for name in added.operands]
    step = (step or 0) + next((value for value in steps if value is not None), 0)
    added = next((body.instructions.get(n) for n, s in zip(added.operands, steps, strict=True) if s is None), None)
  return max(1, math.ceil((limit - start) / (step or 1)))


def _loop(program: Program, loop: Instruction) -> list[Computation]:
  """Its condition and its body."""
  return [program.computations[name] for name in re.findall(r'(?:condition|body)=%([\w.\-]+)', loop.attributes)]


def _constant(computation: Computation, name: str | None) -> int | None:
  """The value of an integer constant, also of a copy of one."""
  instruction = computation.instructions.get(name or '')
  while instruction is not None and instruction.opcode in ('copy', 'bitcast', 'convert'):
    instruction = computation.instructions.get(instruction.operands[0])
  if instruction is None or instruction.opcode != 'constant':
    return None
  return int(instruction.operands[0]) if re.fullmatch(r'-?\d+', instruction.operands[0]) else None


def _element(computation: Computation, name: str, index: int) -> str | None:
  made = computation.instructions.get(name)
  return made.operands[index] if made is not None and made.opcode == 'tuple' else None


def collectives(program: Program, devices: int, slices: int = 1) -> list[Collective]:
  """All of a step, each once, wherever it starts.

  The program of several slices is that of one; between slices an array goes through the hosts, which is named after
  the collective that it is part of.
  """
  found = []
  across = np.arange(devices).reshape(slices, -1).T
  for instruction, computation, times, fused in walk(program):
    through_host = re.search(r'_xla_host_transfer_rendezvous="([a-z\-]+)', instruction.attributes)
    if instruction.opcode == 'send' and through_host and through_host.group(1) in COLLECTIVES:
      size, beside = arrays(instruction.shape)[0], _has_work(computation, instruction)
      found.append(Collective(through_host.group(1), times, size, across, beside))
    kind = instruction.kind
    if kind is None or (fused and not _starts_here(computation)):
      continue
    sizes = arrays(instruction.shape)
    if instruction.opcode == 'all-gather-start':
      sizes = sizes[len(sizes) // 2 :]  # the first half are its operands
    if kind == 'collective-permute':
      sizes = sizes[:1]
    groups = device_groups(instruction.attributes, devices)
    if kind == 'reduce-scatter':
      sizes = [size * groups.shape[1] for size in sizes]
    if kind == 'all-reduce' and _is_scatter(computation):
      kind = 'reduce-scatter'
    starts = instruction.opcode.endswith('-start') and _has_work(computation, instruction)
    found.append(Collective(kind, times, sum(sizes), groups, starts or (fused and not _is_scatter(computation))))
  return found


def _has_work(computation: Computation, start: Instruction) -> bool:
  """Whether anything that reads or writes memory stands between a collective's start and its end."""
  order = list(computation.instructions.values())
  for instruction in order[order.index(start) + 1 :]:
    if start.name in instruction.operands:  # its end
      return False
    if instruction.opcode not in _FREE and not instruction.opcode.endswith(('-start', '-done')):
      return True
  return False


def _starts_here(fusion: Computation) -> bool:
  """A collective that runs beside other work is written into all fusions on its way; it starts in one of them."""
  return _is_scatter(fusion) or any('AsyncCollectiveStart' in i.attributes for i in fusion.instructions.values())


def _is_scatter(computation: Computation) -> bool:
  """Whether an all-reduce is fused with the slice of it that is used."""
  return computation.name.startswith('all-reduce-scatter')


def device_groups(attributes: str, devices: int) -> np.ndarray:
  """Rows of devices, by their place in the mesh, that take part together; of a permutation, its pairs."""
  listed = re.search(r'(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}', attributes)
  if listed:
    return np.array([[int(d) for d in group.split(',')] for group in re.findall(r'\{([\d,]+)\}', listed.group(1))])
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes)
  if iota:
    sizes = [int(size) for size in iota.group(3).split(',')]
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    grid = grid.transpose([int(axis) for axis in iota.group(4).split(',')]) if iota.group(4) else grid
    return grid.reshape(int(iota.group(1)), int(iota.group(2)))
  axes = re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', attributes)
  if axes:
    return _groups_of_axes(axes.group(1), axes.group(2))
  return np.arange(devices)[None]


def _groups_of_axes(mesh: str, along: str) -> np.ndarray:
  """Groups along some axes of a mesh, `'a'=2,'b'=8` and `'b'`; `'b':(2)4` is the part of size 4 after one of 2."""
  named = re.findall(r"'([^']+)'=(\d+)", mesh)
  split: list[tuple[str, int]] = []
  wanted = dict(re.findall(r"'([^']+)'(?::(\(\d+\)\d+))?", along))
  taken = []
  for name, size in named:
    part = re.fullmatch(r'\((\d+)\)(\d+)', wanted.get(name, ''))
    before, inside = (int(part.group(1)), int(part.group(2))) if part else (1, int(size))
    taken += [False, name in wanted, False]
    split += [(name, before), (name, inside), (name, int(size) // before // inside)]
  grid = np.arange(math.prod(size for _, size in split)).reshape([size for _, size in split])
  order = [i for i, used in enumerate(taken) if not used] + [i for i, used in enumerate(taken) if used]
  members = math.prod(size for (_, size), used in zip(split, taken, strict=True) if used)
  return grid.transpose(order).reshape(-1, members)


def sent(collective: Collective, slice_of: Sequence[int]) -> tuple[float, float]:
  """Bytes that a device sends in a step: within its slice, and over the network (Eqs. 1 to 4)."""
  within = between = 0.0
  kind, times, size, groups, _ = collective
  where = np.asarray(slice_of)[groups]
  if kind == 'collective-permute':
    crosses = np.mean(where[:, 0] != where[:, 1])
    return times * size * (1 - crosses), times * size * crosses
  slices = len(set(where[0].tolist()))
  members = groups.shape[1] // slices
  factor = 2 if kind == 'all-reduce' else 1
  within = factor * size * (members - 1) / members  # Eqs. 1, 2
  between = factor * size / members * (slices - 1) / slices  # Eq. 4
  return times * within, times * between


def memory_traffic(program: Program) -> int:
  """Bytes that a device reads from and writes to its memory in a step, as the program is written.

  Every array outside of the chip that an instruction reads or writes, whole; but of one that it only slices, or
  updates a slice of, that slice, and nothing of one that it only hands on. A collective beside other work counts where
  it starts.
  """
  total = 0
  for instruction, computation, times, fused in walk(program):
    if fused or instruction.opcode in _FREE or instruction.opcode.endswith(('-done', '-update')):
      continue
    total += times * _traffic(program, computation, instruction)
  return total


def _traffic(program: Program, computation: Computation, instruction: Instruction) -> int:
  inside: Callable[[int], int | None] = lambda _: None  # noqa: E731
  written = sum(arrays(instruction.shape, memory_only=True))
  if instruction.opcode == 'fusion':
    body = program.computations[called(instruction)[0]]
    inside = lambda index: _sliced(body, index)  # noqa: E731
    made = [body.root]
    if body.root.opcode == 'tuple' and not _starts_here(body):
      made = [body.instructions[name] for name in body.root.operands]
      made = [one for one in made if not _carried(one)]
    if made != [body.root] or _updated(body, body.root) is not None:
      written = sum(_written(body, one) for one in made)
  if instruction.opcode in ('dynamic-slice', 'slice', 'gather'):
    return 2 * written
  if instruction.opcode == 'dynamic-update-slice':
    return 2 * sum(arrays(computation.instructions[instruction.operands[1]].shape, memory_only=True))
  if instruction.opcode.endswith('-start'):  # from its operand to its result; both are in its shape
    moved = [size for size in arrays(instruction.shape) if size > 8]  # and so are counters
    return min(moved, default=0) * len([size for size in arrays(instruction.shape, memory_only=True) if size > 8])
  read = 0
  for index, name in enumerate(instruction.operands):
    operand = computation.instructions.get(name)
    if operand is None:
      continue
    whole, part = sum(arrays(operand.shape, memory_only=True)), inside(index)
    read += whole if part is None else min(whole, part)
  return read + written


def _written(body: Computation, made: Instruction) -> int:
  """Bytes that one result of a fusion writes: those of the slice, where it is an array with a slice updated."""
  update = _updated(body, made)
  return sum(arrays(made.shape, memory_only=True)) if update is None else sum(arrays(update.shape))


def _updated(body: Computation, made: Instruction) -> Instruction | None:
  """The slice that a result of a fusion writes into an operand; None where it writes all of it."""
  while made.opcode == 'bitcast':
    made = body.instructions[made.operands[0]]
  return body.instructions[made.operands[1]] if made.opcode == 'dynamic-update-slice' else None


def _carried(instruction: Instruction) -> bool:
  """Whether a fusion only hands something on: its operand, or the buffers of a collective that is under way."""
  return (
    instruction.opcode == 'parameter'
    or instruction.kind is not None
    or (instruction.opcode == 'custom-call' and 'AsyncCollective' in instruction.attributes)
  )


def _sliced(body: Computation, index: int) -> int | None:
  """Bytes of a fusion's operand that it reads, where it only slices it; None where it reads all."""
  names = {body.parameter(index)}  # and bitcasts of it
  total = 0
  for instruction in body.instructions.values():
    if names.isdisjoint(instruction.operands):
      continue
    if instruction.opcode == 'bitcast' and instruction is not body.root:
      names.add(instruction.name)
      continue
    if instruction is body.root and instruction.opcode == 'tuple':
      continue
    if _carried(instruction) and not _starts_here(body):
      continue
    if instruction.opcode in ('dynamic-slice', 'slice', 'gather') and instruction.operands[0] in names:
      total += sum(arrays(instruction.shape))
    elif instruction.opcode == 'dynamic-update-slice' and instruction.operands[0] in names:
      total += 0  # values that are not updated stay in place
    else:
      return None
  return total
