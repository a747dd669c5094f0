"""A chip described in TOML -> `Chip`. Whatever is wrong with the text is one ConfigError that says where.

    name = "mychip"                      # ten lines are enough
    title = "A card of ours"
    available = "2026-05"
    memory = { value = "96 GB", kind = "vendor", source = "datasheet 3" }
    memory_bandwidth = { value = "2.4 TB/s", kind = "estimate", low = "2 TB/s", high = "2.6 TB/s", source = "a talk" }
    bf16 = { value = "400 TFLOP/s", kind = "vendor", source = "datasheet 3" }
    [[links]]
    tier = "node"
    name = "mesh"
    num_chips = 8
    bandwidth = { value = "200 GB/s", kind = "vendor", source = "datasheet 3" }

Every figure has a value with its unit, a kind and a source; an estimate has low and high. `source` may be a key
of the file's [sources]. Latencies that are not given are estimates by tier. A file holds one chip at its top level,
or several as [[chip]].
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from tiefsee.errors import ConfigError
from tiefsee.hardware.chip import KINDS, NUMBER_FORMATS, PERS, TIERS, Chip, Figure, Link
from tiefsee.units import Unit, parse_quantity

_UNITS: dict[str, Unit] = {
    "memory": "bytes", "memory_bandwidth": "bytes/s", "bandwidth": "bytes/s", "latency": "s", "launch": "s",
    **dict.fromkeys(NUMBER_FORMATS, "flops/s"),
}  # fmt: skip
_PLAIN_UNITS = {"tdp": "W", "rent": "USD/h", "purchase": "USD"}  # numbers, since they have no prefixes
# Beyond these no chip is a chip: a slip of units shows here.
_SANE: dict[str, tuple[float, float]] = {
    "bytes": (1e6, 1e15), "bytes/s": (1e6, 1e16), "flops/s": (1e6, 1e21), "s": (1e-10, 10.0),
    "W": (0.1, 1e6), "USD/h": (1e-4, 1e5), "USD": (0.1, 1e9),
}  # fmt: skip
_MOST_CHIPS = 10_000_000
_USUAL_LATENCY_S = {"die": (1e-6, 0.5e-6, 2e-6), "node": (3e-6, 2e-6, 5e-6), "supernode": (3e-6, 1.5e-6, 6e-6),
                    "fabric": (8e-6, 4e-6, 15e-6)}  # fmt: skip
_CHIP_FIELDS = {
    "name", "title", "vendor", "per", "dies", "aliases", "available", "chips_per_node", "links", "notes", "sources",
    "memory", "memory_bandwidth", "launch", *NUMBER_FORMATS, *_PLAIN_UNITS,
}  # fmt: skip
_LINK_FIELDS = {"tier", "name", "num_chips", "bandwidth", "latency"}
_FIGURE_FIELDS = {"value", "low", "high", "kind", "source", "note"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}")


def load_chips(path: Path) -> tuple[Chip, ...]:
    """The chips of a TOML file: one at its top level, or several as [[chip]]. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # bytes that are no UTF-8; a path with a NUL in it
        raise ConfigError(f"{path!s} is no text: {error}") from None
    return read_chips(text, str(path))


