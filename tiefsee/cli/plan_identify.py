"""`tiefsee plan identify`: what hardware is behind an endpoint, from TTFT and TPOT at several lengths and loads."""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiefsee.cli.plan_report import add_report_options, check_report_options, deliver
from tiefsee.errors import ConfigError

if TYPE_CHECKING:
    from tiefsee.hardware import Chip
    from tiefsee.plan.figures.estimate import Grade
    from tiefsee.plan.identify import Row


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="preset, folder, config.json or hub id of the served model")
    parser.add_argument(
        "--measured", required=True, type=Path, metavar="FILE",
        help=".csv or .toml with isl, osl, concurrency, ttft_ms, tpot_ms; or what `tiefsee bench serve --json` wrote",
    )  # fmt: skip
    parser.add_argument("--chips", metavar="A,B", help="chips to ask about (default: all that can be had)")
    add_report_options(parser)


def run(options: argparse.Namespace) -> int:
    from tiefsee.cli.inspect import open_spec
    from tiefsee.hardware import find_chip
    from tiefsee.plan.fitted.calibrated import shipped
    from tiefsee.plan.identify import Field, identify
    from tiefsee.plan.identify.answer import answer
    from tiefsee.plan.identify.deployments import hypotheses_of, usual_chips, wanted_rows
    from tiefsee.plan.identify.fitted import FittedPredictor

    check_report_options(options)
    rows = rows_of(options.measured)
    name, spec = open_spec(options.model)
    chips = options.chips.split(",") if options.chips else usual_chips()
    chips = tuple(dict.fromkeys(find_chip(chip).name for chip in chips))
    hypotheses, later = hypotheses_of(spec, chips, rows), wanted_rows(spec)
    field = Field(hypotheses, rows, FittedPredictor(spec, shipped(), hypotheses, rows, later))
    verdict = identify(field, later)
    command = f"tiefsee plan identify --model {options.model} --measured {options.measured}"
    today = date.today().isoformat()
    found = answer(name, field, verdict, grade_of, command=command, date=today)
    return deliver(found, options)


def grade_of(chip: Chip) -> Grade:
    return "rumour" if chip.is_announced_only else "fitted"


def rows_of(path: Path) -> tuple[Row, ...]:
    """The rows of a file, or the medians of each closed loop of `tiefsee bench serve --json`.

    What share of drafts was accepted is what such a file knows; it is taken for accepted drafts of one per step.
    """
    from tiefsee.plan.identify import Row, read_rows

    if path.suffix != ".json":
        return read_rows(path)
    from tiefsee.serve.load.report import read_json

    rows = []
    for number, run in enumerate(read_json(path)["runs"], 1):
        load: dict[str, Any] = run["load"]
        if load["concurrency"] is None:
            raise ConfigError(
                f"{path}, run {number} was no closed loop; measure with `tiefsee bench serve --concurrency`"
            )
        if any(run[key] is None for key in ("prompt_tokens", "output_tokens", "ttft_s", "tpot_s")):
            raise ConfigError(f"{path}, run {number} has no answered request; leave it out")
        isl, osl = run["prompt_tokens"]["mean"], run["output_tokens"]["mean"]
        cached = run["cached_tokens"] / max(1, run["requests"]["ok"])
        times = run["ttft_s"]["p50"], run["tpot_s"]["p50"]
        rows.append(Row(isl, osl, load["concurrency"], *times, run["draft_acceptance"], min(cached, isl - 1)))
    return tuple(rows)
