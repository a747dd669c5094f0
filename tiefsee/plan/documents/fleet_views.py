"""Fleets side by side, as charts, tables and data for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tiefsee.plan.documents.describe import describe, plan_data, workers_text
from tiefsee.plan.documents.fleets import Fleet, alternative_of, break_even_text
from tiefsee.plan.figures.estimate import Estimate
from tiefsee.plan.report import (
    Cell,
    Column,
    FrontierPoint,
    Line,
    RangeBar,
    RangeBars,
    Scaling,
    ScalingPoint,
    Table,
    interactivity,
)
from tiefsee.plan.search.placement import Plan


def cost_by_fleet(chosen: Fleet, others: Sequence[Fleet]) -> RangeBars:
    """USD per million output tokens; where no price is public, the price per card-hour that breaks even."""
    fleets = (chosen, *others)
    bars = tuple(
        RangeBar(fleet.name, fleet.usd_per_million_tokens, _remark(fleet, alternative_of(fleet, fleets)), not i)
        for i, fleet in enumerate(fleets)
    )
    note = "Each fleet within the service levels; ranges hold 80%, prices' own ranges included."
    return RangeBars("Cost per million output tokens by fleet", "price of output", "usd_per_million_tokens", bars, note)


def _remark(fleet: Fleet, other: Fleet | None) -> str:
    if fleet.error:
        return fleet.error
    if not fleet.unpriced:
        return ""
    lacking = f"no price of {', '.join(fleet.unpriced)} is public"
    even = None if other is None else fleet.break_even(other)
    if other is None or even is None:
        return lacking
    return f"{lacking}; {break_even_text(even, other)}"


def frontier_lines(fleets: Sequence[Fleet], chosen: Plan) -> tuple[Line, ...]:
    """Of fleets whose other TPOTs were searched. Points take the range of the fleet's best: the same evidence is behind
    them."""
    return tuple(
        Line(fleet.name, tuple(_frontier_points(fleet, chosen)))
        for fleet in fleets
        if fleet.found is not None and fleet.found.frontier
    )


def _frontier_points(fleet: Fleet, chosen: Plan) -> list[FrontierPoint]:
    assert fleet.found is not None
    assert fleet.prediction is not None
    per_chip, tpot = (fleet.prediction.estimate(unit) for unit in ("tokens_per_s_per_chip", "tpot_s"))
    return [
        FrontierPoint(
            interactivity(_like(tpot, plan.served.tpot_s)), _like(per_chip, plan.tokens_per_s_per_chip),
            f"{describe(plan)}, {plan.concurrency:,.0f} at once", plan is chosen,
        )
        for plan in fleet.found.frontier
    ]  # fmt: skip


def _like(estimate: Estimate, value: float) -> Estimate:
    """Another value with the same relative range."""
    return estimate.scaled(value / estimate.value, estimate.unit)


def scaling_chart(fleets: Sequence[Fleet]) -> Scaling | None:
    """Output against cards; those that can't serve are in the table."""
    points = tuple(
        ScalingPoint(fleet.found.best.num_chips, rate)
        for fleet in fleets
        if fleet.found is not None and (rate := fleet.tokens_per_s) is not None
    )
    return Scaling("Scaling with cards", points) if points else None


def fleets_table(fleets: Sequence[Fleet]) -> Table:
    """The first one is the answer's."""
    columns = (
        Column("fleet", "fleet"), Column("layout", "layout"), Column("num_chips", "cards"),
        Column("tokens_per_s", "output", "tokens_per_s"), Column("per_chip", "per card", "tokens_per_s_per_chip"),
        Column("usd_per_million_tokens", "price", "usd_per_million_tokens"),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for fleet in fleets:
        if fleet.found is None or fleet.prediction is None:
            rows.append((fleet.name, fleet.error, None, None, None, None))
            continue
        best, each = fleet.found.best, fleet.prediction.estimate("tokens_per_s_per_chip")
        price = fleet.usd_per_million_tokens
        rows.append((fleet.name, describe(best), best.num_chips, fleet.tokens_per_s, each, price))
    return Table("Against other fleets", columns, tuple(rows), "Each within the same service levels.", 0)


def sizes_table(fleets: Sequence[Fleet]) -> Table:
    columns = (
        Column("fleet", "cards"), Column("layout", "layout"), Column("concurrency", "at once"),
        Column("tokens_per_s", "output", "tokens_per_s"), Column("per_chip", "per card", "tokens_per_s_per_chip"),
        Column("tpot_s", "TPOT", "tpot_s"), Column("limit", "limit"),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for fleet in fleets:
        if fleet.found is None or fleet.prediction is None:
            rows.append((fleet.name, fleet.error, None, None, None, None, ""))
            continue
        best, each = fleet.found.best, fleet.prediction.estimate("tokens_per_s_per_chip")
        tpot = fleet.prediction.estimate("tpot_s")
        rows.append(
            (fleet.name, workers_text(best), round(best.concurrency), fleet.tokens_per_s, each, tpot, best.limit)
        )
    return Table("The best of each number of cards", columns, tuple(rows))


def fleet_data(fleet: Fleet, alternative: Fleet | None) -> dict[str, Any]:
    """`alternative`: what it is to break even with."""
    if fleet.found is None:
        return {"fleet": fleet.name, "error": fleet.error}
    return {
        "fleet": fleet.name, "tokens_per_s": fleet.tokens_per_s, "usd_per_million_tokens": fleet.usd_per_million_tokens,
        "break_even_usd_per_chip_hour": None if alternative is None else fleet.break_even(alternative),
        "plan": plan_data(fleet.found.best),
    }  # fmt: skip


__all__ = ["cost_by_fleet", "fleet_data", "fleets_table", "frontier_lines", "scaling_chart", "sizes_table"]