def read_chips(text: str, where: str) -> tuple[Chip, ...]:
    """The chips of a TOML text; `where` names it in errors."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not all that is wrong with a text is a TOMLDecodeError
        raise ConfigError(f"{where} is no TOML: {error}") from None
    sources = table.get("sources", {})
    if not isinstance(sources, dict) or not all(isinstance(text, str) and text.strip() for text in sources.values()):
        raise ConfigError(f'{where}: [sources] holds texts, for example datasheet = "A data sheet, page 3"')
    if "chip" not in table:
        return (_Reader(where, sources).chip(table),)
    _no_others(table, {"sources", "chip"}, where, "a file of several [[chip]]")
    if not isinstance(table["chip"], list) or not all(isinstance(item, dict) for item in table["chip"]):
        raise ConfigError(f"{where}: `chip` is no list of tables; needed is [[chip]], or its fields at the top level")
    chips = tuple(_Reader(where, sources).chip(item) for item in table["chip"])
    twice = [name for name, count in Counter(chip.name for chip in chips).items() if count > 1]
    if twice:
        raise ConfigError(f"{where} describes a chip twice: {', '.join(twice)}")
    return chips


class _Reader:
    """Reads one chip: `where` grows with each level, so that an error names its place."""

    def __init__(self, where: str, sources: Mapping[str, str]) -> None:
        self.where = where
        self.sources = sources

    def wrong(self, message: str) -> ConfigError:
        return ConfigError(f"{self.where}: {message}")

    def chip(self, table: Mapping[str, Any]) -> Chip:
        name = table.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            found = "a chip has no name" if name is None else f"a chip's name is {name!r}"
            raise self.wrong(f"{found}; needed is letters, digits and . _ + -, at most 64")
        self.where = f"{self.where}, {name}"
        _no_others(table, _CHIP_FIELDS, self.where, "a chip")
        for needed in ("memory", "memory_bandwidth", "links"):
            if needed not in table:
                raise self.wrong(f"{needed} is missing")
        peaks = {name: self.figure(table, name) for name in NUMBER_FORMATS if name in table}
        if not peaks:
            raise self.wrong(f"no arithmetic is given; needed is at least one of {', '.join(NUMBER_FORMATS)}")
        return Chip(
            name=name,
            title=self.text(table, "title", name),
            vendor=self.text(table, "vendor", "user"),
            per=self.per(table.get("per", "card")),
            dies=self.count(table, "dies", 1, most=64),
            aliases=self.texts(table, "aliases"),
            flops_per_s=peaks,
            memory_bytes=self.figure(table, "memory"),
            memory_bytes_per_s=self.figure(table, "memory_bandwidth"),
            links=self.links(table["links"]),
            chips_per_node=self.count(table, "chips_per_node", 8, most=100_000),
            available=self.date(table.get("available", "")),
            tdp_w=self.figure(table, "tdp") if "tdp" in table else None,
            usd_per_hour=self.figure(table, "rent") if "rent" in table else None,
            purchase_usd=self.figure(table, "purchase") if "purchase" in table else None,
            launch_s=self.figure(table, "launch") if "launch" in table else None,
            notes=self.texts(table, "notes"),
        )

    def links(self, tables: Any) -> tuple[Link, ...]:
        if not isinstance(tables, list) or not tables or not all(isinstance(item, dict) for item in tables):
            raise self.wrong(f"links are {tables!r:.60}; needed is at least one [[links]] table")
        links = tuple(self.link(item) for item in tables)
        for near, far in itertools.pairwise(links):
            if near.tier == far.tier:
                raise self.wrong(f"the tier {near.tier!r} is there twice; each has one link")
            if TIERS.index(near.tier) > TIERS.index(far.tier):
                raise self.wrong(f"{near.tier} comes before {far.tier}; links go outwards: {', '.join(TIERS)}")
            if near.num_chips is None or (far.num_chips is not None and far.num_chips < near.num_chips):
                reach = "any number of" if near.num_chips is None else near.num_chips
                raise self.wrong(f"{far.tier} joins fewer chips than {near.tier}, which joins {reach}")
        return links

    def link(self, table: Mapping[str, Any]) -> Link:
        tier = table.get("tier")
        if tier not in TIERS:
            raise self.wrong(f"a link's tier is {tier!r}; needed is one of {', '.join(TIERS)}")
        inner = _Reader(f"{self.where}, {tier} link", self.sources)
        _no_others(table, _LINK_FIELDS, inner.where, "a link")
        if "bandwidth" not in table:
            raise inner.wrong("it has no bandwidth")
        if "latency" in table:
            latency = inner.figure(table, "latency")
        else:
            value, low, high = _USUAL_LATENCY_S[tier]
            latency = Figure(value, "s", "estimate", f"usual for this tier ({tier})", low, high)
        count = inner.count(table, "num_chips", 1, most=_MOST_CHIPS) if "num_chips" in table else None
        return Link(tier, inner.text(table, "name", tier), inner.figure(table, "bandwidth"), latency, count)

    def figure(self, tables: Mapping[str, Any], key: str) -> Figure:
        """One figure; every part that is missing is named."""
        inner, table = _Reader(f"{self.where}, {key}", self.sources), tables[key]
        if not isinstance(table, dict):
            raise inner.wrong(f"found {table!r:.60}; needed is {{ value = .., kind = .., source = .. }}")
        _no_others(table, _FIGURE_FIELDS, inner.where, "a figure")
        for needed in ("value", "kind", "source"):
            if needed not in table or table[needed] == "":
                raise inner.wrong(f"no {needed}; each figure has a value with its unit, a kind and a source")
        kind = table["kind"]
        if kind not in KINDS:
            raise inner.wrong(f"kind is {kind!r:.60}; needed is one of {', '.join(KINDS)}")
        if kind == "estimate" and not ("low" in table and "high" in table):
            raise inner.wrong("an estimate needs low and high")
        unit: str = _PLAIN_UNITS.get(key) or _UNITS[key]
        value = inner.quantity(table["value"], key, unit)
        low, high = (inner.quantity(table[end], key, unit) if end in table else value for end in ("low", "high"))
        if not low <= value <= high:
            raise inner.wrong(
                f"{table['value']} is not between low and high, {table.get('low')} and {table.get('high')}"
            )
        source = self.sources.get(text := inner.text(table, "source", ""), text)
        return Figure(value, unit, kind, source, low, high, inner.text(table, "note", " ").strip())

    def quantity(self, value: Any, key: str, unit: str) -> float:
        if key in _PLAIN_UNITS:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise self.wrong(f"found {value!r:.60}; needed is a number of {unit}, without the unit")
            number = float(value) if abs(value) < 1e300 else math.inf  # a long integer is no float
        else:
            if not isinstance(value, str):
                raise self.wrong(f'found {value!r:.60} without a unit; write for example "2.4 TB/s"')
            try:
                number = parse_quantity(value, _UNITS[key], needs_unit=True)
            except ConfigError as error:
                raise self.wrong(str(error)) from None
        least, most = _SANE[unit]
        if not least <= number <= most:
            raise self.wrong(
                f"{value!r:.60} is absurd or not above 0; between {least:g} and {most:g} {unit} is believed"
            )
        return number

    def count(self, table: Mapping[str, Any], key: str, default: int, most: int) -> int:
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.wrong(f"{key} is {str(value)[:40]}; needed is a whole number from 1 to {most:,}")
        return value

    def text(self, table: Mapping[str, Any], key: str, default: str) -> str:
        value = table.get(key, default)
        if not isinstance(value, str) or (key != "note" and not value.strip()):
            raise self.wrong(f"{key} is {value!r:.60}; needed is a text")
        return value

    def texts(self, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
            raise self.wrong(f"{key} is {value!r:.60}; needed is a list of texts")
        return tuple(value)

    def per(self, value: Any) -> Literal["die", "package", "card"]:
        if value not in PERS:
            raise self.wrong(f"per is {value!r:.60}; every figure is of one of {', '.join(PERS)}")
        return value  # type: ignore[no-any-return]

    def date(self, value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"(20\d\d(-(0[1-9]|1[0-2]))?)?", value):
            raise self.wrong(f'available is {value!r:.60}; needed is a year or a month, "2026" or "2026-05"')
        return value


def _no_others(table: Mapping[str, Any], known: Collection[str], where: str, what: str) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; is {near[0]} meant?" if near else f"; there are {', '.join(sorted(known))}"
        raise ConfigError(f"{where}: {unknown[0]!r:.60} is no field of {what}{hint}")
