"""Disaggregated deployments: which prefill and decode workers go together, and how many of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tiefsee.plan.search.fill import fill, meet
from tiefsee.plan.search.misses import Misses
from tiefsee.plan.search.placement import Placement, Plan
from tiefsee.plan.search.question import Question
from tiefsee.plan.search.sides import Side, rank_price
from tiefsee.plan.serving.worker import Worker

# Pairs of worker counts that are worked out exactly, of those that promise most.
TRIED = 48
# How far a TPOT may be over what is asked for, before it is moved to what was measured.
_SLACK = 1.3


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


def disaggregated(question: Question, first: Side, second: Side, misses: Misses, most: int = TRIED) -> Iterator[Plan]:
    """`first` prefills, `second` decodes; they may be the same pool, whose chips they then share. The `most`
    promising pairs are worked out."""
    # What was measured may allow a layout that the bare model does not.
    decoders = second.decoders(question.slo.tpot_s * (1.0 if question.correct is None else _SLACK))
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


__all__ = ["TRIED", "disaggregated"]
