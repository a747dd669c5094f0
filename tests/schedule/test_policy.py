"""Who goes first, what is kept, what a hit gives: one small story per rule."""

from __future__ import annotations

import pytest

from tests.schedule.driver import Driver, small_config
from tiefsee.errors import ConfigError, PromptTooLong
from tiefsee.schedule import (
    Accepted,
    CopyBlock,
    CopyRing,
    Request,
    RestoreSnapshot,
    SaveSnapshot,
    Scheduler,
    State,
)


def scheduler(**changes):
    return Scheduler(small_config(**({"max_draft": 0, "num_blocks": 20, "max_step_tokens": 64} | changes)))


def request(name, tokens, max_tokens=100, **fields):
    return Request(name, list(tokens), len(tokens), max_tokens, **fields)


def step(scheduler, token=50, finish=None):
    """One step; every entry that samples gets one new token."""
    batch = scheduler.schedule()
    scheduler.commit(batch, [Accepted((token,), finish) if entry.samples else None for entry in batch.entries])
    return batch


def run_out(scheduler, max_steps=500):
    for _ in range(max_steps):
        if not scheduler.has_work():
            return
        step(scheduler)
    raise AssertionError("does not end")


def shape(batch):
    """Names and (start, number of tokens) of a step."""
    return {entry.request.request_id: (entry.start, len(entry.tokens)) for entry in batch.entries}


# ------------------------------------------------------------------------------------- limits


def test_a_prompt_that_cannot_fit_is_refused():
    small = scheduler(num_blocks=3, max_context=100)
    with pytest.raises(PromptTooLong, match=r"12 tokens; the cache holds 12.*Shorten"):
        small.add(request("a", range(12)))
    assert not small.has_work()
    small.add(request("b", range(11)))


def test_an_answer_ends_where_cache_or_wish_ends():
    for max_context, max_tokens, expected in ((100, 100, 12), (9, 100, 9), (100, 3, 10)):
        small = scheduler(num_blocks=3, max_context=max_context)
        a = request("a", range(7), max_tokens)
        small.add(a)
        run_out(small)
        assert (len(a.tokens), a.finish_reason) == (expected, "length")


def test_drafts_never_lead_past_the_end():
    for room in range(1, 5):
        s = scheduler(max_draft=3, max_context=5 + room)
        a = request("a", range(5))
        s.add(a)
        step(s)
        while a.state is State.RUNNING:
            a.drafts = [50, 50, 50]
            batch = s.schedule()
            (entry,) = batch.entries
            s.commit(batch, [Accepted((50,) * (1 + entry.num_drafts))])
        assert len(a.tokens) == 5 + room


@pytest.mark.parametrize(
    "change", [{"block_tokens": 0}, {"num_blocks": 0}, {"max_draft": -1}, {"num_snapshots": -1}, {"num_rings": 2}]
)
def test_impossible_sizes_are_refused(change):
    with pytest.raises(ConfigError, match="needed"):
        small_config(**change)


# --------------------------------------------------------------------------------------- step


def test_decodes_first_then_prompts_then_admissions():
    s = scheduler(max_step_tokens=10, snapshot_every=0, needs_rings=False)
    s.add(request("decodes", range(3)))
    step(s)
    s.add(request("long", range(20, 40)))
    s.add(request("waits", range(3)))
    assert shape(step(s)) == {"decodes": (3, 1), "long": (0, 9)}
    assert shape(step(s)) == {"decodes": (4, 1), "long": (9, 9)}
    assert shape(step(s)) == {"decodes": (5, 1), "long": (18, 2), "waits": (0, 3)}


def test_drafts_leave_room_for_prompts():
    s = scheduler(max_step_tokens=4, max_draft=3, needs_rings=False)
    first = request("a", range(3))
    s.add(first)
    step(s)
    s.add(request("b", range(10, 19)))
    first.drafts = [1, 2, 3]
    assert shape(step(s)) == {"a": (3, 2), "b": (0, 2)}


def test_a_cancelled_request_is_passed_over_by_commit():
    s = scheduler()
    a, b = request("a", range(3)), request("b", range(3))
    s.add(a)
    s.add(b)
    batch = s.schedule()
    s.cancel("a")
    s.cancel("nobody")
    s.commit(batch, [Accepted((50,)), Accepted((51,))])
    assert (a.state, a.finish_reason, a.tokens) == (State.FINISHED, "cancelled", list(range(3)))
    assert b.tokens[-1] == 51
    s.cancel("b")
    assert not s.has_work()
    assert s.blocks.num_free == 20


