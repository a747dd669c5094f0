"""A picture of one load or of a sweep. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.serve.load.record import Record


def check_plot(path: Path) -> None:
    """ConfigError unless a picture can be written there, so that no run is lost for its plot."""
    try:
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError:
        raise ConfigError("--plot needs matplotlib; install it with: pip install 'tiefsee[plot]'") from None
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot is {path}; needed is a file that ends in .png, .svg or .pdf")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"--plot is {path}; there is no folder {path.resolve().parent}")


def write_plot(path: Path, summaries: list[dict[str, Any]], records: list[list[Record]]) -> None:
    """A sweep: throughput against interactivity. One load: how TTFT and TPOT are distributed."""
    from matplotlib.figure import Figure

    if len(summaries) > 1:
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        _sweep(figure.subplots(), summaries)
    else:
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        good = [record for record in records[0] if record.ok]
        limits = summaries[0]["slo"]
        _distribution(left, "TTFT, ms", [r.ttft_s for r in good], limits.get("ttft_s"))
        _distribution(right, "TPOT, ms", [r.tpot_s for r in good], limits.get("tpot_s"))
        figure.suptitle(summaries[0]["load"]["label"], fontsize=11)
    figure.savefig(path, dpi=150)


def _sweep(axes: Any, summaries: list[dict[str, Any]]) -> None:
    points = [
        (1 / summary["tpot_s"]["p50"], summary["output_tokens_per_s"], summary["load"]["label"])
        for summary in summaries
        if summary["tpot_s"] is not None and summary["tpot_s"]["p50"] > 0
    ]
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", color="#2f5fd0", linewidth=1.5, markersize=5)
    for x, y, label in points:
        axes.annotate(label, (x, y), textcoords="offset points", xytext=(6, 5), fontsize=8, color="#444444")
    axes.set_xlabel("interactivity: tokens/s of one user (1 / median TPOT)")
    axes.set_ylabel("output tokens/s of the server")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(0.12)
    _quiet(axes)


def _distribution(axes: Any, title: str, values: list[float | None], limit_s: float | None) -> None:
    ordered = sorted(value * 1e3 for value in values if value is not None)
    share = [100 * (i + 1) / len(ordered) for i in range(len(ordered))]
    axes.step(ordered, share, where="post", color="#2f5fd0", linewidth=1.5)
    if limit_s is not None:
        axes.axvline(limit_s * 1e3, color="#c04a2b", linestyle="--", linewidth=1)
        axes.annotate("SLO", (limit_s * 1e3, 4), textcoords="offset points", xytext=(4, 0), fontsize=8, color="#c04a2b")
    axes.set_xlabel(title)
    axes.set_ylabel("requests, %")
    axes.set_ylim(0, 101)
    _quiet(axes)


def _quiet(axes: Any) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
