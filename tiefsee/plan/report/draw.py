"""One door to all drawings."""

from __future__ import annotations

import math

from tiefsee.plan.report.charts import Chart, Frontier, RangeBars, Roofline, Scaling, TimeBars, Tornado
from tiefsee.plan.report.draw_bars import draw_range_bars, draw_time_bars, draw_tornado
from tiefsee.plan.report.draw_frontier import draw_frontier
from tiefsee.plan.report.draw_parts import is_finite, left_out
from tiefsee.plan.report.draw_roofline import LABELLED, draw_roofline
from tiefsee.plan.report.draw_scaling import draw_scaling
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
    return " ".join(part for part in (_reading(chart), _missing(chart), chart.note) if part)


def _reading(chart: Chart) -> str:
    match chart:
        case Frontier():
            return "Shaded: the 80% range; where a prediction is slow it is slow in both directions."
        case Scaling():
            return "Shaded: the 80% range. Dashed: the smallest number of cards, scaled up without loss."
        case Roofline():
            named = f"Operators from {LABELLED:.0%} of their phase's time on are named where there is room."
            return f"{named} How far a point lies below its roof is what is predicted to be lost."
        case TimeBars():
            return ""
        case RangeBars():
            return "Whiskers: the 80% range."
        case Tornado():
            return "One input at a time is moved to the ends of its range, the others stay."


def _missing(chart: Chart) -> str:
    match chart:
        case Frontier():
            return left_out(
                sum(not is_finite(p.interactivity, p.throughput) for line in chart.lines for p in line.points)
            )
        case Scaling():
            return left_out(sum(not is_finite(p.throughput) for p in chart.points))
        case Roofline():
            # Without arithmetic, an operator has no place on logarithmic axes: copies and look-ups.
            num = sum(not (p.flops_per_byte > 0 and math.isfinite(p.flops_per_byte)) for p in chart.points)
            return f"{num} operators without arithmetic are not shown." if num else ""
        case TimeBars():
            return left_out(sum(not is_finite(bar.total) for bar in chart.bars), "step")
        case _:
            return ""
