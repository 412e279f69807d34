# ruff: noqa: E501  lines of a program are long
"""What is read from a compiled program, against programs whose collectives and traffic can be counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxgen import sharding
from jaxgen.plan import program as programs
from jaxgen.plan.program import Collective

# As TPU programs are written: a loop of 12 turns; in it one unrolled to two steps a turn; a gather that starts in a
# fusion of the outer loop and goes on in the inner one; a slice of a stack that is read, a product left on the chip.
TPU = """HloModule jit_step, is_scheduled=true

%start (p0.1: bf16[8,16]) -> bf16[128,16] {
  %p0.1 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %gather.1 = bf16[128,16]{1,0:T(8,128)} all-gather(%p0.1), channel_id=7, replica_groups=mesh['x'=1,'y'=16] {'y'}, dimensions={0}
  ROOT %custom-call.1 = bf16[128,16]{1,0} custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%going_on (p0.2: bf16[8,16]) -> bf16[128,16] {
  %p0.2 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gather.2 = bf16[128,16]{1,0:T(8,128)} all-gather(%p0.2), channel_id=7, replica_groups=mesh['x'=1,'y'=16] {'y'}, dimensions={0}
}

%inner_cond (pc: (u32[], bf16[8,16])) -> pred[] {
  %eight = u32[]{:T(128)} constant(8)
  %pc = (u32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %count = u32[]{:T(128)} get-tuple-element(%pc), index=0
  ROOT %lt = pred[]{:T(512)} compare(%count, %eight), direction=LT
}

%inner_body (pb: (u32[], bf16[8,16])) -> (u32[], bf16[8,16]) {
  %pb = (u32[]{:T(128)}, bf16[8,16]{1,0:S(1)}) parameter(0)
  %one = u32[]{:T(128)} constant(1)
  %i = u32[]{:T(128)S(6)} get-tuple-element(%pb), index=0
  %x = bf16[8,16]{1,0:S(1)} get-tuple-element(%pb), index=1
  %more = bf16[128,16]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%going_on
  %sent = (bf16[8,16]{1,0:S(1)}, bf16[8,16]{1,0:S(1)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=9, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %got = bf16[8,16]{1,0:S(1)} collective-permute-done(%sent)
  %i1 = u32[]{:T(128)S(6)} add(%i, %one)
  %i2 = u32[]{:T(128)S(6)} add(%i1, %one)
  ROOT %out = (u32[]{:T(128)}, bf16[8,16]{1,0:S(1)}) tuple(%i2, /*index=1*/%got)
}

%sliced (p0.3: f32[12,64], p1.3: s32[]) -> f32[64] {
  %p0.3 = f32[12,64]{1,0:T(8,128)} parameter(0)
  %p1.3 = s32[]{:S(6)} parameter(1)
  %row = f32[1,64]{1,0} dynamic-slice(%p0.3, %p1.3), dynamic_slice_sizes={1,64}
  ROOT %flat = f32[64]{0} bitcast(%row)
}

%outer_cond (qc: (s32[], bf16[8,16], f32[12,64])) -> pred[] {
  %qc = (s32[]{:T(128)}, bf16[8,16]{1,0:S(1)}, f32[12,64]{1,0}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%qc), index=0
  %twelve = s32[]{:T(128)} constant(12)
  ROOT %lt2 = pred[]{:T(512)} compare(%n, %twelve), direction=LT
}

%outer_body (qb: (s32[], bf16[8,16], f32[12,64])) -> (s32[], bf16[8,16], f32[12,64]) {
  %qb = (s32[]{:T(128)}, bf16[8,16]{1,0:S(1)}, f32[12,64]{1,0:T(8,128)}) parameter(0)
  %j = s32[]{:T(128)S(6)} get-tuple-element(%qb), index=0
  %y = bf16[8,16]{1,0:S(1)} get-tuple-element(%qb), index=1
  %stack = f32[12,64]{1,0:T(8,128)} get-tuple-element(%qb), index=2
  %begun = bf16[128,16]{1,0:S(1)} fusion(%y), kind=kCustom, calls=%start
  %weight = f32[64]{0:S(1)} fusion(%stack, %j), kind=kLoop, calls=%sliced
  %zero = u32[]{:T(128)} constant(0)
  %both = (u32[]{:T(128)}, bf16[8,16]{1,0:S(1)}) tuple(%zero, %y)
  %inner = (u32[]{:T(128)}, bf16[8,16]{1,0:S(1)}) while(%both), condition=%inner_cond, body=%inner_body
  %z = bf16[8,16]{1,0:S(1)} get-tuple-element(%inner), index=1
  %one.2 = s32[]{:T(128)} constant(1)
  %j1 = s32[]{:T(128)S(6)} add(%j, %one.2)
  ROOT %next = (s32[]{:T(128)}, bf16[8,16]{1,0:S(1)}, f32[12,64]{1,0:T(8,128)}) tuple(%j1, %z, %stack)
}

ENTRY %main (a: bf16[8,16], b: f32[12,64]) -> bf16[8,16] {
  %a = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = f32[12,64]{1,0:T(8,128)} parameter(1)
  %zero.2 = s32[]{:T(128)} constant(0)
  %begin = (s32[]{:T(128)}, bf16[8,16]{1,0:S(1)}, f32[12,64]{1,0:T(8,128)}) tuple(%zero.2, %a, %b)
  %loop = (s32[]{:T(128)}, bf16[8,16]{1,0:S(1)}, f32[12,64]{1,0:T(8,128)}) while(%begin), condition=%outer_cond, body=%outer_body
  ROOT %result = bf16[8,16]{1,0:S(1)} get-tuple-element(%loop), index=1
}
"""


@pytest.fixture(scope='module')
def tpu():
  return programs.parse(TPU)


def test_loops_turn_as_often_as_their_counters_say(tpu):
  times = {i.name: n for i, _, n, _ in programs.walk(tpu)}
  assert (times['weight'], times['more'], times['sent']) == (12, 48, 48)


def test_a_collective_that_runs_beside_other_work_counts_once(tpu):
  gather, permute = sorted(programs.collectives(tpu, 16), key=lambda c: c.kind)
  assert (gather.kind, gather.times, gather.size, gather.groups.shape) == ('all-gather', 12, 128 * 16 * 2, (1, 16))
  assert (permute.kind, permute.times, permute.size) == ('collective-permute', 48, 8 * 16 * 2)
  assert gather.asynchronous  # it goes on in the loop
  assert not permute.asynchronous  # it is waited for where it is sent


def test_a_collective_with_work_before_its_end_is_asynchronous():
  waits = '  %got = bf16[8,16]{1,0:S(1)} collective-permute-done(%sent)\n'
  work = '  %i1 = u32[]{:T(128)S(6)} add(%i, %one)\n'
  assert waits + work in TPU
  program = programs.parse(TPU.replace(waits + work, work + waits))
  assert all(collective.asynchronous for collective in programs.collectives(program, 16))


def test_traffic_is_of_arrays_that_are_not_on_the_chip_and_of_slices(tpu):
  assert programs.memory_traffic(tpu) == 12 * 64 * 4  # the row of the stack, every turn


# A fusion of two results: a whole array, and a stack of which one row is updated, through a bitcast.
UPDATED = """HloModule updated, is_scheduled=true

%update (p0: f32[12,64], p1: f32[64], p2: s32[]) -> (f32[64], f32[12,1,64]) {
  %p0 = f32[12,64]{1,0} parameter(0)
  %p1 = f32[64]{0} parameter(1)
  %p2 = s32[]{:S(6)} parameter(2)
  %double = f32[64]{0} add(%p1, %p1)
  %row = f32[1,1,64]{2,1,0} bitcast(%double)
  %stack = f32[12,1,64]{2,1,0} bitcast(%p0)
  %zero = s32[] constant(0)
  %new = f32[12,1,64]{2,1,0} dynamic-update-slice(%stack, %row, %p2, %zero, %zero)
  ROOT %both = (f32[64]{0}, f32[12,1,64]{2,1,0}) tuple(%double, %new)
}

ENTRY %main (a: f32[12,64], b: f32[64], c: s32[]) -> (f32[64], f32[12,1,64]) {
  %a = f32[12,64]{1,0} parameter(0)
  %b = f32[64]{0} parameter(1)
  %c = s32[]{:S(6)} parameter(2)
  ROOT %out = (f32[64]{0}, f32[12,1,64]{2,1,0}) fusion(%a, %b, %c), kind=kLoop, calls=%update
}
"""


def test_a_fusion_that_updates_a_row_of_a_stack_moves_the_row():
  row = 64 * 4
  assert programs.memory_traffic(programs.parse(UPDATED)) == 3 * row  # read, written whole, written into the stack


@pytest.mark.parametrize(
  ('attributes', 'groups'),
  [
    ('replica_groups={{0,2},{1,3}}, dimensions={0}', [[0, 2], [1, 3]]),
    ('replica_groups=[2,4]<=[8]', [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ('replica_groups=[4,2]<=[2,4]T(1,0)', [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", [list(range(8))]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ('source_target_pairs={{0,1},{1,0}}', [[0, 1], [1, 0]]),
    ('replica_groups={}', [list(range(8))]),
  ],
)
def test_groups_of_devices(attributes, groups):
  found = programs.device_groups(attributes, 8)
  assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, groups))


@pytest.mark.parametrize(
  ('kind', 'within', 'between'),
  [
    ('all-gather', 800 * 3 / 4, 0),
    ('reduce-scatter', 800 * 3 / 4, 0),
    ('all-reduce', 2 * 800 * 3 / 4, 0),
  ],
)
def test_bytes_of_a_ring(kind, within, between):
  assert programs.sent(Collective(kind, 5, 800, np.arange(8).reshape(2, 4)), [0] * 4 + [1] * 4) == (5 * within, between)


def test_bytes_of_groups_that_span_slices():
  slices = [0] * 4 + [1] * 4
  everyone, pairs = np.arange(8)[None], np.array([[0, 4], [1, 5], [2, 6], [3, 7]])
  assert programs.sent(Collective('all-reduce', 1, 800, everyone), slices) == (2 * 800 * 3 / 4, 2 * 200 / 2)
  assert programs.sent(Collective('all-reduce', 1, 800, pairs), slices) == (0, 2 * 800 / 2)
  across = np.array([[0, 1], [1, 2], [3, 4], [7, 0]])
  assert programs.sent(Collective('collective-permute', 1, 800, across), slices) == (400, 400)


def test_what_goes_through_the_hosts_goes_between_slices():
  program = programs.parse(
    """ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %t = token[] after-all()
  %s = (f32[8,8]{1,0}, u32[], token[]) send(%a, %t), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.2_0"}
  ROOT %sum = f32[8,8]{1,0} all-reduce(%a), channel_id=1, replica_groups=mesh['x'=2,'y'=2] {'y'}, to_apply=%add
}
"""
  )
  between, within = programs.collectives(program, 8, 2)
  assert between.groups.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
  assert programs.sent(between, [0] * 4 + [1] * 4) == (0, 256)  # Eq. 2 of 256 bytes among two
  assert within.groups.tolist() == [[0, 1], [2, 3]]


def test_collectives_of_a_program_that_was_compiled_here():
  mesh = sharding.make_mesh(data=2, fsdp=4)

  def step(x):
    def body(x, _):
      return jnp.tanh(lax.psum(x, 'fsdp')), lax.all_gather(x, 'data')

    return lax.scan(body, x, length=5)

  local = jax.shard_map(step, mesh=mesh, in_specs=P('fsdp'), out_specs=(P('fsdp'), P(None, 'data')), check_vma=False)
  compiled = jax.jit(local).lower(jnp.ones((4, 100))).compile()
  found = {c.kind: c for c in programs.collectives(programs.parse(compiled.as_text()), 8)}
  reduce, gather = found['all-reduce'], found['all-gather']
  assert (reduce.times, reduce.size, sorted(map(tuple, reduce.groups.tolist()))) == (
    5,
    400,
    [(0, 1, 2, 3), (4, 5, 6, 7)],
  )
  assert (gather.times, gather.size, gather.groups.shape) == (5, 2 * 400, (4, 2))
