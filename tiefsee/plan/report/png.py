"""A document as one picture: answer, figures, all charts, notes and sources. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as File
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.plan.report.charts import Chart
from tiefsee.plan.report.document import Document
from tiefsee.plan.report.draw import caption, draw
from tiefsee.plan.report.numbers import show
from tiefsee.plan.report.palette import LIGHT
from tiefsee.plan.report.scene import SIZE, Canvas, Item, Label, Mark, Path, Scene, outline, wrap

COLUMN, GAP = 640.0, 40.0
PIXELS = 1.5  # of the picture, for each of the drawing: sharp on dense screens and on paper


def check_png(path: File) -> None:
    """ConfigError unless a picture can be made, so that no search is run in vain."""
    try:
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--png needs matplotlib; install it with: pip install 'tiefsee[plot]'; --html needs nothing"
        ) from None
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--png is {path}; needed is a file that ends in .png")


def write_png(path: File, document: Document) -> None:
    """Raises ConfigError without matplotlib."""
    check_png(path)
    paint(path, layout(document))


def layout(document: Document) -> Scene:
    """The page: words on top, below them the charts in two columns, each to the shorter one."""
    columns = 2 if len(document.charts) > 1 else 1
    width = GAP + columns * (COLUMN + GAP)
    canvas = Canvas(width)
    top = _words(canvas, document, width - 2 * GAP)
    heights = [top] * columns
    for chart, column in zip(document.charts, _columns(document.charts, columns), strict=True):
        heights[column] += _block(canvas, chart, GAP + column * (COLUMN + GAP), heights[column])
    return canvas.scene(_small_print(canvas, document, width - 2 * GAP, max(heights)))


def _small_print(canvas: Canvas, document: Document, width: float, level: float) -> float:
    """Notes, sources and the command: a picture travels without its page."""
    sources = [f"[{i}] {source.text}" for i, source in enumerate(document.sources, 1)]
    made = " ".join(filter(None, (document.command, f"({document.date})" if document.date else "")))
    for text in (*(f"Note: {note}" for note in document.notes), *sources, made):
        for line in wrap(text, width, SIZE - 1):
            canvas.text(GAP, level, line, size=SIZE - 1, colour="quiet")
            level += 17
    return level + 10


def _columns(charts: Sequence[Chart], columns: int) -> Sequence[int]:
    """The column of each chart: of all ways the one that makes the shortest page; more than ten charts alternate."""
    if columns == 1 or len(charts) > 10:
        return [i % columns for i in range(len(charts))]
    heights = [_block(Canvas(COLUMN), chart, 0.0, 0.0) for chart in charts]

    def longest(ways: Sequence[int]) -> float:
        return max(sum(h for h, w in zip(heights, ways, strict=True) if w == column) for column in range(columns))

    return min(itertools.product(range(columns), repeat=len(charts)), key=longest)


def _words(canvas: Canvas, document: Document, width: float) -> float:
    level = 44.0
    canvas.text(GAP, level, "tiefsee plan", colour="accent", bold=True)
    for text, size, colour, bold in (
        (document.title, 22.0, "ink", True),
        (document.question, 13.0, "quiet", False),
        (document.answer, 16.0, "ink", False),
        ("  ·  ".join(f"{n.label}: {show(n.estimate)}" for n in document.figures), 13.0, "ink", True),
        (f"Bottleneck: {document.bottleneck}. Evidence: {document.grade}. Ranges hold 80%.", 13.0, "quiet", False),
    ):
        level += 8
        for line in wrap(text, width, size, bold=bold):
            level += size * 1.4
            canvas.text(GAP, level, line, size=size, colour=colour, bold=bold)
    return level + 34


def _block(canvas: Canvas, chart: Chart, left: float, top: float) -> float:
    """A chart with its title and caption; returns the height that it takes."""
    level = top
    for line in wrap(chart.title, COLUMN, 14, bold=True):
        level += 19
        canvas.text(left, level, line, size=14, bold=True)
    level += 14
    scene = draw(chart, COLUMN)
    canvas.items += [_moved(item, left, level) for item in scene.items]
    level += scene.height
    for line in wrap(caption(chart), COLUMN, SIZE - 1):
        level += 16
        canvas.text(left, level, line, size=SIZE - 1, colour="quiet")
    return level - top + 34


def _moved(item: Item, dx: float, dy: float) -> Item:
    if isinstance(item, Path):
        return replace(item, points=tuple((x + dx, y + dy) for x, y in item.points))
    return replace(item, x=item.x + dx, y=item.y + dy)


def paint(path: File, scene: Scene) -> None:
    """A scene as a PNG of PIXELS times its size, on light ground."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(scene.width / 100, scene.height / 100), facecolor=LIGHT["surface"])
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, scene.width), ylim=(scene.height, 0))
    axes.axis("off")
    for number, item in enumerate(scene.items):
        _paint(axes, item, number)
    figure.savefig(path, dpi=100 * PIXELS, pil_kwargs={"optimize": True})


def _paint(axes: Any, item: Item, order: int) -> None:
    from matplotlib.patches import Circle, Polygon

    points = 0.72  # a pixel of the drawing is 1/100 inch, a point is 1/72
    if isinstance(item, Label):
        axes.text(
            item.x, item.y, item.text.replace("$", r"\$"), fontsize=item.size * points, color=LIGHT[item.colour],
            zorder=order, ha={"start": "left", "middle": "center", "end": "right"}[item.anchor], va="baseline",
            weight="bold" if item.bold else "normal",
        )  # fmt: skip
        return
    if isinstance(item, Path) and not item.fill:
        style: Any = (0, (5, 4)) if item.dashed else "-"
        xs, ys = zip(*item.points, strict=True)
        axes.plot(xs, ys, color=LIGHT[item.stroke], linewidth=item.width * points, linestyle=style, zorder=order)
        return
    face = _colour(item.fill, item.opacity)
    edge = _colour(item.stroke, 1.0)
    shape = (
        Circle((item.x, item.y), item.radius)
        if isinstance(item, Mark) and item.shape == "circle"
        else Polygon(outline(item) if isinstance(item, Mark) else item.points, closed=True)
    )
    shape.set(facecolor=face, edgecolor=edge, linewidth=points if item.stroke else 0, zorder=order)
    axes.add_patch(shape)


def _colour(name: str, opacity: float) -> Any:
    """A palette colour with its opacity; "none" for no name."""
    return (LIGHT[name], opacity) if name else "none"
