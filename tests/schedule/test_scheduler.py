"""Any history of arrivals, hits, evictions, preemptions, roll-backs, forks and cancellations is exact."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedule.device import FakeDevice, accept, next_token
from tiefsee.errors import ConfigError, PromptTooLong
from tiefsee.schedule import Accepted, Request, Scheduler, SchedulerConfig, State
from tiefsee.schedule.blocks import BlockPool

ALPHABET = 2  # few letters, so that prefixes meet
LOOKBACK = 3

CONFIGS = st.builds(
    SchedulerConfig,
    block_tokens=st.sampled_from([2, 4]),
    num_blocks=st.integers(6, 16),
    num_rings=st.just(4),
    num_snapshots=st.integers(0, 5),
    needs_rings=st.booleans(),
    max_step_tokens=st.integers(1, 12),
    max_running=st.integers(1, 4),
    max_context=st.just(24),
    max_draft=st.integers(0, 2),
    snapshot_every=st.integers(0, 2),
    enable_prefix_cache=st.booleans(),
)


class Scenario:
    """A scheduler on a fake device, driven by a seeded source of events."""

    def __init__(self, config: SchedulerConfig, seed: int) -> None:
        self.config, self.random = config, random.Random(seed)
        self.scheduler = Scheduler(config)
        self.device = FakeDevice(config.block_tokens, LOOKBACK, config.max_draft)
        self.requests: list[Request] = []
        self.cancelled: set[str] = set()
        self.capacity = min(config.max_context, config.num_blocks * config.block_tokens)

    def arrive(self) -> None:
        length = self.random.randint(1, max(1, self.capacity // 2))
        tokens = [self.random.randrange(ALPHABET) if self.random.random() < 0.2 else 0 for _ in range(length)]
        room = self.capacity - length
        request = Request(
            request_id=f"r{len(self.requests)}",
            tokens=tokens,
            num_prompt_tokens=length,
            max_tokens=self.random.randint(1, min(10, room)),
            priority=self.random.choice([0, 0, 1]),
            needs_prompt_logprobs=self.random.random() < 0.1,
            salt=self.random.choice([None, None, "a"]),
        )
        self.requests.append(request)
        self.scheduler.add(request)

    def cancel(self) -> None:
        alive = [r for r in self.requests if r.state is not State.FINISHED]
        if alive:
            request = self.random.choice(alive)
            self.cancelled.add(request.request_id)
            self.scheduler.cancel(request.request_id)

    def step(self) -> None:
        for request in self.scheduler.running:
            if request.is_decoding:
                request.drafts = self._drafts(request)
        batch = self.scheduler.schedule()
        assert batch.num_tokens <= self.config.max_step_tokens
        self.check()
        self.device.run(batch)
        results = [accept(e, ALPHABET, e.request.max_tokens) for e in batch.entries]
        if self.random.random() < 0.05:
            self.cancel()  # in the middle of a step
        prompts = [e for e in batch.entries if e.start < e.request.num_prompt_tokens]
        self.scheduler.commit(batch, results)
        for entry, result in zip(batch.entries, results, strict=True):
            if entry in prompts and result is not None and self.random.random() < 0.2:
                self._fork(entry.request, result)
        self.check()

    def _drafts(self, request: Request) -> list[int]:
        drafts: list[int] = []
        for _ in range(self.random.randint(0, 3)):
            right = next_token(request.tokens + drafts, ALPHABET)
            drafts.append(right if self.random.random() < 0.6 else 1 - right)
        return drafts

    def _fork(self, parent: Request, result: Accepted) -> None:
        """A sibling that drew the same first token, right after the prompt's step."""
        if parent.state is not State.RUNNING or parent.num_committed_tokens != parent.num_prompt_tokens:
            return
        child = Request(
            request_id=f"r{len(self.requests)}",
            tokens=[*parent.tokens[: parent.num_prompt_tokens], result.tokens[0]],
            num_prompt_tokens=parent.num_prompt_tokens,
            max_tokens=parent.max_tokens,
            priority=parent.priority,
            salt=parent.salt,
        )
        if child.max_tokens > 1:
            self.requests.append(child)
            self.scheduler.fork(parent, child)

    def check(self) -> None:
        """Blocks are conserved, references counted, rings unshared, order kept."""
        s = self.scheduler
        held = Counter(block for request in s.running for block in request.block_table)
        for block in range(self.config.num_blocks):
            assert s.blocks.holders(block) == held[block]
        assert s.blocks.num_free == self.config.num_blocks - len(held)
        rings = [r.ring for r in s.running if r.ring is not None]
        assert len(rings) == len(set(rings)) == (len(s.running) if self.config.needs_rings else 0)
        assert len(s.running) <= self.config.max_running
        for queue in (s.running, s.waiting):
            assert [r.rank for r in queue] == sorted(r.rank for r in queue)
        assert all(not r.block_table and r.ring is None for r in s.waiting)

    def finish(self) -> None:
        """Everyone's turn comes: the steps that the oldest alone would need bound the whole."""
        bound = 200 + 60 * len(self.requests)
        while self.scheduler.has_work():
            self.step()
            bound -= 1
            assert bound > 0, "somebody starves"
        for request in self.requests:
            known = request.tokens
            for p in range(request.num_prompt_tokens, len(known)):
                assert known[p] == next_token(known[:p], ALPHABET)
            if request.request_id not in self.cancelled:
                assert len(known) - request.num_prompt_tokens == request.max_tokens
        assert self.scheduler.blocks.num_free == self.config.num_blocks


