"""A training plan as a document: figures, the layout, where a step and the wall time go, what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tiefsee.plan.report import (
    Cell,
    Chart,
    Column,
    Document,
    NamedEstimate,
    RangeBar,
    RangeBars,
    Scaling,
    Source,
    Table,
    TimeBar,
    TimeBars,
    show,
)
from tiefsee.plan.report import ScalingPoint as ChartPoint
from tiefsee.plan.training.plan import TrainingPlan
from tiefsee.plan.training.report import scaling_json, to_json
from tiefsee.plan.training.scaling import ScalingPoint
from tiefsee.plan.training.step import Step


@dataclass(frozen=True, eq=False)
class TrainingAnswer:
    """A plan; what it is compared with, where its own chips have no price; the same job on other counts of chips."""

    plan: TrainingPlan
    against: TrainingPlan | None = None
    points: Sequence[ScalingPoint] = ()

    def document(self, *, command: str, date: str) -> Document:
        plan, job = self.plan, self.plan.job
        fleet = fleet_of(plan)
        charts: list[Chart] = [_times(plan) for plan in (self.plan, self.against) if plan is not None]
        charts.append(self._cost())
        if any(point.plan is not None for point in self.points):
            charts.append(self._scaling())
        return Document(
            title=f"Training {job.model} on {fleet}",
            question=f"{job.tokens / 1e12:g} T tokens in {job.precision}; {job.global_batch:,} sequences of "
            f"{job.sequence:,} tokens a step; {job.optimizer}{', with MTP' if job.with_mtp else ''}; software: "
            f"{plan.stack.name}",
            answer=f"{show(plan.days)}, failures included, at {show(plan.tokens_per_s_per_chip)} and "
            f"{show(plan.mfu['causal_bf16'])} MFU, with {layout_text(plan.step)}.",
            grade=plan.grade,
            bottleneck=plan.bottleneck,
            figures=tuple(self._figures()),
            tables=tuple(self._tables()),
            charts=tuple(charts),
            sources=tuple(Source(f"s{n}", text) for n, text in enumerate(plan.sources, 1)),
            notes=plan.notes,
            command=command,
            date=date,
            data=self._data(),
        )

    def _figures(self) -> list[NamedEstimate]:
        plan = self.plan
        found = [
            NamedEstimate("step_s", "step", plan.step_s),
            NamedEstimate("tokens_per_s", "all cards", plan.tokens_per_s),
            NamedEstimate("tokens_per_s_per_chip", "per card", plan.tokens_per_s_per_chip),
            NamedEstimate("mfu", "MFU, causal, of the BF16 peak", plan.mfu["causal_bf16"]),
            NamedEstimate("mfu_non_causal", "MFU, not causal, of the BF16 peak", plan.mfu["non_causal_bf16"]),
            NamedEstimate("goodput", "useful wall time", plan.goodput.share),
            NamedEstimate("days", "wall time", plan.days),
            NamedEstimate("gpu_hours", "card-hours", plan.chip_hours),
        ]
        if plan.job.precision != "bf16":
            name = plan.job.precision.upper()
            found.insert(5, NamedEstimate("mfu_stated", f"MFU, causal, of the {name} peak", plan.mfu["causal_stated"]))
        if plan.usd is not None:
            found.append(NamedEstimate("usd", "money", plan.usd))
        if plan.break_even_usd_per_hour is not None:
            label = f"breaks even with {plan.against} at"
            even = plan.break_even_usd_per_hour.scaled(1.0, "usd_per_chip_hour")
            found.append(NamedEstimate("break_even_usd_per_chip_hour", label, even))
        return found

    # ------------------------------------------------------------------------------------- tables

    def _tables(self) -> list[Table]:
        tables = [self._layouts(), self._parts(), self._memory(), self._failures()]
        if self.points:
            tables.append(self._reasons())
        return tables

    def _layouts(self) -> Table:
        columns = (
            Column("layout", "layout"), Column("recompute", "recompute"), Column("micro_batches", "micro-batches"),
            Column("step_s", "step", "step_s"), Column("memory_bytes", "fullest rank", "bytes"),
        )  # fmt: skip
        steps = (self.plan.step, *self.plan.alternatives)
        rows: list[tuple[Cell, ...]] = [
            (layout_text(s), s.recompute, s.micro_batches, s.seconds, s.memory.total) for s in steps
        ]
        return Table("The layout, and what comes next", columns, tuple(rows), chosen=0)

    def _parts(self) -> Table:
        """As DeepSeek tabulates a step (ISCA 2025, table 4): chunks by kind, not by operator."""
        parts = self.plan.step.parts
        columns = tuple(Column(name, name, "step_s") for name in parts)
        note = "F forward, B backward for inputs, W for weights; 1F1B both beside one another; opt: reduce and update."
        return Table("The parts of a step", columns, (tuple(parts.values()),), note)

    def _memory(self) -> Table:
        memory = asdict(self.plan.step.memory)
        columns = tuple(Column(name, name, "bytes") for name in memory)
        return Table("What the fullest rank holds", columns, (tuple(memory.values()),))

    def _failures(self) -> Table:
        good = self.plan.goodput
        columns = (
            Column("failures_per_day", "a day"), Column("mtbf_s", "one in", "mtbf_s"),
            Column("checkpoint_bytes", "a checkpoint", "bytes"), Column("interval_s", "every", "interval_s"),
            Column("restart_s", "restart", "restart_s"),
            *(Column(name.replace(" ", "_"), name, "share") for name in good.lost),
        )  # fmt: skip
        row = (
            good.failures_per_day.value, good.mtbf_s, good.checkpoint_bytes, good.interval_s, good.restart_s,
            *good.lost.values(),
        )  # fmt: skip
        return Table("Failures, and what they cost of the wall time", columns, (row,))

    def _reasons(self) -> Table:
        columns = (
            Column("num_chips", "cards", "chips"), Column("days", "wall time", "days"),
            Column("tokens_per_s_per_chip", "useful, per card", "tokens_per_s_per_chip"),
            Column("efficiency", "of the smallest", "share"), Column("why", "what is lost most"),
        )  # fmt: skip
        rows: list[tuple[Cell, ...]] = [
            (p.num_chips, p.plan.days, p.useful_tokens_per_s_per_chip, p.efficiency, p.why) if p.plan is not None
            else (p.num_chips, None, None, None, p.error)
            for p in self.points
        ]  # fmt: skip
        return Table("Where a large cluster falls short", columns, tuple(rows), "The global batch is the same for all.")

    # ------------------------------------------------------------------------------------- charts

    def _cost(self) -> RangeBars:
        plan, remark = self.plan, ""
        if plan.break_even_usd_per_hour is not None:
            even = plan.break_even_usd_per_hour.scaled(1.0, "usd_per_chip_hour")
            remark = f"breaks even with {plan.against} at {show(even)}"
        if plan.usd is None:
            remark = f"no price of {plan.job.chip.name} is public; it {remark}" if remark else "no public price"
        bars = [RangeBar(fleet_of(plan), plan.usd, remark, True)]
        if self.against is not None:
            other = self.against
            bars.append(RangeBar(fleet_of(other), other.usd, f"{show(other.days)}, {show(other.chip_hours)}"))
        return RangeBars("Cost of the run by fleet", "cost of the run", "usd", tuple(bars))

    def _scaling(self) -> Scaling:
        points = tuple(_chart_point(p.plan) for p in self.points if p.plan is not None)
        note = "Useful tokens: failures are counted."
        return Scaling("Tokens/s and MFU against the number of cards", points, note)

    def _data(self) -> dict[str, Any]:
        found = to_json(self.plan)
        if self.against is not None:
            found["alternative"] = to_json(self.against)
        if self.points:
            found["scaling"] = [scaling_json(point) for point in self.points]
        return found


def _times(plan: TrainingPlan) -> TimeBars:
    """One picture for each fleet: steps of unlike lengths on one axis would hide the shorter one's parts."""
    parts = tuple((name, share * plan.step_s.value) for name, share in plan.where.items() if share)
    title = f"Where a step's time goes on {fleet_of(plan)}"
    return TimeBars(title, (TimeBar("step", plan.step_s, parts),), "Of the mean rank: what is hidden is not counted.")


