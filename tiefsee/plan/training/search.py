"""The best legal layout for a job: all are enumerated, few are worked out.

A lower bound of a layout's step (its mean rank, no imbalance, nothing exposed at the end) costs microseconds, since
units are shared by all layouts with the same TP, CP, EP and micro-batch. Layouts are worked out in the order of their
bounds until no bound is below the best step found.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.plan.training.efficiency import Stack, TrainEfficiency
from tiefsee.plan.training.exchange import far_link, near_link
from tiefsee.plan.training.job import TrainJob
from tiefsee.plan.training.layout import RECOMPUTES, Recompute, Schedule, TrainLayout
from tiefsee.plan.training.memory import rank_memory
from tiefsee.plan.training.parameters import Parameters
from tiefsee.plan.training.schedule import timeline
from tiefsee.plan.training.step import Step, kind_times, micro_batches_of, micro_of, place, step_time
from tiefsee.plan.training.times import Times
from tiefsee.plan.training.units import Network, network_units
from tiefsee.spec.model import MoE
from tiefsee.units import format_bytes

IDLE = 0.05  # of the chips may stand by: spares, since a count that fits a layout seldom is the count that one has
_VIRTUAL = (2, 4, 8)


@dataclass(frozen=True)
class Found:
    """The best step, the next best of other sizes, and how many layouts were looked at and worked out."""

    best: Step
    others: tuple[Step, ...]
    legal: int
    worked_out: int


def search_layout(job: TrainJob, e: TrainEfficiency, stack: Stack, *, keep: int = 3, most: int = 2000) -> Found:
    """Raises OutOfMemory that says by how many bytes where nothing fits, ConfigError where nothing divides."""
    candidates = [(_bound(job, layout, e, stack), i, layout) for i, layout in enumerate(layouts(job, stack.schedules))]
    if not candidates:
        raise ConfigError(
            f"no layout of {job.model} divides {job.num_ranks:,} ranks with a global batch of {job.global_batch:,} "
            f"sequences and at most {IDLE:.0%} idle; take a rounder count of chips or a larger batch"
        )
    queue = [c for c in candidates if c[0] < math.inf]
    heapq.heapify(queue)
    found: list[Step] = []
    misfit: OutOfMemory | None = None
    done = 0
    while queue and done < most:
        bound, _, layout = heapq.heappop(queue)
        if len(found) >= keep and bound > min(step.seconds for step in found):
            break
        done += 1
        try:
            found.append(step_time(job, place(job, layout, e, stack), e, stack))
        except OutOfMemory as error:
            misfit = misfit or error
        except ConfigError:
            continue  # a schedule that wants more micro-batches
    if not found:
        raise misfit or OutOfMemory(_nothing_fits(job, [c[2] for c in candidates]))
    found.sort(key=lambda step: step.seconds)
    return Found(found[0], tuple(_unlike(found)[1 : keep + 1]), len(candidates), done)


def layouts(job: TrainJob, schedules: Collection[Schedule]) -> Iterator[TrainLayout]:
    """All that divide, within reason: TP inside a node's 8, CP for long sequences only."""
    heads = job.spec.layers[0].attention.num_attention_heads
    node = max(1, min(8, job.rank_chip.chips_per_node))
    tps = [tp for tp in (1, 2, 4, 8) if tp <= node and heads % tp == 0 and tp <= job.num_ranks]
    cps = [cp for cp in (1, 2, 4, 8, 16, 32, 64, 128) if cp == 1 or _cuts(job.sequence, cp)]
    pieces = len(job.spec.layers) + len(job.spec.mtp_layers)
    micro = [n for n in (1, 2, 4) if n == 1 or n * job.sequence <= 16384]
    for tp in tps:
        for cp in cps:
            for pp in _stage_counts(pieces):
                if tp * cp * pp > job.num_ranks:
                    continue
                for n in micro:
                    for ep in _expert_splits(job):
                        dp = _replicas(job, tp * cp, pp, ep, n)
                        if dp:
                            yield from _variants(TrainLayout(tp, dp, ep, pp, cp, micro_batch=n), pieces, schedules)


def _cuts(sequence: int, cp: int) -> bool:
    """Whether a sequence is long enough for `cp` pieces, and divides into the two halves of each."""
    return sequence >= 4096 * cp and sequence % (2 * cp) == 0


def _stage_counts(pieces: int) -> list[int]:
    return [p for p in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 20, 24, 30, 32) if p <= pieces]


@lru_cache(maxsize=32)
def _divisors(n: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, n + 1) if n % d == 0)


