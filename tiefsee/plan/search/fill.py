"""How much a deployment can take: the largest load within memory and service levels, by bisection.

TPOT, TTFT and the batch grow with the number of requests at once, and so does the rate; so the largest is the best,
and it is found in a dozen evaluations instead of tried one by one.
"""

from __future__ import annotations

from dataclasses import replace

from tiefsee.plan.search.deployment import Deployment, Limit, Plan
from tiefsee.plan.search.goal import Demand, Slo
from tiefsee.plan.search.misses import Misses
from tiefsee.plan.serving import Served

TOLERANCE = 0.005


def fill(deployment: Deployment, slo: Slo, misses: Misses, *, most: float | None = None) -> Plan | None:
    """As many requests as go, at most `most`; None (and a miss) if even one per worker is too many."""
    low = float(max(role.count for role in deployment.roles))
    if most is not None:
        low = min(low, most)
    served = deployment.serve(low)
    broken = deployment.broken(served, slo)
    if broken is not None:
        misses.level(deployment, served, slo, broken)
        return None
    ceiling, high_limit = _ceiling(deployment), "memory"
    if most is not None and most <= ceiling:
        ceiling, high_limit = most, "demand"
    low, served, limit = _bisect(deployment, slo, low, served, max(low, ceiling))
    return Plan(deployment, low, served, limit or _as_limit(high_limit))


def meet(deployment: Deployment, slo: Slo, demand: Demand, misses: Misses) -> Plan | None:
    """The load that is asked for, if the deployment can take it; as much as goes if nothing is asked."""
    full = fill(deployment, slo, misses, most=demand.concurrency)
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
        found = deployment.serve(middle)
        if found.requests_per_s >= wanted:
            high, served = middle, found
        else:
            low = middle
    return Plan(deployment, high, served, "demand")


def _bisect(
    deployment: Deployment, slo: Slo, low: float, served: Served, high: float
) -> tuple[float, Served, Limit | None]:
    """(load, what comes of it, what is broken just above it); None if nothing is broken at `high`."""
    top = deployment.serve(high)
    broken = deployment.broken(top, slo)
    if broken is None:
        return high, top, None
    while high - low > max(1.0, TOLERANCE * low):
        middle = float(round((low * high) ** 0.5 if high > 2 * low else (low + high) / 2))
        found = deployment.serve(middle)
        now = deployment.broken(found, slo)
        if now is None:
            low, served = middle, found
        else:
            high, broken = middle, now
    return low, served, broken[0]


def _ceiling(deployment: Deployment) -> float:
    """More than can run at once: what decodes, and two prompts for each group that prefills elsewhere."""
    waiting = 0 if deployment.prefill is None else 2 * deployment.prefill.num_groups
    return float(deployment.decode.count * deployment.max_running + waiting)


def _as_limit(name: str) -> Limit:
    return "demand" if name == "demand" else "memory"


__all__ = ["fill", "meet"]
