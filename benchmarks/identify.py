"""Does `tiefsee plan identify` know which chip gave measured runs? One line for each configuration of a measured table.

    python benchmarks/identify.py measured_serving.csv

The table is that of `tiefsee.plan.measured`; runs on one pool whose layout is known are grouped by chip, stack,
release, precision and layout, and each group of MIN_ROWS or more is one endpoint. It means something if the model was
not fitted on them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from tiefsee.plan.calibrated import shipped
from tiefsee.plan.identify import Field, Row, identify
from tiefsee.plan.identify.deployments import hypotheses_of, usual_chips
from tiefsee.plan.identify.fitted import FittedPredictor
from tiefsee.plan.measured import LENGTH_SHARE, Run, read_measured
from tiefsee.spec import preset

MIN_ROWS, MOST_ROWS = 5, 14


def main() -> None:
    spec, endpoints = preset("v3"), defaultdict(list)
    for run in read_measured(Path(sys.argv[1])):
        if run.prefill is None and not run.assumed:
            endpoints[run.chip, run.stack, run.version, run.precision, run.decode, run.num_decode].append(run)
    ranks, claims, held, told = [], [], [], []
    for (chip, stack, version, precision, *_), runs in endpoints.items():
        if len(runs) < MIN_ROWS:
            continue
        rows = [row_of(run) for run in runs[:MOST_ROWS]]
        hypotheses = hypotheses_of(spec, usual_chips(), rows)
        verdict = identify(Field(hypotheses, rows, FittedPredictor(spec, shipped(), hypotheses, rows)))
        ranks.append([name for name, _ in verdict.chips].index(chip) + 1)
        claims.append(dict(verdict.chips)[chip])
        held.append(chip in verdict.candidates)
        told.append(verdict.is_told)
        first, probability = verdict.chips[0]
        print(
            f"{chip:<6} {stack:<7} {version:<22} {precision:<4} {len(rows):>2} rows: rank {ranks[-1]:>2}, "
            f"p {claims[-1]:.2f}, first {first} {probability:.2f}{', told' if told[-1] else ''}"
        )
    num = len(ranks)
    two = sum(rank <= 2 for rank in ranks)
    print(f"{num} endpoints: right chip first {ranks.count(1) / num:.0%}, among the first two {two / num:.0%}")
    print(f"among the candidates (claimed 90%) {sum(held) / num:.0%}, told {sum(told) / num:.0%}")


def row_of(run: Run) -> Row:
    isl, osl = run.isl * LENGTH_SHARE, run.osl * LENGTH_SHARE
    return Row(isl, osl, run.concurrency, run.ttft_s, run.tpot_s)


if __name__ == "__main__":
    main()
