"""Workers of one or two kinds that serve together, and a plan: a deployment under a load, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tiefsee.plan.search.goal import Pool, Slo, Workload
from tiefsee.plan.serving.cache import cache_bytes
from tiefsee.plan.serving.deployment import Deployment
from tiefsee.plan.serving.loop import Load, Served
from tiefsee.plan.serving.memory import Memory, worker_name
from tiefsee.plan.serving.worker import Worker

# What keeps a plan from taking one request more.
Limit = Literal["tpot", "ttft", "memory", "transfer", "prefill", "demand"]
# Moves the model's figures to what was measured nearby: (placement, requests at once, the model's) -> corrected.
Correct = Callable[["Placement", float, Served], Served]


@dataclass(frozen=True, eq=False)
class Role:
    """`count` workers of one layout."""

    pool: Pool
    worker: Worker
    count: int
    memory: Memory

    @property
    def num_ranks(self) -> int:
        return self.count * self.worker.num_chips

    @property
    def num_chips(self) -> int:
        """Chips as they are sold: packages, where ranks are dies."""
        return self.pool.chips_of(self.num_ranks)

    @property
    def num_groups(self) -> int:
        """Attention groups: each prefills a prompt of its own."""
        return self.count * self.worker.dp

    def __str__(self) -> str:
        return f"{self.count} x ({worker_name(self.worker)} on {self.worker.num_chips} {self.worker.chip.name})"


@dataclass(frozen=True, eq=False)
class Placement:
    """`decode` does both where `prefill` is None."""

    workload: Workload
    decode: Role
    prefill: Role | None = None
    correct: Correct | None = None

    @property
    def roles(self) -> tuple[Role, ...]:
        return (self.decode,) if self.prefill is None else (self.prefill, self.decode)

    @property
    def num_chips(self) -> int:
        return sum(role.num_chips for role in self.roles)

    @cached_property
    def max_running(self) -> int:
        """Requests that one decode worker's memory keeps running."""
        return self.decode.memory.max_requests(self.workload.isl, self.workload.osl)

    @cached_property
    def workers(self) -> Deployment:
        """Without pools and memory: what times are predicted of."""
        decode, prefill = self.decode, self.prefill
        return Deployment(
            decode.worker, decode.count, decode.pool.precision, None if prefill is None else prefill.worker,
            0 if prefill is None else prefill.count,
        )  # fmt: skip

    @cached_property
    def transfer_bytes(self) -> float:
        """Of one request's cache, converted to decode's format by whoever prefilled it."""
        if self.prefill is None:
            return 0.0
        return cache_bytes(self.workload.spec, self.decode.worker.formats.cache, self.workload.isl)

    @cached_property
    def transfer_s(self) -> float:
        return self.workers.transfer_s(self.workload.isl, self._reached)

    @cached_property
    def max_transfers_per_s(self) -> float:
        """What all links between the pools carry, of the side that has fewer ranks."""
        if self.prefill is None:
            return math.inf
        each = min(role.worker.chip.links[-1].bytes_per_s.value for role in self.roles)
        return min(role.num_ranks for role in self.roles) * each * self._reached / self.transfer_bytes

    @property
    def _reached(self) -> float:
        """The share of the fabric's rate that either side reaches."""
        return min(role.pool.efficiency.far for role in self.roles)

    def serve(self, concurrency: float) -> Served:
        served = self.modelled(concurrency)
        return served if self.correct is None else self.correct(self, concurrency, served)

    def modelled(self, concurrency: float) -> Served:
        """Before it is moved to what was measured."""
        prefill_e = None if self.prefill is None else self.prefill.pool.efficiency
        return self.workers.serve(self.workload.load(concurrency), self.decode.pool.efficiency, prefill_e)

    def broken(self, served: Served, slo: Slo) -> tuple[Limit, float] | None:
        """The limit that is exceeded most, and by which factor; None if all hold."""
        ratios: dict[Limit, float] = {
            "memory": served.batch / max(self.max_running, 1e-9),
            "tpot": served.tpot_s / slo.tpot_s,
            "ttft": served.ttft_s / slo.ttft_s,
            "transfer": served.requests_per_s / self.max_transfers_per_s,
        }
        worst = max(ratios, key=lambda name: ratios[name])
        return (worst, ratios[worst]) if ratios[worst] > 1 + 1e-9 else None

    def __str__(self) -> str:
        if self.prefill is None:
            return str(self.decode)
        return f"prefill {self.prefill} + decode {self.decode}"


@dataclass(frozen=True, eq=False)
class Plan:
    """A deployment under `concurrency` requests: what it serves, and what keeps it from more."""

    placement: Placement
    concurrency: float
    served: Served
    limit: Limit

    @property
    def kind(self) -> str:
        return "aggregated" if self.placement.prefill is None else "disaggregated"

    @property
    def load(self) -> Load:
        return self.placement.workload.load(self.concurrency)

    @property
    def num_chips(self) -> int:
        return self.placement.num_chips

    @property
    def batch_per_chip(self) -> float:
        """Requests in the decode step for each chip that decodes."""
        decode = self.placement.decode
        return self.served.batch * decode.count / decode.num_chips

    @property
    def tokens_per_s(self) -> float:
        return self.served.output_tokens_per_s(self.placement.workload.osl)

    @property
    def tokens_per_s_per_chip(self) -> float:
        return self.tokens_per_s / self.num_chips

    @property
    def interactivity(self) -> float:
        """Tokens per second that one user sees."""
        return 1.0 / self.served.tpot_s

    @property
    def prefill_busy(self) -> float:
        """The share of time for which groups that prefill do."""
        placement = self.placement
        role = placement.prefill or placement.decode
        return self.served.requests_per_s * self.served.prefill_s / role.num_groups

    @property
    def usd_per_hour(self) -> tuple[float, float, float] | None:
        """(low, value, high) of all chips; None where one has no price."""
        prices = [(role.num_chips, role.pool.usd_per_hour) for role in self.placement.roles]
        if any(price is None for _, price in prices):
            return None
        known = [(chips, price) for chips, price in prices if price is not None]
        return (
            sum(n * p.low for n, p in known), sum(n * p.value for n, p in known), sum(n * p.high for n, p in known)
        )  # fmt: skip

    @property
    def usd_per_million_tokens(self) -> tuple[float, float, float] | None:
        """(low, value, high) per million output tokens, by the price's range alone."""
        hourly = self.usd_per_hour
        if hourly is None:
            return None
        low, value, high = (x / (self.tokens_per_s * 3600) * 1e6 for x in hourly)
        return low, value, high

    def __str__(self) -> str:
        return f"{self.placement}, {self.concurrency:,.0f} requests at once"


__all__ = ["Correct", "Limit", "Placement", "Plan", "Role"]
