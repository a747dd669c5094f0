"""What a simulation says: percentiles, goodput, queues; and where it and the closed form differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiefsee.plan.search.placement import Plan

# Above this the two models of one thing do not agree, and a user should know.
DISAGREEMENT = 0.15


@dataclass(frozen=True)
class Percentiles:
    mean: float
    p50: float
    p90: float
    p99: float


def percentiles(values: Sequence[float]) -> Percentiles:
    array = np.asarray(values, dtype=float)
    p50, p90, p99 = (float(x) for x in np.percentile(array, (50, 90, 99)))
    return Percentiles(float(array.mean()), p50, p90, p99)


@dataclass(frozen=True)
class Life:
    """One request, start to end. `ttft_s` counts from arrival; `tpot_s` is the mean between later tokens."""

    arrival_s: float
    first_s: float
    end_s: float
    isl: int
    osl: int
    cached_tokens: int
    num_preemptions: int

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        return (self.end_s - self.first_s) / (self.osl - 1)

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.arrival_s


@dataclass(frozen=True, eq=False)
class Simulated:
    """Rates are of the whole deployment, of which `share` was simulated: alike attention groups stand for each other.

    `within` is the share of requests that keep both service levels, each for itself. Waiting is per attention group
    that admits prompts. `concurrency` is that of the plan, or less (see `settle`).
    """

    plan: Plan
    concurrency: float
    lives: tuple[Life, ...]
    ttft: Percentiles
    tpot: Percentiles
    e2e: Percentiles
    requests_per_s: float
    within: float
    mean_waiting: float
    max_waiting: int
    busy: float
    num_requests: int
    num_preemptions: int
    hit_share: float
    share: float
    seed: int
    closed: bool
    notes: tuple[str, ...] = ()

    @property
    def goodput_requests_per_s(self) -> float:
        """Requests per second that keep the service levels."""
        return self.requests_per_s * self.within

    @property
    def tokens_per_s(self) -> float:
        return self.requests_per_s * sum(life.osl for life in self.lives) / len(self.lives)

    def disagreements(self) -> tuple[str, ...]:
        """Where this and the closed form are more than 15 % apart; of a closed loop, which is what that describes."""
        if not self.closed:
            return ()
        plan = self.plan
        planned = self.concurrency == plan.concurrency
        served = plan.served if planned else plan.placement.serve(self.concurrency)
        pairs = (
            ("tokens/s", self.requests_per_s, served.requests_per_s),
            ("TPOT", self.tpot.mean, served.tpot_s),
            ("TTFT", self.ttft.mean, served.ttft_s),
        )
        return tuple(
            f"{name}: simulated {simulated / closed - 1:+.0%} against the closed form"
            for name, simulated, closed in pairs
            if abs(simulated / closed - 1) > DISAGREEMENT
        )


__all__ = ["DISAGREEMENT", "Life", "Percentiles", "Simulated", "percentiles"]
