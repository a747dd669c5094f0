"""Who asks when, and for how much: requests for a simulation, all from one seed.

An open loop comes as it comes (Poisson, or a trace); a closed one holds the number of requests steady: whoever gets
an answer asks again at once, as load generators do that are given a concurrency.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tiefsee.errors import ConfigError
from tiefsee.plan.search.goal import Workload


@dataclass(frozen=True)
class Ask:
    """One request. The first `prefix_tokens` of its prompt are those of its `group`."""

    arrival_s: float
    isl: int
    osl: int
    prefix_tokens: int = 0
    group: int = 0


class Source(Protocol):
    """Where requests come from. `finished` tells it of an answer that has ended."""

    num_requests: int
    longest_tokens: int
    has_prefixes: bool

    def next_s(self) -> float: ...

    def take(self) -> Ask: ...

    def finished(self, now_s: float) -> None: ...


@dataclass(frozen=True)
class Lengths:
    """Prompts and answers between `low` and 1 of what the workload names, evenly; 1 is all alike."""

    workload: Workload
    low: float = 1.0
    num_groups: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.low <= 1:
            raise ConfigError(f"lengths from {self.low} of the workload's; needed is a share above 0, up to 1")

    def draw(self, dice: random.Random, arrival_s: float) -> Ask:
        load = self.workload
        isl, osl = (max(least, round(n * dice.uniform(self.low, 1.0))) for n, least in ((load.isl, 1), (load.osl, 2)))
        prefix = min(isl - 1, round(load.cache_hit * isl))
        return Ask(arrival_s, isl, osl, prefix, dice.randrange(self.num_groups))


class Trace:
    """Requests as they are listed."""

    def __init__(self, asks: Iterable[Ask]) -> None:
        self._asks = sorted(asks, key=lambda ask: ask.arrival_s)
        if not self._asks or self._asks[0].arrival_s < 0:
            raise ConfigError("a trace needs a request, and no arrival before 0")
        self.num_requests = len(self._asks)
        self.longest_tokens = max(ask.isl + ask.osl for ask in self._asks)
        self.has_prefixes = any(ask.prefix_tokens for ask in self._asks)
        self._next = 0

    def next_s(self) -> float:
        return self._asks[self._next].arrival_s if self._next < len(self._asks) else math.inf

    def take(self) -> Ask:
        self._next += 1
        return self._asks[self._next - 1]

    def finished(self, now_s: float) -> None:
        pass


def poisson(lengths: Lengths, requests_per_s: float, num_requests: int, seed: int) -> Trace:
    """An open loop: the gaps between arrivals are exponential."""
    if not 0 < requests_per_s < math.inf or num_requests < 1:
        raise ConfigError(f"{num_requests} requests at {requests_per_s} per second; needed are numbers above 0")
    dice, now, asks = random.Random(seed), 0.0, []
    for _ in range(num_requests):
        now += dice.expovariate(requests_per_s)
        asks.append(lengths.draw(dice, now))
    return Trace(asks)


class Closed:
    """`clients` that ask one request after another, `num_requests` in all. They begin within `ramp_s`, spread out,
    so that the measurement isn't of a crowd at the door (0: all at once)."""

    def __init__(self, lengths: Lengths, clients: int, num_requests: int, seed: int, ramp_s: float = 0.0) -> None:
        if clients < 1 or num_requests < clients:
            raise ConfigError(f"{num_requests} requests by {clients} clients; needed is at least one each")
        self.num_requests, self.ramp_s = num_requests, ramp_s
        self.longest_tokens = lengths.workload.isl + lengths.workload.osl
        self.has_prefixes = lengths.workload.cache_hit > 0
        self._lengths, self._dice = lengths, random.Random(seed)
        self._times = sorted(self._dice.uniform(0, ramp_s) for _ in range(clients))
        self._left = num_requests

    def next_s(self) -> float:
        return self._times[0] if self._times and self._left else math.inf

    def take(self) -> Ask:
        self._left -= 1
        return self._lengths.draw(self._dice, self._times.pop(0))

    def finished(self, now_s: float) -> None:
        # Ends come in order of time, but those of lanes that are ahead may be after a client who begins late.
        index = len(self._times)
        while index and self._times[index - 1] > now_s:
            index -= 1
        self._times.insert(index, now_s)


def prompt_of(ask: Ask, index: int) -> Sequence[int]:
    """Tokens that share exactly the group's prefix with others of the group, and nothing else with anybody."""
    own = ask.isl - ask.prefix_tokens
    return [ask.group] * ask.prefix_tokens + [index + (1 << 40)] + [0] * (own - 1)


__all__ = ["Ask", "Closed", "Lengths", "Source", "Trace", "poisson", "prompt_of"]
