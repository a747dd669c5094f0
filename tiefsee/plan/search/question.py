"""What a search is asked, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, field

from tiefsee.errors import ConfigError
from tiefsee.plan.search.goal import Demand, Goal, Pool, Slo, Workload
from tiefsee.plan.search.placement import Correct, Plan


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


__all__ = ["Found", "Question"]
