"""Axes: from values to pixels, and round numbers along the way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tiefsee.plan.report.numbers import Scale
from tiefsee.plan.report.scene import SIZE, Canvas, text_width


@dataclass(frozen=True)
class Axis:
    """Values `low` to `high` lie between the pixels `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    scale: Scale
    is_log: bool = False

    def at(self, value: float) -> float:
        """Pixel of a value; beyond the ends it stays at the end."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Values whose shown numbers are round, about `most` of them."""
        low, high = self.low * self.scale.factor, self.high * self.scale.factor
        shown = _log_ticks(low, high, most) if self.is_log else _linear_ticks(low, high, most)
        return [tick / self.scale.factor for tick in shown]

    def tick_text(self, value: float) -> str:
        return f"{float(f'{value * self.scale.factor:.6g}'):,.10g}"


def linear_axis(values: Iterable[float], start: float, end: float, scale: Scale, *, from_zero: bool = True) -> Axis:
    """An axis that holds the values, from zero on unless told otherwise."""
    found = [v for v in values if math.isfinite(v)]
    low, high = min(found), max(found)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    margin = 0.06 * (high - low)
    return Axis(low if from_zero and not low else low - margin, high + margin, start, end, scale)


def log_axis(values: Iterable[float], start: float, end: float, scale: Scale, *, margin: float = 1.4) -> Axis:
    found = [v for v in values if math.isfinite(v) and v > 0]
    return Axis(min(found) / margin, max(found) * margin, start, end, scale, is_log=True)


def draw_frame(
    canvas: Canvas, x: Axis, y: Axis, x_title: str, y_title: str, *, x_ticks: Iterable[float] | None = None
) -> None:
    """Grid, ticks and titles; the title of y stands above its axis, where it can be read without turning the head."""
    most = 7 if x.end - x.start > 420 else 4
    for tick in y.ticks(6):
        level = y.at(tick)
        canvas.line(((x.start, level), (x.end, level)), "line")
        canvas.text(x.start - 6, level + 4, y.tick_text(tick), size=SIZE - 1, anchor="end", colour="quiet")
    free = -math.inf
    for tick in x.ticks(most) if x_ticks is None else x_ticks:
        place, text = x.at(tick), x.tick_text(tick)
        half = text_width(text, SIZE - 1) / 2
        canvas.line(((place, y.start), (place, y.start + 4)), "quiet")
        if place - half < free:
            continue
        canvas.text(place, y.start + 17, text, size=SIZE - 1, anchor="middle", colour="quiet")
        free = place + half + 4
    canvas.line(((x.start, y.start), (x.end, y.start)), "quiet")
    canvas.text(x.end, y.start + 34, x_title, size=SIZE - 1, anchor="end", colour="quiet")
    canvas.text(max(2.0, x.start - tick_room(y) - 2), y.end - 10, y_title, size=SIZE - 1, colour="quiet")


FRAME_TOP, FRAME_BOTTOM = 24.0, 40.0  # room that a frame takes above and below its plot


def tick_room(y: Axis) -> float:
    """Pixels that the numbers left of a y axis take."""
    return 8 + max((text_width(y.tick_text(tick), SIZE - 1) for tick in y.ticks(6)), default=0.0)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(n * power for n in (1, 2, 2.5, 5, 10) if n * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [p * 10.0**d for d in decades for p in parts if low <= p * 10.0**d <= high]
        if len(found) <= most:
            return found
    every = math.ceil(len(found) / most)
    return found[::every]
