"""Who goes into the engine next: a bounded queue, fair between clients.

    offer ─► waiting ─► take ─► running ─► done          `Queue` is pure: no clock, no tasks; `Admission` is
               └─► cancel          └────► done           the same for coroutines

No more is let in than the engine runs at once, so the order is decided here and not in the engine. Between
clients it is start-time fair queueing (Goyal, Vin and Cheng, 1996): each client's requests carry a virtual
start, its last one's finish, and a finish, start + tokens / weight; the lowest start goes first. A client with a
hundred requests waits for itself, one with a single request hardly at all. A lower `priority` goes before, but
each AGE_S of waiting counts as one step of priority, so nobody waits for ever.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tiefsee.errors import DeadlineExceeded, Overloaded, RateLimited
from tiefsee.serve.keys import Caller

AGE_S = 15.0
LONGEST_RETRY_S = 60.0
RECENT = 64  # finished requests by which the pace is estimated


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait."""

    max_waiting: int = 512
    max_waiting_tokens: int = 4_000_000


@dataclass(eq=False)
class Ticket:
    """One request in the queue. `num_tokens` is its prompt and the most that it may generate; `num_answers` its n."""

    caller: Caller
    num_tokens: int
    num_answers: int = 1
    priority: int = 0
    arrived_s: float = 0.0
    start: float = 0.0  # virtual
    number: int = 0


class Bucket:
    """A token bucket: `per_minute` at most, at once or spread out."""

    def __init__(self, per_minute: float, now_s: float) -> None:
        self._rate, self._size = per_minute / 60, per_minute
        self._level, self._since_s = per_minute, now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """Until so much is there; 0 if it is. More than the bucket holds is there when it is full."""
        self._level = min(self._size, self._level + (now_s - self._since_s) * self._rate)
        self._since_s = now_s
        return max(0.0, (min(amount, self._size) - self._level) / self._rate)

    def spend(self, amount: float) -> None:
        self._level -= amount


@dataclass
class _Client:
    """What is remembered of a client while it has something here, or a rate to keep."""

    finish: float = 0.0
    requests: Bucket | None = None
    tokens: Bucket | None = None
    num_here: int = 0


