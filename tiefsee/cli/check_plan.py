"""`tiefsee check plan`: predicted against measured, with error bars, refusals counted and a baseline beside it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tiefsee.errors import ConfigError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--points", type=Path, action="append", default=[], metavar="FILE.toml", help="published figures"
    )
    parser.add_argument("--measured", type=Path, action="append", default=[], metavar="CSV", help="measured runs")
    parser.add_argument("--json", action="store_true", help="machine-readable, every row")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="write the report as a page")


def run(options: argparse.Namespace) -> int:
    from tiefsee.plan.accuracy.check import INTRODUCTION, check_files, check_package
    from tiefsee.plan.accuracy.report import as_json, as_markdown

    if options.write is not None and not options.write.resolve().parent.is_dir():
        raise ConfigError(f"--write is {options.write}; there is no folder {options.write.resolve().parent}")
    if options.points or options.measured:
        report = check_files(options.points, options.measured)
    else:
        report = check_package(lambda name: print(f"tiefsee: without {name}", file=sys.stderr))
    if options.write is not None:
        options.write.write_text(as_markdown(report, INTRODUCTION))
    if options.json:
        print(json.dumps(as_json(report), indent=1))
    else:
        _print(report)
    return 0


def _print(report: Any) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from tiefsee.plan.accuracy.report import SHORT, describe, describe_goals, table

    console = Console()
    for title, lines in (
        (report.title, report.lines),
        ("runs that may have drafted, given that they did", report.open),
    ):
        if lines:
            shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for number, heading in enumerate(SHORT):
                shown.add_column(heading, no_wrap=number > 0, justify="right" if number else "left")
            for group, chips, who, *cells in table(lines):
                shown.add_row(f"{group}, {chips}" if group else f"  {who}", *cells)
            console.print(shown)
    goals = describe_goals(report.goals).splitlines() if report.goals else []
    for line in (*goals, "the worst of each group:", *(f"* {describe(s)}" for s in report.worst), *report.notes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
