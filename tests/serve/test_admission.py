"""The queue's promises, on any history: conserved, bounded, work-conserving, fair, nobody starves."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tiefsee.errors import DeadlineExceeded, Overloaded, RateLimited
from tiefsee.serve.admission import AGE_S, Admission, Bucket, Queue, QueueLimits, Ticket
from tiefsee.serve.keys import Caller

LIMITS = QueueLimits(max_waiting=6, max_waiting_tokens=2_000)


class Histories(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.queue, self.now = Queue(LIMITS, capacity=4), 0.0
        self.offered = self.finished = self.refused = 0

    @rule(
        name=st.sampled_from("abc"), tokens=st.integers(1, 900), answers=st.integers(1, 6), priority=st.integers(-2, 2)
    )
    def offer(self, name, tokens, answers, priority):
        full = len(self.queue.waiting) >= 6
        crowded = bool(self.queue.waiting) and self.queue.num_waiting_tokens + tokens > 2_000
        ticket = Ticket(Caller(name), tokens, answers, priority)
        if full or crowded:
            with pytest.raises(Overloaded) as caught:
                self.queue.offer(ticket, self.now)
            assert 1 <= caught.value.retry_after_s <= 60
        else:
            self.queue.offer(ticket, self.now)
            self.offered += 1

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def take_all(self):
        while self.queue.take(self.now) is not None:
            pass
        if self.queue.waiting:  # somebody waits: then there is no room for who is next
            assert self.queue.running
            assert self.queue.num_running_answers + max(t.num_answers for t in self.queue.waiting) > 4

    @precondition(lambda self: self.queue.running)
    @rule(data=st.data())
    def finish(self, data):
        ticket = data.draw(st.sampled_from(sorted(self.queue.running, key=lambda t: t.number)))
        self.queue.done(ticket, self.now)
        self.finished += 1

    @precondition(lambda self: self.queue.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        self.queue.cancel(data.draw(st.sampled_from(self.queue.waiting)))
        self.finished += 1

    @invariant()
    def conserved_and_bounded(self):
        queue = self.queue
        assert self.offered == self.finished + len(queue.waiting) + len(queue.running)
        assert len(queue.waiting) <= 6
        assert queue.num_waiting_tokens == sum(t.num_tokens for t in queue.waiting)
        assert queue.num_running_answers == sum(t.num_answers for t in queue.running)
        assert queue.num_running_answers <= 4 or len(queue.running) == 1
        if not queue.waiting and not queue.running:
            assert not queue._clients  # strangers leave nothing behind


TestHistories = Histories.TestCase


def served(queue, count, now_s=0.0):
    """The callers of the next `count` turns, one at a time."""
    names = []
    for _ in range(count):
        ticket = queue.take(now_s)
        names.append(ticket.caller.name)
        queue.done(ticket, now_s)
    return names


def test_a_hundred_requests_do_not_starve_one():
    queue = Queue(QueueLimits(max_waiting=200))
    for _ in range(100):
        queue.offer(Ticket(Caller("greedy"), 100), 0)
    queue.offer(Ticket(Caller("modest"), 100), 0)
    assert "modest" in served(queue, 2)


def test_shares_follow_weights_and_tokens():
    queue = Queue(QueueLimits(max_waiting=400))
    for _ in range(100):
        queue.offer(Ticket(Caller("double", weight=2.0), 100), 0)
        queue.offer(Ticket(Caller("single"), 100), 0)
        queue.offer(Ticket(Caller("long"), 300), 0)
    names = served(queue, 100)
    assert names.count("double") == pytest.approx(60, abs=2)
    assert names.count("single") == pytest.approx(30, abs=2)
    assert names.count("long") == pytest.approx(10, abs=2)


def test_who_was_away_gains_nothing():
    queue = Queue(QueueLimits(max_waiting=400))
    for _ in range(50):
        queue.offer(Ticket(Caller("steady"), 100), 0)
    served(queue, 25)
    for _ in range(25):
        queue.offer(Ticket(Caller("late"), 100), 0)
    assert served(queue, 20).count("late") == pytest.approx(10, abs=1)


def test_priority_goes_first_but_waiting_counts():
    queue = Queue()
    queue.offer(Ticket(Caller("old"), 1, priority=3), 0)
    queue.offer(Ticket(Caller("urgent"), 1, priority=0), 1)
    assert served(queue, 1, 2) == ["urgent"]
    for second in range(1, 200):
        queue.offer(Ticket(Caller("urgent"), 1, priority=0), float(second))
        if served(queue, 1, float(second)) == ["old"]:
            break
    assert second <= 4 * AGE_S + 1


def test_buckets():
    bucket = Bucket(60, 0.0)
    assert bucket.wait_s(60, 0.0) == 0
    bucket.spend(60)
    assert bucket.wait_s(1, 0.0) == pytest.approx(1)
    assert bucket.wait_s(30, 10.0) == pytest.approx(20)
    assert bucket.wait_s(10, 10.0) == 0
    assert bucket.wait_s(1e9, 100.0) == 0  # a full bucket lets anything through once


def test_rates_of_a_key():
    queue = Queue()
    caller = Caller("a", requests_per_minute=2, tokens_per_minute=1000)
    queue.offer(Ticket(caller, 500), 0)
    queue.offer(Ticket(caller, 500), 0)
    with pytest.raises(RateLimited, match="requests") as caught:
        queue.offer(Ticket(caller, 100), 0)
    assert caught.value.retry_after_s == pytest.approx(30)
    served(queue, 2)
    with pytest.raises(RateLimited, match="tokens"):
        queue.offer(Ticket(caller, 999), 31)  # its rate is remembered when nothing of it is here
    queue.offer(Ticket(Caller("b"), 999), 31)


def test_coroutines_take_turns():
    async def scene():
        admission = Admission(lambda: 2)
        inside, most, order = 0, 0, []

        async def visit(n):
            nonlocal inside, most
            async with admission.admit(Ticket(Caller(str(n % 3)), 10)):
                inside += 1
                most = max(most, inside)
                order.append(n)
                await asyncio.sleep(0.001)
                inside -= 1

        await asyncio.gather(*(visit(n) for n in range(30)))
        assert most == 2
        assert sorted(order) == list(range(30))
        assert not admission.queue.running
        assert not admission.queue.waiting

    asyncio.run(scene())


def test_who_leaves_the_queue_or_waits_too_long():
    async def scene():
        admission = Admission(lambda: 1)
        loop = asyncio.get_running_loop()
        async with admission.admit(Ticket(Caller("a"), 10)):
            with pytest.raises(DeadlineExceeded):
                async with admission.admit(Ticket(Caller("b"), 10), deadline=admission._clock() + 0.01):
                    raise AssertionError
            waiting = asyncio.ensure_future(admission.admit(Ticket(Caller("c"), 10)).__aenter__())
            await asyncio.sleep(0)
            assert admission.num_waiting == 1
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert admission.num_waiting == 0
        async with admission.admit(Ticket(Caller("d"), 10)):
            assert loop.is_running()
        assert not admission.queue.running

    asyncio.run(scene())
