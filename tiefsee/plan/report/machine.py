"""A document for machines: the keys below are stable, values are base units, unknown is null.

schema        "tiefsee.plan/1"
title, question, answer, bottleneck, command, date     text
grade         measured | fitted | datasheet | rumour
figures       {key: {label, value, low, high, unit, grade, sources}}       low .. high holds 80 %
tables        [{title, note, chosen, columns: [{key, title, unit}], rows: [{column's key: cell}], sources}]
              an estimate in a cell is {value, low, high, unit, grade}
charts        [{kind, title, note, ..}]    kind and fields are those of tiefsee.plan.report.charts
sources       [{key, text}]      notes    [text]
data          what the command adds for machines
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from tiefsee.plan.report.document import Document, Table

SCHEMA = "tiefsee.plan/1"


def as_json(document: Document) -> dict[str, Any]:
    """The document as plain lists and dicts."""
    figures = {
        named.key: {"label": named.label, **plain(named.estimate), "sources": list(named.sources)}
        for named in document.figures
    }
    return {
        "schema": SCHEMA,
        **{name: getattr(document, name) for name in ("title", "question", "answer", "grade", "bottleneck")},
        "figures": figures,
        "tables": [_table(table) for table in document.tables],
        "charts": [{"kind": type(chart).__name__.lower(), **plain(chart)} for chart in document.charts],
        "sources": plain(document.sources),
        "notes": list(document.notes),
        "command": document.command,
        "date": document.date,
        "data": plain(document.data),
    }


def _table(table: Table) -> dict[str, Any]:
    keys = [column.key for column in table.columns]
    return {
        **{name: plain(getattr(table, name)) for name in ("title", "note", "chosen", "columns")},
        "rows": [dict(zip(keys, map(plain, row), strict=True)) for row in table.rows],
        "sources": list(table.sources),
    }


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, and what is not finite as None: JSON has no NaN."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
