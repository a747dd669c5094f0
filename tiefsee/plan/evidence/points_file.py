"""Files of points: TOML in and out. Whatever is wrong with a point is one error that names file and point."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from tiefsee.errors import ConfigError, ModelNotFound
from tiefsee.hardware import find_chip
from tiefsee.plan.evidence.points import KINDS, LAYOUT, QUANTITIES, Operator, Point, Role, Rollout
from tiefsee.plan.names.formats import formats_of
from tiefsee.plan.names.stacks import STACKS
from tiefsee.spec.presets import preset_config

_TABLES: dict[str, type] = {"prefill": Role, "decode": Role, "operator": Operator, "rollout": Rollout}
_NUMBERS = (
    "num_chips", "num_workers", "batch", "concurrency", "isl", "osl", "context", "cached", "mtp_drafts",
    "mtp_acceptance", "sequence", "global_batch_tokens", "micro_batch", "tokens", "published_value",
)  # fmt: skip
_CHOICES = {
    "imbalance": ("balanced", "real"), "basis": ("read", "derived", "memory"), "confidence": ("high", "med", "low"),
}  # fmt: skip


def read_points(path: Path) -> list[Point]:
    """Raises ConfigError for a file or a point that cannot be read."""
    try:
        return parse_points(path.read_text(), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text; a file of points is TOML (docs/points.md)") from None


@cache
def shipped_points() -> tuple[Point, ...]:
    """What the package carries: every published figure that it was made with."""
    text = resources.files("tiefsee.plan").joinpath("data/points.toml").read_text()
    return tuple(parse_points(text, "points.toml"))


def parse_points(text: str, where: str) -> list[Point]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is no TOML: {error}") from None
    if set(table) != {"point"} or not isinstance(table["point"], list):
        raise ConfigError(f"{where} has {', '.join(table) or 'nothing'}; needed are [[point]] tables (docs/points.md)")
    points = [_point(item, where) for item in table["point"]]
    seen: set[str] = set()
    for point in points:
        if point.id in seen:
            raise ConfigError(f"{where}, {point.id}: the id stands twice")
        seen.add(point.id)
    return points


def _point(table: Any, where: str) -> Point:
    name = table.get("id") if isinstance(table, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: a point has no id")
    where = f"{where}, {name}"
    values = _fields(Point, table, where)
    for key, kind in _TABLES.items():
        if key in values:
            values[key] = kind(**_fields(kind, values[key], f"{where}, {key}"))
    values["kind"] = values.get("kind")
    values["assumed"] = tuple(values.get("assumed", ()))
    if not values.get("source", "").strip():
        raise ConfigError(f"{where}: no source; say who measured or published it")
    point = Point(**values)
    if point.is_expressible:
        _check(point, where)
    return point


def _fields(kind: type, table: Any, where: str) -> dict[str, Any]:
    """The table's entries, each of a known name and of the type of its default or annotation."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: found {table!r}; needed is a table")
    known = {f.name: f for f in fields(kind)}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(f"{where}: {key!r} is no field{f'; is {near[0]} meant?' if near else ''}")
        _check_type(key, value, str(known[key].type), where)
    for key, entry in known.items():
        needed = entry.default is MISSING and entry.default_factory is MISSING
        if needed and key not in table and key not in ("kind", "source"):
            raise ConfigError(f"{where}: {key} is missing")
    return dict(table)


def _check_type(key: str, value: Any, annotation: str, where: str) -> None:
    plain = annotation.split(" | ")[0]
    wanted: tuple[type, ...] = {
        "float": (int, float), "int": (int,), "bool": (bool,), "tuple[str, ...]": (list,), "Mapping[str, int]": (dict,),
    }.get(plain, (dict,) if key in _TABLES else (str,))  # fmt: skip
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", list: "a list"}
        raise ConfigError(f"{where}: {key} is {value!r}; needed is {names.get(wanted[-1], 'a table')}")


def _check(point: Point, where: str) -> None:
    """Everything that can be known to be wrong before a prediction is asked for."""
    if point.kind not in KINDS:
        raise ConfigError(f"{where}: kind is {point.kind!r}; needed is one of {', '.join(KINDS)}")
    if point.quantity not in QUANTITIES:
        raise ConfigError(f"{where}: quantity is {point.quantity!r}; needed is one of {', '.join(QUANTITIES)}")
    unit, kinds = QUANTITIES[point.quantity]
    if not point.unit:
        raise ConfigError(f"{where}: no unit; {point.quantity} is in {unit}")
    if point.unit != unit:
        raise ConfigError(f"{where}: unit is {point.unit!r}; {point.quantity} is in {unit}")
    if point.kind not in kinds:
        raise ConfigError(f"{where}: {point.quantity} is no quantity of kind {point.kind}; of {', '.join(kinds)} it is")
    if not 0 < point.value < float("inf"):
        raise ConfigError(f"{where}: value is {point.value}; needed is a number above 0")
    for key in _NUMBERS:
        number = getattr(point, key)
        if number is not None and not 0 <= number < float("inf"):
            raise ConfigError(f"{where}: {key} is {number}; it cannot be below 0")
    if point.cached >= 1:
        raise ConfigError(f"{where}: cached is {point.cached}; needed is a share below 1")
    for key, choices in _CHOICES.items():
        if getattr(point, key) and getattr(point, key) not in choices:
            raise ConfigError(f"{where}: {key} is {getattr(point, key)!r}; needed is one of {', '.join(choices)}")
    if point.stack and point.stack not in STACKS:
        near = difflib.get_close_matches(point.stack, STACKS, n=1)
        hint = f"is {near[0]} meant?" if near else f"known are {', '.join(STACKS)}"
        raise ConfigError(f"{where}: stack is {point.stack!r}; {hint} (docs/points.md)")
    _check_names(point, where)
    if point.kind in ("prefill", "decode", "e2e", "train", "rl") and not point.in_csv:
        _check_run(point, where)


