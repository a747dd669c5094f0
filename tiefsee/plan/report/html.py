"""A document as one HTML file that needs nothing else: no script, no font, no picture, no address is fetched.

Charts are drawn twice, for a desk and for a phone; the style sheet shows the one that fits. It follows the reader's
light or dark setting; paper is light, and shows those tables of charts that the reader opened.
"""

from __future__ import annotations

from html import escape
from importlib import resources

from tiefsee import __version__
from tiefsee.plan.report.cells import Head, Text, texts_of
from tiefsee.plan.report.charts import Chart
from tiefsee.plan.report.document import Document, NamedEstimate, Table
from tiefsee.plan.report.draw import caption, draw
from tiefsee.plan.report.numbers import is_certain, show_range, show_value
from tiefsee.plan.report.palette import DARK, LIGHT
from tiefsee.plan.report.svg import style, svg
from tiefsee.plan.report.tables import as_table

WIDE, PHONE = 720.0, 340.0
DENSE = 5  # columns from which on ranges stand below their values
GRADES = {
    "measured": "this chip and this kind of run are among what the model of time was fitted on",
    "fitted": "the chip or the software is not among what the model of time was fitted on; its relatives are",
    "datasheet": "nothing of this chip was measured: its data sheet, and the efficiencies of others",
    "rumour": "the chip is announced only, or a figure of it is a guess",
}


def page(document: Document) -> str:
    """The whole file."""
    parts = [
        _head(document), '<body><main><header><p class="kind">tiefsee plan</p>', f"<h1>{escape(document.title)}</h1>",
        f'<p class="question">{escape(document.question)}</p></header>',
        f'<section aria-label="Answer"><p class="answer">{_escape(document.answer)}</p>',
        _figures(document), _facts(document), "</section>",
        *(_chart(document, chart, i) for i, chart in enumerate(document.charts)),
        *(f"<section><h2>{escape(t.title)}</h2>{_table(document, t)}</section>" for t in document.tables),
        _list(document.notes, "Notes", "ul"), _sources(document), _footer(document), "</main></body></html>\n",
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _head(document: Document) -> str:
    light, dark = (";".join(f"--{name}:{value}" for name, value in table.items()) for table in (LIGHT, DARK))
    sheet = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    colours = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    # The policy holds the file to its word: were anything to be fetched, the browser would refuse.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(document.title)}</title>'
        f"<style>{colours}{style()}\n{sheet}</style></head>"
    )


def _figures(document: Document) -> str:
    items = "".join(_figure(document, named) for named in document.figures)
    return f'<dl class="figures">{items}</dl>' if items else ""


def _figure(document: Document, named: NamedEstimate) -> str:
    estimate = named.estimate
    value = show_value(estimate)
    number, _, unit = value.partition(" ")
    text = f'<b>{escape(number)}</b> <span class="unit">{escape(unit)}</span>'
    if not is_certain(estimate) and estimate.value == estimate.value:
        text += f'<span class="range">{_escape(show_range(estimate))}</span>'
    grade = f'<span class="grade {estimate.grade}">{estimate.grade}</span>'
    return f"<div><dt>{escape(named.label)}{_marks(document, named.sources)}</dt><dd>{text}{grade}</dd></div>"


def _facts(document: Document) -> str:
    """Bottleneck and grade, said in words."""
    return (
        f'<dl class="facts"><div><dt>Bottleneck</dt><dd>{escape(document.bottleneck)}</dd></div>'
        f"<div><dt>Evidence</dt><dd>{document.grade}: {escape(GRADES[document.grade])}. Ranges hold 80%.</dd></div>"
        "</dl>"
    )


def _chart(document: Document, chart: Chart, number: int) -> str:
    title = f"{escape(chart.title)}{_marks(document, chart.sources)}"
    wide, phone = (svg(draw(chart, width), f"Chart: {chart.title}") for width in (WIDE, PHONE))
    words = caption(chart)
    text = f"<figcaption>{escape(words)}</figcaption>" if words else ""
    table = _table(document, as_table(chart))
    return (
        f'<section><h2 id="chart-{number}">{title}</h2><figure aria-labelledby="chart-{number}">'
        f'<div class="wide">{wide}</div><div class="phone">{phone}</div>{text}</figure>'
        f"<details><summary>The figures</summary>{table}</details></section>"
    )


def _table(document: Document, table: Table) -> str:
    heads, rows = texts_of(table)
    numbers = [any(row[i].is_number for row in rows) for i in range(len(heads))]
    head = "".join(_head_cell(h, is_number=n) for h, n in zip(heads, numbers, strict=True))
    body = "".join(_row(row, numbers, chosen=i == table.chosen) for i, row in enumerate(rows))
    note = escape(table.note) + _marks(document, table.sources)
    dense = " class=dense" if len(heads) > DENSE else ""
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(table.title)}">'
        f"<table{dense}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        + (f'<p class="note">{note}</p>' if note else "")
    )


def _head_cell(head: Head, *, is_number: bool) -> str:
    unit = f"<small>{escape(head.unit)}</small>" if head.unit not in ("", head.title) else ""
    return f'<th scope="col"{_side(is_number)}>{escape(head.title)}{unit}</th>'


def _row(row: list[Text], numbers: list[bool], *, chosen: bool) -> str:
    cells = []
    for i, (cell, number) in enumerate(zip(row, numbers, strict=True)):
        text = escape(cell.value) + (f' <span class="range">({_escape(cell.range)})</span>' if cell.range else "")
        tag = 'th scope="row"' if i == 0 else "td"
        cells.append(f"<{tag}{_side(number)}>{text}</{tag.split()[0]}>")
    return f"<tr{' class=chosen' if chosen else ''}>{''.join(cells)}</tr>"


def _escape(text: str) -> str:
    """Escaped, and a range is not broken: its two ends stand on one line."""
    return escape(text).replace(" .. ", "\u00a0..\u00a0")


def _side(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _marks(document: Document, keys: tuple[str, ...]) -> str:
    numbers = sorted(document.footnote(key) for key in keys)
    return "".join(f'<sup><a href="#source-{n}" aria-label="source {n}">{n}</a></sup>' for n in numbers)


def _sources(document: Document) -> str:
    items = "".join(f'<li id="source-{i}">{escape(s.text)}</li>' for i, s in enumerate(document.sources, 1))
    return f'<section class="small"><h2>Sources</h2><ol>{items}</ol></section>' if items else ""


def _list(texts: tuple[str, ...], title: str, tag: str) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<section class="small"><h2>{title}</h2><{tag}>{items}</{tag}></section>' if items else ""


def _footer(document: Document) -> str:
    command = f"<code>{escape(document.command)}</code>" if document.command else ""
    when = f"tiefsee {__version__}" + (f", {escape(document.date)}" if document.date else "")
    return f"<footer>{command}<p>{when}</p></footer>"
