"""Plays the engine against a scheduler and a fake device, and checks every promise on the way.

The "model" is a pure function of the prefix: so whatever hits, evictions, preemptions and roll-backs a
request lives through, its answer is known beforehand. `choose(low, high)` gives all decisions (how many
drafts, how many of them right, whom to cancel), from a seed or from hypothesis.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from tests.schedule.fake_device import FakeDevice, extend, fingerprints
from tiefsee.errors import NoRoom, PromptTooLong
from tiefsee.schedule import Accepted, Batch, Entry, Request, Scheduler, SchedulerConfig, State, handover
from tiefsee.streams import Stream

Choose = Callable[[int, int], int]

STOP = 6  # the model's end of turn
WRONG = 9  # a token that the model never says

# A sliding window, an overlapping and a plain compressor, as in V4; all fit into blocks of 4.
STATES = (
    Stream("window", (0,), "state", (1,), lookback=5),
    Stream("overlapping", (0,), "state", (1,), ratio=2, overlap=True, lookback=4),
    Stream("compressed", (0,), "state", (1,), ratio=4, lookback=4),
)


def small_config(**changes: object) -> SchedulerConfig:
    """Pools so small that eviction and preemption are the rule."""
    values: dict[str, object] = {
        "block_tokens": 4, "num_blocks": 10, "num_rings": 3, "num_snapshots": 3, "needs_rings": True,
        "max_step_tokens": 12, "max_running": 3, "max_context": 36, "max_draft": 2, "snapshot_every": 2,
    }  # fmt: skip
    return SchedulerConfig(**(values | changes))  # type: ignore[arg-type]


def next_token(prefix: int) -> int:
    """What the model says after a prefix."""
    return extend(prefix, 1_000_003) % (STOP + 1)


class Driver:
    """One scheduler, one device, and the truth about every request."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.scheduler = Scheduler(config)
        self.device = FakeDevice(config.block_tokens, STATES if config.needs_rings else (), config.max_draft)
        self.limit = min(config.max_context, config.num_blocks * config.block_tokens)
        self.truth: dict[str, list[int]] = {}
        self.expected: dict[str, list[int]] = {}
        self.alive: dict[str, Request] = {}
        self.forks: dict[str, int] = {}  # how many children a request is to have
        self.trace: list[tuple[tuple[object, ...], list[object]]] = []
        self.num_steps = self.num_forked = self.num_rolled_back = 0

    # ------------------------------------------------------------------------------ requests

    def add(self, prompt: Sequence[int], max_tokens: int = 8, *, forks: int = 0, **fields: object) -> Request | None:
        """Add a request; None if it was refused, which must be for its length and only then."""
        request = Request(f"r{len(self.truth)}", list(prompt), len(prompt), max_tokens, **fields)  # type: ignore[arg-type]
        try:
            self.scheduler.add(request)
        except PromptTooLong:
            assert len(prompt) + 1 > self.limit
            return None
        assert len(prompt) + 1 <= self.limit
        self._know(request)
        self.forks[request.request_id] = forks
        self.check()
        return request

    def cancel(self, request_id: str) -> None:
        self.alive.pop(request_id, None)
        self.scheduler.cancel(request_id)
        self.check()

    def hold(self, request_id: str) -> None:
        """Take a request out of the schedule, as at the beginning of a move."""
        handover.hold(self.scheduler, self.alive[request_id])
        self.check()

    def resume(self, request_id: str) -> None:
        handover.resume(self.scheduler, self.alive[request_id])
        self.check()

    def move_to(self, other: Driver, request_id: str) -> Request | None:
        """Hand a request to another driver, rows and all; None if that had no room, and nothing has changed."""
        request = self.alive[request_id]
        for driver in (self, other):
            for order in driver.scheduler.take_orders():
                driver.device.carry_out(order)
        self.hold(request_id)
        rows, states = self.device.rows_of(request)
        boundary = handover.kept_boundary(self.scheduler, request)
        new = Request(f"r{len(other.truth)}", list(request.tokens), request.num_prompt_tokens, request.max_tokens,
                      request.priority, request.salt)  # fmt: skip
        free = other.scheduler.statistics()
        try:
            handover.adopt(other.scheduler, new, request.num_committed_tokens)
        except NoRoom:
            assert other.scheduler.statistics() == free
            self.resume(request_id)
            return None
        other.device.put_rows(new, rows, states)
        if new.num_committed_tokens:
            handover.publish(other.scheduler, new)
            if boundary is not None:
                slot = handover.keep_boundary(other.scheduler, new, boundary[0])
                if slot is not None:
                    other.device.snapshots |= {
                        (name, slot): self.device.snapshots.get((name, boundary[1]), []) for name in self.device.states
                    }
        other._know(new)
        other.forks[new.request_id] = self.forks.pop(request_id, 0)
        handover.let_go(self.scheduler, request)
        del self.alive[request_id]
        self.check()
        other.check()
        return new

    def _know(self, request: Request) -> None:
        self.alive[request.request_id] = request
        self.truth[request.request_id] = list(request.tokens)
        self.expected[request.request_id] = self.answer(request)

    def answer(self, request: Request) -> list[int]:
        """All tokens that the request must end with."""
        tokens = list(request.tokens)
        while not self._reason(request, tokens):
            tokens.append(next_token(fingerprints(tokens, request.salt)[-1]))
        return tokens

    def _reason(self, request: Request, tokens: list[int]) -> str | None:
        num_generated = len(tokens) - request.num_prompt_tokens
        if num_generated and tokens[-1] == STOP:
            return "stop"
        return "length" if num_generated >= request.max_tokens or len(tokens) >= self.limit else None

    # ---------------------------------------------------------------------------------- step

    def step(self, choose: Choose, cancel: Sequence[str] = ()) -> Batch:
        """One pass of the loop; requests named in `cancel` go between schedule and commit."""
        self._propose(choose)
        batch = self.scheduler.schedule()
        self.num_steps += 1
        idle = not self.scheduler.has_work() or self.scheduler.held  # what is held may be all the room there is
        assert batch.entries or idle, "nothing was scheduled though there is work"
        self.check_batch(batch)
        self.check()
        if not batch.entries:
            return batch  # as the engine does: without entries nothing is run
        self.device.run(batch)
        entries = [
            (e.request.request_id, e.start, tuple(e.tokens), e.num_drafts, e.block_table, e.ring) for e in batch.entries
        ]
        self.trace.append((tuple(batch.before), entries))
        for request_id in cancel:
            self.cancel(request_id)
        accepted = [self._accept(entry) for entry in batch.entries]
        self.scheduler.commit(batch, accepted)
        self.check()
        for entry in batch.entries:
            self._after(entry)
        return batch

    def drain(self, choose: Choose = lambda low, high: low) -> None:
        """Run until nobody is left. Fails if that takes more steps than computing everything anew often."""
        for request_id in list(self.scheduler.held):
            self.resume(request_id)
        work = sum(len(self.expected[i]) + self.forks.get(i, 0) * self.limit for i in self.alive)
        bound = self.num_steps + 20 + 4 * work * max(1, len(self.alive))
        while self.scheduler.has_work():
            self.step(choose)
            assert self.num_steps < bound, "some request does not come to its end"
        assert not self.alive
        assert self.scheduler.blocks.num_free == self.config.num_blocks

    def _propose(self, choose: Choose) -> None:
        """Drafts for those that decode: some right ones, then wrong ones."""
        for request in self.scheduler.running:
            if not request.is_decoding or request.drafts:
                continue
            tokens = list(request.tokens)
            for _ in range(choose(0, self.config.max_draft)):
                right = choose(0, 3) > 0
                tokens.append(next_token(fingerprints(tokens, request.salt)[-1]) if right else WRONG)
            request.drafts = tokens[len(request.tokens) :]

    def _accept(self, entry: Entry) -> Accepted | None:
        """What the engine's sampler would keep: right drafts and one more token, cut at a stop."""
        if not entry.samples:
            return None
        request, drafts = entry.request, entry.tokens[len(entry.tokens) - entry.num_drafts :]
        if request.request_id not in self.alive:
            return Accepted((0,))  # cancelled meanwhile
        tokens = self.truth[request.request_id]
        new: list[int] = []
        for draft in [*drafts, None]:
            token = next_token(fingerprints([*tokens, *new], request.salt)[-1])
            new.append(token)
            if token == STOP or token != draft:
                break
        self.num_rolled_back += entry.num_drafts + 1 - len(new)
        self.truth[request.request_id] = [*tokens, *new]
        return Accepted(tuple(new), "stop" if new[-1] == STOP else None)

    def _after(self, entry: Entry) -> None:
        """What must hold for a request after its commit; then its forks."""
        request, request_id = entry.request, entry.request.request_id
        if request_id not in self.alive:
            assert request.state is State.FINISHED
            return
        truth = self.truth[request_id]
        assert request.tokens == truth
        reason = self._reason(request, truth)
        assert request.finish_reason == reason
        assert (request.state is State.FINISHED) == (reason is not None)
        if reason:
            assert truth == self.expected[request_id]
            del self.alive[request_id]
        elif not entry.samples:
            assert request.num_committed_tokens == entry.start + len(entry.tokens)
        else:
            assert request.num_committed_tokens == len(truth) - 1
        if entry.samples and self.forks.get(request_id):
            self._fork(request, self.forks.pop(request_id))

    def _fork(self, parent: Request, num_children: int) -> None:
        prompt = self.truth[parent.request_id][: parent.num_prompt_tokens]
        for index in range(num_children):
            child = Request(
                f"r{len(self.truth)}",
                [*prompt, 100 + index],
                len(prompt),
                parent.max_tokens,
                parent.priority,
                parent.salt,
            )
            if child.max_tokens > 1 and len(child.tokens) < self.limit:
                self.scheduler.fork(parent, child)
                self._know(child)
                self.num_forked += child.state is State.RUNNING
                self.check()

    # -------------------------------------------------------------------------------- checks

    def check_batch(self, batch: Batch) -> None:
        """The lists of a step are what the requests need, and within every limit."""
        assert batch.num_tokens == sum(len(entry.tokens) for entry in batch.entries) <= self.config.max_step_tokens
        assert len({entry.request.request_id for entry in batch.entries}) == len(batch.entries)
        for entry in batch.entries:
            request, truth = entry.request, self.truth[entry.request.request_id]
            known = len(entry.tokens) - entry.num_drafts
            assert known > 0
            assert entry.start == request.num_committed_tokens
            assert entry.tokens[:known] == truth[entry.start : entry.start + known]
            assert entry.tokens[known:] == request.drafts[: entry.num_drafts]
            assert entry.samples == (entry.start + known == len(truth))
            assert entry.samples or not entry.num_drafts
            assert entry.block_table == tuple(request.block_table)
            assert entry.ring == request.ring
            if entry.num_drafts:
                longest = len(truth) + entry.num_drafts + 1
                assert longest <= min(self.limit, request.num_prompt_tokens + request.max_tokens)

    def check(self) -> None:
        """Blocks and rings are conserved and counted; everyone is in the right place."""
        scheduler, pool = self.scheduler, self.scheduler.blocks
        held = [request for request, _ in scheduler.held.values()]
        tables = Counter(block for request in (*scheduler.running, *held) for block in request.block_table)
        assert all(pool.holders(block) == tables[block] for block in range(self.config.num_blocks))
        assert pool.num_free + len(tables) == self.config.num_blocks
        assert len(scheduler.running) <= scheduler.num_slots_taken <= self.config.max_running
        assert all(request.state is State.HELD for request in held)
        rings = [request.ring for request in (*scheduler.running, *held) if request.block_table]
        if self.config.needs_rings:
            assert None not in rings
            assert len(set(rings)) == len(rings)
            assert len(rings) + len(scheduler._rings) == self.config.num_rings
        for request in scheduler.waiting:
            assert not request.block_table
            assert request.ring is None
            assert request.num_committed_tokens == 0
            assert request.state in (State.WAITING, State.PREEMPTED)
        for queue in (scheduler.waiting, scheduler.running):
            assert [r.rank for r in queue] == sorted(r.rank for r in queue)
        queued = {r.request_id for r in (*scheduler.waiting, *scheduler.running)}
        assert queued <= set(self.truth)
        stats = scheduler.statistics()
        assert (stats.num_waiting, stats.num_running) == (len(scheduler.waiting), len(scheduler.running))
        assert stats.num_free_blocks + stats.num_used_blocks == self.config.num_blocks
        assert stats.num_cached_blocks <= self.config.num_blocks


def simulate(config: SchedulerConfig, seed: int, num_steps: int = 40) -> Driver:
    """A random life: arrivals with common prefixes, forks, cancellations, then everyone to the end."""
    dice = random.Random(seed)
    driver = Driver(config)
    roots = [[dice.randrange(STOP) for _ in range(config.max_context)] for _ in range(2)]
    for _ in range(num_steps):
        if dice.random() < 0.5:
            prompt = dice.choice(roots)[: dice.randint(1, driver.limit)] + [7] * dice.randint(0, 2)
            driver.add(
                prompt, dice.randint(1, 20), forks=dice.choice((0, 0, 0, 2)), priority=dice.choice((0, 0, 1)),
                salt=dice.choice((None, None, "a")), needs_prompt_logprobs=dice.random() < 0.1,
            )  # fmt: skip
        cancel = [dice.choice([*driver.alive])] if driver.alive and dice.random() < 0.08 else []
        driver.step(dice.randint, cancel)
        if driver.alive and dice.random() < 0.05:
            driver.cancel(dice.choice([*driver.alive]))
    driver.drain(dice.randint)
    return driver