# ------------------------------------------------------------------------- prefixes and states


def hit_of(s, tokens, **fields):
    """Tokens that a new request of one answer token finds in the cache."""
    probe = request("probe", tokens, 1, **fields)
    s.add(probe)
    run_out(s)
    return probe.num_cached_tokens


def test_history_alone_hits_at_any_boundary():
    s = scheduler(needs_rings=False)
    assert hit_of(s, range(19)) == 0
    assert hit_of(s, range(19)) == 16
    assert hit_of(s, range(16)) == 12, "one token is left to compute"
    assert hit_of(s, [*range(9), 99, 99]) == 8
    assert hit_of(s, [99, *range(1, 19)]) == 0
    assert s.num_hit_tokens == 16 + 12 + 8


def test_with_states_only_kept_boundaries_are_hit():
    s = scheduler(snapshot_every=0)
    hit_of(s, range(19))
    assert hit_of(s, range(19)) == 16
    assert hit_of(s, range(15)) == 0, "its state was kept at 16 only; now also at 12"
    assert hit_of(s, range(15)) == 12
    s = scheduler(snapshot_every=2)
    hit_of(s, range(19))
    assert hit_of(s, range(15)) == 8, "a missing snapshot shortens the hit"


def test_a_prompt_that_ends_at_a_boundary_hits_itself():
    s = scheduler(snapshot_every=0)
    hit_of(s, range(16))
    assert hit_of(s, range(16)) == 12
    assert hit_of(s, range(18)) == 16


@pytest.mark.parametrize("needs_rings", [True, False])
def test_what_must_not_hit(needs_rings):
    s = scheduler(needs_rings=needs_rings)
    hit_of(s, range(19))
    assert hit_of(s, range(19), needs_prompt_logprobs=True) == 0
    assert hit_of(s, range(19), salt="other") == 0
    assert hit_of(s, range(19), salt="other") == 16
    off = scheduler(needs_rings=needs_rings, enable_prefix_cache=False)
    hit_of(off, range(19))
    assert hit_of(off, range(19)) == 0
    assert off.blocks.num_cached == 0
    assert hit_of(scheduler(num_snapshots=0), range(19)) == 0


def test_steps_are_cut_at_kept_boundaries():
    s = scheduler(snapshot_every=2)
    s.add(request("a", range(15)))
    assert [shape(step(s))["a"] for _ in range(3)] == [(0, 8), (8, 4), (12, 3)]
    plain = scheduler(needs_rings=False)
    plain.add(request("a", range(15)))
    assert shape(step(plain)) == {"a": (0, 15)}


def test_drafts_are_cut_at_a_boundary():
    s = scheduler(max_draft=3)
    a = request("a", range(6))
    s.add(a)
    step(s)
    step(s)
    assert a.num_committed_tokens == 6
    a.drafts = [50, 50, 50]
    batch = s.schedule()
    assert shape(batch) == {"a": (6, 2)}
    s.commit(batch, [Accepted((50, 50))])
    assert s.schedule().before == [SaveSnapshot(a.ring, 1, 8)]


def test_of_the_states_in_an_answer_the_latest_is_kept():
    s = scheduler(snapshot_every=0, num_snapshots=10)
    a = request("a", range(6), 14)
    s.add(a)
    run_out(s)
    kept = [i for i in range(5) if s.prefixes.snapshots.find(a.block_hash(i, 4)) is not None]
    assert kept == [0, 3], "end of prompt (4) and end of turn (16)"
    assert hit_of(s, [*a.tokens, 77]) == 16


def test_a_state_is_saved_before_its_ring_is_used_again():
    s = scheduler(max_running=1, num_rings=1)
    s.add(request("a", range(4), 1))
    s.add(request("b", range(8, 12), 1))
    step(s)
    batch = step(s)
    assert batch.before == [SaveSnapshot(0, 0, 4)]
    assert shape(batch) == {"b": (0, 4)}


def test_orders_wait_for_a_step_that_carries_them_out():
    s = scheduler()
    s.add(request("a", range(8), 1))
    run_out(s)
    assert s.schedule().before == [], "nobody runs this batch"
    s.add(request("b", range(9), 1))
    save, restore = s.schedule().before
    assert save == SaveSnapshot(0, save.snapshot, 8)
    assert restore == RestoreSnapshot(save.snapshot, 0, 8)


