"""A file of measurements of an endpoint: CSV or TOML, one row for each load.

    isl,osl,concurrency,ttft_ms,tpot_ms,accepted,cached          [[row]]
    1024,256,1,310,14.2,,                                        isl = 1024
    32768,64,1,4100,15.0,,                                       osl = 256
    1024,256,16,900,21.5,0.8,                                    concurrency = 1
                                                                 ttft_ms = 310
                                                                 tpot_ms = 14.2

isl, osl          tokens of prompt and answer
concurrency       requests at once, all the time
ttft_ms, tpot_ms  to the first token and per further token, medians; one of the two may lack
accepted          drafts accepted per step, if the server says so; 0: it does not draft
cached            tokens of the prompt that were cached: 0 unless prompts repeat. Measure with prompts that do not.

In a TOML file `accepted` and `cached` may also stand at the top, for all rows.
"""

from __future__ import annotations

import csv
import io
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.plan.identify.hypothesis import Row

NEEDED = ("isl", "osl", "concurrency")
TIMES = ("ttft_ms", "tpot_ms")
HINTS = ("accepted", "cached")
KNOWN = (*NEEDED, *TIMES, *HINTS)
MOST_ROWS = 500  # beyond that medians say it as well, and the likelihood takes its time


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a file that ends in .csv or .toml. Raises ConfigError with the line or row that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if path.suffix == ".toml":
        return parse_toml(text, str(path))
    if path.suffix == ".csv":
        return parse_csv(text, str(path))
    raise ConfigError(
        f"measurements are {path}; needed is a file that ends in .csv or .toml (docs/plan.md has the form)"
    )


def parse_csv(text: str, where: str) -> tuple[Row, ...]:
    reader = csv.DictReader(io.StringIO(text.lstrip("\ufeff")), skipinitialspace=True)
    _check_names(reader.fieldnames or (), where)
    return _rows([({**row}, f"{where}, line {number}") for number, row in enumerate(reader, 2)], where)


def parse_toml(text: str, where: str) -> tuple[Row, ...]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is no TOML: {error}") from None
    rows = table.pop("row", [])
    unknown = sorted(set(table) - set(HINTS))
    if unknown:
        raise ConfigError(
            f"{where}: {unknown[0]!r} at the top means nothing; needed are [[row]] tables, and maybe {HINTS}"
        )
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{where}: `row` is no list of tables; write [[row]] before each")
    for row in rows:
        _check_names(row, where)
    return _rows([({**table, **row}, f"{where}, row {number}") for number, row in enumerate(rows, 1)], where)


def _rows(found: Sequence[tuple[Mapping[str, Any], str]], where: str) -> tuple[Row, ...]:
    if not found:
        raise ConfigError(f"{where} has no rows; needed are at least one, better six with several lengths and loads")
    if len(found) > MOST_ROWS:
        raise ConfigError(
            f"{where} has {len(found)} rows; give the medians of each length and load, {MOST_ROWS} at most"
        )
    return tuple(_row(values, place) for values, place in found)


def _check_names(names: Any, where: str) -> None:
    lacking = [name for name in NEEDED if name not in names]
    unknown = sorted(str(name) for name in set(names) - set(KNOWN))
    if lacking:
        raise ConfigError(f"{where} lacks {', '.join(lacking)}; the columns are {', '.join(KNOWN)}")
    if unknown:
        raise ConfigError(
            f"{where} has {', '.join(unknown)}, which means nothing here; the columns are {', '.join(KNOWN)}"
        )


def _row(values: Mapping[str, Any], place: str) -> Row:
    numbers = {name: _number(values.get(name), name, place) for name in KNOWN}
    for name in (*NEEDED, *TIMES):
        value = numbers[name]
        if (value is None and name in NEEDED) or (value is not None and value <= 0):
            raise ConfigError(f"{place}: {name} is {values.get(name)!r}; needed is a number above 0")
    if numbers["ttft_ms"] is None and numbers["tpot_ms"] is None:
        raise ConfigError(f"{place} has neither ttft_ms nor tpot_ms; needed is one of them")
    isl, osl, concurrency = (numbers[name] or 0.0 for name in NEEDED)
    cached, accepted = numbers["cached"] or 0.0, numbers["accepted"]
    if not 0 <= cached < isl:
        raise ConfigError(f"{place}: cached is {cached:g}; needed is 0 to less than isl ({isl:g})")
    if accepted is not None and not 0 <= accepted <= 16:
        raise ConfigError(f"{place}: accepted is {accepted:g}; needed are drafts per step, 0 to 16")
    ttft_s, tpot_s = (None if numbers[name] is None else (numbers[name] or 0.0) / 1e3 for name in TIMES)
    return Row(isl, osl, concurrency, ttft_s, tpot_s, accepted, cached)


def _number(value: Any, name: str, place: str) -> float | None:
    """None of an empty cell."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ConfigError(f"{place}: {name} is {value!r}; needed is a number")
    return number
