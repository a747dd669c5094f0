"""Cells of a table as text: one scale for all of a unit, so that the heads can name it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tiefsee.plan.figures.estimate import Estimate
from tiefsee.plan.report.document import Cell, Table
from tiefsee.plan.report.numbers import UNKNOWN, Scale, common_scale, digits_of, is_certain, show_range

PLAIN_DIGITS = 2  # of a float without a range: a part of a prediction carries no more


@dataclass(frozen=True)
class Text:
    """`value` and, apart from it, its range, so that a narrow table can put the range below."""

    value: str
    range: str = ""
    is_number: bool = False

    def __str__(self) -> str:
        return f"{self.value} ({self.range})" if self.range else self.value


@dataclass(frozen=True)
class Head:
    title: str
    unit: str


def texts_of(table: Table) -> tuple[list[Head], list[list[Text]]]:
    """Heads with the units that are shown, and all cells."""
    scales = [_scale(table, i) for i in range(len(table.columns))]
    heads = [Head(column.title, scale.label) for column, scale in zip(table.columns, scales, strict=True)]
    return heads, [[_text(cell, scale) for cell, scale in zip(row, scales, strict=True)] for row in table.rows]


def _scale(table: Table, column: int) -> Scale:
    """One for all columns of a unit: measured and predicted are compared."""
    unit = table.columns[column].unit
    if not unit:
        return Scale(1.0, "")
    alike = [i for i, other in enumerate(table.columns) if other.unit == unit]
    cells = [row[i] for row in table.rows for i in alike]
    values = [c.value if isinstance(c, Estimate) else c for c in cells if isinstance(c, (int, float, Estimate))]
    return common_scale(unit, values)


def _text(cell: Cell, scale: Scale) -> Text:
    if isinstance(cell, str):
        return Text(cell)
    if cell is None:
        return Text("-", is_number=True)
    if isinstance(cell, Estimate):
        if not math.isfinite(cell.value):
            return Text(UNKNOWN, is_number=True)
        return Text(scale.text(cell.value, digits_of(cell)), "" if is_certain(cell) else show_range(cell, scale), True)
    if isinstance(cell, int):
        return Text(f"{cell * scale.factor:,.0f}" if scale.factor == 1 else scale.text(cell, 4), is_number=True)
    if scale.label == "%":
        return Text(f"{cell * 100:.0f}" if cell >= 0.01 or not cell else f"{cell * 100:.1g}", is_number=True)
    return Text(scale.text(cell, PLAIN_DIGITS), is_number=True)
