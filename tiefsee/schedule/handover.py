"""Requests that go on in another engine, and requests that come from one.

    here     hold -> (the other engine adopts it) -> let_go, or resume if it did not
    there    adopt -> (its rows are written) -> publish, or let_go if they could not be

A held request keeps its blocks and its ring and is not scheduled, so a hand-over that fails costs nothing but time.
"""

from __future__ import annotations

import bisect

from tiefsee.errors import NoRoom
from tiefsee.schedule.request import Request, State
from tiefsee.schedule.scheduler import Scheduler


def hold(scheduler: Scheduler, request: Request) -> None:
    """Between two steps: nobody schedules, preempts or changes the request from here on. Its drafts are void."""
    assert request.state in (State.RUNNING, State.WAITING, State.PREEMPTED)
    (scheduler.running if request.state is State.RUNNING else scheduler.waiting).remove(request)
    scheduler.held[request.request_id] = request, request.state
    request.state, request.drafts = State.HELD, []


def resume(scheduler: Scheduler, request: Request) -> None:
    """Back to where it was held, in its old turn."""
    _, request.state = scheduler.held.pop(request.request_id)
    queue = scheduler.running if request.state is State.RUNNING else scheduler.waiting
    bisect.insort(queue, request, key=lambda r: r.rank)


def let_go(scheduler: Scheduler, request: Request) -> None:
    """It goes on elsewhere: blocks and ring are free, what is published of it stays findable."""
    scheduler._finish(request, "moved")


def adopt(scheduler: Scheduler, request: Request, num_committed_tokens: int) -> None:
    """Run a request whose first tokens have rows already; blocks and ring for them are taken, to be written.

    Without rows it is queued like any other. Raises NoRoom, and then nothing has changed: nobody is preempted for
    a request that has a place already.
    """
    config, blocks = scheduler.config, scheduler.blocks
    longest = request.num_prompt_tokens + request.max_tokens
    if longest > config.max_tokens:
        raise NoRoom(
            f"the request may grow to {longest} tokens; this engine holds {config.max_tokens}. Move it to one with a "
            "longer context, or give the request max_tokens"
        )
    if num_committed_tokens == 0:
        scheduler.add(request)
        return
    if scheduler.num_slots_taken >= config.max_running:
        raise NoRoom(f"all {config.max_running} places of this engine are taken; try again, or another engine")
    needed, free = scheduler._blocks_needed(request), scheduler._num_unpromised_blocks()
    if needed > free:
        raise NoRoom(
            f"the request needs {needed} blocks of {config.block_tokens} tokens and {max(0, free)} are free; try "
            "again, or another engine"
        )
    for _ in range(-(-num_committed_tokens // config.block_tokens)):
        block = blocks.take()
        assert block is not None
        request.block_table.append(block)
    request.num_committed_tokens = num_committed_tokens
    scheduler._arrive(request)
    scheduler._start(request)


def publish(scheduler: Scheduler, request: Request) -> None:
    """Make the full blocks of an adopted request findable, once their rows are written."""
    if scheduler.config.enable_prefix_cache:
        size = scheduler.config.block_tokens
        for index in range(request.num_committed_tokens // size):
            scheduler.blocks.publish(request.block_table[index], request.block_hash(index, size))


def kept_boundary(scheduler: Scheduler, request: Request) -> tuple[int, int] | None:
    """(tokens, slot) of the latest state that is kept of the request's own prefix; None if there is none."""
    size = scheduler.config.block_tokens
    for index in reversed(range(request.num_committed_tokens // size)):
        slot = scheduler.prefixes.snapshots.find(request.block_hash(index, size))
        if slot is not None:
            return (index + 1) * size, slot
    return None


def keep_boundary(scheduler: Scheduler, request: Request, num_tokens: int) -> int | None:
    """A slot for the state behind so many tokens of an adopted request; None where it is not wanted."""
    size = scheduler.config.block_tokens
    if not scheduler.config.keeps_snapshots or num_tokens % size or not num_tokens <= request.num_committed_tokens:
        return None
    key = request.block_hash(num_tokens // size - 1, size)
    return scheduler.prefixes.snapshots.reserve(key) if scheduler.blocks.find(key) is not None else None


def drop_boundary(scheduler: Scheduler, request: Request, num_tokens: int) -> None:
    """Forget the state behind so many tokens, which could not be written."""
    scheduler.prefixes.snapshots.drop(
        request.block_hash(num_tokens // scheduler.config.block_tokens - 1, scheduler.config.block_tokens)
    )
