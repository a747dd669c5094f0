"""The chips that tiefsee knows, and those that a user describes: TOML in, `Chip` out.

    name = "mychip"                      # ten lines are enough
    title = "A card of ours"
    available = "2026"
    memory = { value = "96 GB", kind = "vendor", source = "datasheet 3" }
    memory_bandwidth = { value = "2.4 TB/s", kind = "estimate", low = "2 TB/s", high = "2.6 TB/s", source = "a talk" }
    bf16 = { value = "400 TFLOP/s", kind = "vendor", source = "datasheet 3" }
    [[links]]
    tier = "node"
    name = "mesh"
    num_chips = 8
    bandwidth = { value = "200 GB/s", kind = "vendor", source = "datasheet 3" }

Every figure has a value with its unit, a kind and a source; an estimate has low and high. `source` may be a key
of the file's [sources]. Latencies that are not given are estimates by tier.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.hardware.chip import KINDS, NUMBER_FORMATS, TIERS, Chip, Figure, Link
from tiefsee.units import Unit, parse_quantity

_UNITS: dict[str, Unit] = {
    "memory": "bytes", "memory_bandwidth": "bytes/s", "bandwidth": "bytes/s", "latency": "s",
    **dict.fromkeys(NUMBER_FORMATS, "flops/s"),
}  # fmt: skip
_PLAIN_UNITS = {"tdp": "W", "rent": "USD/h", "purchase": "USD"}  # numbers, since they have no prefixes
_USUAL_LATENCY_S = {"die": (1e-6, 0.5e-6, 2e-6), "node": (3e-6, 2e-6, 5e-6), "supernode": (3e-6, 1.5e-6, 6e-6),
                    "fabric": (8e-6, 4e-6, 15e-6)}  # fmt: skip
_KNOWN = {
    "name", "title", "vendor", "per", "dies", "aliases", "available", "chips_per_node", "links", "notes", "sources",
    "memory", "memory_bandwidth", *NUMBER_FORMATS, *_PLAIN_UNITS,
}  # fmt: skip
# Names that people look for and that never were a chip.
_NEVER = {
    "920c": "the Ascend 920C was a rumour of 2025 and never appeared under that name; what came are ascend-950pr and "
    "ascend-950dt (Huawei Connect 2025)",
}
_NEVER |= dict.fromkeys(("920", "ascend-920", "ascend-920c", "ascend920c"), _NEVER["920c"])


def find_chip(name: str) -> Chip:
    """The chip of that name, in any case, by alias too; a path that ends in .toml is a user's own chip.

    Raises ConfigError with near names: no chip is a default.
    """
    if name.endswith(".toml"):
        chips = load_chips(Path(name))
        if len(chips) != 1:
            raise ConfigError(f"{name} describes {len(chips)} chips; needed is one")
        return chips[0]
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    found = _by_name().get(key)
    if found is not None:
        return found
    if key in _NEVER:
        raise ConfigError(f"no chip is named {name!r}: {_NEVER[key]}")
    near = difflib.get_close_matches(key, _by_name(), n=6, cutoff=0.4)
    names = dict.fromkeys(_by_name()[alias].name for alias in near)
    hint = f"near are {', '.join(list(names)[:3])}" if names else f"there are {', '.join(chip_names())}"
    raise ConfigError(f"no chip is named {name!r}; {hint}. `tiefsee chips` lists them; a .toml file describes your own")


def chip_names() -> tuple[str, ...]:
    return tuple(chip.name for chip in _catalogue())


def parse_fleet(text: str) -> tuple[Chip, int]:
    """`h200:32` -> (the chip, 32). Raises ConfigError."""
    name, _, count = text.rpartition(":")
    if not name or not count.isdigit() or not 1 <= int(count) <= 10_000_000:
        raise ConfigError(f"{text!r} is no pool of chips; needed is CHIP:COUNT, for example h200:32")
    return find_chip(name), int(count)


def load_chips(path: Path) -> tuple[Chip, ...]:
    """The chips of a TOML file: one at its top level, or several as [[chip]]. Raises ConfigError."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return _read(text, str(path))


@cache
def _catalogue() -> tuple[Chip, ...]:
    folder = resources.files(__package__).joinpath("data")
    files = ("nvidia.toml", "ascend.toml")
    return tuple(chip for name in files for chip in _read(folder.joinpath(name).read_text(), name))


@cache
def _by_name() -> Mapping[str, Chip]:
    return {alias: chip for chip in _catalogue() for alias in (chip.name, *chip.aliases)}


