"""Which layout: all legal ones, aggregated and disaggregated, each filled as far as it goes, the best first.

What keeps it fast: a step is worked out once per layout and batch; of prefill and decode workers only those are
paired that nobody beats at their size; the numbers of workers are solved for, since the two rates must match.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from tiefsee.errors import ConfigError
from tiefsee.plan.memory import Memory, worker_memory
from tiefsee.plan.search.fill import fill, meet
from tiefsee.plan.search.goal import Demand, Goal, Pool, Slo, Workload
from tiefsee.plan.search.layouts import worker_sizes, workers_of
from tiefsee.plan.search.misses import Misses
from tiefsee.plan.search.placement import Correct, Placement, Plan, Role
from tiefsee.plan.serving import Worker, decode_s, prefill_each_s, prefill_s

# Pairs of worker counts that are worked out exactly, of those that promise most.
_TRIED = 48
# TPOTs of the frontier: 200 ms and each 0.62 of the one before, down to 4.4 ms.
_POINTS = 9


@dataclass(frozen=True, eq=False)
class Found:
    """Plans, best first; `frontier` is of throughput per chip against tokens per second of a user."""

    plans: tuple[Plan, ...]
    frontier: tuple[Plan, ...]
    num_layouts: int

    @property
    def best(self) -> Plan:
        return self.plans[0]


@dataclass(frozen=True, eq=False)
class Question:
    """What `search` answers. With `prefill` and `decode` the pools take those roles; with `pool` either is tried."""

    workload: Workload
    slo: Slo
    pool: Pool | None = None
    prefill: Pool | None = None
    decode: Pool | None = None
    goal: Goal = "throughput"
    demand: Demand = field(default_factory=Demand)
    aggregated: bool = True
    disaggregated: bool = True
    correct: Correct | None = None

    def __post_init__(self) -> None:
        split = self.prefill is not None and self.decode is not None
        if (self.pool is None) == (not split) or (self.prefill is None) != (self.decode is None):
            raise ConfigError("needed is one pool of chips, or one for prefill and one for decode")
        if self.goal == "chips" and self.demand.is_open:
            raise ConfigError("the fewest chips for what? give a request rate or a concurrency")
        if self.goal == "throughput" and self.demand.requests_per_s is not None:
            raise ConfigError(
                "a request rate goes with the goals chips and cost; most throughput has a rate of its own"
            )
        lacking = [p.name for p in self.pools if p.usd_per_hour is None]
        if self.goal == "cost" and lacking:
            raise ConfigError(
                f"no price of {lacking[0]} is public; give one per card-hour, for example {lacking[0]}=2.5"
            )

    @property
    def pools(self) -> tuple[Pool, ...]:
        return tuple(p for p in (self.pool, self.prefill, self.decode) if p is not None)

    def __str__(self) -> str:
        return " + ".join(str(p) for p in self.pools)


def search(question: Question, *, frontier: bool = True) -> Found:
    """Raises ConfigError or OutOfMemory with the nearest miss if nothing serves."""
    misses = Misses()
    first, second = _sides(question)
    plans = list(_plans(question, first, second, misses))
    if not plans:
        raise misses.error(f"{question.workload.spec.model_type} on {question}")
    plans.sort(key=_order(question.goal))
    curve = pareto([*plans, *_sweep(question, first, second)]) if frontier else []
    return Found(tuple(plans), tuple(curve), sum(len(side.workers) for side in dict.fromkeys((first, second))))


def _sides(question: Question) -> tuple[Side, Side]:
    """Who prefills and who decodes: the same side where one pool does both."""
    if question.pool is not None:
        side = Side(question.pool, question.workload)
        return side, side
    assert question.prefill is not None
    assert question.decode is not None
    return Side(question.prefill, question.workload), Side(question.decode, question.workload)


def _plans(question: Question, first: Side, second: Side, misses: Misses, tried: int = _TRIED) -> Iterator[Plan]:
    if first is second and question.aggregated:
        yield from _aggregated(question, first, misses)
    if first is not second or question.disaggregated:
        yield from _disaggregated(question, first, second, misses, tried)


def _order(goal: Goal) -> Callable[[Plan], tuple[float, ...]]:
    if goal == "cost":
        return lambda plan: ((plan.usd_per_million_tokens or (0.0, math.inf, 0.0))[1], plan.served.tpot_s)
    if goal == "chips":
        return lambda plan: (plan.num_chips, plan.served.tpot_s)
    return lambda plan: (-plan.tokens_per_s, plan.served.tpot_s)


def pareto(plans: Iterable[Plan]) -> list[Plan]:
    """Plans that no other beats in both tokens/s per chip and tokens/s of a user; the fastest for a user first."""
    kept: list[Plan] = []
    for plan in sorted(plans, key=lambda p: (-p.interactivity, -p.tokens_per_s_per_chip)):
        if not kept or plan.tokens_per_s_per_chip > kept[-1].tokens_per_s_per_chip:
            kept.append(plan)
    return kept


# ------------------------------------------------------------------------------- what workers can do


@dataclass(frozen=True, eq=False)
class Side:
    """The layouts of one pool, and what each can do alone. Workers are made once: steps are kept by worker."""

    pool: Pool
    workload: Workload
    _memories: dict[tuple[Worker, bool, bool], Memory] = field(default_factory=dict)

    @cached_property
    def workers(self) -> tuple[Worker, ...]:
        load, pool = self.workload, self.pool
        return tuple(
            worker
            for size in worker_sizes(pool.chip, pool.count)
            for worker in workers_of(
                load.spec, pool.chip, pool.formats, size, imbalance=load.imbalance, overlap=pool.overlap
            )
        )

    def memory(self, worker: Worker, *, prefill: bool = True, decode: bool = True) -> Memory:
        key, load = (worker, prefill, decode), self.workload
        if key not in self._memories:
            self._memories[key] = worker_memory(
                worker, isl=load.isl, drafts=load.drafts, prefill=prefill, decode=decode,
                keeps_prefixes=load.cache_hit > 0,
            )  # fmt: skip
        return self._memories[key]

    def role(self, worker: Worker, count: int, *, prefill: bool = True, decode: bool = True) -> Role:
        return Role(self.pool, worker, count, self.memory(worker, prefill=prefill, decode=decode))

    @cached_property
    def prefillers(self) -> tuple[tuple[Worker, float, float], ...]:
        """(worker, prompts per second, seconds of one prompt): of each size the fullest and the fastest."""
        best: dict[tuple[int, str], tuple[Worker, float, float]] = {}
        load, e = self.workload.load(1.0), self.pool.efficiency
        for worker in self.workers:
            if self.memory(worker, decode=False).max_requests(load.isl, 1) < worker.dp:
                continue
            rate = worker.dp / prefill_each_s(worker, load.isl, load.cached, e)
            alone = prefill_s(worker, load.isl, load.cached, e)
            for kind, value in (("rate", rate), ("alone", -alone)):
                key = (worker.num_chips, kind)
                if key not in best or value > (best[key][1] if kind == "rate" else -best[key][2]):
                    best[key] = (worker, rate, alone)
        return tuple({id(found[0]): found for found in best.values()}.values())

    def decoders(self, tpot_s: float) -> list[tuple[Worker, float]]:
        """(worker, requests per second within the TPOT): the best of each size."""
        best: dict[int, tuple[Worker, float]] = {}
        for worker in self.workers:
            rate = self._decode_rate(worker, tpot_s)
            if rate is not None and rate > best.get(worker.num_chips, (worker, 0.0))[1]:
                best[worker.num_chips] = (worker, rate)
        return list(best.values())

    def _decode_rate(self, worker: Worker, tpot_s: float) -> float | None:
        load, e = self.workload.load(1.0), self.pool.efficiency
        high = self._max_running(worker)

        def tpot(batch: int) -> float:
            return decode_s(worker, float(batch), load.context, load.drafts, e) / (1 + load.accepted)

        if high < 1 or tpot(1) > tpot_s:
            return None
        low = 1
        if tpot(high) <= tpot_s:
            low = high
        while high - low > max(1, low // 64):
            middle = (low + high) // 2
            low, high = (middle, high) if tpot(middle) <= tpot_s else (low, middle)
        return low / (load.osl * tpot(low))

    def _max_running(self, worker: Worker) -> int:
        return self._running[worker]

    @cached_property
    def _running(self) -> dict[Worker, int]:
        load = self.workload
        return {w: self.memory(w, prefill=False).max_requests(load.isl, load.osl) for w in self.workers}


# -------------------------------------------------------------------------------------- aggregated


def _aggregated(question: Question, side: Side, misses: Misses) -> Iterator[Plan]:
    workload = question.workload
    for worker in side.workers:
        memory = side.memory(worker)
        if memory.max_requests(workload.isl, workload.osl) < 1:
            misses.memory(worker, memory, workload.isl, workload.osl)
            continue
        count = _replicas(question, side, worker, memory, misses)
        if count is None:
            continue
        placement = Placement(workload, Role(side.pool, worker, count, memory), correct=question.correct)
        plan = meet(placement, question.slo, question.demand, misses)
        if plan is not None:
            yield plan


def _replicas(question: Question, side: Side, worker: Worker, memory: Memory, misses: Misses) -> int | None:
    """All that there is room for, or as many as the demand takes; None where there are not so many."""
    room = side.pool.count // worker.num_chips
    if question.demand.is_open or question.goal == "throughput":
        return room
    single = Placement(question.workload, Role(side.pool, worker, 1, memory), correct=question.correct)
    one = fill(single, question.slo, misses)
    if one is None:
        return None
    needed = _times(question.demand.requests_per_s, one.served.requests_per_s)
    needed = max(needed, _times(question.demand.concurrency, one.concurrency))
    if needed > room:
        chips_of = side.pool.chips_of
        misses.chips(one.placement, chips_of(needed * worker.num_chips), chips_of(side.pool.count))
        return None
    return needed


def _times(wanted: float | None, each: float) -> int:
    return 1 if wanted is None else math.ceil(wanted / each - 1e-9)


# ----------------------------------------------------------------------------------- disaggregated


@dataclass(frozen=True, eq=False)
class _Pair:
    """Workers that might serve together, so many of each; `rate` is what they promise before they wait for each
    other."""

    prefill: Worker
    decode: Worker
    num_prefill: int
    num_decode: int
    rate: float

    @property
    def num_ranks(self) -> int:
        return self.num_prefill * self.prefill.num_chips + self.num_decode * self.decode.num_chips


def _disaggregated(question: Question, first: Side, second: Side, misses: Misses, most: int = _TRIED) -> Iterator[Plan]:
    """`first` prefills, `second` decodes; they may be the same pool, whose chips they then share. The `most`
    promising pairs are worked out."""
    decoders = second.decoders(question.slo.tpot_s)
    if not decoders and second is not first:
        _say_why(question, first, second, misses)
    pairs = [
        pair
        for prefiller in first.prefillers
        for decoder in decoders
        for pair in _pairs(question, first, second, prefiller, decoder)
    ]
    pairs.sort(key=_promise(question, first, second))
    seen: dict[tuple[Worker, Worker], int] = {}
    tried = 0
    for pair in pairs:
        key = (pair.prefill, pair.decode)
        if seen.get(key, 0) >= 4:
            continue
        seen[key] = seen.get(key, 0) + 1
        tried += 1
        if tried > most:
            return
        placement = Placement(
            question.workload, second.role(pair.decode, pair.num_decode, prefill=False),
            first.role(pair.prefill, pair.num_prefill, decode=False), question.correct,
        )  # fmt: skip
        plan = meet(placement, question.slo, question.demand, misses)
        if plan is not None:
            yield plan


def _promise(question: Question, first: Side, second: Side) -> Callable[[_Pair], float]:
    """What pairs are sorted by, least first."""
    if question.goal == "chips":
        return lambda pair: pair.num_ranks
    if question.goal == "cost":
        a, b = (rank_price(side.pool) for side in (first, second))
        return lambda p: (p.num_prefill * p.prefill.num_chips * a + p.num_decode * p.decode.num_chips * b) / p.rate
    return lambda pair: -pair.rate


def rank_price(pool: Pool) -> float:
    """USD per hour of one rank; endless where nobody knows."""
    return math.inf if pool.usd_per_hour is None else pool.usd_per_hour.value / pool.ranks_per_chip


def _pairs(
    question: Question, first: Side, second: Side, prefiller: tuple[Worker, float, float],
    decoder: tuple[Worker, float],
) -> Iterator[_Pair]:  # fmt: skip
    """Numbers of workers whose rates match: prefill has some room to spare, since prompts come as they like."""
    (prefill, prefill_rate, _), (decode, decode_rate) = prefiller, decoder
    shared = first is second
    room = first.pool.count, second.pool.count
    for num_prefill, num_decode in _counts(question, prefill, decode, prefill_rate / decode_rate, room, shared):
        if num_prefill < 1 or num_decode < 1:
            continue
        used = num_prefill * prefill.num_chips, num_decode * decode.num_chips
        if (sum(used) > room[0]) if shared else (used[0] > room[0] or used[1] > room[1]):
            continue
        yield _Pair(prefill, decode, num_prefill, num_decode, min(num_prefill * prefill_rate, num_decode * decode_rate))


def _counts(
    question: Question, prefill: Worker, decode: Worker, ratio: float, room: tuple[int, int], shared: bool
) -> set[tuple[int, int]]:
    """(prefill workers, decode workers) to look at; `ratio` decode workers keep up with one that prefills."""
    most = room[0] // prefill.num_chips, room[1] // decode.num_chips
    found: set[tuple[int, int]] = set()
    if not question.demand.is_open and question.goal != "throughput":
        num_decode = range(1, min(most[1], 64) + 1)
        return {(math.ceil(y / ratio * spare), y) for y in num_decode for spare in (1.0, 1.25, 1.6)}
    if question.goal == "cost":
        num_decode = range(1, min(most[1], 32) + 1)
        found |= {(math.ceil(y / ratio * spare), y) for y in num_decode for spare in (0.8, 1.0, 1.25, 1.6)}
    if not shared:
        balanced = most[1] / ratio
        found |= {(min(most[0], math.ceil(balanced * spare)), most[1]) for spare in (1.0, 1.25, 1.6, 1e9)}
        found.add((most[0], min(most[1], math.ceil(most[0] * ratio))))
        return found
    balanced = room[0] / (prefill.num_chips + ratio * decode.num_chips)
    for spare in (0.8, 1.0, 1.2, 1.5, 2.0):
        for num_prefill in (math.floor(balanced * spare), math.ceil(balanced * spare)):
            left = room[0] - num_prefill * prefill.num_chips
            found.add((num_prefill, left // decode.num_chips))
    return found


def _say_why(question: Question, first: Side, second: Side, misses: Misses) -> None:
    """No decode worker is within the TPOT: which came nearest."""
    workload = question.workload
    for worker in second.workers:
        role = second.role(worker, 1, prefill=False)
        if role.memory.max_requests(workload.isl, workload.osl) < 1:
            misses.memory(worker, role.memory, workload.isl, workload.osl)
        elif first.prefillers:
            placement = Placement(workload, role, first.role(first.prefillers[0][0], 1, decode=False), question.correct)
            fill(placement, question.slo, misses)


# ---------------------------------------------------------------------------------------- frontier


def _sweep(question: Question, first: Side, second: Side) -> Iterator[Plan]:
    """Plans at other TPOTs than the one asked for, for the frontier: the TTFT holds, the goal is throughput."""
    for n in range(_POINTS):
        wider = Question(
            question.workload, Slo(0.2 * 0.62**n, question.slo.ttft_s), question.pool, question.prefill,
            question.decode, "throughput", Demand(), question.aggregated, question.disaggregated, question.correct,
        )  # fmt: skip
        yield from _plans(wider, first, second, Misses(), tried=6)


__all__ = ["Found", "Question", "Side", "pareto", "rank_price", "search"]
