"""tiefsee plan against NVIDIA's AIConfigurator 0.12: what a search costs and finds, and how near predictions are.

    python benchmarks/plan_against_aiconfigurator.py [--repeats 3] [--rows-per-slice 8] [--json FILE]

AIConfigurator goes into a venv of its own (--venv, about 600 MB), every package pinned in the .txt beside this file.

* Search: DeepSeek-V3 on 32 x H200, 4,096 tokens in, 1,024 out, TTFT 2 s, TPOT 50 ms, in turn, several times, each
  a fresh process. CPU seconds are user and system of the process and its children; memory is the largest process.
* Accuracy: a random sample of measured runs, `--rows-per-slice` of each chip, stack and precision (seeded;
  aggregated, nothing about them assumed, without speculative decoding, each measurement once). Both tools get the same
  lengths (90 % of the nominal ones, since the runs draw 80 to 100 %), layout, precision and load. AIConfigurator runs
  with each of OPTIONS, and "AIC best" takes per slice the options whose errors of TPOT and TTFT are least together:
  more than a user can know.

What it does not say: tiefsee's efficiencies were fitted on rows of the same file, AIConfigurator's operators were
measured on the same chips by the same people; docs/accuracy.md has tiefsee's figures for families left out of the fit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
REQUIREMENTS = HERE.with_suffix(".txt")
VENV = Path(os.environ.get("TMPDIR", "/tmp")) / "tiefsee-aiconfigurator"
SYSTEMS = {"a100": "a100_sxm", "h100": "h100_sxm", "h200": "h200_sxm", "b200": "b200_sxm", "b300": "b300_sxm",
           "gb200": "gb200", "gb300": "gb300"}  # fmt: skip
CHECKPOINTS = {"fp8": "deepseek-ai/DeepSeek-V3", "fp4": "nvidia/DeepSeek-V3.1-NVFP4"}
# Tokens of prompts that share a step with decodes: one prompt (its default), and what servers are started with.
OPTIONS: dict[str, dict[str, Any]] = {"default": {}, "8K step": {"ctx_tokens": 8192}, "16K step": {"ctx_tokens": 16384}}
AIC_SEARCH = [
    "cli", "default", "--model-path", "deepseek-ai/DeepSeek-V3", "--system", "h200_sxm", "--total-gpus", "32",
    "--backend", "sglang", "--isl", "4096", "--osl", "1024", "--ttft", "2000", "--tpot", "50", "--no-color",
    "--save-dir",
]  # fmt: skip
OUR_SEARCH = [
    "-m", "tiefsee", "plan", "serve", "--model", "deepseek-ai/DeepSeek-V3", "--chips", "h200:32", "--isl", "4096",
    "--osl", "1024", "--tpot-ms", "50", "--ttft-ms", "2000", "--json",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=VENV, help="where AIConfigurator lives (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="searches of each tool (default: %(default)s)")
    parser.add_argument("--rows-per-slice", type=int, default=8, help="measured runs of each chip, stack and precision")
    parser.add_argument("--measured", type=Path, help="CSV of measured runs (default: the one that tiefsee carries)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("search", "accuracy"), help="only this")
    parser.add_argument("--tool", choices=("aiconfigurator", "tiefsee"), help="only this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all raw results")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # runs inside the venv
    options = parser.parse_args()
    if options.worker is not None:
        estimate_all(options.worker)
        return
    tools = [options.tool] if options.tool else ["aiconfigurator", "tiefsee"]
    python = install(options.venv) if "aiconfigurator" in tools else None
    results: dict[str, Any] = {"machine": machine(), "seed": options.seed}
    if options.part in (None, "search"):
        results["search"] = searches(tools, python, options.repeats)
        print_searches(results["search"])
    if options.part in (None, "accuracy"):
        cells = sample(options.measured, options.rows_per_slice, options.seed)
        results["accuracy"] = accuracies(tools, python, cells)
        print_accuracies(results["accuracy"])
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1))


def install(venv: Path) -> Path:
    """The venv's Python, with exactly what is pinned."""
    python, stamp = venv / "bin" / "python", venv / "installed.txt"
    if not (stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text()):
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        pip = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "-r",
            REQUIREMENTS,
        ]
        subprocess.run(pip, check=True)
        stamp.write_text(REQUIREMENTS.read_text())
    return python


def machine() -> str:
    from tiefsee.plan.evidence.measure_chip import cpu_model, num_cores

    return f"{cpu_model()}, {num_cores()} cores, load {os.getloadavg()[0]:.1f} before the first run"


