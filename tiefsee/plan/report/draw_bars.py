"""Horizontal bars: where a step's time goes, one figure of several things, and the inputs that matter."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from tiefsee.plan.report.axis import Axis, linear_axis
from tiefsee.plan.report.charts import RangeBar, RangeBars, Swing, TimeBar, TimeBars, Tornado
from tiefsee.plan.report.draw_parts import is_finite, legend, nothing
from tiefsee.plan.report.numbers import Scale, common_scale, in_scale, scale_of, show
from tiefsee.plan.report.palette import colour_of
from tiefsee.plan.report.scene import SIZE, Canvas, Scene, text_width, wrap

PARTS = 7  # of a time bar that get a colour; the rest is one grey
TALL = 20.0


def draw_time_bars(chart: TimeBars, width: float) -> Scene:
    """A stacked bar for each step, all to one scale of seconds."""
    bars = [bar for bar in chart.bars if is_finite(bar.total) and sum(s for _, s in bar.parts if s > 0) > 0]
    if not bars:
        return nothing(width, "no step has a finite time")
    sizes: dict[str, float] = defaultdict(float)
    for bar in bars:
        for name, seconds in bar.parts:
            sizes[name] += seconds / bar.total.value
    named = sorted(sizes, key=lambda name: -sizes[name])
    kept = named if len(named) <= PARTS else named[:PARTS]
    colours = {name: colour_of(i) for i, name in enumerate(kept)}
    canvas = Canvas(width)
    keys = [(name, colours[name], "square") for name in kept]
    if len(named) > len(kept):
        keys.append((f"{len(named) - len(kept)} others", "c7", "square"))
    level = legend(canvas, keys, 2, 14.0) + 4
    most = max(sum(s for _, s in bar.parts) for bar in bars)
    for bar in bars:
        level = _titled(canvas, bar.label, show(bar.total), level)
        _stack(canvas, bar, level + 20, (width - 4) / most, colours)
        level += 20 + TALL + 18
    return canvas.scene(level - 6)


def _titled(canvas: Canvas, label: str, total: str, level: float) -> float:
    """A bar's name on the left and its value on the right, on the last of the lines that the name takes."""
    lines = wrap(label, canvas.width - text_width(total, bold=True) - 16)
    for i, line in enumerate(lines):
        canvas.text(2, level + 12 + 15 * i, line)
    level += 15 * max(0, len(lines) - 1)
    canvas.text(canvas.width - 2, level + 12, total, anchor="end", bold=True)
    return level


def _stack(canvas: Canvas, bar: TimeBar, top: float, per_second: float, colours: dict[str, str]) -> None:
    whole = sum(s for _, s in bar.parts)
    scale, left = scale_of("step_s", bar.total.value), 2.0
    rest = sum(s for name, s in bar.parts if name not in colours)
    parts = sorted(((n, s) for n, s in bar.parts if n in colours), key=lambda p: list(colours).index(p[0]))
    for name, seconds in [*parts, *([("others", rest)] if rest > 0 else [])]:
        if not seconds > 0:
            continue
        wide = seconds * per_second
        tip = f"{bar.label}, {name}: {scale.with_label(scale.text(seconds, 2))}, {seconds / whole:.0%}"
        canvas.box(left, top, max(wide - 1, 0.4), TALL, colours.get(name, "c7"), tip=tip)
        percent = f"{seconds / whole:.0%}"
        if wide > text_width(percent, SIZE - 1) + 6:
            canvas.text(left + wide / 2, top + 14, percent, size=SIZE - 1, anchor="middle", colour="surface")
        left += wide


def draw_range_bars(chart: RangeBars, width: float) -> Scene:
    """A bar for the value, a whisker for its 80 % range; a remark alone where there is no value."""
    if not chart.bars:
        return nothing(width, "there is nothing to compare")
    values = [bar.value for bar in chart.bars if bar.value is not None and is_finite(bar.value)]
    scale = common_scale(chart.unit, [v.value for v in values])
    texts = [in_scale(v, scale) for v in values]
    room = max((text_width(text, bold=True) for text in texts), default=0.0) + 12
    axis = Axis(0.0, max((v.high for v in values), default=1.0) or 1.0, 2, max(width - room, width * 0.4), scale)
    canvas = Canvas(width)
    title = chart.axis if not scale.label or scale.label in chart.axis else f"{chart.axis}, {scale.label}"
    canvas.text(2, 12, title, size=SIZE - 1, colour="quiet")
    level = 22.0
    for bar in chart.bars:
        level = _range_bar(canvas, bar, level, axis, width)
    return canvas.scene(level)


