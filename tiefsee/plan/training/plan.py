"""What training a model would take: the step, its use of the chips, days, money, and what limits it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip
from tiefsee.plan.figures.estimate import Estimate, Grade, weakest
from tiefsee.plan.names.formats import compute_format
from tiefsee.plan.training.efficiency import Stack, TrainCalibration, TrainEfficiency, training_calibration
from tiefsee.plan.training.failures import STORAGE_BYTES_PER_S, Goodput, goodput
from tiefsee.plan.training.job import TrainJob, recipe_of
from tiefsee.plan.training.layout import TrainLayout, check_layout, read_layout
from tiefsee.plan.training.search import search_layout
from tiefsee.plan.training.step import Step, check_job_layout, place, step_time
from tiefsee.plan.training.where import bottleneck_of, where
from tiefsee.spec.cost import training_flops_per_token

# Pangu Ultra MoE is near V3 in shape but no preset, so it is not among the rows of the fit; docs/plan_training.md.
LARGE_ASCEND = (
    "of large Ascend runs one is published in tokens: Pangu Ultra MoE (718B-A39B), 243 tokens/s a card on 6,000 x 910B "
    "in 2025-05 (arXiv 2505.04519). For a V3 of its width on 910B3 this model says 239 under the stack mindspeed, 316 "
    "under today"
)
Layout = TrainLayout | Mapping[str, Any] | Literal["search"] | None


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """Estimates carry their unit. `mfu` by convention: FLOPs counted causally or not, over the BF16 peak or over that
    of the number format trained in ("stated"); MTP is not counted, as in DeepSeek's reports.

    days, chip_hours   of wall time, failures included; `busy_chip_hours` without them
    usd                None where no price is public: `break_even_usd_per_hour` then answers against `against`
    where              shares of a step, by what it is spent on
    """

    job: TrainJob
    stack: Stack
    efficiency: TrainEfficiency
    step: Step
    alternatives: tuple[Step, ...]
    step_s: Estimate
    tokens_per_s: Estimate
    tokens_per_s_per_chip: Estimate
    tflops_per_chip: Mapping[str, float]
    mfu: Mapping[str, Estimate]
    goodput: Goodput
    days: Estimate
    chip_hours: Estimate
    busy_chip_hours: Estimate
    usd: Estimate | None
    usd_per_chip_hour: tuple[float, float, float] | None
    break_even_usd_per_hour: Estimate | None
    against: str | None
    where: Mapping[str, float]
    bottleneck: str
    grade: Grade
    notes: tuple[str, ...]
    sources: tuple[str, ...]


def plan_training(
    job: TrainJob, layout: Layout = "search", *, calibration: TrainCalibration | None = None, date: str | None = None,
    efficiency: TrainEfficiency | None = None, usd_per_hour: float | None = None, against: TrainingPlan | None = None,
    storage_bytes_per_s: float = STORAGE_BYTES_PER_S, slower: float = 1.0,
) -> TrainingPlan:  # fmt: skip
    """`layout` "search" or None looks for the best. `slower`: every clock outside the chip (restarts, disks, the host)
    that much slower, for the test of units. Raises ConfigError, OutOfMemory."""
    calibration = calibration or training_calibration()
    stack = calibration.stack(job.stack, job.rank_chip, date)
    e = efficiency or calibration.of(job.rank_chip, stack)
    step, others, notes = _step(job, layout, e, stack)
    sparse = any(layer.attention.kind != "mla" for layer in job.spec.layers)
    grade = calibration.grade(job.chip, job.num_chips, stack, sparse)
    spread = math.hypot(math.log(calibration.spread[grade]), _doubt(job.rank_chip, job.formats.linear))
    step_s = _around(step.seconds, spread, "step_s", grade)
    rate = step_s.inverse(job.global_batch_tokens, "tokens_per_s")
    per_chip = rate.scaled(1 / job.num_chips, "tokens_per_s_per_chip")
    parameters = job.total_parameters
    good = goodput(
        job.chip, job.num_chips, parameters.dense + parameters.experts, job.optimizer,
        storage_bytes_per_s=storage_bytes_per_s / slower, host_bytes_per_s=e.host_bytes_per_s, slower=slower,
    )  # fmt: skip
    if good.share.value <= 0:
        raise ConfigError(
            f"{job.num_chips:,} x {job.chip.name} fail every {good.mtbf_s:,.3g} s, and a checkpoint takes "
            f"{good.write_s:,.3g} s to write: the job never gets from one to the next. Give more bandwidth to storage, "
            "or take fewer chips"
        )
    busy = rate.inverse(job.tokens / 3600 * job.num_chips, "gpu_hours")
    hours = _over(busy, good.share, "gpu_hours")
    shares = where(step, e)
    return TrainingPlan(
        job, stack, e, step, others, step_s, rate, per_chip, _tflops(job, per_chip.value), _mfu(job, per_chip), good,
        hours.scaled(1 / job.num_chips / 24, "days"), hours, busy, *_money(job, hours, usd_per_hour, against), shares,
        bottleneck_of(job, step, shares, good), weakest((grade, good.share.grade)) if grade == "rumour" else grade,
        (*job.notes, *notes, *_notes(job, step, stack)), _sources(job, stack, calibration, good),
    )  # fmt: skip


def _step(
    job: TrainJob, layout: Layout, e: TrainEfficiency, stack: Stack
) -> tuple[Step, tuple[Step, ...], list[str]]:  # fmt: skip
    if layout is None or layout == "search":
        found = search_layout(job, e, stack)
        used = found.best.layout.ranks
        notes = [f"best of {found.legal:,} legal layouts, {found.worked_out} of them worked out"]
        if used < job.num_ranks:
            idle = (job.num_ranks - used) / job.ranks_per_chip
            notes.append(f"{idle:,.0f} of {job.num_chips:,} chips stand by as spares: the layout divides the others")
        return found.best, found.others, notes
    if isinstance(layout, str):
        raise ConfigError(f"layout is {layout!r}; needed is 'search', or sizes as in {{'pp': 16, 'ep': 64}}")
    chosen = layout if isinstance(layout, TrainLayout) else read_layout(layout, job.num_ranks, stack.schedules[0])
    if chosen.recompute is None and job.stack is not None and stack.recompute is not None:
        chosen = chosen.changed(recompute=stack.recompute)
    check_layout(job.spec, chosen, job.sequence)
    check_job_layout(job, chosen)
    return step_time(job, place(job, chosen, e, stack), e, stack), (), []


def _around(value: float, log_spread: float, unit: str, grade: Grade) -> Estimate:
    return Estimate(value, value * math.exp(-log_spread), value * math.exp(log_spread), unit, grade)


def _over(a: Estimate, b: Estimate, unit: str) -> Estimate:
    """a / b, their ranges independent."""
    value = a.value / b.value if b.value else math.inf
    up = math.hypot(math.log(a.high / a.value), math.log(b.value / b.low)) if b.low > 0 else math.inf
    down = math.hypot(math.log(a.value / a.low), math.log(b.high / b.value)) if b.value else 0.0
    return Estimate(value, value * math.exp(-down), value * math.exp(up), unit, weakest((a.grade, b.grade)))


def _doubt(chip: Chip, number_format: str) -> float:
    """What a chip's own figures leave open: the wider side of its arithmetic's range, as a logarithm."""
    peak = chip.peak(compute_format(chip, number_format))
    return max(math.log(peak.value / peak.low), math.log(peak.high / peak.value))


def _tflops(job: TrainJob, rate: float) -> dict[str, float]:
    return {
        name: rate * training_flops_per_token(job.spec, job.sequence, causal=causal) / 1e12
        for name, causal in (("causal", True), ("non_causal", False))
    }


def _mfu(job: TrainJob, rate: Estimate) -> dict[str, Estimate]:
    chip = job.rank_chip
    peaks = {"bf16": compute_format(chip, "bf16"), "stated": compute_format(chip, job.formats.linear)}
    found = {}
    for name, causal in (("causal", True), ("non_causal", False)):
        flops = training_flops_per_token(job.spec, job.sequence, causal=causal)
        for which, fmt in peaks.items():
            peak = chip.peak(fmt).value * job.ranks_per_chip
            found[f"{name}_{which}"] = rate.scaled(flops / peak, "mfu")
    return found


def _money(
    job: TrainJob, hours: Estimate, usd_per_hour: float | None, against: TrainingPlan | None
) -> tuple[Estimate | None, tuple[float, float, float] | None, Estimate | None, str | None]:
    price = _price(job, usd_per_hour)
    usd = None
    if price is not None:
        usd = _times(hours, Estimate(*price, "usd_per_hour", "datasheet"), "usd")
    if against is None or against.usd is None:
        return usd, price, None, None
    even = _over(against.usd, hours, "usd_per_hour")
    return usd, price, even, f"{against.job.chip.name}:{against.job.num_chips}"


def _price(job: TrainJob, usd_per_hour: float | None) -> tuple[float, float, float] | None:
    if usd_per_hour is not None:
        if not 0 < usd_per_hour < 1e6:
            raise ConfigError(f"price is {usd_per_hour:g} USD per chip and hour; needed is a number above 0")
        return usd_per_hour, usd_per_hour, usd_per_hour
    figure = job.chip.usd_per_hour
    return None if figure is None else (figure.value, figure.low, figure.high)


def _times(a: Estimate, b: Estimate, unit: str) -> Estimate:
    up = math.hypot(math.log(a.high / a.value), math.log(b.high / b.value))
    down = math.hypot(math.log(a.value / a.low), math.log(b.value / b.low))
    value = a.value * b.value
    return Estimate(value, value * math.exp(-down), value * math.exp(up), unit, weakest((a.grade, b.grade)))


def _notes(job: TrainJob, step: Step, stack: Stack) -> list[str]:
    layout, notes = step.layout, [f"software: {stack.name} ({stack.about})"]
    rounds = step.micro_batches * layout.micro_batch * layout.dp
    if rounds > job.global_batch:
        notes.append(
            f"the global batch of {job.global_batch:,} sequences fills {step.micro_batches} rounds of {layout.dp:,} "
            f"replicas to {job.global_batch / rounds:.0%}; the rest waits"
        )
    if layout.offload:
        notes.append("optimizer states lie in the host's memory: nothing else fits")
    if layout.gradients == "bf16":
        notes.append("gradients are summed in BF16, since sums in FP32 do not fit; DeepSeek sums in FP32")
    recipe = recipe_of(job.spec)
    if job.chip.available > recipe.date:
        notes.append(f"{job.model} was published in {recipe.date}; the {job.chip.name} has been there since "
                     f"{job.chip.available}, or will be")  # fmt: skip
    if job.chip.vendor == "huawei" and job.num_ranks >= 2000:
        notes.append(LARGE_ASCEND)
    if job.imbalance == 1.0:
        notes.append("experts are taken as evenly loaded, as the published benchmarks force them to be")
    return notes


def _sources(job: TrainJob, stack: Stack, calibration: TrainCalibration, good: Goodput) -> tuple[str, ...]:
    chip = job.rank_chip
    figures = [chip.peak(compute_format(chip, job.formats.linear)), chip.memory_bytes_per_s, chip.memory_bytes]
    figures += [link.bytes_per_s for link in chip.links]
    return tuple(
        dict.fromkeys(
            [f"efficiencies: {calibration.fitted_on}", f"recipe: {recipe_of(job.spec).source}"]
            + [f"{chip.name}: {figure.source}" for figure in figures]
            + [f"failures: {source}" for source in good.sources]
        )
    )