# ------------------------------------------------------------------------------------------------------- the search


def searches(tools: list[str], python: Path | None, repeats: int) -> list[dict[str, Any]]:
    runs = []
    for _ in range(repeats):
        if "aiconfigurator" in tools:
            with tempfile.TemporaryDirectory() as folder:
                tool = [str(python and python.parent / "aiconfigurator"), *AIC_SEARCH, folder]
                runs.append(measured("aiconfigurator", tool, lambda _, folder=folder: aic_best(Path(folder))))
        if "tiefsee" in tools:
            runs.append(measured("tiefsee", [sys.executable, *OUR_SEARCH], our_best))
    return runs


def measured(name: str, command: list[str], best: Callable[[str], Any]) -> dict[str, Any]:
    """One fresh process: {tool, cpu_s, wall_s, peak_bytes, best}."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read()[-2000:]}")
        found = best(out.read())
    cpu_s = usage.ru_utime + usage.ru_stime
    return {"tool": name, "cpu_s": cpu_s, "wall_s": wall_s, "peak_bytes": usage.ru_maxrss * 1024, "best": found}


def aic_best(folder: Path) -> dict[str, str]:
    """Of each mode: tokens/s per GPU and the layout."""
    best = {}
    for path in sorted(folder.rglob("best_config_topn.csv")):
        with path.open(newline="") as file:
            row = next(csv.DictReader(file))
        layout = (
            row.get("parallel")
            or f"{row['(p)workers']} x {row['(p)parallel']} + {row['(d)workers']} x {row['(d)parallel']}"
        )
        best[path.parent.name] = (
            f"{float(row['tokens/s/gpu']):.0f} tokens/s per GPU, TTFT {float(row['ttft']):.0f} ms, "
            f"TPOT {float(row['tpot']):.1f} ms: {layout}, batch {row.get('bs') or row.get('(d)bs')}"
        )
    return best


def our_best(text: str) -> Any:
    """The answer in a sentence, and where the simulation of the best layouts differs."""
    found = json.loads(text)
    return {"answer": found["answer"], "bottleneck": found["bottleneck"]}


def print_searches(runs: list[dict[str, Any]]) -> None:
    print(f"\n{'search, 32 x H200':<18}{'CPU s':>9}{'wall s':>9}{'MB':>7}   medians; runs in turn")
    for tool in dict.fromkeys(run["tool"] for run in runs):
        own = [run for run in runs if run["tool"] == tool]
        cpu, wall, peak = (statistics.median(run[key] for run in own) for key in ("cpu_s", "wall_s", "peak_bytes"))
        each = ", ".join(f"{run['cpu_s']:.1f}" for run in own)
        print(f"{tool:<18}{cpu:>9.1f}{wall:>9.1f}{peak / 1e6:>7.0f}   CPU s of each: {each}")
        for line in shown(own[-1]["best"]):
            print(f"    {line}")


def shown(best: Any) -> Iterable[str]:
    if isinstance(best, dict):
        return [f"{key}: {value}"[:160] for key, value in best.items() if not isinstance(value, (dict, list))]
    return [str(best)[:160]]


# ---------------------------------------------------------------------------------------------------- the accuracy


def sample(path: Path | None, per_slice: int, seed: int) -> list[dict[str, Any]]:
    """Measured runs, as many of each chip, stack and precision; what either tool needs to know of them."""
    from tiefsee.plan.evidence.measured import LENGTH_SHARE, read_measured, shipped_runs

    slices: dict[str, dict[Any, Any]] = defaultdict(dict)
    for run in shipped_runs() if path is None else read_measured(path):
        if run.prefill is None and not run.assumed and run.drafts == 0 and run.chip in SYSTEMS:
            slices[f"{run.chip} {run.stack} {run.precision}"].setdefault(run.measurement, run)
    cells = []
    for name in sorted(slices):
        rows = sorted(slices[name].values(), key=lambda run: run.id)
        for run in random.Random(f"{seed} {name}").sample(rows, min(per_slice, len(rows))):
            lengths = {"isl": round(run.isl * LENGTH_SHARE), "osl": round(run.osl * LENGTH_SHARE)}
            sizes = {"tp": run.decode.tp, "dp": run.decode.dp, "ep": run.decode.ep, "moe_tp": run.decode.moe_tp}
            cells.append(
                {"id": run.id, "slice": name, "chip": run.chip, "stack": run.stack, "date": run.date,
                 "precision": run.precision, "concurrency": run.concurrency / run.num_decode,
                 "num_chips": run.decode.num_chips, **lengths, **sizes, "ttft_s": run.ttft_s, "tpot_s": run.tpot_s}
            )  # fmt: skip
    return cells


def accuracies(tools: list[str], python: Path | None, cells: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"cells": cells}
    if "aiconfigurator" in tools:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cells.json"
            path.write_text(json.dumps(cells))
            subprocess.run([str(python), str(HERE), "--worker", str(path)], check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)  # fmt: skip
            found["aiconfigurator"] = json.loads(path.with_suffix(".out").read_text())
    if "tiefsee" in tools:
        found["tiefsee"] = {"tiefsee": [our_estimate(cell) for cell in cells]}
    return found


def estimate_all(path: Path) -> None:
    """Inside the venv: AIConfigurator's estimate of each cell under each of OPTIONS, or why it refuses."""
    from aiconfigurator.cli.api import cli_estimate  # type: ignore[import-not-found]

    found: dict[str, list[Any]] = {name: [] for name in OPTIONS}
    for cell in json.loads(path.read_text()):
        for name, extra in OPTIONS.items():
            try:
                result = cli_estimate(
                    CHECKPOINTS[cell["precision"]], SYSTEMS[cell["chip"]], mode="agg", backend_name=cell["stack"],
                    isl=cell["isl"], osl=cell["osl"], batch_size=max(1, round(cell["concurrency"] / cell["dp"])),
                    tp_size=cell["tp"], attention_dp_size=cell["dp"], moe_tp_size=cell["moe_tp"],
                    moe_ep_size=cell["ep"], **extra,
                )  # fmt: skip
                found[name].append({"ttft_s": result.ttft / 1e3, "tpot_s": result.tpot / 1e3})
            except Exception as error:  # whatever it raises is a refusal, and is counted
                found[name].append({"refused": f"{type(error).__name__}: {error}"[:300]})
    path.with_suffix(".out").write_text(json.dumps(found))


