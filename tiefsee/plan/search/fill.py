"""How much a deployment can take: the largest load within memory and service levels, by bisection.

TPOT, TTFT and the batch grow with the number of requests at once, and so does the rate; so the largest is the best,
and it is found in a dozen evaluations instead of tried one by one.
"""

from __future__ import annotations

from dataclasses import replace

from tiefsee.plan.search.goal import Demand, Slo
from tiefsee.plan.search.misses import Misses
from tiefsee.plan.search.placement import Limit, Placement, Plan
from tiefsee.plan.serving.loop import Served

TOLERANCE = 0.005


def fill(placement: Placement, slo: Slo, misses: Misses, *, most: float | None = None) -> Plan | None:
    """As many requests as go, at most `most`; None (and a miss) if even one per worker is too many."""
    low = float(max(role.count for role in placement.roles))
    if most is not None:
        low = min(low, most)
    served = placement.serve(low)
    broken = placement.broken(served, slo)
    if broken is not None:
        misses.level(placement, served, slo, broken)
        return None
    high = max(low, _ceiling(placement))
    if most is not None and most <= high:
        top = placement.serve(most)
        if placement.broken(top, slo) is None:
            return Plan(placement, most, top, "demand")
        high = most
    else:
        high = _above(placement, slo, high)
    return Plan(placement, *_bisect(placement, slo, low, served, high))


def meet(placement: Placement, slo: Slo, demand: Demand, misses: Misses) -> Plan | None:
    """The load that is asked for, if the deployment can take it; as much as goes if nothing is asked."""
    full = fill(placement, slo, misses, most=demand.concurrency)
    if full is None or demand.is_open:
        return full
    if demand.concurrency is not None and full.concurrency < demand.concurrency * (1 - 1e-9):
        return None
    if demand.requests_per_s is None:
        return replace(full, limit="demand")
    wanted = demand.requests_per_s
    if full.served.requests_per_s < wanted:
        return None
    low, high, served = 0.0, full.concurrency, full.served
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        found = placement.serve(middle)
        if found.requests_per_s >= wanted:
            high, served = middle, found
        else:
            low = middle
    return Plan(placement, high, served, "demand")


def _above(placement: Placement, slo: Slo, high: float) -> float:
    """A load that is too much, or so much that more brings nothing: prefill is at its end."""
    served = placement.serve(high)
    while placement.broken(served, slo) is None:
        more = placement.serve(2 * high)
        if more.requests_per_s < 1.01 * served.requests_per_s:
            break
        high, served = 2 * high, more
    return high


def _bisect(placement: Placement, slo: Slo, low: float, served: Served, high: float) -> tuple[float, Served, Limit]:
    """(load, what comes of it, what is broken just above it)."""
    top = placement.serve(high)
    broken = placement.broken(top, slo)
    if broken is None:
        return high, top, "prefill"
    while high - low > max(1.0, TOLERANCE * low):
        middle = float(round((low * high) ** 0.5 if high > 2 * low else (low + high) / 2))
        found = placement.serve(middle)
        now = placement.broken(found, slo)
        if now is None:
            low, served = middle, found
        else:
            high, broken = middle, now
    return low, served, broken[0]


def _ceiling(placement: Placement) -> float:
    """About what can run at once: what decodes, and two prompts for each group that prefills elsewhere."""
    waiting = 0 if placement.prefill is None else 2 * placement.prefill.num_groups
    return float(placement.decode.count * placement.max_running + waiting)


__all__ = ["fill", "meet"]
