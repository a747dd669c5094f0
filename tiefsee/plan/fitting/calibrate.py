"""Makes the data files of the planner anew: `python -m tiefsee.plan.fitting.calibrate` (minutes; docs/plan.md).

efficiency.toml      fitted on all measured runs and published points
kernels.toml         how far runs speak for one another
neighbours.csv.gz    the residuals of all of them
folds/*.toml         efficiencies fitted without a family or a chip, for `tiefsee check plan`
"""

from __future__ import annotations

import datetime
import gzip
import math
import sys
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path

from tiefsee.plan.evidence.measured import shipped_runs
from tiefsee.plan.evidence.points_file import shipped_points
from tiefsee.plan.fitted.calibrated import QUANTITIES, Calibrated, read_kernels, write_kernels, write_neighbours
from tiefsee.plan.fitted.efficiency import Calibration, read_calibration, write_calibration
from tiefsee.plan.fitted.neighbours import Kernel, Neighbours, Situation, robust_noises
from tiefsee.plan.fitting.fit import REFERENCE, Fitted, accepted_of, answers, fit, infer_drafts
from tiefsee.plan.fitting.samples import Sample, samples_of_points, samples_of_runs
from tiefsee.plan.fitting.tune import left_out, narrowed, tune
from tiefsee.plan.names.dates import years_after

DATA = Path(__file__).parents[1] / "data"
MOST_TUNED = 420  # rows that kernels are tuned on: a step inverts a matrix of as many


def all_samples() -> list[Sample]:
    years = partial(years_after, REFERENCE)
    runs, _ = samples_of_runs(shipped_runs(), years)
    points, _ = samples_of_points(shipped_points(), years)
    return runs + points


def residuals(
    samples: Sequence[Sample], drafts: Sequence[int], calibration: Calibration
) -> dict[str, tuple[list[Sample], list[Situation], list[float]]]:
    """By quantity: samples, where they stand, and the logarithm of measured / predicted."""
    rows: dict[str, tuple[list[Sample], list[Situation], list[float]]] = {q: ([], [], []) for q in QUANTITIES}
    for sample, n, found in zip(samples, drafts, answers(samples, drafts, calibration), strict=True):
        situation = sample.situation(n, accepted_of(sample, n, calibration))
        for quantity, measured, answer in zip(sample.quantities, sample.measured, found, strict=True):
            which, situations, values = rows[quantity]
            which.append(sample)
            situations.append(situation)
            values.append(measured - answer)
    return rows


def make_kernels(samples: Sequence[Sample], fitted: Fitted) -> dict[str, Kernel]:
    """Tuned on every n-th row, then scaled so that 80 % ranges cover 80 % of what is left out, between what campaigns
    and what families need."""
    kernels = {}
    for quantity, (which, situations, values) in residuals(samples, fitted.drafts, fitted.calibration).items():
        stride = -(-len(values) // MOST_TUNED)
        part = slice(None, None, stride)
        campaigns, families = [s.campaign for s in which], [s.family for s in which]
        kernel = tune(situations[part], values[part], [campaigns[part], families[part]])
        needed = [_needed(kernel, situations, values, groups) for groups in (campaigns, families)]
        kernels[quantity] = narrowed(kernel, math.prod(needed) ** 0.5)
    return kernels


def _needed(
    kernel: Kernel, situations: Sequence[Situation], values: Sequence[float], groups: Sequence[Hashable]
) -> float:
    """How much wider ranges have to be to cover 80 % of what is left out by groups."""
    mean, variance = left_out(kernel, situations, values, groups)
    ratios = sorted(abs(v - m) / s**0.5 for v, m, s in zip(values, mean, variance, strict=True))
    return float(ratios[int(0.8 * len(ratios))]) / 1.2816


def with_neighbours(
    samples: Sequence[Sample], calibration: Calibration, drafts: Sequence[int], kernels: dict[str, Kernel]
) -> Calibrated:
    found = residuals(samples, drafts, calibration)
    made = {
        q: Neighbours(kernels[q], tuple(s), tuple(v), robust_noises(kernels[q], s, v)) for q, (_, s, v) in found.items()
    }
    return Calibrated(calibration, made["tpot"], made["ttft"], made["prefill"])


PARTS = ("efficiency", "kernels", "neighbours", "folds")


def main(parts: Sequence[str]) -> None:
    """Makes the named parts, each from those before it as they lie in data/; all where none is named."""
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise SystemExit(f"no part is named {unknown[0]}; there are {', '.join(PARTS)}")
    samples = all_samples()
    base = read_calibration((DATA / "efficiency.toml").read_text())
    if not parts or "efficiency" in parts:
        num, today = len({sample.family for sample in samples}), datetime.date.today()
        about = f"{len(samples)} runs and points of {num} families, {today} (tiefsee.plan.fitting.calibrate)"
        base = fit(samples, base, rounds=3, fitted_on=about).calibration
        (DATA / "efficiency.toml").write_text(write_calibration(base))
    fitted = Fitted(base, infer_drafts(samples, base))
    if not parts or "kernels" in parts:
        (DATA / "kernels.toml").write_text(write_kernels(make_kernels(samples, fitted)))
    if not parts or "neighbours" in parts:
        kernels = read_kernels((DATA / "kernels.toml").read_text())
        made = with_neighbours(samples, base, fitted.drafts, kernels)
        text = write_neighbours({q: getattr(made, q) for q in QUANTITIES})
        (DATA / "neighbours.csv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    if not parts or "folds" in parts:
        make_folds(samples, base)


def make_folds(samples: Sequence[Sample], start: Calibration) -> None:
    from tiefsee.plan.fitting.refit import fold_name, folds_of

    (DATA / "folds").mkdir(exist_ok=True)
    for without in folds_of(samples):
        kept = [sample for sample in samples if sample.family not in without]
        fold = fit(kept, start, rounds=1, steps=3, fitted_on=f"all but {', '.join(sorted(without))}")
        (DATA / "folds" / f"{fold_name(without)}.toml").write_text(write_calibration(fold.calibration))
        print(", ".join(sorted(without)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
