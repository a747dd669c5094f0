"""Several unlike pools as one service: which prefills, which decodes, which serves for itself, and how much of each.

Each way to serve is a column of a small linear program: a layout that does both on one pool, or one that prefills on a
pool and one that decodes on another (or the same), with what they take of each pool per request and second, within the
service levels. Its solution is the bound: what workers that can be divided would reach. As many columns are used there
as there are pools at most; so the plan in whole workers is looked for among one pair of pools that work together, with
what is left of each serving for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiefsee.errors import ConfigError
from tiefsee.plan.mixed.mixer import Mixer
from tiefsee.plan.search.goal import Goal, Pool, Slo, Workload
from tiefsee.plan.search.placement import Correct, Plan


@dataclass(frozen=True, eq=False)
class Mixed:
    """`plans` serve beside one another. `bound_requests_per_s` is what the linear program promises if workers could be
    divided; `alone` is the best of each pool for itself, or why there is none."""

    pools: tuple[Pool, ...]
    plans: tuple[Plan, ...]
    bound_requests_per_s: float
    alone: tuple[Plan | str, ...]

    @property
    def requests_per_s(self) -> float:
        return sum(plan.served.requests_per_s for plan in self.plans)

    @property
    def tokens_per_s(self) -> float:
        return sum(plan.tokens_per_s for plan in self.plans)

    @property
    def usd_per_hour(self) -> tuple[float, float, float] | None:
        prices = [plan.usd_per_hour for plan in self.plans]
        known = [price for price in prices if price is not None]
        if len(known) < len(prices):
            return None
        return sum(p[0] for p in known), sum(p[1] for p in known), sum(p[2] for p in known)

    @property
    def usd_per_million_tokens(self) -> tuple[float, float, float] | None:
        hourly = self.usd_per_hour
        if hourly is None:
            return None
        low, value, high = (x / (self.tokens_per_s * 3600) * 1e6 for x in hourly)
        return low, value, high

    @property
    def alone_requests_per_s(self) -> float:
        """All pools, each for itself."""
        return sum(plan.served.requests_per_s for plan in self.alone if isinstance(plan, Plan))

    def used_chips(self) -> tuple[int, ...]:
        """Chips of each pool, as they are sold."""
        return tuple(
            sum(role.num_chips for plan in self.plans for role in plan.placement.roles if role.pool.chip is pool.chip)
            for pool in self.pools
        )


def mix(
    workload: Workload, slo: Slo, pools: Sequence[Pool], *, goal: Goal = "throughput",
    requests_per_s: float | None = None, correct: Correct | None = None,
) -> Mixed:  # fmt: skip
    """Most throughput of all pools together, or the cheapest way to a request rate.

    Raises ConfigError or OutOfMemory if nothing serves, or not as much as is asked for.
    """
    if goal == "chips" or (goal == "cost") != (requests_per_s is not None):
        raise ConfigError("several pools: either most throughput, or the least cost of a given request rate")
    lacking = [pool.name for pool in pools if pool.usd_per_hour is None]
    if goal == "cost" and lacking:
        raise ConfigError(f"no price of {lacking[0]} is public; give one per card-hour, for example {lacking[0]}=2.5")
    if len({pool.chip.name for pool in pools}) < len(pools):
        raise ConfigError(f"{' + '.join(map(str, pools))}: a chip is named twice; join those pools")
    mixer = Mixer(workload, slo, tuple(pools), requests_per_s, correct)
    bound, plans = mixer.bound(), mixer.best()
    return Mixed(tuple(pools), tuple(plans), bound, tuple(mixer.alone(index) for index in range(len(pools))))


__all__ = ["Mixed", "mix"]