def play(config: SchedulerConfig, seed: int, num_events: int = 60) -> Scenario:
    scenario = Scenario(config, seed)
    for _ in range(num_events):
        event = scenario.random.random()
        if event < 0.25 and len(scenario.requests) < 20:
            scenario.arrive()
        elif event < 0.28:
            scenario.cancel()
        else:
            scenario.step()
    scenario.finish()
    return scenario


@settings(max_examples=250)
@given(CONFIGS, st.integers(0, 10**6))
def test_every_row_that_is_read_is_the_right_one(config, seed):
    play(config, seed)


BUSY = SchedulerConfig(
    block_tokens=4, num_blocks=8, num_rings=4, num_snapshots=4, needs_rings=True, max_step_tokens=9, max_running=4,
    max_context=24, max_draft=2, snapshot_every=1,
)  # fmt: skip


def test_the_scenarios_meet_what_they_are_for():
    """Hits, preemptions and restored snapshots do occur in what is played above."""
    played = [play(BUSY, seed) for seed in range(30)]
    assert sum(s.scheduler.num_preemptions for s in played) > 30
    assert sum(s.device.num_restored for s in played) > 30
    assert sum(r.num_cached_tokens > 0 for s in played for r in s.requests) > 30


def fails(seeds=range(40)) -> bool:
    for seed in seeds:
        try:
            play(BUSY, seed)
        except AssertionError:
            return True
    return False


