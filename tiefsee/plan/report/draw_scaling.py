"""Throughput and MFU against the number of cards, and where a large cluster loses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tiefsee.plan.figures.estimate import Estimate
from tiefsee.plan.report.axis import FRAME_BOTTOM, FRAME_TOP, draw_frame, linear_axis, log_axis, tick_room
from tiefsee.plan.report.charts import Scaling, ScalingPoint
from tiefsee.plan.report.draw_parts import NARROW, is_finite, legend, nothing
from tiefsee.plan.report.numbers import Scale, common_scale, show
from tiefsee.plan.report.scene import SIZE, Canvas, Scene, text_width

HEIGHT = 210.0
_LOSSES = ("c2", "c1", "c0", "c4", "c3", "c6", "c5")  # the useful part, then what is lost


def draw_scaling(chart: Scaling, width: float) -> Scene:
    points = sorted((p for p in chart.points if is_finite(p.throughput)), key=lambda p: p.num_chips)
    if not points:
        return nothing(width, "no number of cards has a finite throughput")
    canvas = Canvas(width)
    with_mfu = [p for p in points if p.mfu is not None and is_finite(p.mfu)]
    beside = bool(with_mfu) and width >= NARROW
    right = width / 2 - 14 if beside else width
    bottom = _throughput(canvas, points, 0.0, right, 6.0)
    if with_mfu:
        left, top = (width / 2 + 14, 6.0) if beside else (0.0, bottom + 8)
        bottom = _mfu(canvas, with_mfu, left, width, top)
    if any(p.shares for p in points):
        bottom = _shares(canvas, [p for p in points if p.shares], bottom + 10)
    return canvas.scene(bottom)


def _throughput(canvas: Canvas, points: Sequence[ScalingPoint], left: float, right: float, top: float) -> float:
    values = [v for p in points for v in (p.throughput.low, p.throughput.high)]
    each = points[0].throughput.value / points[0].num_chips
    ideal = [(p.num_chips, each * p.num_chips) for p in points]
    scale = common_scale(points[0].throughput.unit, [p.throughput.value for p in points])
    end = top + FRAME_TOP
    y = log_axis([*values, *(value for _, value in ideal)], end + HEIGHT, end, scale)
    x = log_axis([p.num_chips for p in points], left + tick_room(y) + 4, right - 10, Scale(1.0, ""))
    draw_frame(canvas, x, y, "cards", scale.label, x_ticks=[p.num_chips for p in points])
    _curve(canvas, x.at, y.at, points, [p.throughput for p in points], "c0")
    if len(points) > 1:
        canvas.line([(x.at(n), y.at(value)) for n, value in ideal], "quiet", 1.2, dashed=True)
    return y.start + FRAME_BOTTOM


def _mfu(canvas: Canvas, points: Sequence[ScalingPoint], left: float, right: float, top: float) -> float:
    estimates = [p.mfu for p in points if p.mfu is not None]
    end = top + FRAME_TOP
    y = linear_axis([e.high for e in estimates], end + HEIGHT, end, Scale(100.0, "%"))
    x = log_axis([p.num_chips for p in points], left + tick_room(y) + 4, right - 10, Scale(1.0, ""))
    draw_frame(canvas, x, y, "cards", "MFU, %", x_ticks=[p.num_chips for p in points])
    _curve(canvas, x.at, y.at, points, estimates, "c2")
    return y.start + FRAME_BOTTOM


def _curve(
    canvas: Canvas,
    at_x: Callable[[float], float],
    at_y: Callable[[float], float],
    points: Sequence[ScalingPoint],
    estimates: Sequence[Estimate],
    colour: str,
) -> None:
    places = [at_x(p.num_chips) for p in points]
    low, high = (
        [(x, at_y(getattr(e, end))) for x, e in zip(places, estimates, strict=True)] for end in ("low", "high")
    )
    if len(points) > 1:
        canvas.area([*low, *reversed(high)], colour, 0.16)
    else:
        canvas.line((low[0], high[0]), colour, 1.5)
    canvas.line([(x, at_y(e.value)) for x, e in zip(places, estimates, strict=True)], colour, 2)
    for point, x, estimate in zip(points, places, estimates, strict=True):
        canvas.mark(x, at_y(estimate.value), 4.5, "circle", colour, tip=f"{point.num_chips:,} cards: {show(estimate)}")


def _shares(canvas: Canvas, points: Sequence[ScalingPoint], top: float) -> float:
    """A column for each number of cards, useful part at the bottom, its losses above it."""
    names = list(dict.fromkeys(name for p in points for name, _ in p.shares))
    colours = dict(zip(names, (*_LOSSES, *["c7"] * len(names)), strict=False))
    canvas.text(2, top + 12, "Where the wall time goes, %", size=SIZE - 1, colour="quiet")
    under = legend(canvas, [(name, colours[name], "square") for name in names], 2, top + 34)
    start, base = 34.0, under + 4 + HEIGHT
    for percent in (0, 25, 50, 75, 100):
        level = base - HEIGHT * percent / 100
        canvas.line(((start, level), (canvas.width - 4, level)), "line")
        canvas.text(start - 6, level + 4, str(percent), size=SIZE - 1, anchor="end", colour="quiet")
    pitch = (canvas.width - 4 - start) / len(points)
    for i, point in enumerate(points):
        wide = min(0.72 * pitch, 84)
        left = start + pitch * i + (pitch - wide) / 2
        _column(canvas, point, left, wide, base, colours)
        text = f"{point.num_chips:,}"
        if text_width(text, SIZE - 1) < pitch or not i % 2:
            canvas.text(left + wide / 2, base + 17, text, size=SIZE - 1, anchor="middle", colour="quiet")
    canvas.text(canvas.width - 4, base + 34, "cards", size=SIZE - 1, anchor="end", colour="quiet")
    return base + FRAME_BOTTOM


def _column(
    canvas: Canvas, point: ScalingPoint, left: float, wide: float, base: float, colours: dict[str, str]
) -> None:
    level = base
    for name, share in point.shares:
        if not share > 0:
            continue
        tall = HEIGHT * share
        tip = f"{point.num_chips:,} cards, {name}: {share:.1%}"
        canvas.box(left, level - tall, wide, max(tall - 1, 0.5), colours[name], tip=tip)
        if tall > 15 and wide > 30:
            canvas.text(
                left + wide / 2, level - tall / 2 + 4, f"{share:.0%}", size=SIZE - 1, anchor="middle", colour="surface"
            )
        level -= tall