def _read(text: str, where: str) -> tuple[Chip, ...]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is no TOML: {error}") from None
    sources = table.get("sources", {})
    tables = table.get("chip", [table])
    if not isinstance(tables, list):
        raise ConfigError(f"{where}: `chip` is one table; needed is [[chip]], or the chip's fields at the top level")
    return tuple(_chip(item, sources, where) for item in tables)


def _chip(table: Mapping[str, Any], sources: Mapping[str, str], where: str) -> Chip:
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: a chip has no name")
    where = f"{where}, {name}"
    unknown = sorted(set(table) - _KNOWN)
    if unknown:
        near = difflib.get_close_matches(unknown[0], _KNOWN, n=1)
        hint = f"; is {near[0]} meant?" if near else ""
        raise ConfigError(f"{where}: {unknown[0]!r} is no field of a chip{hint}")
    for needed in ("memory", "memory_bandwidth", "links"):
        if needed not in table:
            raise ConfigError(f"{where}: {needed} is missing")
    peaks = {f: _figure(table[f], f, sources, where) for f in NUMBER_FORMATS if f in table}
    if not peaks:
        raise ConfigError(f"{where}: no arithmetic is given; needed is at least one of {', '.join(NUMBER_FORMATS)}")
    links = tuple(_link(item, sources, where) for item in table["links"])
    if not links or [TIERS.index(link.tier) for link in links] != sorted(TIERS.index(link.tier) for link in links):
        raise ConfigError(f"{where}: links go from the nearest to the farthest: {', '.join(TIERS)}")
    optional = {key: _figure(table[key], key, sources, where) if key in table else None for key in _PLAIN_UNITS}
    return Chip(
        name=name,
        title=str(table.get("title", name)),
        vendor=str(table.get("vendor", "user")),
        per=table.get("per", "card"),
        dies=int(table.get("dies", 1)),
        aliases=tuple(table.get("aliases", ())),
        flops_per_s=peaks,
        memory_bytes=_figure(table["memory"], "memory", sources, where),
        memory_bytes_per_s=_figure(table["memory_bandwidth"], "memory_bandwidth", sources, where),
        links=links,
        chips_per_node=int(table.get("chips_per_node", 8)),
        available=str(table.get("available", "")),
        tdp_w=optional["tdp"],
        usd_per_hour=optional["rent"],
        purchase_usd=optional["purchase"],
        notes=tuple(table.get("notes", ())),
    )


def _link(table: Mapping[str, Any], sources: Mapping[str, str], where: str) -> Link:
    tier = table.get("tier")
    if tier not in TIERS:
        raise ConfigError(f"{where}: a link's tier is {tier!r}; needed is one of {', '.join(TIERS)}")
    if "bandwidth" not in table:
        raise ConfigError(f"{where}: the {tier} link has no bandwidth")
    if "latency" in table:
        latency = _figure(table["latency"], "latency", sources, where)
    else:
        value, low, high = _USUAL_LATENCY_S[tier]
        latency = Figure(value, "s", "estimate", f"usual for this tier ({tier})", low, high)
    count = table.get("num_chips")
    bandwidth = _figure(table["bandwidth"], "bandwidth", sources, where)
    return Link(tier, str(table.get("name", tier)), bandwidth, latency, None if count is None else int(count))


def _figure(table: Any, key: str, sources: Mapping[str, str], where: str) -> Figure:
    """One figure; every part that is missing is named."""
    where = f"{where}, {key}"
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: found {table!r}; needed is {{ value = .., kind = .., source = .. }}")
    for needed in ("value", "kind", "source"):
        if not table.get(needed):
            raise ConfigError(f"{where}: no {needed}; each figure has a value with its unit, a kind and a source")
    if table["kind"] not in KINDS:
        raise ConfigError(f"{where}: kind is {table['kind']!r}; needed is one of {', '.join(KINDS)}")
    value = _quantity(table["value"], key, where)
    low, high = (_quantity(table[end], key, where) if end in table else value for end in ("low", "high"))
    if table["kind"] == "estimate" and not ("low" in table and "high" in table):
        raise ConfigError(f"{where}: an estimate needs low and high")
    if not 0 < low <= value <= high:
        raise ConfigError(f"{where}: {table['value']} is not between low and high, or not above 0")
    unit = _PLAIN_UNITS.get(key) or _UNITS[key]
    source = str(table["source"])
    return Figure(value, unit, table["kind"], sources.get(source, source), low, high, str(table.get("note", "")))


def _quantity(value: Any, key: str, where: str) -> float:
    if key in _PLAIN_UNITS:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{where}: found {value!r}; needed is a number of {_PLAIN_UNITS[key]}")
        return float(value)
    if not isinstance(value, str):
        raise ConfigError(f'{where}: found {value!r} without a unit; write for example "2.4 TB/s"')
    try:
        return parse_quantity(value, _UNITS[key])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
