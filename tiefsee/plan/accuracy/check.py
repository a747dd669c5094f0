"""Predictions held against figures: the package's own by cross-validation, a user's files as the package is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiefsee.errors import ConfigError
from tiefsee.plan.accuracy.cases import Case, cases_of_points, cases_of_runs, mark_seen
from tiefsee.plan.accuracy.naive import fit_naive
from tiefsee.plan.accuracy.report import Part, Report, make_report
from tiefsee.plan.accuracy.score import Answer, Predictor, score
from tiefsee.plan.accuracy.validate import Fit, Fold, by_chip, by_family
from tiefsee.plan.evidence.measured import read_measured, shipped_runs
from tiefsee.plan.evidence.points import Point
from tiefsee.plan.evidence.points_file import read_points, shipped_points
from tiefsee.plan.fitted.calibrated import Calibrated, shipped
from tiefsee.plan.predictor import predict

INTRODUCTION = """
How good `tiefsee plan` is, measured on figures that it was not fitted on: each family (chip, stack and source) is left
out in turn, the rest is fitted, and the family predicted. Written by `tiefsee check plan --write docs/accuracy.md`;
what the columns mean is said in `tiefsee/plan/accuracy/score.py`. *Seen* chips are known from other families; for
*unseen* ones all families of the chip are left out together. *roofline* is the baseline: FLOPs and bytes over the data
sheet's peaks, one constant efficiency, fitted on the same rest. Refusals count as infinitely wrong. *score* is the
interval score, on rows that both have answered; less is better.
"""
# Words of a question that only some predictors take; the others are not told them.
OPTIONAL = ("context", "num_workers")


@dataclass(frozen=True)
class Planner:
    """`predict` under a calibration; an acceptance that nobody stated is what drafts bring in the mean."""

    calibrated: Calibrated

    def __call__(self, **question: Any) -> Answer:
        asked = {name: value for name, value in question.items() if name not in OPTIONAL}
        if asked.get("mtp_acceptance", 0.0) is None:
            drafts = asked["mtp_drafts"]
            known = self.calibrated.base.accepted
            nearest = min(known, key=lambda n: abs(n - drafts))
            asked["mtp_acceptance"] = min(float(drafts), known[nearest] * drafts / nearest)
        return predict(**asked, calibrated=self.calibrated)


def check_files(points: Sequence[Path], measured: Sequence[Path]) -> Report:
    """Files of the two formats, predicted as the package is. Raises ConfigError."""
    read = [point for path in points for point in read_points(path)]
    runs = [run for path in measured for run in read_measured(path)]
    own = package_cases()
    cases = mark_seen([*cases_of_points(read), *cases_of_runs(runs)], own)
    if not cases:
        raise ConfigError("the files have no figure that can be predicted; needed is a point or a run (docs/points.md)")
    scored, naive = score(cases, Planner(shipped())), score(cases, fit_naive(own))
    chips = {case.chip for case in own}
    kinds: dict[str, Callable[[Case], bool]] = {
        "new, known": lambda case: not case.seen and case.chip in chips,
        "new, unknown": lambda case: not case.seen and case.chip not in chips,
        "fitted on": lambda case: case.seen,
    }
    parts = [Part("all", scored, naive)]
    for name, belongs in kinds.items():
        some = [s for s in scored if belongs(s.case)]
        if 0 < len(some) < len(scored):
            parts.append(Part(name, some, naive))
    notes = _notes(read, cases)
    return make_report("Predicted and measured", parts, scored, inexpressible=_reasons(read), notes=notes)


def _notes(points: Sequence[Point], cases: Sequence[Case]) -> list[str]:
    """What the tables do not say: figures that were fitted on, and points that are no case."""
    seen = sum(case.seen for case in cases)
    left = Counter(point.kind for point in points if point.is_expressible and not point.is_scored)
    notes = [f"{seen} of {len(cases)} figures are among those that the package was fitted on"] if seen else []
    if left:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(left.items(), key=str))
        notes.append(f"points that are not scored (of another kind, or the same measurement as another): {kinds}")
    return notes


def check_package(progress: Callable[[str], None] = lambda _: None, fit: Fit | None = None) -> Report:
    """The package's own figures, each predicted by a fit without its family, or without its chip."""
    cases = package_cases()
    chosen = fit or refit
    families, chips = by_family(cases, chosen, progress), by_chip(cases, chosen, progress)
    seen = [fold for fold in families if fold.chip_seen]
    return make_report(
        "Accuracy of the planner", [_part("seen", seen), _part("unseen", chips)],
        [s for fold in families for s in fold.scored], inexpressible=_reasons(shipped_points()), with_goals=True,
    )  # fmt: skip


def _part(name: str, folds: Iterable[Fold]) -> Part:
    folds = list(folds)
    return Part(name, [s for fold in folds for s in fold.scored], [s for fold in folds for s in fold.naive])


def package_cases() -> list[Case]:
    return [*cases_of_points(shipped_points()), *cases_of_runs(shipped_runs())]


def refit(without: frozenset[str]) -> Predictor:
    """The planner fitted without some families."""
    from tiefsee.plan.fitting.refit import calibrated_without

    return Planner(calibrated_without(without))


def _reasons(points: Iterable[Point]) -> list[tuple[str, str]]:
    return [(point.id, point.inexpressible) for point in points if not point.is_expressible]
