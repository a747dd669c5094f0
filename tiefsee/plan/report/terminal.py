"""A document in a terminal: plain words and tables where it is piped, within the width that there is.

Colour is Rich's business: none where output is no terminal or NO_COLOR is set. A table that is too wide puts the ranges
below their values before it gives up a column.
"""

from __future__ import annotations

import re

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from tiefsee.plan.report.cells import Text, texts_of
from tiefsee.plan.report.document import Document, Table
from tiefsee.plan.report.numbers import show
from tiefsee.plan.report.shorten import shortened

PIPED_WIDTH, MOST_WIDTH = 110, 120


def console_of(width: int | None = None) -> Console:
    """A console of at most MOST_WIDTH columns; 110 where nobody watches."""
    console = Console()
    console.width = width or (min(console.width, MOST_WIDTH) if console.is_terminal else PIPED_WIDTH)
    return console


def print_document(console: Console, document: Document) -> None:
    """Answer, figures, tables, charts as tables, bottleneck, notes and sources."""
    _say(console, document.title, "bold")
    _say(console, document.question, "dim")
    console.print()
    _say(console, document.answer)
    console.print()
    _figures(console, document)
    for table in document.tables:
        print_table(console, table)
    for chart in document.charts:
        if (short := shortened(chart)) is not None:
            print_table(console, short)
    for note in document.notes:
        _say(console, f"note: {note}", "yellow")
    if document.sources:
        console.print()
    for number, source in enumerate(document.sources, 1):
        _say(console, f"[{number}] {source.text}", "dim")


def _figures(console: Console, document: Document) -> None:
    rows: list[tuple[str, str, str, str]] = [
        (n.label, show(n.estimate), n.estimate.grade, _marks(document, n.sources)) for n in document.figures
    ]
    rows += [("bottleneck", document.bottleneck, "", ""), ("evidence", f"{document.grade}; ranges hold 80%", "", "")]
    grid = RichTable.grid(padding=(0, 2))
    for row in rows:
        grid.add_row(*(RichText(cell, style="dim" if i != 1 else "") for i, cell in enumerate(row)))
    _print(console, grid)


def print_table(console: Console, table: Table) -> None:
    """The table with its title and note; nothing of an empty one but its title."""
    console.print()
    _say(console, table.title, "bold")
    if not table.rows:
        _say(console, "(nothing)", "dim")
        return
    made = _made(table, below=False)
    if console.measure(made).minimum > console.width or _natural(console, made) > console.width:
        made = _made(table, below=True)
    _print(console, made)
    if table.note:
        _say(console, table.note, "dim")


def _natural(console: Console, made: RichTable) -> int:
    return console.measure(made, options=console.options.update(max_width=10_000)).maximum


def _made(table: Table, *, below: bool) -> RichTable:
    heads, rows = texts_of(table)
    made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, head in enumerate(heads):
        is_number = any(row[i].is_number for row in rows)
        title = f"{head.title}\n{head.unit}" if head.unit not in ("", head.title) else head.title
        made.add_column(
            RichText(title),
            justify="right" if is_number else "left",
            no_wrap=is_number or table.columns[i].key == "bar",
            vertical="top",
        )
    for i, row in enumerate(rows):
        made.add_row(*(_cell(text, below=below) for text in row), style="bold" if i == table.chosen else "")
    return made


def _cell(text: Text, *, below: bool) -> RichText:
    if not text.range:
        return RichText(text.value)
    return RichText.assemble(text.value, "\n" if below else " ", (f"({text.range})", "dim not bold"))


def _marks(document: Document, keys: tuple[str, ...]) -> str:
    return "".join(f"[{document.footnote(key)}]" for key in keys)


def _say(console: Console, text: str, style: str = "") -> None:
    """Wrapped between words, but never between the two ends of a range."""
    lines: list[str] = []
    for word in re.findall(r"\S+ \.\. \S+|\S+", text):
        if lines and len(lines[-1]) + 1 + len(word) <= console.width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    for line in lines:
        console.print(line, style=style, markup=False, highlight=False, no_wrap=True, overflow="ignore", crop=False)


def _print(console: Console, made: RichTable) -> None:
    """Without the spaces that Rich fills lines with: output is piped, compared and put into documents."""
    with console.capture() as captured:
        console.print(made)
    for line in captured.get().splitlines():
        console.file.write(line.rstrip() + "\n")
