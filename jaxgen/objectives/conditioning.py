"""Conditions: the inputs of a network beside x_t and t, how they are encoded, and how they are dropped.

A batch holds the conditions as they are stored, such as labels, token ids or images: one entry a *field*. An encoder
turns them into the entries of `cond` that the network reads; for labels it is the identity. Encoding happens once in a
train step, and once before a sampler's loop.

  Conditioner(
    fields={'text': Field(null=empty_prompt_ids), 'image': Field(null=0.0), 'size': Field()},
    drops={('text',): 0.05, ('image',): 0.05, ('text', 'image'): 0.05},          # exclusive events
    encode=encode_text,
  )

A field without a null is always given. A null may be trained: it is then a function of the parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.processes.process import expand
from jaxgen.samplers.guidance import replaced
from jaxgen.samplers.sampler import Without
from jaxgen.typing import Array, Bool, Cond, Int, Key

# (params, frozen, fields, keys) -> cond; it encodes the fields that it is given, and image i by itself
Encode = Callable[[dict[str, Any], Any, dict[str, Array], Key[Array, ' b']], Cond]
# (params, frozen, batch, keys) -> cond, and the null condition
Condition = Callable[[dict[str, Any], Any, dict[str, Array], Key[Array, ' b']], tuple[Cond, Without]]


class Field(NamedTuple):
  """One entry of a batch that is a condition of the network.

  Attributes:
    null: the value that stands for no condition, of one image's shape, or `params -> value` if it is trained; None for
      a field that is always given.
    encoded: the null stands for the encoder's output (SDXL's zeros), not for its input (SD's empty prompt). It is the
      entry of the field's name, or a mapping of entries.
  """

  null: Any | None = None
  encoded: bool = False


def as_stored(params: dict[str, Any], frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
  """The encoder of labels and of other conditions that the network reads as they are."""
  return fields


class Conditioner(NamedTuple):
  """The conditions of a network.

  Attributes:
    fields: the entries of a batch that are conditions.
    drops: probability of each exclusive event in training, by the fields that are replaced by their nulls in it.
    encode: makes the entries of `cond` from fields. A null that is not `encoded` goes through it alone, so it has to
      take any of the fields without the others.
    init: `key -> {params key: tree}`, parameters of its own (a null, an encoder), trained in the network's phase.
  """

  fields: Mapping[str, Field] = {}
  drops: Mapping[tuple[str, ...], float] = {}
  encode: Encode = as_stored
  init: Callable[[Key[Array, '']], dict[str, Any]] = lambda key: {}

  def check(self) -> None:
    """Raises ValueError where fields and drops do not go together."""
    for names, rate in self.drops.items():
      unknown = sorted(set(names) - set(self.nullable))
      if unknown:
        raise ValueError(f'drops name {unknown[0]!r}, which has no null; the fields with one are {list(self.nullable)}')
      if not 0 <= rate < 1:
        raise ValueError(f'the drop rate of {names} is {rate}; it is a probability, in [0, 1)')
    if sum(self.drops.values()) >= 1:
      raise ValueError(f'the drop rates add to {sum(self.drops.values())}; the events are exclusive, use less than 1')

  @property
  def nullable(self) -> tuple[str, ...]:
    """The fields that have a null."""
    return tuple(name for name, field in self.fields.items() if field.null is not None)

  @property
  def trains(self) -> tuple[str, ...]:
    """Keys of the parameters that `init` makes."""
    return tuple(jax.eval_shape(self.init, jax.random.key(0)))

  def select(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a batch."""
    missing = sorted(set(self.fields) - set(batch))
    if missing:
      raise ValueError(f'the network wants {missing}, which the batch does not have; it has {sorted(batch)}')
    return {name: batch[name] for name in self.fields}

  def condition(
    self, params: dict[str, Any], frozen: Any, batch: Mapping[str, Array], keys: Key[Array, ' b']
  ) -> tuple[Cond, Without]:
    """The whole condition of a batch, for sampling, and the null condition."""
    cond = self.encode(params, frozen, self.select(batch), keys)
    return cond, lambda names: self.nulls(params, frozen, names or self.nullable)

  def dropped(
    self,
    params: dict[str, Any],
    frozen: Any,
    batch: Mapping[str, Array],
    *,
    drop_key: Key[Array, ''],
    encode_key: Key[Array, ''],
  ) -> tuple[Cond, Bool[Array, ' b']]:
    """The condition of a batch in training, after drops, and which images lost all fields that have a null.

    Image i's event depends on the key and i, whatever the size of the batch.
    """
    fields = self.select(batch)
    if not fields:
      return {}, jnp.zeros(len(batch['image']), bool)
    size = len(next(iter(fields.values())))
    event = _events(list(self.drops.values()), drop_key, size)
    lost = {name: _any(event, [i for i, names in enumerate(self.drops) if name in names]) for name in self.nullable}
    raw = {name: self._null(params, name) for name in self.nullable if not self.fields[name].encoded}
    fields |= {name: _where(lost[name], null, fields[name]) for name, null in raw.items() if self._drops(name)}
    cond = dict(self.encode(params, frozen, fields, jax.random.split(encode_key, size)))
    for name in self.nullable:
      if self.fields[name].encoded and self._drops(name):
        nulls = self._entries(params, name)
        cond |= {entry: _where(lost[name], null, cond[entry]) for entry, null in nulls.items()}
    everything = _any(event, [i for i, names in enumerate(self.drops) if set(names) == set(self.nullable)])
    return cond, everything

  def nulls(self, params: dict[str, Any], frozen: Any, names: Sequence[str]) -> Cond:
    """The entries of `cond` for the nulls of these fields, of one image's shape or with a batch axis of 1."""
    always = sorted(set(names) - set(self.nullable))
    if always:
      raise ValueError(f'{always[0]!r} has no null, so it cannot be left out; the fields with one are {self.nullable}')
    raw = {name: jnp.asarray(self._null(params, name))[None] for name in names if not self.fields[name].encoded}
    entries = self.encode(params, frozen, raw, jax.random.split(jax.random.key(0), 1)) if raw else {}
    for name in names:
      if self.fields[name].encoded:
        entries = {**entries, **self._entries(params, name)}
    return entries

  def without(self, params: dict[str, Any], frozen: Any, cond: Cond, names: Sequence[str] = ()) -> Cond:
    """`cond` with the named fields null; by default all that have one."""
    return replaced(cond, self.nulls(params, frozen, names or self.nullable))

  def _null(self, params: dict[str, Any], name: str) -> Any:
    null = self.fields[name].null
    return null(params) if callable(null) else null

  def _entries(self, params: dict[str, Any], name: str) -> Cond:
    null = self._null(params, name)
    entries = null if isinstance(null, Mapping) else {name: null}
    return {entry: jnp.asarray(value) for entry, value in entries.items()}

  def _drops(self, name: str) -> bool:
    return any(name in names and rate for names, rate in self.drops.items())


unconditional = Conditioner()


def labels(num_classes: int, *, drop_rate: float = 0.0) -> Conditioner:
  """Class labels 0 ... num_classes - 1 under 'label', the null label num_classes; no condition without classes."""
  if not num_classes:
    return unconditional
  return Conditioner({'label': Field(num_classes)}, {('label',): drop_rate} if drop_rate else {})


def trained_text(encoder: nn.Module, *, length: int, drop_rate: float = 0.0) -> Conditioner:
  """Token ids under 'text', encoded by a network that learns with the generator, params['text'].

  Args:
    encoder: token ids to entries of `cond`, such as models/text_encoder.py; the null is an empty text, all padding.
    length: number of token ids of a text.
    drop_rate: probability that an image's text is dropped in training.
  """

  def encode(params: dict[str, Any], frozen: Any, fields: dict[str, Array], keys: Key[Array, ' b']) -> Cond:
    rows = params['tokens']['rows'] if 'tokens' in params else None  # adapters/textual_inversion.py
    encoded: Any = encoder.apply({'params': params['text']}, fields['text'], rows=rows)
    return encoded

  def init(key: Key[Array, '']) -> dict[str, Any]:
    return {'text': encoder.init(key, jnp.zeros((1, length), jnp.int32))['params']}

  empty = np.zeros(length, np.int32)
  return Conditioner({'text': Field(empty)}, {('text',): drop_rate} if drop_rate else {}, encode, init)


def encoded(nulls: Mapping[str, Any], *, drop_rate: float = 0.0) -> Conditioner:
  """Conditions that are stored as the network reads them, such as features of text; all are dropped together.

  Args:
    nulls: entries of a batch with the values that stand for no condition: `data.datasets.latents.nulls(name)`.
    drop_rate: probability that an image's conditions are dropped in training.
  """
  return Conditioner(
    {name: Field(null) for name, null in nulls.items()}, {tuple(nulls): drop_rate} if drop_rate else {}
  )


def always(*names: str) -> Conditioner:
  """Fields that are given as they are stored, and never dropped."""
  return Conditioner({name: Field() for name in names})


def _events(rates: Sequence[float], key: Key[Array, ''], size: int) -> Int[Array, ' b']:
  """The number of each image's event; len(rates) is none of them."""
  event = jnp.full(size, len(rates))
  if not any(rates):
    return event
  u = jax.random.uniform(key, (size,))
  for i in reversed(range(len(rates))):
    event = jnp.where(u < sum(rates[: i + 1]), i, event)
  return event


def _any(event: Int[Array, ' b'], which: Sequence[int]) -> Bool[Array, ' b']:
  """The images whose event is one of `which`."""
  hit = jnp.zeros(len(event), bool)
  for i in which:
    hit |= event == i
  return hit


def _where(lost: Bool[Array, ' b'], null: Any, value: Array) -> Array:
  """`value` with `null` in the rows that are lost."""
  null = replaced({'value': value}, {'value': null})['value']
  return jnp.where(expand(lost, value), null, value)
