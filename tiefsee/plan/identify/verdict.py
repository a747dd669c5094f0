"""Which chips could be behind an endpoint, and whether it can be told at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tiefsee.plan.identify.field import Field
from tiefsee.plan.identify.hypothesis import Hypothesis, Row
from tiefsee.plan.identify.next import Next, next_measurements

CERTAIN, CREDIBLE = 0.8, 0.9  # told from this probability on; candidates are the chips that hold this much together
FITS = 0.01  # below this chance of so large an error even of the best, nothing that was asked about fits
MIN_ROWS = 3
NOT_ASKED = "pools of their own for prefill and decode, others' traffic, chips outside the catalogue, cached prompts"


@dataclass(frozen=True)
class Verdict:
    """`chips` and `hypotheses` with their probabilities, the likeliest first. `fit` is the chance of an error as large
    as the best hypothesis' own; `doubts` say why it can't be told, none where it can."""

    chips: tuple[tuple[str, float], ...]
    hypotheses: tuple[tuple[Hypothesis, float], ...]
    candidates: tuple[str, ...]
    fit: float
    doubts: tuple[str, ...]
    next: tuple[Next, ...]

    @property
    def is_told(self) -> bool:
        return not self.doubts


def identify(field: Field, wanted: Sequence[Row] = ()) -> Verdict:
    """Ranks what could be behind the rows that the field holds; `wanted` are loads that could be measured next."""
    measured = field.measured()
    weights = field.posterior(measured)
    _, distance = field.errors(measured)
    chips: dict[str, float] = {}
    for hypothesis, weight in zip(field.hypotheses, weights, strict=True):
        chips[hypothesis.chip] = chips.get(hypothesis.chip, 0.0) + float(weight)
    ranked = tuple(sorted(chips.items(), key=lambda item: -item[1]))
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    fit = chance_of(float(distance.min()), len(field.observed))
    candidates = _candidates(ranked)
    doubts = tuple(_doubts(field, ranked, candidates, fit))
    is_open = len(candidates) > 1 and fit >= FITS
    following = next_measurements(field, measured, weights, candidates, wanted) if is_open else ()
    hypotheses = tuple((field.hypotheses[i], float(weights[i])) for i in order)
    return Verdict(ranked, hypotheses, candidates, fit, doubts, following)


def _candidates(ranked: Sequence[tuple[str, float]]) -> tuple[str, ...]:
    """The fewest chips that hold CREDIBLE together."""
    kept, total = [], 0.0
    for chip, probability in ranked:
        kept.append(chip)
        total += probability
        if total >= CREDIBLE:
            break
    return tuple(kept)


def _doubts(field: Field, ranked: Sequence[tuple[str, float]], candidates: Sequence[str], fit: float) -> Iterator[str]:
    rows = {o.row for o in field.observed}
    if fit < FITS:
        yield f"nothing fits: even the best is off by more than its error allows ({NOT_ASKED} were not asked about)"
    if len(rows) < MIN_ROWS:
        yield f"{len(rows)} {'row is' if len(rows) == 1 else 'rows are'} too few; needed are {MIN_ROWS} or more"
    elif len({(row.isl, row.concurrency) for row in rows}) == 1:
        yield "all rows have one length and one load, so only a factor can be seen; vary them"
    if ranked[0][1] < CERTAIN and len(candidates) > 1:
        names = ", ".join(f"{chip} {probability:.0%}" for chip, probability in ranked[: len(candidates)])
        yield f"several chips explain it: {names}; their predictions lie within each other's ranges"


def chance_of(distance: float, num: int) -> float:
    """P(chi-square with `num` degrees of freedom > distance), after Wilson and Hilferty (1931)."""
    if distance <= 0:
        return 1.0
    z = ((distance / num) ** (1 / 3) - (1 - 2 / (9 * num))) / math.sqrt(2 / (9 * num))
    return 0.5 * math.erfc(z / math.sqrt(2))
