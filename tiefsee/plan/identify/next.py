"""Which measurement would tell the candidates apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiefsee.plan.identify.field import Field, covariance, figure_of
from tiefsee.plan.identify.hypothesis import Hypothesis, Observation, Quantity, Row

if TYPE_CHECKING:
    import numpy as np

LIKELIEST = 3  # hypotheses of each candidate that are looked at
QUANTITIES: tuple[Quantity, ...] = ("tpot_s", "ttft_s")


@dataclass(frozen=True)
class Next:
    """A measurement that would help: two hypotheses of unlike chips, and what each says of it.

    `gain` is about the share of doubt that it takes away, 0 to 1/2.
    """

    row: Row
    quantity: Quantity
    first: Hypothesis
    first_s: float
    second: Hypothesis
    second_s: float
    gain: float


def next_measurements(
    field: Field, measured: np.ndarray, weights: np.ndarray, candidates: Sequence[str], wanted: Sequence[Row]
) -> tuple[Next, ...]:
    """The wanted rows, those first that tell most apart; each with the two hypotheses that it parts best.

    A hypothesis' prediction of a row that was not measured is moved by what its own errors on the measured ones say.
    """
    kept = _likeliest(field, weights, candidates)
    found = []
    for row in wanted:
        for quantity in QUANTITIES:
            seen = [(i, w, *_expected(field, i, measured, Observation(row, quantity))) for i, w in kept]
            pairs = list(_pairs(field, seen))
            gain = sum(pair[0] for pair in pairs)
            if gain > 0.01:
                _, (i, mean_i), (j, mean_j) = max(pairs, key=lambda pair: pair[0])
                first, second = field.hypotheses[i], field.hypotheses[j]
                found.append(Next(row, quantity, first, math.exp(mean_i), second, math.exp(mean_j), gain))
    return tuple(sorted(found, key=lambda n: -n.gain))


def _likeliest(field: Field, weights: np.ndarray, candidates: Sequence[str]) -> list[tuple[int, float]]:
    """Some hypotheses of each candidate, with the probability of their chip shared out among them."""
    found = []
    for chip in candidates:
        own = sorted((i for i, h in enumerate(field.hypotheses) if h.chip == chip), key=lambda i: -weights[i])
        whole, top = sum(weights[i] for i in own), sum(weights[i] for i in own[:LIKELIEST])
        found += [(i, float(weights[i] * whole / top)) for i in own[:LIKELIEST]]
    return found


def _pairs(
    field: Field, seen: Sequence[tuple[int, float, float, float]]
) -> Iterator[tuple[float, tuple[int, float], tuple[int, float]]]:
    """How far a measurement parts two hypotheses of unlike chips (Bhattacharyya), times how likely the two are."""
    for n, (i, weight_i, mean_i, sd_i) in enumerate(seen):
        for j, weight_j, mean_j, sd_j in seen[:n]:
            if field.hypotheses[i].chip != field.hypotheses[j].chip:
                overlap = math.sqrt(2 * sd_i * sd_j / (sd_i**2 + sd_j**2))
                overlap *= math.exp(-((mean_i - mean_j) ** 2) / (4 * (sd_i**2 + sd_j**2)))
                yield weight_i * weight_j * (1 - overlap), (j, mean_j), (i, mean_i)


def _expected(field: Field, index: int, measured: np.ndarray, new: Observation) -> tuple[float, float]:
    """Mean and standard deviation of the logarithm of a row yet to be measured, given those that were."""
    import numpy as np

    value, sigma = figure_of(field.predictor(field.hypotheses[index], new.row), new.quantity)
    full = covariance([*field.observed, new], np.append(field.sigmas[index], sigma))
    seen, cross = full[:-1, :-1], full[-1, :-1]
    moved = np.linalg.solve(seen, cross)
    mean = math.log(value) + float(moved @ (measured - field.log_predicted[index]))
    return mean, math.sqrt(max(1e-12, float(full[-1, -1] - moved @ cross)))