def test_the_device_catches_blocks_published_before_they_are_committed(monkeypatch):
    """The mutant counts rejected drafts as committed when it publishes."""
    publish = Scheduler._publish

    def early(self, request, before):
        now = request.num_committed_tokens
        request.num_committed_tokens = min(len(request.block_table) * 4, now + 2)
        request.num_committed_tokens = min(request.num_committed_tokens, len(request.tokens) // 4 * 4) or now
        publish(self, request, before)
        request.num_committed_tokens = now

    monkeypatch.setattr(Scheduler, "_publish", early)
    assert fails()


def test_the_device_catches_a_missing_cut_at_boundaries(monkeypatch):
    monkeypatch.setattr(Scheduler, "_to_boundary", lambda self, request: 1000)
    original = Scheduler._publish

    def careless(self, request, before):
        original(self, request, before)
        size, now = 4, request.num_committed_tokens
        if now // size > before // size and now % size and request.ring is not None:
            key = request.block_hash(now // size - 1, size)
            slot = self.snapshots.reserve(key)
            if slot is not None:
                from tiefsee.schedule import SaveSnapshot

                self._pending.append(SaveSnapshot(request.ring, slot, now // size * size))

    monkeypatch.setattr(Scheduler, "_publish", careless)
    assert fails()


def test_the_device_catches_a_shared_block_that_is_written(monkeypatch):
    release = BlockPool.release
    monkeypatch.setattr(BlockPool, "hold", lambda self, block: self._idle.pop(block, None))
    monkeypatch.setattr(BlockPool, "release", lambda self, blocks: release(self, blocks))
    assert fails()


def test_what_can_never_run_is_refused():
    scheduler = Scheduler(BUSY)
    with pytest.raises(PromptTooLong, match="24"):
        scheduler.add(Request("long", [0] * 24, 24, 1))
    assert not scheduler.has_work()
    with pytest.raises(ConfigError, match="needed one each"):
        SchedulerConfig(4, 8, 1, 1, True, 8, 4, 24)


def test_urgent_requests_go_first():
    scheduler = Scheduler(SchedulerConfig(4, 8, 0, 0, False, 4, 1, 24))
    for name, priority in (("low", 1), ("late", 0), ("later", 0)):
        scheduler.add(Request(name, [0, 1, 0], 3, 1, priority=priority))
    order = []
    while scheduler.has_work():
        batch = scheduler.schedule()
        order += [e.request.request_id for e in batch.entries]
        scheduler.commit(batch, [Accepted((0,), "length") for _ in batch.entries])
    assert order == ["late", "later", "low"]


def test_an_urgent_arrival_takes_the_place_of_a_less_urgent_one():
    scheduler = Scheduler(SchedulerConfig(4, 8, 0, 0, False, 8, 1, 24))
    scheduler.add(Request("slow", [0] * 4, 4, 10, priority=1))
    scheduler.commit(scheduler.schedule(), [Accepted((0,))])
    scheduler.add(Request("urgent", [1] * 4, 4, 1, priority=0))
    scheduler.commit(scheduler.schedule(), [Accepted((0,))])  # the decode that was due
    batch = scheduler.schedule()
    assert [e.request.request_id for e in batch.entries] in (["urgent"], ["slow"])
    assert scheduler.num_preemptions == 1


def test_cancelling_frees_at_once():
    scheduler = Scheduler(BUSY)
    scheduler.add(Request("gone", [0] * 10, 10, 5))
    batch = scheduler.schedule()
    scheduler.cancel("gone")
    assert scheduler.blocks.num_free == BUSY.num_blocks
    scheduler.commit(batch, [None if not e.samples else Accepted((0,)) for e in batch.entries])
    assert not scheduler.has_work()


@pytest.mark.parametrize("num_requests", [64])
def test_own_time_per_step(num_requests, capsys):
    """Well below 0.2 ms on a quiet machine (docs/log.md); the bound here leaves room for a loaded one."""
    config = SchedulerConfig(256, 4096, 64, 64, True, 4096, 64, 8192, snapshot_every=4)
    scheduler = Scheduler(config)
    for i in range(num_requests):
        scheduler.add(Request(f"{i}", [i] * 100, 100, 4000))
    times = []
    for _ in range(300):
        began = time.perf_counter()
        batch = scheduler.schedule()
        scheduler.commit(batch, [Accepted((1,)) if e.samples else None for e in batch.entries])
        times.append(time.perf_counter() - began)
    median = sorted(times)[len(times) // 2]
    with capsys.disabled():
        print(f" scheduler: {median * 1e6:.0f} us per step of {num_requests} decodes ", end="")
    assert median < 2e-3