def _expert_splits(job: TrainJob) -> list[int]:
    moe = next((layer.ffn for layer in job.spec.layers if isinstance(layer.ffn, MoE)), None)
    if moe is None:
        return [1]
    near, far = near_link(job.rank_chip), far_link(job.rank_chip)
    largest = (near.num_chips or job.num_ranks) if near is not None else 1
    if far is not None:
        largest = max(largest, job.num_ranks)
    return [d for d in _divisors(moe.n_routed_experts) if d <= min(job.num_ranks, largest) and (d >= 4 or d == 1)]


def _replicas(job: TrainJob, group: int, pp: int, ep: int, micro_batch: int) -> int:
    """dp: as many as the ranks allow, with few idle, and such that rounds of micro-batches are full. 0: none."""
    most = min(job.num_ranks // (group * pp), job.global_batch // micro_batch)
    if most == 0:
        return 0
    unit = ep // math.gcd(ep, group)
    rounds = math.ceil(job.global_batch / (most * micro_batch))
    dp = min(most, math.ceil(job.global_batch / (rounds * micro_batch)))
    dp = -(-dp // unit) * unit
    if dp > most:
        dp = most // unit * unit
    if dp == 0 or dp * group * pp < (1 - IDLE) * job.num_ranks:
        return 0
    return dp


def _variants(layout: TrainLayout, pieces: int, schedules: Collection[Schedule]) -> Iterator[TrainLayout]:
    p = layout.pp
    yield layout
    if p == 1:
        yield layout.changed(zero=3)
        return
    virtual = [v for v in _VIRTUAL if p * v <= pieces]
    if "interleaved" in schedules:
        for v in virtual:
            yield layout.changed(schedule="interleaved", virtual=v)
        if virtual and p <= 8:
            yield layout.changed(zero=2, schedule="interleaved", virtual=virtual[0])
    if "zero-bubble" in schedules:
        yield layout.changed(schedule="zero-bubble")
    if "dualpipe" in schedules and p % 2 == 0:
        yield layout.changed(schedule="dualpipe")


def _bound(job: TrainJob, layout: TrainLayout, e: TrainEfficiency, stack: Stack) -> float:
    """Seconds that a step takes at least; inf where the mean rank does not fit or the schedule does not work."""
    network = network_units(micro_of(job, layout, stack), job.with_mtp)
    m = micro_batches_of(job, layout)
    if layout.schedule == "dualpipe" and m < 2 * layout.pp:
        return math.inf
    held = _mean_parameters(job, layout)
    for tried in (layout, layout.changed(gradients="bf16", offload=True)):
        for recompute in RECOMPUTES:
            if rank_memory(job, tried, [held], recompute, m).missing == 0:
                mean = _mean_times(network, e, recompute, layout.pp)
                return timeline([mean], layout, m, stack.overlap and layout.ep > 1, e.overlap_tax).total * e.jitter
    return math.inf


@lru_cache(maxsize=4096)
def _mean_times(network: Network, e: TrainEfficiency, recompute: Recompute, pp: int) -> Times:
    kinds = kind_times(network, e, recompute)
    total = sum((kinds[i] * network.order.count(i) for i in range(len(kinds))), Times())
    return total * (1.0 / pp)


def _mean_parameters(job: TrainJob, layout: TrainLayout) -> Parameters:
    total = job.total_parameters
    twice = 2.0 if layout.schedule == "dualpipe" else 1.0
    return Parameters(total.dense / layout.tp / layout.pp * twice, total.experts / layout.ep / layout.pp * twice)


def _unlike(steps: list[Step]) -> list[Step]:
    """The best of each (tp, cp, ep, pp), so that alternatives differ in more than a schedule."""
    seen: dict[tuple[int, ...], Step] = {}
    for step in steps:
        seen.setdefault((step.layout.tp, step.layout.cp, step.layout.ep, step.layout.pp), step)
    return list(seen.values())


def _nothing_fits(job: TrainJob, tried: list[TrainLayout]) -> str:
    least = min(
        (
            (rank_memory(job, t, [_mean_parameters(job, t)], "full", micro_batches_of(job, t)).missing, i, t)
            for i, t in enumerate(layout.changed(gradients="bf16", offload=True) for layout in tried)
        )
    )
    missing, _, layout = least
    return (
        f"{job.model} does not fit on {job.num_chips:,} x {job.chip.name}: the layout that comes nearest (tp "
        f"{layout.tp}, ep {layout.ep}, pp {layout.pp}, cp {layout.cp}, zero {layout.zero}, everything recomputed, "
        f"states on the host) needs {format_bytes(missing)} more on each {job.rank_chip.name} than its "
        f"{format_bytes(job.rank_chip.memory_bytes.value)}. Take more chips, or chips with more memory"
    )
