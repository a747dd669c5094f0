"""What several charts share: legends, bands, and the word where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tiefsee.plan.figures.estimate import Estimate
from tiefsee.plan.report.scene import SIZE, Canvas, Scene, shorten, text_width, wrap

NARROW = 520.0  # below this width a drawing is for a phone


def legend(canvas: Canvas, entries: Sequence[tuple[str, str, str]], x: float, y: float) -> float:
    """(name, colour, shape) in as many rows as it takes, the first at y; returns where the next would be."""
    left, row = x, 0
    for full, colour, shape in entries:
        name = shorten(full, canvas.width - x - 30, SIZE - 1)
        wide = text_width(name, SIZE - 1) + 30
        if left + wide > canvas.width and left > x:
            left, row = x, row + 1
        base = y + row * 18
        canvas.mark(left + 5, base - 4, 4.5, shape, colour)
        canvas.text(left + 15, base, name, size=SIZE - 1)
        left += wide
    return y + (row + 1) * 18 if entries else y


def nothing(width: float, why: str) -> Scene:
    canvas, level = Canvas(width), 6.0
    for line in wrap(f"Nothing to draw: {why}.", width - 4):
        level += 16
        canvas.text(2, level, line, colour="quiet")
    return canvas.scene(level + 12)


def is_finite(*estimates: Estimate) -> bool:
    """Whether it can be drawn, range and all."""
    return all(math.isfinite(v) for e in estimates for v in (e.value, e.low, e.high))


def left_out(num: int, what: str = "point") -> str:
    """The sentence under a chart that could not show everything."""
    if not num:
        return ""
    return f"{num} {what}{'s' if num > 1 else ''} without a finite value {'are' if num > 1 else 'is'} left out."