def test_the_same_prompt_twice_at_once():
    s = scheduler(needs_rings=False)
    a, b = request("a", range(9)), request("b", range(9))
    s.add(a)
    s.add(b)
    step(s)
    assert not set(a.block_table) & set(b.block_table), "tables are not swapped in flight"
    assert s.blocks.num_cached == 2
    first = a.block_table[:2]
    c = request("c", range(9))
    s.add(c)
    s.schedule()
    assert c.block_table[:2] == first


# ---------------------------------------------------------------------- preemption, priorities


def test_the_youngest_gives_way_and_keeps_its_tokens_and_turn():
    s = scheduler(num_blocks=4, max_context=16, needs_rings=False)
    old, young = request("old", range(7), 9), request("young", range(20, 26), 9)
    s.add(old)
    s.add(young)
    while young.state is not State.PREEMPTED:
        step(s)
    generated = young.tokens[6:]
    s.add(request("later", range(3), 1))
    assert generated
    assert [r.request_id for r in s.waiting] == ["young", "later"]
    assert old.num_preemptions == 0
    run_out(s)
    assert young.tokens[6 : 6 + len(generated)] == generated
    assert (len(young.tokens), young.finish_reason) == (15, "length")
    assert s.statistics().num_preemptions == young.num_preemptions == 1


def test_the_more_urgent_goes_first_and_takes_room():
    s = scheduler(max_running=1, num_rings=1)
    casual, urgent = request("casual", range(5), 9, priority=1), request("urgent", range(30, 35), 2)
    s.add(casual)
    step(s)
    step(s)
    s.add(urgent)
    s.add(request("peer", range(40, 45), 2))
    assert shape(step(s)) == {"urgent": (0, 4)}
    assert casual.state is State.PREEMPTED
    run_out(s)
    assert len(casual.tokens) == 14


def test_nobody_is_preempted_in_vain():
    s = scheduler(num_blocks=6, max_context=24, needs_rings=False)
    s.add(request("peer", range(13), 3))
    casual = request("casual", range(20, 22), 5, priority=1)
    s.add(casual)
    step(s)
    s.add(request("urgent", range(30, 45), 1))  # needs 4 blocks; casual holds 1, peer 4
    step(s)
    assert casual.num_preemptions == 0


def test_blocks_of_half_read_prompts_are_spoken_for():
    s = scheduler(num_blocks=6, max_context=24, max_step_tokens=8, needs_rings=False)
    s.add(request("a", range(18), 2))  # takes 5 blocks in three steps
    step(s)
    s.add(request("b", range(20, 26), 1))  # 2 of the 4 free blocks are not enough
    run_out(s)
    assert s.num_preemptions == 0


# -------------------------------------------------------------------------------------- forks


def test_a_fork_shares_full_blocks_and_copies_the_rest():
    s = scheduler()
    parent, child = request("parent", range(6)), request("child", range(6))
    s.add(parent)
    step(s)
    step(s)
    child.tokens.append(60)
    s.fork(parent, child)
    assert child.num_committed_tokens == 6
    assert child.block_table[0] == parent.block_table[0]
    assert child.block_table[1] != parent.block_table[1]
    assert s.blocks.holders(parent.block_table[0]) == 2
    batch = step(s)
    assert CopyBlock(parent.block_table[1], child.block_table[1]) in batch.before
    assert CopyRing(parent.ring, child.ring) in batch.before
    assert shape(batch) == {"parent": (6, 1), "child": (6, 1)}


def test_a_fork_without_room_waits_and_finds_the_prompt():
    s = scheduler(max_running=1, num_rings=1)
    parent, child = request("parent", range(6), 4), request("child", range(6), 4)
    s.add(parent)
    step(s)
    step(s)
    child.tokens.append(60)
    s.fork(parent, child)
    assert child.state is State.WAITING
    run_out(s)
    assert child.num_cached_tokens == 4
    assert child.tokens[6] == 60
    assert len(child.tokens) == 10


def test_a_fork_outlives_its_parent():
    driver = Driver(small_config(max_running=3))
    parent = driver.add([1, 2, 3, 4, 5, 1], 12, forks=2)
    while parent.num_committed_tokens < 6 and parent.state is not State.FINISHED:
        driver.step(lambda low, high: low)
    driver.cancel("r0")  # its block and ring go to others, after the copies
    driver.add([2, 2, 2, 2, 2, 2, 2, 2, 2], 5)
    driver.drain()
    assert driver.num_forked == 2
