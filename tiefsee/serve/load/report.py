"""Summaries as a table for the terminal and as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tiefsee.errors import ConfigError
from tiefsee.serve.load.record import Record
from tiefsee.serve.load.summary import PERCENTS, SCHEMA, TIMES

TITLES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "end to end"}


def print_run(console: Console, summary: dict[str, Any]) -> None:
    """One load: its latencies, then what was done in it and what went wrong."""
    table = Table(title=f"{summary['load']['label']}, {summary['wall_s']:.1f} s", title_justify="left")
    table.add_column("ms")
    for name in ("mean", *(f"p{percent}" for percent in PERCENTS), "max"):
        table.add_column(name.upper() if name[0] == "p" else name, justify="right")
    for name in TIMES:
        spread = summary[name]
        if spread is not None:
            cells = [spread["mean"], *(spread[f"p{percent}"] for percent in PERCENTS), spread["max"]]
            table.add_row(TITLES[name], *(f"{value * 1e3:,.1f}" for value in cells))
    if table.row_count:
        console.print(table)
    for line in lines(summary):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in complaints(summary):
        console.print(f"note: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print()


def lines(summary: dict[str, Any]) -> Iterable[str]:
    counts, prompt, output = summary["requests"], summary["prompt_tokens"], summary["output_tokens"]
    yield "requests    " + ", ".join(f"{value} {name}" for name, value in counts.items())
    if prompt and output:
        yield (
            f"tokens      prompt {prompt['mean']:,.0f} in the mean ({prompt['p50']:,.0f} median), answer "
            f"{output['mean']:,.0f} ({output['p50']:,.0f}); {summary['cached_tokens']:,} prompt tokens were cached"
        )
    yield (
        f"throughput  {summary['requests_per_s']:.2f} requests/s, "
        f"{summary['output_tokens_per_s']:,.1f} output tokens/s, "
        f"{summary['total_tokens_per_s']:,.1f} tokens/s in all"
    )
    if summary["slo"]:
        limits = ", ".join(f"{TITLES[name]} <= {limit * 1e3:g} ms" for name, limit in summary["slo"].items())
        yield (
            f"goodput     {summary['goodput_requests_per_s']:.2f} requests/s; {summary['slo_attainment']:.1%} of the "
            f"requests within {limits}"
        )
    if summary["draft_acceptance"] is not None:
        yield f"drafts      {summary['draft_acceptance']:.1%} accepted"


def complaints(summary: dict[str, Any]) -> Iterable[str]:
    """What a reader of the figures has to know."""
    if summary["interrupted"]:
        yield "interrupted: these are the requests that had ended"
    if summary["client"]["complaint"]:
        yield f"THE CLIENT WAS THE BOTTLENECK: {summary['client']['complaint']}; lower the load or use several machines"
    if summary["requests"]["ok"] and not summary["chunks_counted"]:
        yield "the server counts no tokens in its chunks: ITL shares each answer's tokens out evenly over its chunks"
    for error, count in summary["errors"].items():
        yield f"{count} x {error}"


def print_sweep(console: Console, summaries: list[dict[str, Any]]) -> None:
    """Several loads, a line each."""
    table = Table(title="sweep", title_justify="left")
    titles = ("load", "ok", "not", "req/s", "tok/s", "TTFT P50", "P99", "TPOT P50", "P99", "in SLO")
    for title in titles:
        table.add_column(title, justify="left" if title == "load" else "right", no_wrap=True)
    for summary in summaries:
        counts = summary["requests"]
        table.add_row(
            summary["load"]["label"], str(counts["ok"]), str(counts["sent"] - counts["ok"]),
            f"{summary['requests_per_s']:.2f}", f"{summary['output_tokens_per_s']:,.0f}",
            *(_ms(summary[name], percent) for name in ("ttft_s", "tpot_s") for percent in ("p50", "p99")),
            f"{summary['slo_attainment']:.1%}" if summary["slo"] else "",
        )  # fmt: skip
    console.print(table)


def _ms(spread: dict[str, float] | None, name: str) -> str:
    return "" if spread is None else f"{spread[name] * 1e3:,.1f}"


def write_json(
    path: Path, target: dict[str, Any], summaries: list[dict[str, Any]], records: list[list[Record]] | None
) -> None:
    """The file that docs/bench.md describes; with `records`, every request's times too."""
    runs = [dict(summary) for summary in summaries]
    for run, seen in zip(runs, records or [], strict=False):
        run["records"] = [record.as_json() for record in seen]
    path.write_text(json.dumps({"schema": SCHEMA, "target": target, "runs": runs}, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A file of `write_json`; ConfigError for anything else."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        schema = found.get("schema") if isinstance(found, dict) else None
        raise ConfigError(f"{path} has the schema {schema!r}; needed is {SCHEMA}, of `tiefsee bench serve --json`")
    return found
