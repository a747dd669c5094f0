"""One door to all drawings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tiefsee.plan.report.charts import (
    Chart,
    Frontier,
    RangeBars,
    Roofline,
    Scaling,
    ScalingPoint,
    TimeBars,
    Tornado,
)
from tiefsee.plan.report.draw_bars import draw_range_bars, draw_time_bars, draw_tornado
from tiefsee.plan.report.draw_frontier import draw_frontier
from tiefsee.plan.report.draw_parts import is_finite, left_out
from tiefsee.plan.report.draw_roofline import LABELLED, draw_roofline
from tiefsee.plan.report.draw_scaling import draw_scaling
from tiefsee.plan.report.numbers import is_certain
from tiefsee.plan.report.scene import Scene


def draw(chart: Chart, width: float) -> Scene:
    """The chart for a column of `width` pixels."""
    match chart:
        case Frontier():
            return draw_frontier(chart, width)
        case Scaling():
            return draw_scaling(chart, width)
        case Roofline():
            return draw_roofline(chart, width)
        case TimeBars():
            return draw_time_bars(chart, width)
        case RangeBars():
            return draw_range_bars(chart, width)
        case Tornado():
            return draw_tornado(chart, width)


def caption(chart: Chart) -> str:
    """How to read it, what it leaves out, and its own note."""
    reading, missing = _words(chart)
    return " ".join(part for part in (reading, missing, chart.note) if part)


def _words(chart: Chart) -> tuple[str, str]:
    match chart:
        case Frontier():
            points = [p for line in chart.lines for p in line.points]
            kept = [p for p in points if is_finite(p.interactivity, p.throughput)]
            reading = "Shaded: the 80% range; where a prediction is slow it is slow in both directions."
            return reading if kept else "", left_out(len(points) - len(kept))
        case Scaling():
            shown = sorted((p for p in chart.points if is_finite(p.throughput)), key=lambda p: p.num_chips)
            return _of_scaling(shown), left_out(len(chart.points) - len(shown))
        case Roofline():
            # Without arithmetic an operator has no place on logarithmic axes: copies and look-ups.
            num = sum(not (p.flops_per_byte > 0 and math.isfinite(p.flops_per_byte)) for p in chart.points)
            reading = f"Operators from {LABELLED:.0%} of their phase's time on are named where there is room."
            reading += " How far a point lies below its roof is what is predicted to be lost."
            missing = f"{num} operators without arithmetic are not shown." if num else ""
            return reading if num < len(chart.points) else "", missing
        case TimeBars():
            return "", left_out(sum(not is_finite(bar.total) for bar in chart.bars), "step")
        case RangeBars():
            has_range = any(bar.value is not None and not is_certain(bar.value) for bar in chart.bars)
            return "Whiskers: the 80% range." if has_range else "", ""
        case Tornado():
            return (
                "One input at a time is moved to the ends of its range, the others stay." if chart.swings else ""
            ), ""


def _of_scaling(points: Sequence[ScalingPoint]) -> str:
    if len(points) < 2:
        return "Bar: the 80% range." if points else ""
    first, last = points[0], points[-1]
    reached = last.throughput.value / last.num_chips * first.num_chips / first.throughput.value
    return (
        f"A card of {last.num_chips:,} gives {reached:.0%} of what a card of {first.num_chips:,} gives. "
        "Shaded: the 80% range. Dashed: the smallest number of cards, scaled up without loss."
    )
