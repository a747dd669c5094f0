"""Scenes as SVG inside a page. Colours are classes, so that the page's style sheet can follow the reader's setting."""

from __future__ import annotations

from html import escape

from tiefsee.plan.report.palette import LIGHT
from tiefsee.plan.report.scene import Item, Label, Mark, Path, Scene, outline


def svg(scene: Scene, name: str) -> str:
    """An <svg> element; `name` is read out for it."""
    body = "".join(map(_item, scene.items))
    size = f'viewBox="0 0 {_n(scene.width)} {_n(scene.height)}" width="{_n(scene.width)}" height="{_n(scene.height)}"'
    return f'<svg role="img" aria-label="{escape(name)}" {size}>{body}</svg>'


def style() -> str:
    """Classes of the colours: f-NAME fills, s-NAME strokes."""
    return "".join(f".f-{name}{{fill:var(--{name})}}.s-{name}{{stroke:var(--{name})}}" for name in LIGHT)


def _item(item: Item) -> str:
    if isinstance(item, Label):
        extra = "" if item.anchor == "start" else f' text-anchor="{item.anchor}"'
        weight = ' font-weight="600"' if item.bold else ""
        place = f'x="{_n(item.x)}" y="{_n(item.y)}" font-size="{_n(item.size)}"'
        return f'<text {place} class="f-{item.colour}"{extra}{weight}>{escape(item.text)}</text>'
    if isinstance(item, Mark) and item.shape == "circle":
        return _element("circle", f'cx="{_n(item.x)}" cy="{_n(item.y)}" r="{_n(item.radius)}"', item)
    points = outline(item) if isinstance(item, Mark) else item.points
    joined = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
    closed = isinstance(item, Mark) or bool(item.fill)
    return _element("polygon" if closed else "polyline", f'points="{joined}"', item)


def _element(tag: str, shape: str, item: Path | Mark) -> str:
    classes = " ".join([f"f-{item.fill}"] * bool(item.fill) + [f"s-{item.stroke}"] * bool(item.stroke))
    parts = [shape, f'class="{classes}"'] + ['fill="none"'] * (not item.fill)
    if isinstance(item, Path) and item.stroke:
        parts += [f'stroke-width="{_n(item.width)}"'] + ['stroke-dasharray="5 4"'] * item.dashed
    if item.opacity != 1:
        parts.append(f'fill-opacity="{_n(item.opacity)}"')
    tip = f"<title>{escape(item.tip)}</title>" if item.tip else ""
    return f"<{tag} {' '.join(parts)}>{tip}</{tag}>"


def _n(value: float) -> str:
    """A coordinate to a tenth of a pixel: 12.0 -> "12"."""
    text = f"{value:.2f}" if abs(value) < 1 else f"{value:.1f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
