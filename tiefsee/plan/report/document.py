"""An answer before it is drawn: figures with ranges, tables, charts, and what they rest on.

Every question of `tiefsee plan` ends in one `Document`; terminal, HTML, PNG and JSON are four views of it. Plain
floats in tables are base units, named by their column; a `None` is "unknown" and never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.plan.figures.estimate import Estimate, Grade
from tiefsee.plan.report.charts import Chart

Cell = str | int | float | Estimate | None


@dataclass(frozen=True)
class Column:
    """`key` is its name in JSON, `unit` (as in `Estimate`) that of its numbers; "" for text and plain counts."""

    key: str
    title: str
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """`chosen` is the row that the answer speaks of."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    chosen: int | None = None
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ConfigError(
                    f"table {self.title!r}, row {number}: {len(row)} cells; needed are {len(self.columns)}"
                )


@dataclass(frozen=True)
class NamedEstimate:
    """A figure of the answer. `key` is its name in JSON: throughput, tpot, usd_per_million_tokens ..."""

    key: str
    label: str
    estimate: Estimate
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What a figure rests on; `key` is how tables, charts and figures refer to it."""

    key: str
    text: str


@dataclass(frozen=True)
class Document:
    """One question and its answer.

    answer       one sentence with numbers and ranges
    bottleneck   what it would take to be faster, in words
    data         more for machines, in base units, under "data" in the JSON and nowhere else
    date         ISO, of the answer
    """

    title: str
    question: str
    answer: str
    grade: Grade
    bottleneck: str
    figures: tuple[NamedEstimate, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    sources: tuple[Source, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""
    date: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {source.key for source in self.sources}
        for part in (*self.figures, *self.tables, *self.charts):
            for key in part.sources:
                if key not in known:
                    name = getattr(part, "title", "") or getattr(part, "label", "")
                    listed = ", ".join(sorted(known)) or "none"
                    raise ConfigError(f"{name!r} rests on source {key!r}, which is not listed; listed are {listed}")

    def footnote(self, key: str) -> int:
        """Number of a source, from 1."""
        return [source.key for source in self.sources].index(key) + 1
