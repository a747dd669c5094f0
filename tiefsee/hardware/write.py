"""A chip as TOML, in the form that read.py takes: to keep what was measured, or as the start of one's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping

from tiefsee.hardware.chip import Chip, Figure, Link
from tiefsee.units import Unit, format_quantity

_DIGITS = 6
_SPELLED: dict[str, Unit] = {"bytes": "bytes", "bytes/s": "bytes/s", "flops/s": "flops/s", "s": "s"}


def chip_toml(chip: Chip) -> str:
    """What `read_chips` reads back: every figure with its range, kind and source, to six digits."""
    return "\n".join(_lines(chip)) + "\n"


def _lines(chip: Chip) -> Iterator[str]:
    figures: dict[str, Figure | None] = {"memory": chip.memory_bytes, "memory_bandwidth": chip.memory_bytes_per_s}
    figures |= chip.flops_per_s
    figures |= {"launch": chip.launch_s, "tdp": chip.tdp_w, "rent": chip.usd_per_hour, "purchase": chip.purchase_usd}
    known = {key: figure for key, figure in figures.items() if figure is not None}
    linked = [figure for link in chip.links for figure in (link.bytes_per_s, link.latency_s)]
    count = Counter(figure.source for figure in [*known.values(), *linked])
    # A source that several figures share is written once, under a short name.
    names = {source: f"s{n}" for n, source in enumerate((s for s in count if count[s] > 1), 1)}
    for key in ("name", "title", "vendor", "per", "available"):
        yield f"{key} = {_text(getattr(chip, key))}"
    yield f"dies = {chip.dies}"
    yield f"chips_per_node = {chip.chips_per_node}"
    for key, texts in (("aliases", chip.aliases), ("notes", chip.notes)):
        if texts:
            yield f"{key} = [{', '.join(_text(text) for text in texts)}]"
    yield from (f"{key} = {_figure(figure, names)}" for key, figure in known.items())
    for link in chip.links:
        yield from _link(link, names)
    if names:
        yield "\n[sources]"
        yield from (f"{name} = {_text(source)}" for source, name in names.items())


def _link(link: Link, names: Mapping[str, str]) -> Iterator[str]:
    yield "\n[[links]]"
    yield f"tier = {_text(link.tier)}"
    yield f"name = {_text(link.name)}"
    if link.num_chips is not None:
        yield f"num_chips = {link.num_chips}"
    yield f"bandwidth = {_figure(link.bytes_per_s, names)}"
    yield f"latency = {_figure(link.latency_s, names)}"


def _figure(figure: Figure, names: Mapping[str, str]) -> str:
    parts = [("value", _quantity(figure.value, figure.unit)), ("kind", _text(figure.kind))]
    if not figure.is_certain or figure.kind == "estimate":
        parts += [("low", _quantity(figure.low, figure.unit)), ("high", _quantity(figure.high, figure.unit))]
    parts += [("source", _text(names.get(figure.source, figure.source)))]
    parts += [("note", _text(figure.note))] if figure.note else []
    return f"{{ {', '.join(f'{key} = {value}' for key, value in parts)} }}"


def _quantity(value: float, unit: str) -> str:
    if unit not in _SPELLED:
        return f"{value:.{_DIGITS}g}"
    return _text(format_quantity(value, _SPELLED[unit], _DIGITS))


def _text(text: str) -> str:
    """TOML's basic strings escape as JSON's do; DEL alone is forbidden in them and legal in JSON."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
