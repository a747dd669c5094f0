"""Charts as tables of a terminal: as many rows as somebody reads there, and bars of letters. --json has all."""

from __future__ import annotations

from dataclasses import replace

from tiefsee.plan.report.charts import Chart, Frontier, FrontierPoint, Line, RangeBars, Roofline, TimeBars, Tornado
from tiefsee.plan.report.document import Cell, Column, Table
from tiefsee.plan.report.tables import as_table

PARTS, POINTS = 6, 5  # of a step, of a frontier's line
BAR = Column("bar", "")


def shortened(chart: Chart) -> Table | None:
    """None for what says nothing without its picture."""
    match chart:
        case Roofline():
            return None
        case Frontier():
            return _frontier(chart)
        case TimeBars():
            return _time_bars(chart)
        case RangeBars():
            values = [bar.value.value if bar.value is not None else 0.0 for bar in chart.bars]
            most = max(values, default=0.0)
            return _with_bars(as_table(chart), ["#" * round(20 * v / most) if most > 0 else "" for v in values])
        case Tornado():
            return _tornado(chart)
        case _:
            return as_table(chart)


def _frontier(chart: Frontier) -> Table:
    lines = tuple(Line(line.name, _some(line.points)) for line in chart.lines)
    fewer = any(len(a.points) < len(b.points) for a, b in zip(lines, chart.lines, strict=True))
    return replace(as_table(replace(chart, lines=lines)), note="some of the points; --json has all" if fewer else "")


def _some(points: tuple[FrontierPoint, ...]) -> tuple[FrontierPoint, ...]:
    """The ends, the chosen one, and others evenly between."""
    every = max(1, -(-(len(points) - 1) // (POINTS - 1)))
    return tuple(p for i, p in enumerate(points) if i % every == 0 or i == len(points) - 1 or p.chosen)


def _time_bars(chart: TimeBars) -> Table:
    """The largest parts of each step; its name stands once."""
    rows: list[tuple[Cell, ...]] = []
    bars: list[str] = []
    fewer = False
    table = as_table(chart)
    for name in dict.fromkeys(row[0] for row in table.rows):
        whole, *parts = (row for row in table.rows if row[0] == name)
        rows.append(whole)
        bars.append("")
        for row in parts[:PARTS]:
            rows.append(("", *row[1:]))
            share = row[3]
            bars.append("#" * round(30 * share) if isinstance(share, float) else "")
        fewer = fewer or len(parts) > PARTS
    note = f"the {PARTS} largest parts of each; --json has all" if fewer else ""
    return _with_bars(replace(table, rows=tuple(rows), note=note), bars)


def _tornado(chart: Tornado) -> Table:
    ends = [v for s in chart.swings for v in (s.at_low, s.at_high) if v is not None]
    low, high = min([chart.base.value, *ends]), max([chart.base.value, *ends])
    bars = [_swing(s.at_low, s.at_high, chart.base.value, low, high) for s in chart.swings]
    return _with_bars(
        replace(
            as_table(chart),
            title=f"{chart.title}: {chart.axis}",
            note="- input at its low end, + at its high end, | as it is",
        ),
        bars,
    )


def _swing(at_low: float | None, at_high: float | None, base: float, low: float, high: float, width: int = 24) -> str:
    def place(value: float) -> int:
        return round((value - low) / (high - low) * width) if high > low else 0

    cells = [" "] * (width + 1)
    for value, letter in ((at_low, "-"), (at_high, "+")):
        if value is not None:
            for i in range(min(place(value), place(base)), max(place(value), place(base)) + 1):
                cells[i] = letter
    cells[place(base)] = "|"
    return "".join(cells).rstrip()


def _with_bars(table: Table, bars: list[str]) -> Table:
    if not any(bars):
        return table
    rows = tuple((*row, bar) for row, bar in zip(table.rows, bars, strict=True))
    return replace(table, columns=(*table.columns, BAR), rows=rows)
