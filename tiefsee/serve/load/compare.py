"""Two files of figures side by side, load by load, with ratios."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from tiefsee.errors import ConfigError

# figure, its place in a summary, factor to print it with, whether more is better
FIGURES = (
    ("output tokens/s", ("output_tokens_per_s",), 1.0, True),
    ("requests/s", ("requests_per_s",), 1.0, True),
    ("goodput requests/s", ("goodput_requests_per_s",), 1.0, True),
    ("TTFT P50 ms", ("ttft_s", "p50"), 1e3, False),
    ("TTFT P99 ms", ("ttft_s", "p99"), 1e3, False),
    ("TPOT P50 ms", ("tpot_s", "p50"), 1e3, False),
    ("TPOT P99 ms", ("tpot_s", "p99"), 1e3, False),
    ("ITL P99 ms", ("itl_s", "p99"), 1e3, False),
)


def compare(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per load and figure that both have: {load, figure, first, second, ratio, better}.

    `ratio` is second / first; `better` is "first", "second" or "" where they differ by less than 2 %.
    """
    loads = {run["load"]["label"]: run for run in first["runs"]}
    rows = []
    for run in second["runs"]:
        other = loads.get(run["load"]["label"])
        for name, place, scale, more in FIGURES if other is not None else ():
            a, b = _at(other, place), _at(run, place)
            if a and b is not None:
                ratio = b / a
                better = "" if abs(ratio - 1) < 0.02 else "second" if (ratio > 1) == more else "first"
                row = {"load": run["load"]["label"], "figure": name, "first": a * scale, "second": b * scale}
                rows.append({**row, "ratio": ratio, "better": better})
    if not rows:
        raise ConfigError(
            f"the files share no load: {', '.join(loads) or 'none'} in the first, "
            f"{', '.join(run['load']['label'] for run in second['runs']) or 'none'} in the second"
        )
    return rows


def _at(summary: Any, place: tuple[str, ...]) -> float | None:
    for name in place:
        summary = None if summary is None else summary.get(name)
    return summary


def print_comparison(console: Console, rows: list[dict[str, Any]], names: tuple[str, str]) -> None:
    table = Table()
    for title in ("load", "", *names, "ratio", "better"):
        table.add_column(title, justify="left" if title in ("load", "", "better") else "right")
    for row in rows:
        better = {"first": names[0], "second": names[1]}.get(row["better"], "")
        table.add_row(
            row["load"], row["figure"], f"{row['first']:,.2f}", f"{row['second']:,.2f}", f"{row['ratio']:.3f}", better
        )
    console.print(table)
