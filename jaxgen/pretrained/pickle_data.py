"""Reads a pickle as data: no name in it is imported, and nothing is called.

A pickle is a program for a stack machine, and Python's own machine imports and calls what the program names. The
machine here has the same opcodes but no way to call: a global is a `Named`, and what a pickle makes of one by a call
is what the reader's own table makes of that name, or else an `Opaque`, which keeps name, arguments and state.

The work is bounded: by the number of opcodes, and by refusing keys of dictionaries that would take long to hash
(tuples in tuples, whose hash is computed anew each time).
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_OPCODES = 2_000_000  # one tensor takes about 40
_MARK = object()


class PickleError(ValueError):
  """A pickle is damaged, or does what no file of arrays needs."""


class Named(NamedTuple):
  """A class or a function that a pickle names."""

  module: str
  name: str

  def __str__(self) -> str:
    return f'{self.module}.{self.name}'[:200]


class Opaque:
  """An object of a class that the reader does not know; it does nothing.

  Attributes:
    name: name of its class, or of the function that would make it.
    args: arguments of that call.
    state: state that the object would be given, usually its attributes.
    entries: entries of a subclass of dict, list or set.
  """

  __slots__ = ('args', 'entries', 'name', 'state')

  def __init__(self, made_by: 'Named | Opaque', args: Any):
    self.name = made_by.name if isinstance(made_by, Opaque) else str(made_by)
    self.args, self.state, self.entries = args, None, []

  def __repr__(self) -> str:
    return f'<{self.name}>'


Make = Callable[..., Any]  # makes an object of the arguments in a pickle
Makers = Callable[[Named], Make | None]  # what stands for a class or function that a pickle names; None refuses it


def load(file: io.BytesIO, *, make: Makers, reference: Callable[[Any], Any] | None = None) -> Any:
  """Reads one pickle and leaves the file at its end.

  Args:
    file: the pickle.
    make: maps a name to the function called in its place, which must be safe for any arguments; None makes an
      `Opaque`.
    reference: maps a persistent id to its value; none are allowed by default.

  Raises:
    PickleError: it is damaged or hostile. What `make` and `reference` raise passes through.
  """
  return _Machine(make, reference).run(file)


class _Machine:
  def __init__(self, make: Makers, reference: Callable[[Any], Any] | None):
    self.make, self.reference = make, reference
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}

  def run(self, file: io.BytesIO) -> Any:
    try:
      for _ in range(MAX_OPCODES):
        code = file.read(1)
        if code not in _OPCODES:
          raise PickleError(f'it uses the pickle opcode {code!r}' if code else 'its pickle has no end')
        read, act = _OPCODES[code]
        act(self, read(file) if read else None)
        if code == b'.':
          (result,) = self.stack
          return result
    except (IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
      raise PickleError(f'its pickle is damaged ({type(error).__name__})') from error
    except ValueError as error:
      raise (
        error if isinstance(error, PickleError) else PickleError(f'its pickle is damaged: {error!s:.200}')
      ) from error
    raise PickleError(f'it has more than {MAX_OPCODES:,} opcodes')

  def put(self, index: Any) -> None:
    self.memo[index] = self.stack[-1]

  def memoize(self, _: Any) -> None:
    self.memo[len(self.memo)] = self.stack[-1]

  def get(self, index: Any) -> None:
    self.stack.append(self.memo[index])

  def last_mark(self) -> int:
    for at in range(len(self.stack) - 1, -1, -1):
      if self.stack[at] is _MARK:
        return at
    raise PickleError('its pickle is damaged: it lacks a mark')

  def since_mark(self) -> list[Any]:
    at = self.last_mark()
    items = self.stack[at + 1 :]
    del self.stack[at:]
    return items

  def drop(self, at: int) -> None:
    del self.stack[at:]

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def pop(self) -> Any:
    value = self.stack.pop()
    if value is _MARK:
      raise PickleError('its pickle is damaged: it uses a mark as a value')
    return value

  def tuple_of(self, count: int) -> None:
    self.push(tuple(reversed([self.pop() for _ in range(count)])))

  def named(self, arg: Any) -> None:
    module, _, name = arg.partition(' ')  # pickletools joins the two lines of GLOBAL so
    self.push(Named(module, name))

  def stack_named(self, _: Any) -> None:
    name, module = self.pop(), self.pop()
    if not isinstance(name, str) or not isinstance(module, str):
      raise PickleError('it names something by what is no text')
    self.push(Named(module, name))

  def call(self, _: Any) -> None:
    args, function = self.pop(), self.pop()
    if not isinstance(function, Named | Opaque) or not isinstance(args, tuple):
      raise PickleError('it calls something that is no name')
    made = self.make(function) if isinstance(function, Named) else None
    self.push(Opaque(function, args) if made is None else made(*args))

  def call_with_keywords(self, _: Any) -> None:
    keywords, args, function = self.pop(), self.pop(), self.pop()
    if not isinstance(function, Named | Opaque):
      raise PickleError('it calls something that is no name')
    self.push(Opaque(function, (args, keywords)))

  def build(self, _: Any) -> None:
    state, target = self.pop(), self.stack[-1]
    fill = getattr(target, 'fill', None)
    if isinstance(target, Opaque):
      target.state = state
    elif callable(fill):  # an object of the reader's own, made by its table
      fill(state)
    elif not isinstance(target, dict):  # an OrderedDict may have attributes, which are not kept
      raise PickleError(f'it sets attributes of a {type(target).__name__}')

  def set_items(self, pairs: list[Any]) -> None:
    target = self.stack[-1]
    if len(pairs) % 2:
      raise PickleError('its pickle is damaged: a key has no value')
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
      if isinstance(target, Opaque):
        target.entries.append((key, value))
      elif isinstance(target, dict):
        target[quick_key(key)] = value
      else:
        raise PickleError(f'it sets entries of a {type(target).__name__}')

  def append(self, values: list[Any]) -> None:
    target = self.stack[-1]
    if isinstance(target, Opaque):
      target.entries.extend(values)
    elif isinstance(target, set):
      target.update(quick_key(value) for value in values)
    elif isinstance(target, list):
      target.extend(values)
    else:
      raise PickleError(f'it appends to a {type(target).__name__}')

  def dictionary(self, _: Any) -> None:
    pairs = self.since_mark()
    self.push({})
    self.set_items(pairs)

  def refer(self, _: Any) -> None:
    if self.reference is None:
      raise PickleError('it refers to what is outside it')
    self.push(self.reference(self.pop()))

  def last_two(self) -> list[Any]:
    return list(reversed([self.pop(), self.pop()]))


# fmt: off
_VALUES = (
  'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT', 'STRING', 'BINSTRING',
  'SHORT_BINSTRING', 'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'BINBYTES', 'SHORT_BINBYTES',
  'BINBYTES8', 'BYTEARRAY8',
)
# fmt: on
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
  'MARK': lambda m, _: m.push(_MARK),
  'POP': lambda m, _: m.drop(-1),
  'POP_MARK': lambda m, _: m.drop(m.last_mark()),
  'DUP': lambda m, _: m.push(m.stack[-1]),
  'TUPLE': lambda m, _: m.push(tuple(m.since_mark())),
  'TUPLE1': lambda m, _: m.tuple_of(1),
  'TUPLE2': lambda m, _: m.tuple_of(2),
  'TUPLE3': lambda m, _: m.tuple_of(3),
  'LIST': lambda m, _: m.push(m.since_mark()),
  'EMPTY_LIST': lambda m, _: m.push([]),
  'APPEND': lambda m, _: m.append([m.pop()]),
  'APPENDS': lambda m, _: m.append(m.since_mark()),
  'DICT': _Machine.dictionary,
  'EMPTY_DICT': lambda m, _: m.push({}),
  'SETITEM': lambda m, _: m.set_items(m.last_two()),
  'SETITEMS': lambda m, _: m.set_items(m.since_mark()),
  'EMPTY_SET': lambda m, _: m.push(set()),
  'ADDITEMS': lambda m, _: m.append(m.since_mark()),
  'FROZENSET': lambda m, _: m.push(frozenset(quick_key(value) for value in m.since_mark())),
  'GLOBAL': _Machine.named,
  'STACK_GLOBAL': _Machine.stack_named,
  'REDUCE': _Machine.call,
  'NEWOBJ': _Machine.call,
  'NEWOBJ_EX': _Machine.call_with_keywords,
  'BUILD': _Machine.build,
  'BINPERSID': _Machine.refer,
  'NONE': lambda m, _: m.push(None),
  'NEWTRUE': lambda m, _: m.push(True),
  'NEWFALSE': lambda m, _: m.push(False),
  'EMPTY_TUPLE': lambda m, _: m.push(()),
  **dict.fromkeys(('PROTO', 'FRAME', 'STOP'), lambda m, _: None),
  **dict.fromkeys(('PUT', 'BINPUT', 'LONG_BINPUT'), _Machine.put),
  'MEMOIZE': _Machine.memoize,
  **dict.fromkeys(('GET', 'BINGET', 'LONG_BINGET'), _Machine.get),
  **dict.fromkeys(_VALUES, _Machine.push),
}
_OPCODES = {
  opcode.code.encode('latin-1'): (opcode.arg.reader if opcode.arg else None, _ACTIONS[opcode.name])
  for opcode in pickletools.opcodes
  if opcode.name in _ACTIONS
}


def quick_key(value: Any) -> Any:
  """A key of a dictionary or a set, if it is quickly hashed."""
  flat = value if type(value) is tuple else (value,)
  for each in flat:
    if type(each) is int and each.bit_length() < 60:  # larger ones can be made to collide
      continue
    if each is not None and not isinstance(each, bool | str | bytes | Named | Opaque):
      raise PickleError(f'it has a {type(each).__name__} in a key')
  return value
