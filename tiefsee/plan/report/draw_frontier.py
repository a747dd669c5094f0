"""Throughput against interactivity."""

from __future__ import annotations

from tiefsee.plan.report.axis import FRAME_BOTTOM, FRAME_TOP, Axis, draw_frame, linear_axis, tick_room
from tiefsee.plan.report.charts import Frontier, FrontierPoint
from tiefsee.plan.report.draw_parts import NARROW, is_finite, legend, nothing
from tiefsee.plan.report.numbers import common_scale, show
from tiefsee.plan.report.palette import colour_of, shape_of
from tiefsee.plan.report.scene import SIZE, Canvas, Scene


def draw_frontier(chart: Frontier, width: float) -> Scene:
    """Each line with its band: a truth that is fast in both directions, or slow in both, lies at its edges."""
    lines = [(line.name, [p for p in line.points if is_finite(p.interactivity, p.throughput)]) for line in chart.lines]
    points = [point for _, kept in lines for point in kept]
    if not points:
        return nothing(width, "no point has a finite value")
    canvas = Canvas(width)
    top = 16.0
    if len(lines) > 1:
        top = legend(canvas, [(name, colour_of(i), shape_of(i)) for i, (name, _) in enumerate(lines)], 2, top)
    x, y = _axes(chart, points, width, top)
    unit = common_scale(points[0].throughput.unit, [p.throughput.value for p in points]).label
    draw_frame(canvas, x, y, "tokens/s of one user (1 / TPOT)", unit)
    if chart.limit_tpot_s:
        _limit(canvas, x, y, chart.limit_tpot_s)
    for i, (_, kept) in enumerate(lines):
        _band(canvas, x, y, kept, colour_of(i))
    for i, (_, kept) in enumerate(lines):
        places = [_place(x, y, p) for p in _ordered(kept)]
        canvas.line(places, colour_of(i), 2)
        canvas.keep_clear(places)
    for i, (name, kept) in enumerate(lines):
        for point in kept:
            _mark(canvas, x, y, point, name, i)
    named = [p for _, kept in lines for p in (_ends(kept) if width < NARROW else kept)]
    _labels(canvas, x, y, named)
    return canvas.scene(y.start + FRAME_BOTTOM)


def _axes(chart: Frontier, points: list[FrontierPoint], width: float, top: float) -> tuple[Axis, Axis]:
    height = 240.0 if width < NARROW else 320.0
    y_scale = common_scale(points[0].throughput.unit, [p.throughput.value for p in points])
    x_scale = common_scale("tokens_per_s_per_user", [p.interactivity.value for p in points])
    end = top + FRAME_TOP
    y = linear_axis([p.throughput.high for p in points], end + height, end, y_scale)
    ends = [p.interactivity.high for p in points]
    if chart.limit_tpot_s:
        ends.append(1.15 / chart.limit_tpot_s)
    return linear_axis(ends, tick_room(y) + 4, width - 10, x_scale), y


def _place(x: Axis, y: Axis, point: FrontierPoint) -> tuple[float, float]:
    return x.at(point.interactivity.value), y.at(point.throughput.value)


def _ordered(points: list[FrontierPoint]) -> list[FrontierPoint]:
    return sorted(points, key=lambda p: p.interactivity.value)


def _ends(points: list[FrontierPoint]) -> list[FrontierPoint]:
    """A phone has room for the ends of a line and for what was chosen."""
    ordered = _ordered(points)
    return [p for i, p in enumerate(ordered) if p.chosen or i in (0, len(ordered) - 1)]


def _band(canvas: Canvas, x: Axis, y: Axis, points: list[FrontierPoint], colour: str) -> None:
    ordered = _ordered(points)
    if len(ordered) == 1:  # a band needs two points; one has a cross
        p = ordered[0]
        across, up = _place(x, y, p)
        level = ((x.at(p.interactivity.low), up), (x.at(p.interactivity.high), up))
        for line in (level, ((across, y.at(p.throughput.low)), (across, y.at(p.throughput.high)))):
            canvas.line(line, colour, 1.5)
            canvas.keep_clear(line)
        return
    slow = [(x.at(p.interactivity.low), y.at(p.throughput.low)) for p in ordered]
    fast = [(x.at(p.interactivity.high), y.at(p.throughput.high)) for p in ordered]
    canvas.area([*slow, *reversed(fast)], colour, 0.14)


def _mark(canvas: Canvas, x: Axis, y: Axis, point: FrontierPoint, name: str, number: int) -> None:
    across, up = _place(x, y, point)
    tip = f"{name} {point.label}: {show(point.throughput)} at {show(point.interactivity)}"
    canvas.mark(across, up, 4.5, shape_of(number), colour_of(number), tip=tip)
    if point.chosen:
        canvas.mark(across, up, 9, "circle", "", stroke="ink", tip=tip)


def _labels(canvas: Canvas, x: Axis, y: Axis, points: list[FrontierPoint]) -> None:
    """The chosen ones first, then as many as find room."""
    area = (x.start, y.end - 6, x.end + 10, y.start)
    for point in sorted(points, key=lambda p: not p.chosen):
        if point.label:
            across, up = _place(x, y, point)
            canvas.place(across, up, point.label, area, gap=11 if point.chosen else 7)


def _limit(canvas: Canvas, x: Axis, y: Axis, limit_tpot_s: float) -> None:
    place = x.at(1 / limit_tpot_s)
    canvas.line(((place, y.start), (place, y.end)), "warn", 1.2, dashed=True)
    canvas.keep_clear(((place, y.start), (place, y.end)))
    text = f"TPOT {limit_tpot_s * 1e3:g} ms"
    anchor_end = place > (x.start + x.end) / 2
    canvas.text(
        place + (-5 if anchor_end else 5),
        y.end + 10,
        text,
        size=SIZE - 1,
        colour="warn",
        anchor="end" if anchor_end else "start",
    )
