"""How good predictions are: errors, bias, coverage and sharpness, by group and by family, refusals counted.

error      |predicted / measured - 1|; a refusal counts as infinitely wrong, so that refusing improves nothing
bias       median of predicted / measured - 1 of what was answered
coverage   share of all cases that lie within the 80 % interval; one without an interval does not
sharpness  median of high / low
score      interval score on logarithms (Winkler 1972; Gneiting and Raftery 2007, section 6.2): ln(high / low), plus
           2 / 0.2 times what the measured logarithm lies outside; less is better. Mean of what was answered
macro      mean over (chip, stack, format) of each one's median error, so that no much measured chip decides alone

A published lower bound has no error: it is held if it does not lie above the interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tiefsee.errors import ConfigError, TiefseeError
from tiefsee.plan.accuracy.cases import Case
from tiefsee.plan.figures.estimate import Estimate

MISSED = 0.2  # of an 80 % interval


class Answer(Protocol):
    def estimate(self, unit: str | None = None) -> Estimate: ...


class Predictor(Protocol):
    """`predict`, or something that answers like it."""

    def __call__(self, **question: Any) -> Answer: ...


@dataclass(frozen=True)
class Scored:
    """A case and its prediction, or why there is none."""

    case: Case
    predicted: Estimate | None
    refusal: str = ""

    @property
    def ratio(self) -> float:
        """Predicted / measured; infinite where nothing was predicted."""
        return self.predicted.value / self.case.value if self.predicted is not None else math.inf

    @property
    def error(self) -> float:
        return abs(self.ratio - 1)

    @property
    def is_covered(self) -> bool:
        if self.predicted is None:
            return False
        return self.predicted.low <= self.case.value <= self.predicted.high

    @property
    def is_held(self) -> bool:
        """Of a lower bound: whether the prediction allows for it."""
        return self.predicted is not None and self.case.value <= self.predicted.high

    @property
    def interval_score(self) -> float:
        if self.predicted is None:
            return math.inf
        low, high, truth = (math.log(x) for x in (self.predicted.low, self.predicted.high, self.case.value))
        return high - low + 2 / MISSED * (max(0.0, low - truth) + max(0.0, truth - high))


def score(cases: Iterable[Case], predict: Predictor) -> list[Scored]:
    """Every case predicted; of one that may have been one of several runs, the nearest answer is kept.

    Figures of one run share its question, which is asked once.
    """
    asked: dict[int, Answer | TiefseeError] = {}
    kept = list(cases)  # alive as long as their questions' identities are used
    for case in kept:
        for question in case.questions:
            if id(question) not in asked:
                asked[id(question)] = _ask(question, predict)
    return [min((_scored(case, asked[id(q)]) for q in case.questions), key=_distance) for case in kept]


def _distance(scored: Scored) -> float:
    return abs(math.log(scored.ratio)) if scored.predicted is not None else math.inf


def _ask(question: Mapping[str, Any], predict: Predictor) -> Answer | TiefseeError:
    try:
        return predict(**question)
    except TiefseeError as error:
        return error


def _scored(case: Case, answer: Answer | TiefseeError) -> Scored:
    if isinstance(answer, TiefseeError):
        return Scored(case, None, str(answer))
    try:
        found = _part(answer, case) if case.part else answer.estimate(case.unit).scaled(case.factor, case.unit)
    except TiefseeError as error:
        return Scored(case, None, str(error))
    if not (0 < found.low <= found.high < math.inf and 0 < found.value < math.inf):
        return Scored(case, None, f"no usable figure: {found.value} within {found.low} to {found.high}")
    return Scored(case, found)


def _part(answer: Any, case: Case) -> Estimate:
    """A part of a training step, with the whole step's relative range. Raises ConfigError where it has no such part."""
    if case.part not in answer.parts:
        raise ConfigError(f"no part is named {case.part!r}; there are {', '.join(answer.parts)}")
    whole, seconds = answer.estimate("step_s"), answer.parts[case.part]
    return Estimate(
        seconds, seconds * whole.low / whole.value, seconds * whole.high / whole.value, "step_s", whole.grade
    )


@dataclass(frozen=True)
class Summary:
    """Figures of one group of cases; NaN where there is nothing to say."""

    num_cases: int
    num_refused: int
    median_error: float
    p90_error: float
    bias: float
    coverage: float
    sharpness: float
    interval_score: float
    macro_error: float
    num_bounds: int = 0
    num_bounds_held: int = 0

    @property
    def refused(self) -> float:
        return self.num_refused / self.num_cases if self.num_cases else 0.0


def summarise(scored: Sequence[Scored]) -> Summary:
    figures = [s for s in scored if not s.case.lower_bound]
    bounds = [s for s in scored if s.case.lower_bound]
    answered = [s for s in figures if s.predicted is not None]
    errors = sorted(s.error for s in figures)
    cells: dict[tuple[str, str, str], list[float]] = {}
    for s in figures:
        cells.setdefault(s.case.cell, []).append(s.error)
    return Summary(
        num_cases=len(scored),
        num_refused=sum(s.predicted is None for s in scored),
        median_error=_middle(errors),
        p90_error=quantile(errors, 0.9),
        bias=_middle([s.ratio - 1 for s in answered]),
        coverage=sum(s.is_covered for s in figures) / len(figures) if figures else math.nan,
        sharpness=_middle([s.predicted.high / s.predicted.low for s in answered if s.predicted is not None]),
        interval_score=statistics.fmean(s.interval_score for s in answered) if answered else math.nan,
        macro_error=statistics.fmean(_middle(of_cell) for of_cell in cells.values()) if cells else math.nan,
        num_bounds=len(bounds),
        num_bounds_held=sum(s.is_held for s in bounds),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed; infinite values are allowed, which rules out averaging."""
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def by(scored: Iterable[Scored], key: Callable[[Case], str]) -> dict[str, list[Scored]]:
    found: dict[str, list[Scored]] = {}
    for s in scored:
        found.setdefault(key(s.case), []).append(s)
    return dict(sorted(found.items()))


def both_answered(one: Sequence[Scored], other: Sequence[Scored]) -> tuple[list[Scored], list[Scored]]:
    """Those of the same case that both have answered: interval scores compare on nothing else."""
    known = {(s.case.id, s.case.unit, s.case.part): s for s in other if s.predicted is not None}
    pairs = [
        (s, known[s.case.id, s.case.unit, s.case.part])
        for s in one
        if s.predicted is not None and (s.case.id, s.case.unit, s.case.part) in known
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]


def worst(scored: Iterable[Scored], number: int) -> list[Scored]:
    """Refusals first, then the largest factors between predicted and measured."""
    figures = [s for s in scored if not s.case.lower_bound]
    return sorted(figures, key=_distance, reverse=True)[:number]
