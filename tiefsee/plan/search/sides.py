"""What the layouts of one pool can do alone: their memory, prompts per second, answers per second within a TPOT."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from tiefsee.plan.search.goal import Pool, Workload
from tiefsee.plan.search.layouts import worker_sizes, workers_of
from tiefsee.plan.search.placement import Role
from tiefsee.plan.serving.memory import Memory, worker_memory
from tiefsee.plan.serving.step import decode_s, prefill_each_s, prefill_s
from tiefsee.plan.serving.worker import Worker


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
        """(worker, prompts per second, seconds of one prompt): of each size those that none beats in both."""
        found: list[tuple[Worker, float, float]] = []
        load, e = self.workload.load(1.0), self.pool.efficiency
        for worker in self.workers:
            if self.memory(worker, decode=False).max_requests(load.isl, 1) < worker.dp:
                continue
            rate = worker.dp / prefill_each_s(worker, load.isl, load.cached, e)
            found.append((worker, rate, prefill_s(worker, load.isl, load.cached, e)))
        found.sort(key=lambda one: (-one[1], one[2]))
        kept: dict[int, list[tuple[Worker, float, float]]] = {}
        for one in found:
            same = kept.setdefault(one[0].num_chips, [])
            if all(one[2] < other[2] for other in same):
                same.append(one)
        return tuple(one for same in kept.values() for one in same)

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
        high = self._running[worker]

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

    @cached_property
    def _running(self) -> dict[Worker, int]:
        load = self.workload
        return {w: self.memory(w, prefill=False).max_requests(load.isl, load.osl) for w in self.workers}


def rank_price(pool: Pool) -> float:
    """USD per hour of one rank; endless where nobody knows."""
    return math.inf if pool.usd_per_hour is None else pool.usd_per_hour.value / pool.ranks_per_chip


__all__ = ["Side", "rank_price"]
