"""One training step: units in stages, micro-batches through a schedule, gradients reduced, weights updated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.hardware import Chip
from tiefsee.plan.training.efficiency import Stack, TrainEfficiency
from tiefsee.plan.training.exchange import ring, stage_exchange
from tiefsee.plan.training.job import TrainJob
from tiefsee.plan.training.layout import RECOMPUTES, Recompute, TrainLayout
from tiefsee.plan.training.memory import Memory, rank_memory
from tiefsee.plan.training.optimizer import WEIGHT_BYTES, Update, update_seconds
from tiefsee.plan.training.parameters import Parameters, rank_parameters
from tiefsee.plan.training.schedule import Timeline, timeline
from tiefsee.plan.training.stages import cut, rank_chunks
from tiefsee.plan.training.times import Times, exchange_seconds, unit_times
from tiefsee.plan.training.units import Micro, Network, network_units
from tiefsee.units import format_bytes

GRADIENTS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")


@dataclass(frozen=True, eq=False)
class Step:
    """A step and what it is made of. `parts` are seconds that add up to `seconds`: 1F, 1B, 1W, 1F1B, bubble, opt, and
    what could not be hidden of ZeRO's traffic. `mean` is one micro-batch on the mean rank.
    """

    seconds: float
    parts: Mapping[str, float]
    mean: Times
    line: Timeline
    update: Update
    memory: Memory
    layout: TrainLayout
    recompute: Recompute
    micro_batches: int
    ends: tuple[int, ...]
    network: Network
    overlap: bool
    exposed_zero: float

    @property
    def exchange_s(self) -> float:
        """All-to-all, TP and CP exchanges of the step on the mean rank, hidden or not."""
        t = self.mean
        return self.micro_batches * (t.experts + t.experts_back + t.others + t.others_back)


@dataclass(frozen=True, eq=False)
class Placed:
    """A layout that fits: how much is recomputed, and what each pipeline rank holds."""

    layout: TrainLayout
    recompute: Recompute
    memory: Memory
    held: tuple[Parameters, ...]
    ends: tuple[int, ...]
    network: Network


def micro_batches_of(job: TrainJob, layout: TrainLayout) -> int:
    """Micro-batches of each replica in a step."""
    return max(1, math.ceil(job.global_batch / (layout.dp * layout.micro_batch) - 1e-9))


def place(job: TrainJob, layout: TrainLayout, e: TrainEfficiency, stack: Stack) -> Placed:
    """The least recomputation that fits; then sums of gradients in BF16; then optimizer states in the host's memory.
    Raises OutOfMemory."""
    recomputes = RECOMPUTES if layout.recompute is None else (layout.recompute,)
    sums = GRADIENTS if layout.gradients is None else (layout.gradients,)
    placed: Placed | None = None
    for offload in (True,) if layout.offload else (False, True):
        for gradients in sums:
            for recompute in recomputes:
                placed = _placed(job, layout.changed(offload=offload, gradients=gradients), recompute, e, stack)
                if placed.memory.missing == 0:
                    return placed
    assert placed is not None
    raise OutOfMemory(_does_not_fit(job, placed))


def _placed(job: TrainJob, layout: TrainLayout, recompute: Recompute, e: TrainEfficiency, stack: Stack) -> Placed:
    network = network_units(micro_of(job, layout, stack), job.with_mtp)
    loads = _loads(network, e, recompute)
    ends = cut(loads, layout.pp, layout.virtual, layout.schedule)
    held = tuple(rank_parameters(job.parameters, ends, layout))
    memory = rank_memory(job, layout, held, recompute, micro_batches_of(job, layout))
    return Placed(layout, recompute, memory, held, ends, network)


def micro_of(job: TrainJob, layout: TrainLayout, stack: Stack) -> Micro:
    return Micro(
        job.spec, job.rank_chip, job.formats, job.sequence, layout.micro_batch * job.sequence / layout.cp, layout.tp,
        layout.cp, layout.ep, job.imbalance, stack.low_dispatch,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def kind_times(network: Network, e: TrainEfficiency, recompute: Recompute) -> tuple[Times, ...]:
    """One micro-batch in each kind of unit."""
    return tuple(unit_times(unit, e, recompute) for unit in network.kinds)


def _loads(network: Network, e: TrainEfficiency, recompute: Recompute) -> tuple[float, ...]:
    times = kind_times(network, e, recompute)
    return tuple(times[i].alone for i in network.order)


def step_time(job: TrainJob, placed: Placed, e: TrainEfficiency, stack: Stack) -> Step:
    """Seconds of a step, and where they go. Raises ConfigError where the schedule does not work."""
    layout, chip = placed.layout, job.rank_chip
    overlap = layout.overlap if layout.overlap is not None else stack.overlap
    overlap = overlap and layout.ep > 1
    ranks = _rank_times(job, placed, e, overlap)
    mean = sum(ranks[1:], ranks[0]) * (1.0 / len(ranks))
    m = micro_batches_of(job, layout)
    flushes = 1 if layout.accumulation is None else max(1, math.ceil(m / layout.accumulation))
    per_flush = m if flushes == 1 else m / flushes
    line = timeline(ranks, layout, math.ceil(per_flush), overlap, e.overlap_tax)
    fullest = max(placed.held, key=lambda p: p.dense + p.experts)
    update = update_seconds(chip, fullest, layout, job.optimizer, e)
    exposed = _exposed_zero(chip, fullest, layout, mean, m, flushes, e)
    # Bucket by bucket under the last backward and the next forward; DualPipe and zero-bubble end in weights' gradients.
    hidden = 0.0 if layout.schedule in ("dualpipe", "zero-bubble") else mean.alone
    opt = max(0.0, update.reduce + update.gather - hidden) + update.update + e.step_s
    busy = {"1F": line.forward, "1B": line.backward, "1W": line.weight, "1F1B": line.pair}
    parts = {name: value * flushes for name, value in busy.items()}
    waits = (line.bubble + line.imbalance) * flushes
    parts["bubble"] = waits + (e.jitter - 1.0) * (line.total * flushes)
    parts["opt"] = opt
    if exposed:
        parts["zero"] = exposed
    return Step(
        sum(parts.values()), parts, mean, line, update, placed.memory, layout, placed.recompute, m, placed.ends,
        placed.network, overlap, exposed,
    )  # fmt: skip


def _rank_times(job: TrainJob, placed: Placed, e: TrainEfficiency, overlap: bool) -> list[Times]:
    """One micro-batch on each pipeline rank."""
    layout = placed.layout
    kinds = kind_times(placed.network, e, placed.recompute)
    chunks: list[Times] = []
    start = 0
    for end in placed.ends:
        counts: dict[int, int] = {}
        for i in placed.network.order[start:end]:
            counts[i] = counts.get(i, 0) + 1
        chunks.append(sum((kinds[i] * n for i, n in counts.items()), Times()))
        start = end
    ranks = [
        sum((chunks[c] for c in held), Times()) for held in rank_chunks(layout.pp, layout.virtual, layout.schedule)
    ]
    if layout.schedule == "dualpipe":
        return [times * 0.5 for times in ranks]  # half of the micro-batches in each direction
    if layout.pp > 1 and layout.schedule == "1f1b":
        # Plain 1F1B waits for each hand-over; the others send while they compute.
        tokens = layout.micro_batch * job.sequence / layout.cp
        hop = stage_exchange(job.spec, job.rank_chip, layout.tp, tokens, layout.stage_ranks, layout.pp)
        seconds = exchange_seconds(hop, e)
        ranks = [times + Times(others=seconds, others_back=seconds) for times in ranks]
    return ranks


def _exposed_zero(
    chip: Chip, held: Parameters, layout: TrainLayout, mean: Times, m: int, flushes: int, e: TrainEfficiency
) -> float:
    """ZeRO-2 and 3 within a step: gradients reduced, weights gathered for each micro-batch (for each flush of a
    pipeline), under the arithmetic of the one before."""
    if layout.zero < 2:
        return 0.0
    times = m if layout.pp == 1 else flushes
    dense = ring(chip, layout.dp * layout.cp, layout.tp, held.dense)
    experts = ring(chip, layout.expert_dp, layout.ep, held.experts)
    per_byte = exchange_seconds(dense, e) + exchange_seconds(experts, e)
    gathers = 2.0 * WEIGHT_BYTES if layout.zero == 3 else 0.0
    each = per_byte * (gathers + layout.gradient_bytes)
    # The last reduction and gather are counted at the end of the step. The experts' exchange has the links for itself.
    busy = mean.experts + mean.experts_back + mean.others + mean.others_back
    room = max(0.0, mean.alone - busy) * m / times
    hidden = min(each, room)
    # What is hidden takes its part of the chip, as the experts' exchange does.
    return (times - 1) * (each - hidden + hidden * e.overlap_tax / (1.0 - e.overlap_tax))


def _does_not_fit(job: TrainJob, placed: Placed) -> str:
    memory, layout = placed.memory, placed.layout
    parts = ", ".join(
        f"{name} {format_bytes(getattr(memory, name))}"
        for name in ("weights", "gradients", "optimizer", "activations", "buffers")
    )
    return (
        f"{job.model} with tp {layout.tp}, cp {layout.cp}, dp {layout.dp}, ep {layout.ep}, pp {layout.pp}, "
        f"zero {layout.zero} needs {format_bytes(memory.total)} on each {job.rank_chip.name} ({parts}; recompute "
        f"{placed.recompute}), {format_bytes(memory.missing)} more than the {format_bytes(memory.available)} that "
        "can be used. Try more ep or pp, zero 2 or 3, smaller micro-batches, or more chips"
    )


def check_job_layout(job: TrainJob, layout: TrainLayout) -> None:
    """Raises ConfigError where a layout needs more ranks than there are, or more replicas than sequences."""
    if layout.ranks > job.num_ranks:
        raise ConfigError(
            f"the layout needs tp {layout.tp} x cp {layout.cp} x dp {layout.dp} x pp {layout.pp} = {layout.ranks:,} "
            f"ranks; {job.num_chips:,} x {job.chip.name} are {job.num_ranks:,}"
        )
    if layout.dp * layout.micro_batch > job.global_batch:
        raise ConfigError(
            f"dp {layout.dp} x micro-batch {layout.micro_batch} = {layout.dp * layout.micro_batch:,} sequences at a "
            f"time, but the global batch has {job.global_batch:,}: take more tp, cp, pp or a larger batch"
        )