@dataclass
class Queue:
    """The state machine. `capacity` is how many answers the engine computes side by side."""

    limits: QueueLimits = field(default_factory=QueueLimits)
    capacity: int = 1

    def __post_init__(self) -> None:
        self.waiting: list[Ticket] = []
        self.running: set[Ticket] = set()
        self.num_waiting_tokens = self.num_running_answers = 0
        self._clients: dict[str, _Client] = {}
        self._virtual, self._number = 0.0, 0
        self._done_s: deque[float] = deque(maxlen=RECENT)

    def offer(self, ticket: Ticket, now_s: float) -> None:
        """Queue a request. Raises RateLimited if its client has had its share, Overloaded if the queue is full."""
        client = self._client(ticket.caller, now_s)
        self._check_rates(client, ticket, now_s)
        limits = self.limits
        if len(self.waiting) >= limits.max_waiting:
            raise Overloaded(f"{len(self.waiting)} requests wait already, and no more may", self.retry_after_s(now_s))
        if self.waiting and self.num_waiting_tokens + ticket.num_tokens > limits.max_waiting_tokens:
            raise Overloaded(
                f"requests of {self.num_waiting_tokens} tokens wait already; {limits.max_waiting_tokens} may",
                self.retry_after_s(now_s),
            )
        for bucket, amount in ((client.requests, 1), (client.tokens, ticket.num_tokens)):
            if bucket is not None:
                bucket.spend(amount)
        self._number += 1
        ticket.number, ticket.arrived_s = self._number, now_s
        self._clients[ticket.caller.name] = client
        ticket.start = max(self._virtual, client.finish)
        client.finish = ticket.start + ticket.num_tokens / ticket.caller.weight
        client.num_here += 1
        self.waiting.append(ticket)
        self.num_waiting_tokens += ticket.num_tokens

    def take(self, now_s: float) -> Ticket | None:
        """The request whose turn it is, if there is room for it; it runs from now on."""
        if not self.waiting:
            return None
        ticket = min(self.waiting, key=lambda t: self._order(t, now_s))
        if self.running and self.num_running_answers + ticket.num_answers > self.capacity:
            return None
        self._leave(ticket)
        self._virtual = max(self._virtual, ticket.start)
        self.running.add(ticket)
        self.num_running_answers += ticket.num_answers
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """A waiting request that nobody wants any more."""
        self._leave(ticket)
        self._forget(ticket)

    def done(self, ticket: Ticket, now_s: float) -> None:
        """A running request has ended, however it did."""
        self.running.remove(ticket)
        self.num_running_answers -= ticket.num_answers
        self._done_s.append(now_s)
        self._forget(ticket)

    def retry_after_s(self, now_s: float) -> float:
        """When there will be room, at the pace of late: between 1 and LONGEST_RETRY_S."""
        if len(self._done_s) < 2:
            return 1.0
        pace = len(self._done_s) / max(1e-3, now_s - self._done_s[0])
        return min(LONGEST_RETRY_S, max(1.0, len(self.waiting) / pace))

    def _order(self, ticket: Ticket, now_s: float) -> tuple[int, float, int]:
        aged = ticket.priority - math.floor((now_s - ticket.arrived_s) / AGE_S)
        return aged, ticket.start, ticket.number

    def _leave(self, ticket: Ticket) -> None:
        self.waiting.remove(ticket)
        self.num_waiting_tokens -= ticket.num_tokens

    def _client(self, caller: Caller, now_s: float) -> _Client:
        """What is known of a client; of a new one, which is remembered when a request of it is taken."""
        known = self._clients.get(caller.name)
        if known is not None:
            return known
        rates = (caller.requests_per_minute, caller.tokens_per_minute)
        requests, tokens = (None if rate is None else Bucket(rate, now_s) for rate in rates)
        return _Client(self._virtual, requests, tokens)

    def _forget(self, ticket: Ticket) -> None:
        """Strangers (no key, no rates) leave nothing behind when they have nothing here."""
        client = self._clients[ticket.caller.name]
        client.num_here -= 1
        if not client.num_here and client.requests is None and client.tokens is None:
            del self._clients[ticket.caller.name]

    def _check_rates(self, client: _Client, ticket: Ticket, now_s: float) -> None:
        for bucket, amount, name in ((client.requests, 1, "requests"), (client.tokens, ticket.num_tokens, "tokens")):
            wait_s = 0.0 if bucket is None else bucket.wait_s(amount, now_s)
            if wait_s > 0:
                raise RateLimited(f"{ticket.caller.name} has used its {name} of this minute", wait_s)


class Admission:
    """The queue for coroutines: `admit` waits for its turn, and holds a place until it is left."""

    def __init__(
        self,
        capacity: Callable[[], int],
        limits: QueueLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = Queue(limits or QueueLimits())
        self._capacity, self._clock = capacity, clock
        self._turns: dict[Ticket, asyncio.Future[None]] = {}

    @property
    def num_waiting(self) -> int:
        return len(self.queue.waiting)

    @asynccontextmanager
    async def admit(self, ticket: Ticket, deadline: float | None = None) -> AsyncIterator[None]:
        """Raises RateLimited, Overloaded, or DeadlineExceeded (`deadline` is a time of the clock)."""
        self.queue.offer(ticket, self._clock())
        self._pump()
        if ticket not in self.queue.running:
            await self._wait(ticket, deadline)
        try:
            yield
        finally:
            self.queue.done(ticket, self._clock())
            self._pump()

    async def _wait(self, ticket: Ticket, deadline: float | None) -> None:
        turn = self._turns[ticket] = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait_for(turn, None if deadline is None else max(0.0, deadline - self._clock()))
        except BaseException as error:
            if ticket in self.queue.running:  # its turn came in the same moment
                self.queue.done(ticket, self._clock())
                self._pump()
            else:
                self.queue.cancel(ticket)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the deadline passed while the request waited for its turn") from error
            raise
        finally:
            del self._turns[ticket]

    def _pump(self) -> None:
        """Let in whoever fits."""
        self.queue.capacity = self._capacity()
        while (ticket := self.queue.take(self._clock())) is not None:
            turn = self._turns.get(ticket)
            if turn is not None and not turn.done():
                turn.set_result(None)