def _check_names(point: Point, where: str) -> None:
    roles = [role for role in (point.prefill, point.decode) if role is not None]
    try:
        if point.model:
            preset_config(point.model)
        for chip in [point.chip, *(role.chip for role in roles)]:
            if chip:
                find_chip(chip)
        for precision in [point.precision, *(role.precision for role in roles)]:
            if precision:
                formats_of(precision, point.kv_precision)
    except (ConfigError, ModelNotFound) as error:
        raise ConfigError(f"{where}: {error}") from None


def _check_run(point: Point, where: str) -> None:
    """What a prediction of a whole model needs to be told."""
    if not point.model:
        raise ConfigError(f"{where}: model is missing")
    if (point.prefill is None) != (point.decode is None):
        raise ConfigError(f"{where}: prefill and decode come together, each with chip, num_chips and layout")
    needed: tuple[str, ...] = ("chip", "num_chips", "precision", "layout")
    if point.prefill is not None and point.decode is not None:
        for key, role in (("prefill", point.prefill), ("decode", point.decode)):
            _check_layout(role.layout, role.num_chips, role.num_workers, role.chip, f"{where}, {key}")
            if role.slots is not None and not role.slots > 0:
                raise ConfigError(
                    f"{where}, {key}: slots are {role.slots}; needed are the requests that it holds at most"
                )
        needed = ()
    load = {"prefill": ("isl",), "e2e": ("isl", "osl"), "train": ("sequence", "global_batch_tokens")}
    needed += load.get(point.kind or "", ())
    lacking = [key for key in needed if not getattr(point, key)]
    if point.kind in ("decode", "e2e") and not (point.batch or point.concurrency):
        lacking.append("batch" if point.kind == "decode" else "concurrency")
    if point.kind == "decode" and point.seen_context is None:
        lacking.append("context")
    if point.quantity == "gpu_hours" and not point.tokens:
        lacking.append("tokens")
    if lacking:
        raise ConfigError(
            f'{where}: {", ".join(lacking)} missing; or say with inexpressible = ".." why it is not known'
        )
    if point.prefill is None and point.kind != "rl":
        _check_layout(point.layout, point.num_chips, point.num_workers, point.chip, where)


def _check_layout(layout: Mapping[str, int], num_chips: int, num_workers: int, chip: str, where: str) -> None:
    for key, size in layout.items():
        if key not in LAYOUT:
            raise ConfigError(f"{where}: layout has {key!r}; needed are {', '.join(LAYOUT)}")
        if isinstance(size, bool) or not isinstance(size, int) or size < (0 if key == "zero" else 1):
            raise ConfigError(f"{where}: layout has {key} = {size!r}; needed is a whole number above 0")
    sizes = {key: layout.get(key, 1) for key in LAYOUT}
    stage = sizes["tp"] * sizes["dp"] * sizes["cp"]
    if stage * sizes["pp"] * num_workers != num_chips:
        dies = find_chip(chip).dies
        hint = f"; if its ranks are dies, name the die: {chip}-die" if dies > 1 and chip.startswith("ascend") else ""
        raise ConfigError(
            f"{where}: tp x dp x cp x pp x num_workers is {stage * sizes['pp'] * num_workers}, num_chips is {num_chips}"
            f"{hint}"
        )
    if stage % (sizes["ep"] * sizes["moe_tp"]):
        raise ConfigError(
            f"{where}: ep x moe_tp = {sizes['ep'] * sizes['moe_tp']} does not divide tp x dp x cp = {stage}"
        )


def write_points(points: Iterable[Point], *, header: str = "") -> str:
    """TOML that `parse_points` reads back to equal points."""
    blocks = [f"# {line}".rstrip() for line in header.splitlines()]
    for point in points:
        lines = ["", "[[point]]"]
        for f in fields(point):
            value = getattr(point, f.name)
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            if value != default and value is not None:
                lines.append(f"{f.name} = {_toml(value)}")
        blocks += lines
    return "\n".join(blocks).lstrip() + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) + ".0" if value.is_integer() and abs(value) < 1e6 else repr(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    own = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) not in (f.default, None)}
    return _toml(own)
