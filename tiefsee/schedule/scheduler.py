"""Who computes what next: decodes, then chunks of prompts within the token budget, then admissions.

No clock and no device: the engine drives this with real steps, the planner with predicted ones.

    schedule()  decodes -> running prompts -> waiting requests      blocks are taken here
    commit()    tokens stand -> blocks and snapshots are published  requests finish here

A request never takes a block from one that is more urgent, or as urgent and older; so the oldest of the
most urgent always goes on, and everyone's turn comes.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from tiefsee.errors import ConfigError, PromptTooLong
from tiefsee.schedule.batch import (
    Accepted,
    Batch,
    BeforeStep,
    CopyBlock,
    CopyRing,
    Entry,
    RestoreSnapshot,
    SaveSnapshot,
)
from tiefsee.schedule.blocks import BlockPool
from tiefsee.schedule.request import Request, State
from tiefsee.schedule.snapshots import SnapshotPool


@dataclass(frozen=True)
class SchedulerConfig:
    """Sizes and limits. `needs_rings`: the model has state streams, so a prefix is resumed by a snapshot.

    `snapshot_every` keeps the state at every n-th block boundary of a prompt, beside its last one.
    """

    block_tokens: int
    num_blocks: int
    num_rings: int
    num_snapshots: int
    needs_rings: bool
    max_step_tokens: int
    max_running: int
    max_context: int
    max_draft: int = 0
    snapshot_every: int = 0
    enable_prefix_cache: bool = True

    def __post_init__(self) -> None:
        if min(self.block_tokens, self.num_blocks, self.max_step_tokens, self.max_running, self.max_context) < 1:
            raise ConfigError(f"every size of {self} must be at least 1")
        if self.needs_rings and self.num_rings < self.max_running:
            raise ConfigError(f"{self.num_rings} rings for {self.max_running} running requests; needed one each")


class Scheduler:
    """Requests in three places: `waiting` and `running`, each in order of rank, or gone."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.snapshots = SnapshotPool(config.num_snapshots)
        self.blocks = BlockPool(config.num_blocks, on_evict=self.snapshots.drop)
        self.num_preemptions = 0
        self._rings = list(range(config.num_rings - 1, -1, -1))
        self._pending: list[BeforeStep] = []
        self._arrivals = 0

    # ------------------------------------------------------------------------------ requests

    def add(self, request: Request) -> None:
        """Queue a request. Raises PromptTooLong if it could not run even alone."""
        limit = min(self.config.max_context, self.config.num_blocks * self.config.block_tokens)
        if len(request.tokens) >= limit:
            raise PromptTooLong(
                f"the request has {len(request.tokens)} tokens; the cache holds {limit}, the answer included. "
                "Shorten it, or start with more blocks"
            )
        self._arrive(request)
        bisect.insort(self.waiting, request, key=_rank)

    def cancel(self, request_id: str) -> None:
        """Forget a request, between any two calls; its blocks are free at once. Unknown ids pass."""
        for request in (*self.waiting, *self.running):
            if request.request_id == request_id:
                self._leave(request, State.FINISHED)
                return

    def fork(self, parent: Request, child: Request) -> None:
        """Let `child` go on where `parent`'s prompt ends; its tokens are the prompt and one of its own.

        To be called right after the commit of the prompt, before the parent's next step. Full blocks are
        shared, the partial one and the ring are copied. Without room it waits, and is computed anew.
        """
        self._arrive(child)
        size = self.config.block_tokens
        shared, rest = divmod(parent.num_committed_tokens, size)
        room = len(self.running) < self.config.max_running and (self._rings or not self.config.needs_rings)
        can_share = parent.state is State.RUNNING and parent.num_committed_tokens == child.num_prompt_tokens
        if not (room and can_share and self.blocks.num_free >= (rest > 0)):
            bisect.insort(self.waiting, child, key=_rank)
            return
        child.block_table = parent.block_table[:shared]
        for block in child.block_table:
            self.blocks.hold(block)
        if rest:
            copy = self.blocks.take()
            assert copy is not None
            child.block_table.append(copy)
            self._pending.append(CopyBlock(parent.block_table[shared], copy))
        if self.config.needs_rings:
            child.ring = self._rings.pop()
            assert parent.ring is not None
            self._pending.append(CopyRing(parent.ring, child.ring))
        child.num_committed_tokens = parent.num_committed_tokens
        self._start(child)

    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    # ---------------------------------------------------------------------------------- step

    def schedule(self) -> Batch:
        """The next step: what each chosen request computes, with its blocks taken."""
        batch = Batch(before=self._pending)
        self._pending = []
        budget = self.config.max_step_tokens
        decoding = [r for r in self.running if r.is_decoding]
        spare = budget - len(decoding)
        for request in (*decoding, *(r for r in self.running if not r.is_decoding)):
            if request.state is not State.RUNNING or budget < 1:
                continue  # preempted by one before it
            num_drafts = min(self._useful_drafts(request), max(0, spare)) if request.is_decoding else 0
            entry = self._entry(request, budget, num_drafts, batch)
            if entry is not None:
                batch.entries.append(entry)
                budget -= len(entry.tokens)
                spare -= entry.num_drafts
        while budget > 0 and self.waiting and self._admit(self.waiting[0], batch):
            entry = self._entry(self.running[self._index_of_newest()], budget, 0, batch)
            if entry is None:
                break
            batch.entries.append(entry)
            budget -= len(entry.tokens)
        return batch

    def commit(self, batch: Batch, accepted: Sequence[Accepted | None]) -> None:
        """Take the results of a step: one `Accepted` per entry that samples, None for the others.

        Rejected drafts are rolled back by not being counted. Requests cancelled since are passed over.
        """
        for entry, result in zip(batch.entries, accepted, strict=True):
            request = entry.request
            if request.state is not State.RUNNING or request.num_committed_tokens != entry.start:
                continue
            assert (result is not None) == entry.samples
            request.drafts = []
            before = request.num_committed_tokens
            request.num_committed_tokens = entry.start + len(entry.tokens) - entry.num_drafts
            if result is not None:
                request.num_committed_tokens += len(result.tokens) - 1
                request.tokens.extend(result.tokens)
            self._publish(request, before)
            if result is not None and result.finish_reason is not None:
                self._leave(request, State.FINISHED)

    # ------------------------------------------------------------------------ parts of a step

    def _entry(self, request: Request, budget: int, num_drafts: int, batch: Batch) -> Entry | None:
        """The request's part of the step, or None if it was preempted for want of a block."""
        start = request.num_committed_tokens
        known = len(request.tokens) - start
        count = min(known + num_drafts, budget, self._to_boundary(request))
        count = self._reserve(request, start, count, known, batch)
        if count < 1:
            return None
        num_drafts = max(0, count - known)
        tokens = request.tokens[start : start + count - num_drafts] + request.drafts[:num_drafts]
        return Entry(request, start, tokens, num_drafts, count >= known, tuple(request.block_table), request.ring)

    def _reserve(self, request: Request, start: int, count: int, known: int, batch: Batch) -> int:
        """Take blocks for `count` tokens; returns how many tokens have room (0: preempted)."""
        size = self.config.block_tokens
        while len(request.block_table) * size < start + count:
            block = self.blocks.take()
            if block is not None:
                request.block_table.append(block)
            elif len(request.block_table) * size > start and count > known:
                count = known  # rather no drafts than somebody's blocks
            elif not self._preempt_after(request, batch):
                held = len(request.block_table) * size - start
                if held > 0 and self._is_last(request):
                    return min(count, held)
                self._preempt(request, batch)
                return 0
        return count

    def _useful_drafts(self, request: Request) -> int:
        """Drafts that can still become tokens: the last token of an answer needs none after it."""
        length = len(request.tokens)
        left = request.max_tokens - (length - request.num_prompt_tokens) - 1
        return max(0, min(len(request.drafts), self.config.max_draft, left, self.config.max_context - length))

    def _to_boundary(self, request: Request) -> int:
        """Tokens up to the next block boundary whose state is to be kept: the step is cut there."""
        if not (self.config.needs_rings and self.config.enable_prefix_cache and self.config.num_snapshots):
            return self.config.max_step_tokens
        size, every = self.config.block_tokens, self.config.snapshot_every
        done, last = request.num_committed_tokens // size, len(request.tokens) // size
        following = done + 1
        if following < last:  # within a prompt: only every n-th boundary and its last one
            following = min(last, (done // every + 1) * every) if every else last
        return following * size - request.num_committed_tokens

    def _publish(self, request: Request, before: int) -> None:
        """Make the blocks that this commit has filled findable, and order the snapshot at a boundary."""
        size, now = self.config.block_tokens, request.num_committed_tokens
        if not self.config.enable_prefix_cache:
            return
        for index in range(before // size, now // size):
            self.blocks.publish(request.block_table[index], request.block_hash(index, size))
        if self.config.needs_rings and now > before and now % size == 0:
            key = request.block_hash(now // size - 1, size)
            # A duplicate of a block that somebody else published is as good: the key is the content.
            if self.blocks.find(key) is not None:
                snapshot = self.snapshots.reserve(key)
                if snapshot is not None:
                    assert request.ring is not None
                    self._pending.append(SaveSnapshot(request.ring, snapshot, now))

    # --------------------------------------------------------------------- coming and going

    def _admit(self, request: Request, batch: Batch) -> bool:
        """Start the first in line if it fits, with the prefix that is cached."""
        hit, snapshot = self._find_prefix(request)
        for block in hit:
            self.blocks.hold(block)
        size = self.config.block_tokens
        needed = -(-(len(request.tokens) + 1) // size) - len(hit)
        while (
            len(self.running) >= self.config.max_running
            or self.blocks.num_free < needed
            or (self.config.needs_rings and not self._rings)
        ):
            if not self._preempt_less_urgent(request, batch):
                self.blocks.release(hit)
                return False
        self.waiting.remove(request)
        request.block_table = hit
        request.num_committed_tokens = len(hit) * size
        if request.num_preemptions == 0:
            request.num_cached_tokens = request.num_committed_tokens
        if self.config.needs_rings:
            request.ring = self._rings.pop()
            if snapshot is not None:
                batch.before.append(RestoreSnapshot(snapshot, request.ring, request.num_committed_tokens))
        self._start(request)
        self._newest = request
        return True

    def _find_prefix(self, request: Request) -> tuple[list[int], int | None]:
        """Blocks of the longest cached prefix that can be resumed, and its snapshot if one is needed.

        At least one token is left to compute, since its logits are wanted.
        """
        if not self.config.enable_prefix_cache or request.needs_prompt_logprobs:
            return [], None
        size = self.config.block_tokens
        chain: list[int] = []
        for index in range((len(request.tokens) - 1) // size):
            block = self.blocks.find(request.block_hash(index, size))
            if block is None:
                break
            chain.append(block)
        if not self.config.needs_rings:
            return chain, None
        while chain:
            snapshot = self.snapshots.find(request.block_hash(len(chain) - 1, size))
            if snapshot is not None:
                return chain, snapshot
            chain.pop()
        return [], None

    def _preempt_after(self, request: Request, batch: Batch) -> bool:
        """Preempt the last running request that ranks behind `request`; False if there is none."""
        last = self.running[-1]
        if last.rank <= request.rank:
            return False
        self._preempt(last, batch)
        return True

    def _preempt_less_urgent(self, request: Request, batch: Batch) -> bool:
        """Make room for a waiting request at the cost of one of a less urgent priority, never of its own."""
        if not self.running or self.running[-1].priority <= request.priority:
            return False
        self._preempt(self.running[-1], batch)
        return True

    def _preempt(self, request: Request, batch: Batch) -> None:
        """Back to waiting; tokens stay, rows are computed (or found) again. Its part of this step is void."""
        batch.entries[:] = [entry for entry in batch.entries if entry.request is not request]
        self.num_preemptions += 1
        request.num_preemptions += 1
        self._leave(request, State.WAITING)
        bisect.insort(self.waiting, request, key=_rank)

    def _leave(self, request: Request, state: State) -> None:
        """Out of wherever it is; blocks and ring are free. A pending save of the ring comes before its reuse."""
        (self.running if request.state is State.RUNNING else self.waiting).remove(request)
        self.blocks.release(request.block_table)
        if request.ring is not None:
            self._rings.append(request.ring)
        request.block_table, request.ring, request.drafts = [], None, []
        request.num_committed_tokens = 0
        request.state = state

    def _start(self, request: Request) -> None:
        request.state = State.RUNNING
        bisect.insort(self.running, request, key=_rank)

    def _arrive(self, request: Request) -> None:
        request.order, self._arrivals = self._arrivals, self._arrivals + 1

    def _is_last(self, request: Request) -> bool:
        return self.running[-1] is request

    def _index_of_newest(self) -> int:
        return self.running.index(self._newest)


def _rank(request: Request) -> tuple[int, int]:
    return request.rank
