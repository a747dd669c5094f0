"""A roofline (Williams, Waterman, Patterson, CACM 2009): roofs of a chip, and the operators under them."""

from __future__ import annotations

import math

from tiefsee.plan.report.axis import FRAME_BOTTOM, FRAME_TOP, Axis, draw_frame, log_axis, tick_room
from tiefsee.plan.report.charts import Roofline, RoofPoint
from tiefsee.plan.report.draw_parts import NARROW, legend, nothing
from tiefsee.plan.report.numbers import common_scale, scale_of, show_plain
from tiefsee.plan.report.palette import colour_of, shape_of
from tiefsee.plan.report.scene import SIZE, Canvas, Scene, text_width

LABELLED = 0.05  # share of a phase's time from which an operator is named in the picture


def draw_roofline(chart: Roofline, width: float) -> Scene:
    points = [p for p in chart.points if _drawable(p)]
    if not points or not chart.compute or not chart.memory:
        return nothing(width, "no operator has arithmetic and bytes, or the chip has no roof")
    canvas = Canvas(width)
    phases = list(dict.fromkeys(p.phase for p in points))
    keys = [(f"{phase}: area is the share of its time", colour_of(i), shape_of(i)) for i, phase in enumerate(phases)]
    top = legend(canvas, keys, 2, 16.0)
    x, y = _axes(chart, points, width, top)
    draw_frame(canvas, x, y, "FLOP per byte of memory traffic", y.scale.label)
    _roofs(canvas, chart, x, y)
    for point in sorted(points, key=lambda p: -p.share):
        i = phases.index(point.phase)
        canvas.mark(
            x.at(point.flops_per_byte), y.at(point.flops_per_s), radius(point), shape_of(i), colour_of(i),
            tip=f"{point.phase}, {point.name} ({point.format}): {point.share:.0%} of the time, "
            f"{show_plain(point.flops_per_s, 'flops_per_s')} at {show_plain(point.flops_per_byte, 'flops_per_byte')}",
            opacity=0.8,
        )  # fmt: skip
    area = (x.start, y.end, x.end + 8, y.start)
    for point in sorted(points, key=lambda p: -p.share):
        if point.share >= LABELLED:
            place = x.at(point.flops_per_byte), y.at(point.flops_per_s)
            canvas.place(*place, point.name, area, gap=radius(point) + 3, size=SIZE - 1.5)
    return canvas.scene(y.start + FRAME_BOTTOM)


def radius(point: RoofPoint) -> float:
    return 2.5 + 15 * math.sqrt(point.share)


def _drawable(point: RoofPoint) -> bool:
    return all(math.isfinite(v) and v > 0 for v in (point.flops_per_byte, point.flops_per_s)) and point.share >= 0


def _axes(chart: Roofline, points: list[RoofPoint], width: float, top: float) -> tuple[Axis, Axis]:
    height = 280.0 if width < NARROW else 380.0
    peak, slowest = max(r.value for r in chart.compute), min(r.value for r in chart.memory)
    ridge = peak / slowest
    end = top + FRAME_TOP
    y = log_axis(
        [*(p.flops_per_s for p in points), peak], end + height, end, scale_of("flops_per_s", peak / 10), margin=2
    )
    intensities = [*(p.flops_per_byte for p in points), ridge * 4]
    x = log_axis(intensities, tick_room(y) + 4, width - 10, common_scale("flops_per_byte", [1.0]), margin=2)
    return x, y


def _roofs(canvas: Canvas, chart: Roofline, x: Axis, y: Axis) -> None:
    peak, fastest = max(r.value for r in chart.compute), max(r.value for r in chart.memory)
    for roof in chart.memory:
        first = max(x.low, y.low / roof.value)
        ends = ((first, first * roof.value), (peak / roof.value, peak))
        canvas.line([(x.at(a), y.at(b)) for a, b in ends], "ink", 1.6)
        canvas.keep_clear([(x.at(a), y.at(b)) for a, b in ends])
        text = f"{roof.name} {show_plain(roof.value, 'bytes_per_s')}"
        # Left of the slope and above it, where no operator can be.
        across = max(x.start + text_width(text, SIZE - 1.5) + 14, x.start + 0.3 * (x.end - x.start))
        intensity = x.low * (x.high / x.low) ** ((across - x.start) / (x.end - x.start))
        canvas.text(across - 8, y.at(intensity * roof.value), text, size=SIZE - 1.5, anchor="end", colour="quiet")
    for roof in sorted(chart.compute, key=lambda r: r.value):
        level = y.at(roof.value)
        canvas.line(((x.at(roof.value / fastest), level), (x.end, level)), "ink", 1.6)
        canvas.keep_clear(((x.at(roof.value / fastest), level), (x.end, level)))
        text = f"{roof.name} {show_plain(roof.value, 'flops_per_s')}"
        canvas.text(x.end - 2, level - 5, text, size=SIZE - 1.5, anchor="end", colour="quiet")
