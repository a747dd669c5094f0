"""How every `tiefsee plan` command hands over its answer: terminal or --json, and --html and --png beside either."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tiefsee.errors import ConfigError

if TYPE_CHECKING:
    from tiefsee.plan.report import Document


def add_report_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    group.add_argument("--json", action="store_true", help="machine-readable, on standard output")
    group.add_argument("--html", type=Path, metavar="FILE.html", help="one page with all charts, nothing fetched")
    group.add_argument(
        "--png", type=Path, metavar="FILE.png", help="the same charts as a picture; needs the extra 'plot'"
    )


def check_report_options(options: argparse.Namespace) -> None:
    """ConfigError unless what was asked for can be written: call it before anything is computed."""
    if options.png is not None:
        from tiefsee.plan.report.png import check_png

        check_png(options.png)
    if options.html is not None and options.html.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--html is {options.html}; needed is a file that ends in .html")
    for name in ("html", "png"):
        path = getattr(options, name)
        if path is not None and not path.resolve().parent.is_dir():
            raise ConfigError(f"--{name} is {path}; there is no folder {path.resolve().parent}")


def deliver(document: Document, options: argparse.Namespace) -> int:
    """Prints and writes what was asked for; returns the exit status."""
    from tiefsee.plan.report import as_json

    if options.html is not None:
        from tiefsee.plan.report.html import page

        options.html.write_text(page(document), encoding="utf-8")
    if options.png is not None:
        from tiefsee.plan.report.png import write_png

        write_png(options.png, document)
    if options.json:
        print(json.dumps(as_json(document), indent=1, allow_nan=False))
        return 0
    from tiefsee.plan.report.terminal import console_of, print_document

    console = console_of()
    print_document(console, document)
    for path in filter(None, (options.html, options.png)):
        console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0