def _range_bar(canvas: Canvas, bar: RangeBar, level: float, axis: Axis, width: float) -> float:
    for line in wrap(bar.label, width - 4, bold=bar.chosen):
        canvas.text(2, level + 12, line, bold=bar.chosen)
        level += 15
    level += 3
    value = bar.value
    if value is not None and is_finite(value):
        colour = "c0" if bar.chosen else "c7"
        canvas.box(2, level, max(axis.at(value.value) - 2, 0.6), TALL - 4, colour, tip=f"{bar.label}: {show(value)}")
        if value.low < value.high:
            _whisker(canvas, axis.at(value.low), axis.at(value.high), level + (TALL - 4) / 2)
        canvas.text(axis.at(value.high) + 8, level + 12.5, in_scale(value, axis.scale), bold=bar.chosen)
        level += TALL
    elif not bar.remark:
        canvas.text(2, level + 10, "unknown", colour="quiet")
        level += 16
    for line in wrap(bar.remark, width - 8, SIZE - 1):
        canvas.text(2, level + 10, line, size=SIZE - 1, colour="warn" if value is None else "quiet")
        level += 15
    return level + 12


def _whisker(canvas: Canvas, low: float, high: float, level: float) -> None:
    canvas.line(((low, level), (high, level)), "ink", 1.4)
    for end in (low, high):
        canvas.line(((end, level - 4), (end, level + 4)), "ink", 1.4)


def draw_tornado(chart: Tornado, width: float) -> Scene:
    """From the answer as it is to the left and right: what each input's ends make of it."""
    swings = [s for s in chart.swings if s.at_low is not None or s.at_high is not None or s.remark]
    if not swings or not is_finite(chart.base):
        return nothing(width, "no input with a range moves the answer")
    base, unit = chart.base.value, chart.base.unit
    ends = [v for s in swings for v in (s.at_low, s.at_high) if v is not None and math.isfinite(v)]
    scale = common_scale(unit, [base])
    room = max(text_width(scale.text(v, 2), SIZE - 1) for v in [*ends, base]) + 10
    axis = linear_axis([base, *ends], 2 + room, width - room - 2, scale, from_zero=False)
    canvas = Canvas(width)
    title = f"{chart.axis}, {scale.label}; as it is: {in_scale(chart.base, scale)}"
    level = 0.0
    for line in wrap(title, width - 8, SIZE - 1):
        level += 15
        canvas.text(2, level - 3, line, size=SIZE - 1, colour="quiet")
    level = legend(
        canvas, [("input at its low end", "c1", "square"), ("at its high end", "c0", "square")], 2, level + 14
    )
    for swing in swings:
        level = _swing(canvas, swing, level, axis, base)
    return canvas.scene(level)


def _swing(canvas: Canvas, swing: Swing, level: float, axis: Axis, base: float) -> float:
    for line in wrap(f"{swing.name}: {swing.range}", canvas.width - 4):
        canvas.text(2, level + 12, line)
        level += 15
    level += 3
    middle = axis.at(base)
    ends = [(v, c) for v, c in ((swing.at_low, "c1"), (swing.at_high, "c0")) if v is not None and math.isfinite(v)]
    for value, colour in sorted(ends, key=lambda e: -abs(e[0] - base)):
        place = axis.at(value)
        canvas.box(min(middle, place), level, max(abs(place - middle), 0.6), TALL - 6, colour)
    canvas.line(((middle, level - 3), (middle, level + TALL - 3)), "ink", 1.4)
    _end_texts(canvas, [v for v, _ in ends], level + 11, axis)
    level += TALL - 4
    for line in wrap(swing.remark, canvas.width - 8, SIZE - 1):
        canvas.text(2, level + 11, line, size=SIZE - 1, colour="warn")
        level += 15
    return level + 8


def _end_texts(canvas: Canvas, values: Sequence[float], y: float, axis: Axis) -> None:
    """The answers at the two ends, outside of the bars."""
    if not values:
        return
    digits = _digits_apart(values, axis.scale)
    low, high = min(values), max(values)
    middle_left, middle_right = min(axis.at(low), axis.at(high)), max(axis.at(low), axis.at(high))
    if len(values) == 2 and low != high:
        canvas.text(middle_left - 5, y, axis.scale.text(low, digits), size=SIZE - 1, anchor="end")
    canvas.text(middle_right + 5, y, axis.scale.text(high, digits), size=SIZE - 1)


def _digits_apart(values: Sequence[float], scale: Scale) -> int:
    """Two digits, or three where two would show both ends as one number."""
    return 3 if len({scale.text(v, 2) for v in values}) < len(values) else 2
