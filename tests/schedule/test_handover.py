"""Requests that move between two schedulers: rows stay right, blocks are conserved on both sides."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.schedule.driver import Driver, small_config
from tests.schedule.fake_device import WrongRow
from tests.schedule.test_lives import CONFIGS, ROOTS
from tiefsee.errors import NoRoom
from tiefsee.schedule import Request, Scheduler, State, handover


class Exchange(RuleBasedStateMachine):
    """Two engines of one model, of unlike sizes; the drivers check what must hold after each rule."""

    @initialize(one=CONFIGS, other=CONFIGS)
    def start(self, one, other):
        self.drivers = [Driver(one), Driver(replace(other, needs_rings=one.needs_rings))]
        self.num_moved = 0

    @rule(
        side=st.integers(0, 1), root=st.sampled_from(ROOTS), length=st.integers(1, 36), max_tokens=st.integers(1, 20),
        forks=st.sampled_from([0, 0, 1, 2]), priority=st.integers(0, 2), salt=st.sampled_from([None, None, "a"]),
    )  # fmt: skip
    def add(self, side, root, length, max_tokens, forks, priority, salt):
        self.drivers[side].add(root[:length], max_tokens, forks=forks, priority=priority, salt=salt)

    @rule(side=st.integers(0, 1), seed=st.integers(0, 1 << 16), num_steps=st.integers(1, 4))
    def step(self, side, seed, num_steps):
        dice = random.Random(seed)
        for _ in range(num_steps):
            self.drivers[side].step(dice.randint)

    def movable(self, side):
        driver = self.drivers[side]
        return sorted(i for i, r in driver.alive.items() if r.state is not State.HELD)

    @precondition(lambda self: self.movable(0) or self.movable(1))
    @rule(data=st.data())
    def move(self, data):
        side = data.draw(st.sampled_from([s for s in (0, 1) if self.movable(s)]))
        request_id = data.draw(st.sampled_from(self.movable(side)))
        self.num_moved += self.drivers[side].move_to(self.drivers[1 - side], request_id) is not None

    @precondition(lambda self: self.movable(0))
    @rule(data=st.data())
    def hold(self, data):
        self.drivers[0].hold(data.draw(st.sampled_from(self.movable(0))))

    @precondition(lambda self: self.drivers[0].scheduler.held)
    @rule(data=st.data(), cancel=st.booleans())
    def end_holding(self, data, cancel):
        request_id = data.draw(st.sampled_from(sorted(self.drivers[0].scheduler.held)))
        (self.drivers[0].cancel if cancel else self.drivers[0].resume)(request_id)

    def teardown(self):
        for driver in getattr(self, "drivers", ()):
            driver.drain()


Exchange.TestCase.settings = settings(
    max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestExchange = Exchange.TestCase


def exchange(seed, needs_rings=True):
    """Two lives with a move wherever one is possible; returns drivers, the stages of what moved, refusals."""
    seen, refused = set(), 0
    dice = random.Random(seed)
    drivers = [Driver(small_config(needs_rings=needs_rings)) for _ in range(2)]
    for _ in range(40):
        driver, other = dice.sample(drivers, 2)
        root = dice.choice(ROOTS)
        driver.add(root[: dice.randint(1, 30)], dice.randint(1, 6), forks=dice.choice((0, 0, 1)))
        driver.step(dice.randint)
        for request in dice.sample(sorted(driver.alive.values(), key=lambda r: r.request_id), len(driver.alive)):
            stage = (request.state, request.num_committed_tokens > 0, request.is_decoding)
            if driver.move_to(other, request.request_id) is None:
                refused += 1
            else:
                seen.add(stage)
                break
    for driver in drivers:
        driver.drain(dice.randint)
    return drivers, seen, refused


@pytest.mark.parametrize("needs_rings", [True, False])
def test_moves_meet_every_state(needs_rings):
    """In the middle of a prompt, of an answer, waiting, preempted; and what moved is hit there afterwards."""
    lives = [exchange(seed, needs_rings) for seed in range(60)]
    seen = set().union(*(s for _, s, _ in lives))
    assert {(State.RUNNING, True, False), (State.RUNNING, True, True), (State.WAITING, False, False)} <= seen
    assert any(state is State.PREEMPTED for state, _, _ in seen)
    assert sum(d.scheduler.num_hit_tokens for drivers, _, _ in lives for d in drivers) > 500
    assert sum(refused for _, _, refused in lives) > 50


def orders_wait(monkeypatch):
    """Rows are read before what was ordered for them is carried out."""
    monkeypatch.setattr(Scheduler, "take_orders", lambda self: [])


def publishes_what_is_not_full(monkeypatch):
    def publish(scheduler, request):
        size = scheduler.config.block_tokens
        for index in range(-(-request.num_committed_tokens // size)):
            if len(request.tokens) >= (index + 1) * size:
                scheduler.blocks.publish(request.block_table[index], request.block_hash(index, size))

    monkeypatch.setattr(handover, "publish", publish)


def a_state_of_another_place(monkeypatch):
    def keep_boundary(scheduler, request, num_tokens):
        size = scheduler.config.block_tokens
        last = request.num_committed_tokens // size
        return original(scheduler, request, last * size)

    original = handover.keep_boundary
    monkeypatch.setattr(handover, "keep_boundary", keep_boundary)


def holding_takes_no_place(monkeypatch):
    monkeypatch.setattr(Scheduler, "num_slots_taken", property(lambda self: len(self.running)))


@pytest.mark.parametrize(
    ("mutate", "needs_rings"),
    [(orders_wait, True), (publishes_what_is_not_full, False), (a_state_of_another_place, True)],
)
def test_a_bug_is_a_wrong_row(mutate, needs_rings, monkeypatch):
    mutate(monkeypatch)
    with pytest.raises(WrongRow):
        any(exchange(seed, needs_rings) is None for seed in range(200))


def test_a_held_request_keeps_its_ring(monkeypatch):
    def crowd():
        driver = Driver(small_config(num_blocks=14))
        requests = [driver.add(ROOTS[0][:3], 8) for _ in range(3)]
        driver.step(lambda low, high: low)
        driver.hold(requests[0].request_id)
        driver.add(ROOTS[1][:3], 8)
        driver.step(lambda low, high: low)
        driver.drain()

    crowd()
    holding_takes_no_place(monkeypatch)
    with pytest.raises((IndexError, AssertionError)):
        crowd()


def test_what_moved_in_is_found_by_the_next_prompt():
    one, two = Driver(small_config(needs_rings=False)), Driver(small_config(needs_rings=False))
    first = one.add(ROOTS[0][:17], 8)
    one.step(lambda low, high: low)
    one.step(lambda low, high: low)
    assert one.move_to(two, first.request_id) is not None
    again = two.add(ROOTS[0][:20], 1)
    two.drain()
    assert again.num_cached_tokens == 16


def test_a_kept_state_moves_along():
    one, two = Driver(small_config()), Driver(small_config())
    first = one.add(ROOTS[0][:17], 8)
    for _ in range(4):
        one.step(lambda low, high: low)
    assert first.num_committed_tokens >= 16
    assert one.move_to(two, first.request_id) is not None
    again = two.add(ROOTS[0][:20], 1)
    two.drain()
    assert again.num_cached_tokens == 16


def test_no_room_says_what_is_short():
    config = small_config(num_blocks=6, max_running=2, max_context=24)
    driver = Driver(config)
    driver.add(ROOTS[0][:16], 8)
    driver.step(lambda low, high: low)
    for tokens, max_tokens, words in (
        (12, 3, "needs 4 blocks"),
        (12, 30, "may grow to 42 tokens; this engine holds 24"),
    ):
        request = Request("new", ROOTS[1][:tokens], tokens, max_tokens)
        with pytest.raises(NoRoom, match=words):
            handover.adopt(driver.scheduler, request, tokens - 1)
        driver.check()
    driver.add(ROOTS[1][:2], 8)
    driver.step(lambda low, high: low)
    with pytest.raises(NoRoom, match="all 2 places"):
        handover.adopt(driver.scheduler, Request("new", [1, 2, 3], 3, 2), 2)
