"""Cross-validation by family: nothing that is judged was fitted on, nor was anything of its chip, stack and source.

Two passes, for two questions. Leaving out one family at a time asks how good predictions are of chips that are known
from elsewhere; leaving out all families of a chip asks how good they are of chips that nobody has measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tiefsee.plan.accuracy.cases import Case, check_families
from tiefsee.plan.accuracy.naive import fit_naive
from tiefsee.plan.accuracy.score import Predictor, Scored, score

# Fits without the families that it is given, and predicts.
Fit = Callable[[frozenset[str]], Predictor]


@dataclass(frozen=True)
class Fold:
    """What was left out, and how it was predicted: by the planner and by the baseline, fitted on the same rest."""

    left_out: str
    chip_seen: bool
    scored: tuple[Scored, ...]
    naive: tuple[Scored, ...]


def by_family(cases: Sequence[Case], fit: Fit, report: Callable[[str], None] = lambda _: None) -> list[Fold]:
    """Each family left out alone. Raises ConfigError where there are fewer than two."""
    folds = []
    for family in check_families(cases):
        report(family)
        own = [case for case in cases if case.family == family]
        chips = {case.chip for case in cases if case.family != family}
        seen = all(case.chip in chips for case in own)
        folds.append(_fold(family, seen, own, cases, frozenset([family]), fit))
    return folds


def by_chip(cases: Sequence[Case], fit: Fit, report: Callable[[str], None] = lambda _: None) -> list[Fold]:
    """All families of a chip left out together."""
    check_families(cases)
    folds = []
    for chip in sorted({case.chip for case in cases}):
        report(chip)
        own = [case for case in cases if case.chip == chip]
        folds.append(_fold(chip, False, own, cases, frozenset(case.family for case in own), fit))
    return folds


def _fold(name: str, seen: bool, own: Sequence[Case], cases: Iterable[Case], without: frozenset[str], fit: Fit) -> Fold:
    rest = [case for case in cases if case.family not in without]
    return Fold(name, seen, tuple(score(own, fit(without))), tuple(score(own, fit_naive(rest))))
