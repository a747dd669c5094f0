"""Does `tiefsee plan identify` know which chip gave measured runs? One line for each configuration of a measured table.

    python benchmarks/identify.py measured_serving.csv [--seen] [--within]

The table is that of `tiefsee.plan.evidence.measured`; runs on one pool whose layout is known are grouped by chip,
stack, release, precision and layout, and each group of MIN_ROWS or more is one endpoint. It is judged by a calibration
that its own family (chip, stack and source) took no part in, or with --seen by the shipped one, which was fitted on it.
--within prints the figures of identify/field.py instead: how errors of one deployment go together.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from tiefsee.plan.evidence.measured import LENGTH_SHARE, Run, read_measured
from tiefsee.plan.fitted.calibrated import Calibrated, shipped
from tiefsee.plan.fitting.refit import calibrated_without
from tiefsee.plan.fitting.samples import run_deployment, run_load
from tiefsee.plan.identify import Field, Row, identify
from tiefsee.plan.identify.deployments import hypotheses_of, usual_chips
from tiefsee.plan.identify.fitted import FittedPredictor
from tiefsee.spec import preset

MIN_ROWS, MOST_ROWS = 5, 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--seen", action="store_true", help="the shipped calibration")
    parser.add_argument("--within", action="store_true", help="how errors of one deployment go together")
    options = parser.parse_args()
    endpoints = endpoints_of(options.measured)
    if options.within:
        within(endpoints, seen=options.seen)
    else:
        judge(endpoints, seen=options.seen)


def endpoints_of(path: Path) -> list[list[Run]]:
    found = defaultdict(list)
    for run in read_measured(path):
        if run.prefill is None and not run.assumed:
            found[run.chip, run.stack, run.version, run.precision, run.decode, run.num_decode].append(run)
    return [runs for runs in found.values() if len(runs) >= MIN_ROWS]


@cache
def without(family: str) -> Calibrated:
    return calibrated_without(frozenset([family]))


def judge(endpoints: Sequence[Sequence[Run]], *, seen: bool) -> None:
    spec = preset("v3")
    ranks, held, told = [], [], []
    for runs in endpoints:
        one, rows = runs[0], [row_of(run) for run in runs[:MOST_ROWS]]
        hypotheses = hypotheses_of(spec, usual_chips(), rows)
        calibrated = shipped() if seen else without(one.family)
        verdict = identify(Field(hypotheses, rows, FittedPredictor(spec, calibrated, hypotheses, rows)))
        ranks.append([name for name, _ in verdict.chips].index(one.chip) + 1)
        held.append(one.chip in verdict.candidates)
        told.append(verdict.is_told)
        first, probability = verdict.chips[0]
        print(
            f"{one.chip:<6} {one.stack:<7} {one.version:<22} {one.precision:<4} {len(rows):>2} rows: "
            f"rank {ranks[-1]:>2}, p {dict(verdict.chips)[one.chip]:.2f}, first {first} {probability:.2f}"
            f"{', told' if told[-1] else ''}",
            flush=True,
        )
    num = len(ranks)
    two = sum(rank <= 2 for rank in ranks)
    print(f"{num} endpoints: right chip first {ranks.count(1) / num:.0%}, among the first two {two / num:.0%}")
    print(f"among the candidates (claimed 90%) {sum(held) / num:.0%}, told {sum(told) / num:.0%}")


def within(endpoints: Sequence[Sequence[Run]], *, seen: bool) -> None:
    """Of each configuration's errors: what a plane over log length and log load explains, and what it leaves."""
    means, parts, num = [], [], 0
    for runs in endpoints:
        calibrated = shipped() if seen else without(runs[0].family)
        errors = np.array([errors_of(run, calibrated) for run in runs])
        place = np.array([[1.0, math.log(run.isl + run.osl / 2), math.log(run.concurrency)] for run in runs])
        if len(runs) < 6 or np.linalg.matrix_rank(place) < 3:
            continue
        solved, *_ = np.linalg.lstsq(place, errors, rcond=None)
        smooth = place @ solved
        left = len(runs) / (len(runs) - 3)  # three numbers were fitted
        shape = (smooth - smooth.mean(axis=0)).var(axis=0)
        parts.append([*shape, *((errors - smooth).var(axis=0) * left)])
        means.append(errors.mean(axis=0))
        num += len(runs)
    ttft, tpot, ttft_row, tpot_row = np.sqrt(np.median(parts, axis=0))
    print(f"{num} runs in {len(means)} configurations; TTFT: shape {ttft:.2f}, row {ttft_row:.2f}; ", end="")
    print(f"TPOT: shape {tpot:.3f}, row {tpot_row:.3f}; means correlate by {np.corrcoef(np.array(means).T)[0, 1]:.2f}")


def errors_of(run: Run, calibrated: Calibrated) -> tuple[float, float]:
    """log(measured / predicted) of TTFT and TPOT."""
    deployment, drafts = run_deployment(run), run.drafts or 0
    load = run_load(run, drafts, calibrated.base.accepted.get(drafts, 0.0))
    served = deployment.serve(load, calibrated.base.of(deployment.decode.chip.vendor, None))
    situation = deployment.situation(load, "", 0.0)
    ttft, tpot = (n.correction(situation)[0] for n in (calibrated.ttft, calibrated.tpot))
    return math.log(run.ttft_s / served.ttft_s) - ttft, math.log(run.tpot_s / served.tpot_s) - tpot


def row_of(run: Run) -> Row:
    isl, osl = run.isl * LENGTH_SHARE, run.osl * LENGTH_SHARE
    return Row(isl, osl, run.concurrency, run.ttft_s, run.tpot_s)


if __name__ == "__main__":
    main()
