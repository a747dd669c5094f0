"""Workers of one or two kinds that serve together, and a plan: a deployment under a load, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from tiefsee.hardware import Link, link_for
from tiefsee.plan.estimate import Estimate
from tiefsee.plan.memory import Memory, cache_bytes_of, worker_name
from tiefsee.plan.search.goal import Pool, Slo, Workload
from tiefsee.plan.serving import Load, Served, Worker, serve_aggregated, serve_disaggregated

# What keeps a plan from taking one request more.
Limit = Literal["tpot", "ttft", "memory", "transfer", "demand"]
# Moves the model's figures to what was measured nearby: (deployment, requests at once, the model's) -> corrected.
Correct = Callable[["Deployment", float, Served], Served]
# The figures of a plan with their ranges, by unit.
Spread = Callable[["Plan"], Mapping[str, Estimate]]


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
class Deployment:
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
    def transfer_bytes(self) -> float:
        """Of one request's cache: converted before it is sent where the receiver's format is smaller, else after."""
        if self.prefill is None:
            return 0.0
        spec, drafts = self.workload.spec, self.workload.drafts
        return min(cache_bytes_of(spec, role.worker.formats, self.workload.isl, drafts=drafts) for role in self.roles)

    @cached_property
    def link(self) -> Link | None:
        """The slower of what either side can send or receive by; unlike chips meet in the fabric."""
        if self.prefill is None:
            return None
        first, second = self.prefill.worker, self.decode.worker
        if self.prefill.pool is self.decode.pool:
            return link_for(first.chip, min(first.num_chips + second.num_chips, self.prefill.pool.count))
        return min((first.chip.links[-1], second.chip.links[-1]), key=lambda link: link.bytes_per_s.value)

    @cached_property
    def transfer_s(self) -> float:
        """One rank sends its copy to one rank, which hands it on inside its group."""
        if self.link is None:
            return 0.0
        return self.transfer_bytes / (self.link.bytes_per_s.value * self._reached) + self.link.latency_s.value

    @cached_property
    def max_transfers_per_s(self) -> float:
        """What all links together carry, of the side that has fewer chips."""
        if self.link is None:
            return float("inf")
        ranks = min(role.num_ranks for role in self.roles)
        return ranks * self.link.bytes_per_s.value * self._reached / self.transfer_bytes

    @property
    def _reached(self) -> float:
        assert self.prefill is not None
        assert self.link is not None
        e = [role.pool.efficiency for role in self.roles]
        return min(x.far if self.link.tier == "fabric" else x.near for x in e)

    def serve(self, concurrency: float) -> Served:
        load = self.workload.load(concurrency)
        decode, prefill = self.decode, self.prefill
        if prefill is None:
            served = serve_aggregated(decode.worker, decode.count, load, decode.pool.efficiency)
        else:
            served = serve_disaggregated(
                prefill.worker, prefill.count, decode.worker, decode.count, load, prefill.pool.efficiency,
                decode.pool.efficiency, self.transfer_s,
            )  # fmt: skip
        return served if self.correct is None else self.correct(self, concurrency, served)

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

    deployment: Deployment
    concurrency: float
    served: Served
    limit: Limit

    @property
    def kind(self) -> str:
        return "aggregated" if self.deployment.prefill is None else "disaggregated"

    @property
    def load(self) -> Load:
        return self.deployment.workload.load(self.concurrency)

    @property
    def num_chips(self) -> int:
        return self.deployment.num_chips

    @property
    def batch_per_chip(self) -> float:
        """Requests in the decode step for each chip that decodes."""
        decode = self.deployment.decode
        return self.served.batch * decode.count / decode.num_chips

    @property
    def tokens_per_s(self) -> float:
        return self.served.output_tokens_per_s(self.deployment.workload.osl)

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
        deployment = self.deployment
        role = deployment.prefill or deployment.decode
        return self.served.requests_per_s * self.served.prefill_s / role.num_groups

    @property
    def usd_per_hour(self) -> tuple[float, float, float] | None:
        """(low, value, high) of all chips; None where one has no price."""
        prices = [(role.num_chips, role.pool.usd_per_hour) for role in self.deployment.roles]
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
        return f"{self.deployment}, {self.concurrency:,.0f} requests at once"


__all__ = ["Correct", "Deployment", "Limit", "Plan", "Role", "Spread"]