def our_estimate(cell: dict[str, Any]) -> dict[str, Any]:
    from tiefsee.errors import TiefseeError
    from tiefsee.plan.predictor import predict

    layout = {"tp": cell["tp"], "dp": cell["dp"], "ep": cell["ep"], "pp": 1, "moe_tp": cell["moe_tp"]}
    try:
        answer = predict(
            kind="e2e", model="deepseek-ai/DeepSeek-V3", chip=cell["chip"], num_chips=cell["num_chips"], layout=layout,
            precision=cell["precision"], concurrency=cell["concurrency"], isl=cell["isl"], osl=cell["osl"],
            stack=cell["stack"], date=cell["date"] or None,
        )  # fmt: skip
        return {"ttft_s": answer.value("ttft_s"), "tpot_s": answer.value("tpot_s")}
    except TiefseeError as error:
        return {"refused": str(error)[:300]}


def print_accuracies(found: dict[str, Any]) -> None:
    """Median absolute error in percent, of those that were answered; refusals beside."""
    cells = found["cells"]
    columns = {**found.get("aiconfigurator", {}), **found.get("tiefsee", {})}
    aic = list(found.get("aiconfigurator", {}))
    print(
        f"\nmedian |error| % of TPOT / TTFT, refused{'':<4}"
        + "".join(f"{name:>18}" for name in [*columns, *(["AIC best"] if aic else [])])
    )
    for name in [*sorted({cell["slice"] for cell in cells}), "all"]:
        chosen = [i for i, cell in enumerate(cells) if name in ("all", cell["slice"])]
        scores = {title: score(cells, answers, chosen) for title, answers in columns.items()}
        line = f"{name:<24}n = {len(chosen):<12}" + "".join(f"{text(scores[title]):>18}" for title in columns)
        if aic and name != "all":
            line += f"{text(min((scores[title] for title in aic), key=lambda found: found[0] + found[1])):>18}"
        print(line)


def score(cells: list[dict[str, Any]], answers: list[Any], chosen: list[int]) -> tuple[float, float, int]:
    answered = [i for i in chosen if "refused" not in answers[i]]
    tpot, ttft = (
        statistics.median([abs(answers[i][key] / cells[i][key] - 1) * 100 for i in answered] or [float("inf")])
        for key in ("tpot_s", "ttft_s")
    )
    return tpot, ttft, len(chosen) - len(answered)


def text(found: tuple[float, float, int]) -> str:
    return f"{found[0]:.0f} / {found[1]:.0f}, {found[2]}"


if __name__ == "__main__":
    main()
