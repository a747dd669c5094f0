"""How likely each hypothesis makes what was measured.

A prediction errs log-normally, by what its 80 % spread says, and errors of one deployment go together. The variance has
three parts, whose sizes within one deployment were measured (WITHIN, below):

common   one factor for all rows of a quantity: a stack that is fast or slow. TTFT's and TPOT's are correlated by CROSS.
shape    a smooth error over lengths and loads: rows near each other share it.
row      what is left of each row: noise of the measurement, waves of requests.

So a constant factor is cheap and a wrong shape is not. Chips are equally likely beforehand, and so are the layouts of
each: many layouts do not make a chip likelier. P(chip) is the mean of its layouts' likelihoods over the sum of chips'.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tiefsee.errors import ConfigError
from tiefsee.plan.identify.hypothesis import Guess, Hypothesis, Observation, Predictor, Quantity, Row

if TYPE_CHECKING:
    import numpy as np

SIGMAS_OF_80 = 1.2816  # a normal variable lies within so many of its sigmas 80 % of the time
# Standard deviations of the logarithm within one deployment, (shape, row): of 392 measured runs of V3 and R1 in 29
# configurations of chip, stack, release, precision and layout, held against the model of time before it was fitted,
# what a plane over log length and log load explains beyond the configuration's own mean, and what it leaves. Errors of
# the fitted model are smaller in the median, but their tails are long: with those medians 73 % of endpoints had their
# chip among the candidates instead of 86 % (docs/identify.md).
WITHIN: dict[Quantity, tuple[float, float]] = {"ttft_s": (0.31, 0.32), "tpot_s": (0.11, 0.073)}
CROSS = 0.35  # correlation of the configurations' means of TTFT and TPOT, from the same runs
LENGTH = 1.5  # how far in log length and log load (a factor of 4.5) a smooth error reaches
MOST_WITHIN = 0.6  # of a spread's variance: where a prediction is sure, its rows are too


class Field:
    """All hypotheses' predictions of all that was observed; many measurements can be judged against one field."""

    def __init__(self, hypotheses: Sequence[Hypothesis], rows: Sequence[Row], predictor: Predictor) -> None:
        import numpy as np

        if not hypotheses:
            raise ConfigError("there is no hypothesis to judge; name chips that the model fits on")
        self.hypotheses, self.predictor = tuple(hypotheses), predictor
        self.observed = tuple(observations(rows))
        if not self.observed:
            raise ConfigError("no row has a ttft_ms or a tpot_ms; needed is at least one")
        table = []
        for h in hypotheses:
            guesses = {row: predictor(h, row) for row in {o.row for o in self.observed}}
            table.append([figure_of(guesses[o.row], o.quantity) for o in self.observed])
        self.log_predicted = np.log([[value for value, _ in line] for line in table])
        self.sigmas = np.array([[sigma for _, sigma in line] for line in table])

    def errors(self, log_measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(log likelihood, squared Mahalanobis distance) of each hypothesis."""
        import numpy as np

        likelihood, distance = np.empty(len(self.hypotheses)), np.empty(len(self.hypotheses))
        for group, factor in self._factors():
            white = np.linalg.solve(factor, (log_measured - self.log_predicted[group]).T)
            distance[group] = (white**2).sum(axis=0)
            likelihood[group] = -0.5 * distance[group] - np.log(np.diag(factor)).sum()
        return likelihood, distance

    def _factors(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Hypotheses whose predictions are equally sure, and the Cholesky factor of their covariance."""
        import numpy as np

        kinds, index = np.unique(self.sigmas.round(4), axis=0, return_inverse=True)
        for i, sigma in enumerate(kinds):
            yield np.flatnonzero(index.ravel() == i), np.linalg.cholesky(covariance(self.observed, sigma))

    def posterior(self, log_measured: np.ndarray) -> np.ndarray:
        """Probability of each hypothesis: chips alike beforehand, and the layouts of a chip among themselves."""
        import numpy as np

        likelihood, _ = self.errors(log_measured)
        layouts = Counter(h.chip for h in self.hypotheses)
        prior = np.array([1.0 / layouts[h.chip] for h in self.hypotheses])
        weight = np.exp(likelihood - likelihood.max()) * prior
        found: np.ndarray = weight / weight.sum()
        return found

    def measured(self) -> np.ndarray:
        """Logarithms of what the rows hold."""
        import numpy as np

        found: np.ndarray = np.log([getattr(o.row, o.quantity) for o in self.observed])
        return found


def observations(rows: Sequence[Row]) -> Iterator[Observation]:
    for row in rows:
        if row.ttft_s is not None:
            yield Observation(row, "ttft_s")
        if row.tpot_s is not None:
            yield Observation(row, "tpot_s")


def covariance(observed: Sequence[Observation], sigmas: np.ndarray) -> np.ndarray:
    """Of the logarithms' errors; `sigmas` are those of each observation."""
    import numpy as np

    place = np.array([[math.log(o.row.isl + o.row.osl / 2), math.log(o.row.concurrency)] for o in observed])
    near = np.exp(-((place[:, None, :] - place[None, :, :]) ** 2).sum(axis=2) / (2 * LENGTH**2))
    same = np.array([[a.quantity == b.quantity for b in observed] for a in observed])
    parts = np.array([_parts(o.quantity, sigma) for o, sigma in zip(observed, sigmas, strict=True)])
    common, shape, row = parts.T
    together = np.outer(common, common) * np.where(same, 1.0, CROSS)
    found: np.ndarray = together + np.outer(shape, shape) * near * same + np.diag(row**2)
    return found


def _parts(quantity: Quantity, sigma: float) -> tuple[float, float, float]:
    """Standard deviations of the common, the smooth and the row's own error; their squares add up to sigma's."""
    shape, row = WITHIN[quantity]
    scale = min(1.0, math.sqrt(MOST_WITHIN * sigma**2 / (shape**2 + row**2)))
    shape, row = shape * scale, row * scale
    return math.sqrt(sigma**2 - shape**2 - row**2), shape, row


def figure_of(guess: Guess, quantity: Quantity) -> tuple[float, float]:
    """(value, standard deviation of its logarithm)."""
    spread = guess.ttft_spread if quantity == "ttft_s" else guess.tpot_spread
    return float(getattr(guess, quantity)), math.log(spread) / SIGMAS_OF_80