def fleet_of(plan: TrainingPlan) -> str:
    return f"{plan.job.chip.name}:{plan.job.num_chips}"


def layout_text(step: Step) -> str:
    """TP4 CP4 EP384 PP4x8 DP984, interleaved."""
    layout = step.layout
    sizes = [("TP", layout.tp), ("CP", layout.cp), ("EP", layout.ep), ("PP", layout.pp)]
    words = [f"{name}{size}" for name, size in sizes if size > 1]
    if layout.virtual > 1:
        words[-1] += f"x{layout.virtual}"
    words.append(f"DP{layout.dp}")
    if layout.zero > 1:
        words.append(f"ZeRO-{layout.zero}")
    schedule = f", {layout.schedule}" if layout.pp > 1 else ""
    return " ".join(words) + schedule + (f", micro-batch {layout.micro_batch}" if layout.micro_batch > 1 else "")


def _chart_point(plan: TrainingPlan) -> ChartPoint:
    """Shares of the wall time: arithmetic, what a step waits for, and what failures take."""
    good = plan.goodput.share.value
    names = {"exchange": "exchange", "bubble": "bubble", "update": "reduce and update"}
    shares = {"arithmetic": 0.0, **dict.fromkeys(names.values(), 0.0)}
    for key, share in plan.where.items():
        shares[names.get(key, "arithmetic")] += share * good
    rate = plan.days.inverse(plan.job.tokens / 86400, "tokens_per_s")
    return ChartPoint(
        plan.job.num_chips, rate, plan.mfu["causal_bf16"], (*shares.items(), ("failures", 1.0 - good))
    )  # fmt: skip
