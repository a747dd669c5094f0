"""Which layout: all legal ones, aggregated and disaggregated, each filled as far as it goes, the best first.

What keeps it fast: a step is worked out once per layout and batch; of prefill and decode workers only those are
paired that nobody beats at their size; the numbers of workers are solved for, since the two rates must match.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from tiefsee.plan.search.fill import fill, meet
from tiefsee.plan.search.goal import Demand, Goal, Slo
from tiefsee.plan.search.misses import Misses
from tiefsee.plan.search.pairs import TRIED, disaggregated
from tiefsee.plan.search.placement import Placement, Plan, Role
from tiefsee.plan.search.question import Found, Question
from tiefsee.plan.search.sides import Side
from tiefsee.plan.serving.memory import Memory
from tiefsee.plan.serving.worker import Worker

# TPOTs of the frontier: 200 ms and each 0.62 of the one before, down to 4.4 ms.
_POINTS = 9


def search(question: Question, *, frontier: bool = True) -> Found:
    """Raises ConfigError or OutOfMemory with the nearest miss if nothing serves."""
    misses = Misses()
    first, second = _sides(question)
    plans = list(_plans(question, first, second, misses))
    if not plans:
        raise misses.error(f"{question.workload.spec.model_type} on {question}")
    plans.sort(key=_order(question.goal))
    if question.goal == "throughput":
        plans = _thrifty(plans)
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


def _plans(question: Question, first: Side, second: Side, misses: Misses, tried: int = TRIED) -> Iterator[Plan]:
    if first is second and question.aggregated:
        yield from _aggregated(question, first, misses)
    if first is not second or question.disaggregated:
        yield from disaggregated(question, first, second, misses, tried)


def _order(goal: Goal) -> Callable[[Plan], tuple[float, ...]]:
    if goal == "cost":
        return lambda plan: ((plan.usd_per_million_tokens or (0.0, math.inf, 0.0))[1], plan.served.tpot_s)
    if goal == "chips":
        return lambda plan: (plan.num_chips, plan.served.tpot_s)
    return lambda plan: (-plan.tokens_per_s, plan.served.tpot_s)


def _thrifty(plans: list[Plan]) -> list[Plan]:
    """Of plans that serve as much as the best, within 1 %, those on fewer chips first."""
    near = [plan for plan in plans if plan.tokens_per_s >= 0.99 * plans[0].tokens_per_s]
    return sorted(near, key=lambda plan: (plan.num_chips, -plan.tokens_per_s)) + plans[len(near) :]


def pareto(plans: Iterable[Plan]) -> list[Plan]:
    """Plans that no other beats in both tokens/s per chip and tokens/s of a user; the fastest for a user first."""
    kept: list[Plan] = []
    for plan in sorted(plans, key=lambda p: (-p.interactivity, -p.tokens_per_s_per_chip)):
        if not kept or plan.tokens_per_s_per_chip > kept[-1].tokens_per_s_per_chip:
            kept.append(plan)
    return kept


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


# ---------------------------------------------------------------------------------------- frontier


def _sweep(question: Question, first: Side, second: Side) -> Iterator[Plan]:
    """Plans at other TPOTs than the one asked for, for the frontier: the TTFT holds, the goal is throughput."""
    for n in range(_POINTS):
        wider = Question(
            question.workload, Slo(0.2 * 0.62**n, question.slo.ttft_s), question.pool, question.prefill,
            question.decode, "throughput", Demand(), question.aggregated, question.disaggregated, question.correct,
        )  # fmt: skip
        yield from _plans(wider, first, second, Misses(), tried=6)


__all__ = ["pareto", "search"]
