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

from tiefsee.errors import PromptTooLong
from tiefsee.schedule.batch import Accepted, Batch, BeforeStep, CopyBlock, CopyRing, Entry, RestoreSnapshot
from tiefsee.schedule.config import SchedulerConfig, Statistics
from tiefsee.schedule.prefix import PrefixCache
from tiefsee.schedule.request import Request, State


class Scheduler:
    """Requests in three places: `waiting` and `running`, each in order of rank, or gone; and those that
    `handover.py` holds, with the state that they were in."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.held: dict[str, tuple[Request, State]] = {}
        self.prefixes = PrefixCache(config)
        self.blocks = self.prefixes.blocks
        self.num_preemptions = 0
        self.num_hit_tokens = 0
        self._rings = list(range(config.num_rings - 1, -1, -1))
        # Orders for the next step, in order. A ring or block may be given to another request meanwhile:
        # what is still to be copied out of it stands before whatever will be written into it.
        self._pending: list[BeforeStep] = []
        self._num_arrivals = 0

    # ------------------------------------------------------------------------------ requests

    def add(self, request: Request) -> None:
        """Queue a request. Raises PromptTooLong if it could not run even alone."""
        assert request.tokens
        limit = self.config.max_tokens
        if len(request.tokens) >= limit:
            raise PromptTooLong(
                f"the request has {len(request.tokens)} tokens; the cache holds {limit}, the answer included. "
                "Shorten it, or start with more blocks"
            )
        self._arrive(request)
        bisect.insort(self.waiting, request, key=_rank)

    def cancel(self, request_id: str) -> None:
        """Forget a request, between any two calls; its blocks are free at once. Unknown ids pass."""
        for request in (*self.waiting, *self.running, *(r for r, _ in self.held.values())):
            if request.request_id == request_id:
                self._finish(request, "cancelled")
                return

    def fork(self, parent: Request, child: Request) -> None:
        """Let `child` go on where `parent`'s prompt ends; its tokens are the prompt and one of its own.

        To be called right after the commit of the prompt, before the parent's next step. Full blocks are
        shared, the partial one and the ring are copied. Without room it waits, and is computed anew.
        """
        assert len(child.tokens) < self.config.max_tokens
        self._arrive(child)
        num_shared, rest = divmod(parent.num_committed_tokens, self.config.block_tokens)
        room = self.num_slots_taken < self.config.max_running and self.blocks.num_free >= (rest > 0)
        can_share = parent.state is State.RUNNING and parent.num_committed_tokens == child.num_prompt_tokens
        if not (room and can_share):
            bisect.insort(self.waiting, child, key=_rank)
            return
        child.block_table = parent.block_table[:num_shared]
        for block in child.block_table:
            self.blocks.hold(block)
        if rest:
            copy = self.blocks.take()
            assert copy is not None
            child.block_table.append(copy)
            self._pending.append(CopyBlock(parent.block_table[num_shared], copy))
        child.num_committed_tokens = parent.num_committed_tokens
        self._start(child)
        if parent.ring is not None and child.ring is not None:
            self._pending.append(CopyRing(parent.ring, child.ring))

    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def num_slots_taken(self) -> int:
        """Of `max_running`: those that run, and those that ran and are held."""
        return len(self.running) + sum(before is State.RUNNING for _, before in self.held.values())

    def take_orders(self) -> list[BeforeStep]:
        """The orders for the next step, for whoever looks at the cache before it."""
        orders, self._pending = self._pending, []
        return orders

    def statistics(self) -> Statistics:
        return Statistics(
            num_waiting=len(self.waiting),
            num_running=len(self.running),
            num_free_blocks=self.blocks.num_free,
            num_used_blocks=self.blocks.num_used,
            num_cached_blocks=self.blocks.num_cached,
            num_hit_tokens=self.num_hit_tokens,
            num_preemptions=self.num_preemptions,
        )

    # ---------------------------------------------------------------------------------- step

    def schedule(self) -> Batch:
        """The next step: what each chosen request computes, with its blocks taken."""
        batch = Batch(before=self._pending)
        decoding: list[Request] = []
        prompts: list[Request] = []
        for request in self.running:
            (decoding if request.is_decoding else prompts).append(request)
        spare = max(0, self.config.max_step_tokens - len(decoding))
        if prompts or self.waiting:
            spare //= 2  # drafts may not keep a prompt from its turn
        for request in decoding:
            num_drafts = min(self._num_useful_drafts(request), spare) if request.drafts else 0
            entry = self._entry(request, num_drafts, batch)
            spare -= entry.num_drafts if entry is not None else 0
        for request in prompts:
            self._entry(request, 0, batch)
        while self.waiting and batch.num_tokens < self.config.max_step_tokens:
            request = self.waiting[0]
            if not self._admit(request, batch):
                break
            self._entry(request, 0, batch)
        # Without entries there will be no step, so orders wait for the next.
        self._pending, batch.before = ([], batch.before) if batch.entries else (batch.before, [])
        return batch

    def commit(self, batch: Batch, accepted: Sequence[Accepted | None]) -> None:
        """Take the results of a step: one `Accepted` per entry that samples, None for the others.

        Rejected drafts are rolled back by not being counted. Requests cancelled since are passed over.
        """
        for entry, result in zip(batch.entries, accepted, strict=True):
            request = entry.request
            if request.state is not State.RUNNING:
                continue
            assert request.num_committed_tokens == entry.start, "a batch is committed once, in order"
            assert (result is not None) == entry.samples
            request.drafts = []
            request.num_committed_tokens += len(entry.tokens) - entry.num_drafts
            if result is not None:
                assert 1 <= len(result.tokens) <= 1 + entry.num_drafts
                request.num_committed_tokens += len(result.tokens) - 1
                request.tokens.extend(result.tokens)
            order = self.prefixes.publish(request, entry.start)
            if order is not None:
                self._pending.append(order)
            if result is not None:
                at_end = len(request.tokens) >= self._end(request)
                reason = result.finish_reason or ("length" if at_end else None)
                if reason is not None:
                    self._finish(request, reason)

    # ------------------------------------------------------------------------ parts of a step

    def _entry(self, request: Request, num_drafts: int, batch: Batch) -> Entry | None:
        """Add the request's part to the step; None if there is no budget, or it was preempted."""
        budget = self.config.max_step_tokens - batch.num_tokens
        if budget < 1 or request.state is not State.RUNNING:
            return None
        start = request.num_committed_tokens
        known = len(request.tokens) - start
        count = min(known + num_drafts, budget)
        to_boundary = self.prefixes.tokens_to_boundary(request)
        if to_boundary is not None:
            count = min(count, to_boundary)
        count = self._reserve(request, count, known, batch)
        if count == 0:
            return None
        num_drafts = max(0, count - known)
        tokens = request.tokens[start : start + count - num_drafts] + request.drafts[:num_drafts]
        entry = Entry(request, start, tokens, num_drafts, count >= known, tuple(request.block_table), request.ring)
        batch.add(entry)
        return entry

    def _reserve(self, request: Request, count: int, known: int, batch: Batch) -> int:
        """Take blocks for `count` tokens; returns how many have room. 0: the request itself was preempted."""
        while (room := self._room(request)) < count:
            block = self.blocks.take()
            if block is not None:
                request.block_table.append(block)
            elif room >= known:
                return room  # rather fewer drafts than somebody's blocks
            elif self.running[-1] is not request:
                self._preempt(self.running[-1], batch)
            elif room > 0:
                return room
            else:
                self._preempt(request, batch)
                return 0
        return count

    def _room(self, request: Request) -> int:
        """Tokens that the request's blocks still hold."""
        return len(request.block_table) * self.config.block_tokens - request.num_committed_tokens

    def _num_useful_drafts(self, request: Request) -> int:
        """Drafts that can still become tokens: the last token of an answer needs none after it."""
        left = self._end(request) - len(request.tokens)
        return min(len(request.drafts), self.config.max_draft, left - 1)

    def _end(self, request: Request) -> int:
        """Tokens at which the request has its length."""
        return min(request.num_prompt_tokens + request.max_tokens, self.config.max_tokens)

    # --------------------------------------------------------------------- coming and going

    def _admit(self, request: Request, batch: Batch) -> bool:
        """Start a waiting request if its known tokens and one more fit, with the prefix that is cached."""
        full = self.num_slots_taken >= self.config.max_running
        if full and (not self.running or self.running[-1].priority <= request.priority):
            return False
        hit, snapshot = self.prefixes.find(request)
        for block in hit:
            self.blocks.hold(block)
        if not self._make_room(request, self._blocks_needed(request) - len(hit), batch):
            self.blocks.release(hit)
            return False
        self.waiting.remove(request)
        request.block_table = hit
        request.num_committed_tokens = len(hit) * self.config.block_tokens
        self.num_hit_tokens += request.num_committed_tokens
        if request.num_preemptions == 0:
            request.num_cached_tokens = request.num_committed_tokens
        self._start(request)
        if snapshot is not None:
            assert request.ring is not None
            batch.before.append(RestoreSnapshot(snapshot, request.ring, request.num_committed_tokens))
        return True

    def _make_room(self, request: Request, num_blocks: int, batch: Batch) -> bool:
        """Room for one more running request with so many new blocks, if need be at the cost of less urgent
        ones, never of its own priority. Nobody is preempted in vain."""
        victims = [r for r in self.running if r.priority > request.priority]
        free = self._num_unpromised_blocks()
        obtainable = free + sum(len(r.block_table) + self._blocks_promised(r) for r in victims)
        if obtainable < num_blocks:
            return False
        while free < num_blocks or self.num_slots_taken >= self.config.max_running:
            if not victims:
                return False  # no slot, or the victims shared blocks with those who stay
            victim = victims.pop()
            before = self.blocks.num_free
            free += self._blocks_promised(victim)
            self._preempt(victim, batch)
            free += self.blocks.num_free - before
        return True

    def _num_unpromised_blocks(self) -> int:
        """Free blocks but for those that running requests are yet to take for the tokens that they have."""
        return self.blocks.num_free - sum(self._blocks_promised(r) for r in self.running)

    def _blocks_needed(self, request: Request) -> int:
        """Blocks for all known tokens and one more."""
        return -(-(len(request.tokens) + 1) // self.config.block_tokens)

    def _blocks_promised(self, request: Request) -> int:
        return max(0, self._blocks_needed(request) - len(request.block_table))

    def _preempt(self, request: Request, batch: Batch) -> None:
        """Back to waiting; tokens stay, rows are computed (or found) again. Its part of this step is void."""
        batch.drop(request)
        self.num_preemptions += 1
        request.num_preemptions += 1
        self._leave(request)
        request.state = State.PREEMPTED
        bisect.insort(self.waiting, request, key=_rank)

    def _finish(self, request: Request, reason: str) -> None:
        self._leave(request)
        request.state, request.finish_reason = State.FINISHED, reason

    def _leave(self, request: Request) -> None:
        """Out of wherever it is; its blocks and its ring are free."""
        if request.state is State.HELD:
            del self.held[request.request_id]
        else:
            (self.running if request.state is State.RUNNING else self.waiting).remove(request)
        self.blocks.release(request.block_table)
        if request.ring is not None:
            self._rings.append(request.ring)
        request.block_table, request.ring, request.drafts = [], None, []
        request.num_committed_tokens = 0

    def _start(self, request: Request) -> None:
        if self.config.needs_rings:
            request.ring = self._rings.pop()  # one for each that may run
        request.state = State.RUNNING
        bisect.insort(self.running, request, key=_rank)

    def _arrive(self, request: Request) -> None:
        request.order, self._num_arrivals = self._num_arrivals, self._num_arrivals + 1


def _rank(request: Request) -> tuple[int, int]:
    return request.rank
