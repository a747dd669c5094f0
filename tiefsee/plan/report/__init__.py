"""An answer of the planner, presented: one `Document`, shown in a terminal, as a page, as a picture, as JSON.

document = Document(title, question, answer, grade, bottleneck, figures=.., tables=.., charts=..)
terminal.print_document(terminal.console_of(), document)
html.page(document)              one file, nothing fetched
png.write_png(path, document)    needs matplotlib
as_json(document)                stable keys, base units

Nothing here computes a figure; the charts are data (charts.py) that the other parts of `plan` fill.
"""

from tiefsee.plan.report.charts import (
    Chart,
    Frontier,
    FrontierPoint,
    Line,
    RangeBar,
    RangeBars,
    Roof,
    Roofline,
    RoofPoint,
    Scaling,
    ScalingPoint,
    Swing,
    TimeBar,
    TimeBars,
    Tornado,
    interactivity,
)
from tiefsee.plan.report.document import Cell, Column, Document, NamedEstimate, Source, Table
from tiefsee.plan.report.machine import as_json
from tiefsee.plan.report.numbers import digits_of, show, show_plain, show_range, show_value

__all__ = [
    "Cell", "Chart", "Column", "Document", "Frontier", "FrontierPoint", "Line", "NamedEstimate", "RangeBar",
    "RangeBars", "Roof", "RoofPoint", "Roofline", "Scaling", "ScalingPoint", "Source", "Swing", "Table", "TimeBar",
    "TimeBars", "Tornado", "as_json", "digits_of", "interactivity", "show", "show_plain", "show_range", "show_value",
]  # fmt: skip
