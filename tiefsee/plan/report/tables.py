"""Charts as tables: for the terminal, for readers who cannot see pictures, and for print."""

from __future__ import annotations

from tiefsee.plan.report.charts import Chart, Frontier, RangeBars, Roofline, Scaling, TimeBars, Tornado
from tiefsee.plan.report.document import Cell, Column, Table


def as_table(chart: Chart) -> Table:
    """The figures of a chart, row by row."""
    match chart:
        case Frontier():
            return _frontier(chart)
        case Scaling():
            return _scaling(chart)
        case Roofline():
            return _roofline(chart)
        case TimeBars():
            return _time_bars(chart)
        case RangeBars():
            return _range_bars(chart)
        case Tornado():
            return _tornado(chart)


def _frontier(chart: Frontier) -> Table:
    points = [(line.name, p) for line in chart.lines for p in line.points]
    unit = points[0][1].throughput.unit if points else "tokens_per_s"
    columns = (
        Column("line", "line"), Column("label", "point"), Column("interactivity", "one user", "tokens_per_s_per_user"),
        Column("throughput", "throughput", unit),
    )  # fmt: skip
    rows = tuple((name, p.label, p.interactivity, p.throughput) for name, p in points)
    chosen = next((i for i, (_, p) in enumerate(points) if p.chosen), None)
    return Table(chart.title, columns, rows, chosen=chosen)


def _scaling(chart: Scaling) -> Table:
    unit = chart.points[0].throughput.unit if chart.points else "tokens_per_s"
    names = list(dict.fromkeys(name for p in chart.points for name, _ in p.shares))
    with_mfu = any(p.mfu is not None for p in chart.points)
    columns = (
        Column("num_chips", "cards", "chips"), Column("throughput", "throughput", unit),
        *([Column("mfu", "MFU", "mfu")] if with_mfu else []), *(Column(name, name, "share") for name in names),
    )  # fmt: skip
    rows = tuple(
        (p.num_chips, p.throughput, *([p.mfu] if with_mfu else []), *(dict(p.shares).get(name) for name in names))
        for p in chart.points
    )
    return Table(chart.title, columns, rows)


def _roofline(chart: Roofline) -> Table:
    columns = (
        Column("phase", "phase"), Column("operator", "operator"), Column("format", "format"),
        Column("flops_per_byte", "intensity", "flops_per_byte"), Column("flops_per_s", "reached", "flops_per_s"),
        Column("seconds", "time", "step_s"), Column("share", "of its phase", "share"),
    )  # fmt: skip
    ordered = sorted(chart.points, key=lambda p: (p.phase, -p.share))
    rows = tuple((p.phase, p.name, p.format, p.flops_per_byte, p.flops_per_s, p.seconds, p.share) for p in ordered)
    return Table(chart.title, columns, rows)


def _time_bars(chart: TimeBars) -> Table:
    columns = (
        Column("step", "step"), Column("part", "part"), Column("seconds", "time", "step_s"),
        Column("share", "of the step", "share"),
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for bar in chart.bars:
        whole = sum(seconds for _, seconds in bar.parts) or 1.0
        rows.append((bar.label, "all", bar.total, 1.0))
        rows += [(bar.label, n, s, s / whole) for n, s in sorted(bar.parts, key=lambda p: -p[1])]
    return Table(chart.title, columns, tuple(rows))


def _range_bars(chart: RangeBars) -> Table:
    columns: tuple[Column, ...] = (
        Column("label", ""),
        Column("value", chart.axis, chart.unit),
        Column("remark", "remark"),
    )
    if not any(bar.remark for bar in chart.bars):
        columns = columns[:2]
    rows = tuple((bar.label, bar.value, bar.remark)[: len(columns)] for bar in chart.bars)
    return Table(chart.title, columns, rows, chosen=next((i for i, bar in enumerate(chart.bars) if bar.chosen), None))


def _tornado(chart: Tornado) -> Table:
    unit = chart.base.unit
    columns: tuple[Column, ...] = (
        Column("input", "input"), Column("range", "from .. to"),
        Column("at_low", "at low", unit), Column("at_high", "at high", unit), Column("remark", "remark"),
    )  # fmt: skip
    if not any(swing.remark for swing in chart.swings):
        columns = columns[:4]
    rows = tuple((s.name, s.range, s.at_low, s.at_high, s.remark)[: len(columns)] for s in chart.swings)
    return Table(chart.title, columns, rows)
