"""Behind `mixed`: the ways of several pools, the linear program over them, and whole workers near its solution."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations

from tiefsee.errors import ConfigError, TiefseeError
from tiefsee.plan.mixed.linear import maximise
from tiefsee.plan.search.fill import fill, meet
from tiefsee.plan.search.find import search
from tiefsee.plan.search.goal import Demand, Goal, Pool, Slo, Workload
from tiefsee.plan.search.misses import Misses
from tiefsee.plan.search.placement import Correct, Placement, Plan
from tiefsee.plan.search.question import Question
from tiefsee.plan.search.sides import Side, rank_price
from tiefsee.plan.serving.worker import Worker

# Prefill workers beyond those whose rate matches decode's: room to spare shortens the wait.
_SPARE = (1.0, 1.3, 1.7, 2.4, 4.0)
# Mixes that are worked out exactly, of those that promise most.
_TRIED = 10


@dataclass(frozen=True, eq=False)
class _Together:
    """So many prefill workers of one pool with so many decode workers of another; what they promise."""

    first: int
    prefill: Worker
    num_prefill: int
    second: int
    decode: Worker
    num_decode: int
    rate: float

    def chips(self, num_pools: int) -> list[int]:
        used = [0] * num_pools
        used[self.first] += self.num_prefill * self.prefill.num_chips
        used[self.second] += self.num_decode * self.decode.num_chips
        return used


@dataclass(eq=False)
class Mixer:
    workload: Workload
    slo: Slo
    pools: tuple[Pool, ...]
    wanted: float | None
    correct: Correct | None
    misses: Misses = field(default_factory=Misses)
    _pairs_of: dict[tuple[int, int], list[_Together]] = field(default_factory=dict)
    _searched: dict[tuple[int, int, float | None], Plan | str] = field(default_factory=dict)

    @cached_property
    def sides(self) -> list[Side]:
        return [Side(pool, self.workload) for pool in self.pools]

    def __str__(self) -> str:
        return f"{self.workload.spec.model_type} on {' + '.join(map(str, self.pools))}"

    # ------------------------------------------------------------------------- what each worker does

    @cached_property
    def both(self) -> list[list[tuple[Worker, float]]]:
        """(worker, requests per second) of each pool's layouts that do both, within the service levels."""
        found: list[list[tuple[Worker, float]]] = []
        for side in self.sides:
            found.append([])
            for worker in side.workers:
                memory = side.memory(worker)
                if memory.max_requests(self.workload.isl, self.workload.osl) < 1:
                    self.misses.memory(worker, memory, self.workload.isl, self.workload.osl)
                    continue
                single = Placement(self.workload, side.role(worker, 1), correct=self.correct)
                plan = fill(single, self.slo, self.misses)
                if plan is not None:
                    found[-1].append((worker, plan.served.requests_per_s))
        return found

    @cached_property
    def decoders(self) -> list[list[tuple[Worker, float]]]:
        return [side.decoders(self.slo.tpot_s) for side in self.sides]

    def prefillers(self, first: int, second: int) -> list[tuple[Worker, float]]:
        """(worker, requests per second within the TTFT) where decode is in plenty: the most to hope for."""
        if not self.decoders[second]:
            return []
        found = []
        decode, decode_rate = max(self.decoders[second], key=lambda d: d[1] / d[0].num_chips)
        for prefill, rate, _ in self.sides[first].prefillers:
            pair = _Together(first, prefill, 4, second, decode, math.ceil(4 * rate / decode_rate) + 1, 0.0)
            plan = fill(self._placement(pair), self.slo, self.misses)
            if plan is not None:
                found.append((prefill, plan.served.requests_per_s / 4))
        return found

    def _matched(self, first: int, second: int) -> list[_Together]:
        """More and more prefill workers for the thriftiest decode layout, until prefill does not hold it up."""
        key = (first, second)
        if key not in self._pairs_of:
            self._pairs_of[key] = list(self._match(first, second))
        return self._pairs_of[key]

    def _match(self, first: int, second: int) -> Iterator[_Together]:
        if not self.decoders[second]:
            return
        decode, decode_rate = max(self.decoders[second], key=lambda d: d[1] / d[0].num_chips)
        for prefill, prefill_rate, _ in self.sides[first].prefillers:
            num_decode = math.ceil(4 * prefill_rate / decode_rate)
            for spare in _SPARE:
                num_prefill = math.ceil(num_decode * decode_rate / prefill_rate * spare)
                pair = _Together(first, prefill, num_prefill, second, decode, num_decode, 0.0)
                plan = fill(self._placement(pair), self.slo, self.misses)
                if plan is None:
                    break
                yield replace(pair, rate=plan.served.requests_per_s)
                if plan.served.requests_per_s > 0.95 * num_decode * decode_rate:
                    break

    def _placement(self, pair: _Together) -> Placement:
        first, second = self.sides[pair.first], self.sides[pair.second]
        return Placement(
            self.workload, second.role(pair.decode, pair.num_decode, prefill=False),
            first.role(pair.prefill, pair.num_prefill, decode=False), self.correct,
        )  # fmt: skip

    # ---------------------------------------------------------------------------------- the bound

    def bound(self) -> float:
        """Requests per second by the linear program."""
        import numpy as np

        columns = np.array(list(self._columns()), dtype=float)  # chips of each pool, for one request per second
        if not len(columns):
            raise self.misses.error(str(self))
        beaten = (columns[:, None] >= columns[None]).all(axis=2) & (columns[:, None] > columns[None]).any(axis=2)
        limits = np.unique(columns[np.logical_not(beaten.max(axis=1))], axis=0).T
        counts = np.array([pool.count for pool in self.pools], dtype=float)
        ones = np.ones(limits.shape[1])
        most = maximise(ones, limits, counts)
        assert most is not None, "nothing at all is within any limits"
        if self.wanted is None:
            return most.value
        if most.value < self.wanted:
            raise ConfigError(
                f"{self}: at most {most.value:.3g} requests/s within the service levels, not {self.wanted:g}"
            )
        prices = np.array([rank_price(pool) for pool in self.pools])
        found = maximise(-(prices @ limits), np.vstack([limits, -ones]), np.append(counts, -self.wanted))
        assert found is not None
        return sum(found.x)

    def _columns(self) -> Iterator[list[float]]:
        """Chips of each pool that one request per second takes."""
        num_pools = len(self.pools)
        for index, workers in enumerate(self.both):
            if workers:
                yield [min(w.num_chips / rate for w, rate in workers) * (n == index) for n in range(num_pools)]
        for first in range(num_pools):
            for second in range(num_pools):
                for pair in self._matched(first, second):
                    yield [chips / pair.rate for chips in pair.chips(num_pools)]

    # ----------------------------------------------------------------------------- in whole workers

    def best(self) -> list[Plan]:
        """The best mix that was worked out; each pool for itself is one of them."""
        tried = [self._by_itself(), *(self._exact(pair) for pair in self._promising())]
        found = [plans for plans in tried if plans and (self.wanted is None or _rate(plans) >= self.wanted * 0.999)]
        if not found:
            raise ConfigError(f"{self}: in whole workers the mix does not come to {self.wanted or 0:g} requests/s")
        return max(found, key=self._score)

    def _score(self, plans: Sequence[Plan]) -> tuple[float, float]:
        price = sum((plan.usd_per_hour or (0.0, 0.0, 0.0))[1] for plan in plans)
        return (_rate(plans), -price) if self.wanted is None else (-price, _rate(plans))

    def _promising(self) -> list[_Together]:
        """Pairs that promise most, with what is left of each pool serving for itself."""
        pairs = [
            pair for first, second in permutations(range(len(self.pools)), 2) for pair in self._pairs(first, second)
        ]
        return sorted(pairs, key=self._promise, reverse=True)[:_TRIED]

    def _pairs(self, first: int, second: int) -> Iterator[_Together]:
        room = self.pools[first].count, self.pools[second].count
        for prefill, prefill_rate in self.prefillers(first, second):
            for decode, decode_rate in self.decoders[second]:
                for num_decode in range(1, min(64, room[1] // decode.num_chips) + 1):
                    matched = num_decode * decode_rate / prefill_rate
                    for num_prefill in {max(1, math.floor(matched)), math.ceil(matched)}:
                        if num_prefill * prefill.num_chips <= room[0]:
                            rate = min(num_prefill * prefill_rate, num_decode * decode_rate)
                            yield _Together(first, prefill, num_prefill, second, decode, num_decode, rate)

    def _promise(self, pair: _Together) -> float:
        """Requests per second of all pools; or, where a rate is wanted, USD per hour, less being more."""
        used = pair.chips(len(self.pools))
        left = [pool.count - chips for pool, chips in zip(self.pools, used, strict=True)]
        if self.wanted is None:
            return pair.rate + sum(self._serves(index, chips) for index, chips in enumerate(left))
        prices = [rank_price(pool) for pool in self.pools]
        cost = sum(price * chips for price, chips in zip(prices, used, strict=True))
        rest = self.wanted - pair.rate
        if rest <= 0:
            return -cost
        ways = [self._chips_for(index, rest, left[index]) * price for index, price in enumerate(prices)]
        return -(cost + min(ways))

    def _serves(self, index: int, chips: int) -> float:
        """Requests per second of some chips for themselves, roughly: of layouts that do both, or of a pair that matches
        (whole workers come to less than their ratio)."""
        both = max((chips // w.num_chips * rate for w, rate in self.both[index]), default=0.0)
        pairs = self._matched(index, index)
        smallest = min((p.prefill.num_chips + p.decode.num_chips for p in pairs), default=math.inf)
        if chips < smallest:
            return both
        return max(both, 0.85 * chips * max(p.rate / sum(p.chips(len(self.pools))) for p in pairs))

    def _chips_for(self, index: int, rate: float, room: int) -> float:
        fitting = [math.ceil(rate / each) * w.num_chips for w, each in self.both[index]]
        return min((chips for chips in fitting if chips <= room), default=math.inf)

    def _exact(self, pair: _Together) -> list[Plan]:
        placement = self._placement(pair)
        together = fill(placement, self.slo, Misses())
        if together is None:
            return []
        rest = None
        if self.wanted is not None:
            rest = self.wanted - together.served.requests_per_s
            if rest <= 0:
                exactly = meet(placement, self.slo, Demand(requests_per_s=self.wanted), Misses())
                return [] if exactly is None else [exactly]
        used = pair.chips(len(self.pools))
        left = [pool.count - chips for pool, chips in zip(self.pools, used, strict=True)]
        return [together, *self._rest(left, rest)]

    def _by_itself(self) -> list[Plan]:
        return self._rest([pool.count for pool in self.pools], self.wanted)

    def _rest(self, left: Sequence[int], rate: float | None) -> list[Plan]:
        """What is left of the pools, each for itself; of a rate, by the cheapest pool that can."""
        found = [self._search(index, chips, rate) for index, chips in enumerate(left) if chips]
        plans = [plan for plan in found if isinstance(plan, Plan)]
        if rate is None or not plans:
            return plans
        return [min(plans, key=lambda plan: (plan.usd_per_hour or (0.0, math.inf, 0.0))[1])]

    def alone(self, index: int) -> Plan | str:
        """The best of one pool for itself, or why there is none."""
        return self._search(index, self.pools[index].count, self.wanted)

    def _search(self, index: int, chips: int, rate: float | None) -> Plan | str:
        key = (index, chips, rate)
        if key not in self._searched:
            pool = replace(self.pools[index], count=chips)
            goal: Goal = "throughput" if rate is None else "cost"
            question = Question(
                self.workload, self.slo, pool, goal=goal, demand=Demand(requests_per_s=rate), correct=self.correct
            )
            try:
                self._searched[key] = search(question, frontier=False).best
            except TiefseeError as error:
                self._searched[key] = str(error)
        return self._searched[key]


def _rate(plans: Sequence[Plan]) -> float:
    return sum(plan.served.requests_per_s for plan in plans)


__all__ = ["Mixer"]
