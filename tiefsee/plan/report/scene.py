"""A drawing as a list of paths, marks and labels, in pixels from the top left; SVG and PNG are made of the same list.

Colours are names of palette.py, so that a page can follow the reader's light or dark setting.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom
SIZE = 12.0  # of text


@dataclass(frozen=True)
class Path:
    """A line, or an area where `fill` is given. `tip` is what a pointer over it is told."""

    points: tuple[Point, ...]
    stroke: str = ""
    fill: str = ""
    width: float = 1.0
    dashed: bool = False
    opacity: float = 1.0
    tip: str = ""


@dataclass(frozen=True)
class Mark:
    """A point of the data, `radius` from its middle to its edge; hollow ones have a stroke and no fill."""

    x: float
    y: float
    radius: float
    shape: str
    fill: str = ""
    stroke: str = "surface"
    opacity: float = 1.0
    tip: str = ""


@dataclass(frozen=True)
class Label:
    """Text whose baseline starts, is centred or ends at x, y."""

    x: float
    y: float
    text: str
    size: float = SIZE
    anchor: Anchor = "start"
    colour: str = "ink"
    bold: bool = False


Item = Path | Mark | Label


@dataclass(frozen=True)
class Scene:
    width: float
    height: float
    items: tuple[Item, ...]


def outline(mark: Mark) -> tuple[Point, ...]:
    """Corners of a mark that is no circle, of about the same area as the circle."""
    x, y, r = mark.x, mark.y, mark.radius
    if mark.shape == "square":
        s = 0.89 * r
        return ((x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s))
    if mark.shape == "diamond":
        s = 1.25 * r
        return ((x, y - s), (x + s, y), (x, y + s), (x - s, y))
    s = 1.35 * r
    return ((x, y - s), (x + 0.87 * s, y + 0.5 * s), (x - 0.87 * s, y + 0.5 * s))


def text_width(text: str, size: float = SIZE, *, bold: bool = False) -> float:
    """An upper estimate for the usual sans-serif faces, DejaVu Sans (a wide one) included."""
    ems = 0.0
    for letter in text:
        if letter in "il.,:;|!'jt()[] ":
            ems += 0.38
        elif letter in "mwMW%@…":
            ems += 0.95
        else:
            ems += 0.66 if letter.isupper() else 0.62
    return ems * size * (1.1 if bold else 1.0)


def shorten(text: str, width: float, size: float = SIZE) -> str:
    """As much of the text as `width` holds; tables have it whole."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, width: float, size: float = SIZE, *, bold: bool = False) -> list[str]:
    """Lines of at most `width`, cut between words."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold=bold) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


class Canvas:
    """Collects items, and places labels where nothing stands yet."""

    def __init__(self, width: float) -> None:
        self.width = width
        self.items: list[Item] = []
        self._taken: list[Box] = []
        self._barriers: list[Box] = []  # what no thread may cross

    def scene(self, height: float) -> Scene:
        return Scene(self.width, height, tuple(self.items))

    def line(self, points: Sequence[Point], stroke: str, width: float = 1.0, *, dashed: bool = False) -> None:
        self.items.append(Path(tuple(points), stroke=stroke, width=width, dashed=dashed))

    def area(self, points: Sequence[Point], fill: str, opacity: float = 1.0, tip: str = "") -> None:
        self.items.append(Path(tuple(points), fill=fill, opacity=opacity, tip=tip))

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, opacity: float = 1.0, tip: str = ""
    ) -> None:
        self.area(((x, y), (x + width, y), (x + width, y + height), (x, y + height)), fill, opacity, tip)

    def mark(
        self, x: float, y: float, radius: float, shape: str, fill: str, *, stroke: str = "surface", tip: str = "",
        opacity: float = 1.0,
    ) -> None:  # fmt: skip
        self.items.append(Mark(x, y, radius, shape, fill, stroke, opacity, tip))
        self.take(x - radius, y - radius, x + radius, y + radius)
        self._barriers.append(self._taken[-1])

    def text(
        self, x: float, y: float, text: str, *, size: float = SIZE, anchor: Anchor = "start", colour: str = "ink",
        bold: bool = False,
    ) -> None:  # fmt: skip
        self.items.append(Label(x, y, text, size, anchor, colour, bold))
        self.take(*_extent(x, y, text, size, anchor, bold))
        self._barriers.append(self._taken[-1])

    def keep_clear(self, points: Sequence[Point], room: float = 2.0) -> None:
        """Labels that are placed keep off this line, and so do their threads."""
        pieces = list(_pieces(points, room))
        self._taken += pieces
        self._barriers += pieces

    def take(self, left: float, top: float, right: float, bottom: float) -> None:
        """Labels that are placed keep out of here."""
        self._taken.append((left, top, right, bottom))

    def place(
        self, x: float, y: float, text: str, within: Box, *, gap: float = 7.0,
        size: float = SIZE - 1, colour: str = "ink",
    ) -> bool:  # fmt: skip
        """A label near x, y, first on its right; False where every side is taken: then there is none."""
        for dx, dy, anchor, is_near in _around(gap, size):
            box = _extent(x + dx, y + dy, text, size, anchor, False)
            inside = box[0] >= within[0] and box[1] >= within[1] and box[2] <= within[2] and box[3] <= within[3]
            if not inside or any(_meet(box, other) for other in self._taken):
                continue
            thread: tuple[Point, ...] = ()
            if not is_near:  # from the mark's edge to the nearest side of the text
                ex, ey = x + dx, y + dy - (size / 3 if dx else size if dy > 0 else -2)
                edge = min(1.0, (gap - 3) / max(math.hypot(ex - x, ey - y), 1e-9))
                thread = ((x + (ex - x) * edge, y + (ey - y) * edge), (ex, ey))
                others = [box for box in self._barriers if not _meet(box, (x, y, x, y))]  # marks may lie on one another
                if any(_meet(piece, other) for piece in _pieces(thread, 0.5) for other in others):
                    continue
                self.line(thread, "quiet", 0.8)
                self.keep_clear(thread, 1.0)
            self.text(x + dx, y + dy, text, size=size, anchor=anchor, colour=colour)
            return True
        return False


def _pieces(points: Sequence[Point], room: float) -> Iterator[Box]:
    """A line as small boxes."""
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        steps = max(1, round(math.hypot(bx - ax, by - ay) / 4))
        for i in range(steps + 1):
            x, y = ax + (bx - ax) * i / steps, ay + (by - ay) * i / steps
            yield x - room, y - room, x + room, y + room


def _around(gap: float, size: float) -> Iterator[tuple[float, float, Anchor, bool]]:
    """Places for a label's anchor about a point, the best first, and whether one sees at once whose it is."""
    for far in (gap, gap + 9, gap + 20, gap + 32):
        side = 0.6 * far + 3
        yield from (
            (far, size / 3, "start", far == gap), (side, -side, "start", False), (-far, size / 3, "end", far == gap),
            (-side, -side, "end", False), (side, side + 0.7 * size, "start", False),
            (-side, side + 0.7 * size, "end", False), (0, -far - 2, "middle", far == gap),
            (0, far + size, "middle", far == gap),
        )  # fmt: skip


def _extent(x: float, y: float, text: str, size: float, anchor: Anchor, bold: bool) -> Box:
    wide = text_width(text, size, bold=bold)
    left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
    return left, y - 0.8 * size, left + wide, y + 0.25 * size


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
