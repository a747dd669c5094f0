"""What measured runs say beyond the model: a Gaussian process over the logarithms of measured / predicted.

The model is few efficiencies on physics; where runs like the one that is asked for were measured, the process moves its
answer towards them and narrows its range; where none were, it leaves the answer alone and its range wide. So an
unseen chip is predicted by physics, and a seen one by physics and its own runs.

    k(a, b) = campaign(a, b) (wide^2 + local^2 load(a, b))

`campaign` falls where chip, stack, number format, mode or drafting differ, and with the time between; `load` with the
distance of lengths, batches and sizes. Rasmussen and Williams, Gaussian Processes (2006), chapters 2 and 5.4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tiefsee.plan.figures.estimate import Grade

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True)
class Situation:
    """Where a run stands. `batch` is of one attention group, `concurrency` of the deployment; `year` is a number."""

    vendor: str
    chip: str
    stack: str
    precision: str
    mode: str
    drafts: int
    year: float
    concurrency: float
    batch: float
    isl: float
    osl: float
    tp: int
    dp: int
    ep: int

    @property
    def kinds(self) -> tuple[str | int, ...]:
        """What is equal or not, in the order of `Kernel.differs`."""
        return (self.vendor, self.chip, self.stack, self.precision, self.mode, self.drafts > 0, self.dp > 1)

    @property
    def place(self) -> tuple[float, ...]:
        """What is near or far, in the order of `Kernel.lengths`: doublings, and years."""
        sizes = (self.concurrency, self.batch, self.isl, self.osl, self.tp * self.dp, self.ep)
        return (*(math.log2(size) for size in sizes), self.year)


@dataclass(frozen=True)
class Kernel:
    """`wide`, `local` and `noise` are deviations of a logarithm; `differs` what is left of a correlation where two runs
    differ in vendor, chip, stack, format, mode, drafting, data parallelism; `lengths` are in doublings, and years."""

    wide: float
    local: float
    noise: float
    differs: tuple[float, ...]
    lengths: tuple[float, ...]

    def between(self, a: Sequence[Situation], b: Sequence[Situation]) -> Array:
        """Covariances, [len(a), len(b)]."""
        import numpy as np

        same = np.ones((len(a), len(b)))
        for left, right, kept in zip(
            zip(*(s.kinds for s in a), strict=True), zip(*(s.kinds for s in b), strict=True), self.differs, strict=True
        ):
            same *= np.where(np.array(left)[:, None] == np.array(right)[None, :], 1.0, kept)
        distance = (np.array([s.place for s in a])[:, None, :] - np.array([s.place for s in b])[None, :, :]) / np.array(
            self.lengths
        )
        squares = distance * distance
        when, load = np.exp(-squares[..., -1] / 2), np.exp(-squares[..., :-1].sum(-1) / 2)
        return same * when * (self.wide**2 + self.local**2 * load)

    @property
    def variance(self) -> float:
        """Before anything was measured."""
        return self.wide**2 + self.local**2 + self.noise**2


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Measured runs and the logarithms of measured / predicted of one quantity, each with the deviation of its noise:
    outliers weigh little."""

    kernel: Kernel
    situations: tuple[Situation, ...]
    residuals: tuple[float, ...]
    noises: tuple[float, ...]

    def correction(self, situation: Situation) -> tuple[float, float]:
        """(mean, deviation) of the logarithm of measured / predicted; the deviation is a new run's, noise included."""
        means, deviations = self.corrections([situation])
        return float(means[0]), float(deviations[0])

    def corrections(self, situations: Sequence[Situation]) -> tuple[Array, Array]:
        """The same of many at once."""
        import numpy as np

        if not self.situations:
            return np.zeros(len(situations)), np.full(len(situations), math.sqrt(self.kernel.variance))
        inverse, solved = self._solved
        near = self._near(situations)
        variance = self.kernel.variance - ((near @ inverse) * near).sum(axis=1)
        return near @ solved, np.sqrt(np.maximum(variance, self.kernel.noise**2))

    def mean(self, situation: Situation) -> float:
        """Of `correction` the mean alone, which is quick: a search asks thousands of times."""
        return float((self._near([situation]) @ self._solved[1])[0]) if self.situations else 0.0

    def grade(self, situation: Situation) -> Grade:
        """What the evidence is: this chip under this stack (or any, where none is asked for), this chip, or neither."""
        stacks = {s.stack for s in self.situations if s.chip == situation.chip}
        if situation.stack in stacks or (stacks and not situation.stack):
            return "measured"
        return "fitted" if stacks else "datasheet"

    def _near(self, situations: Sequence[Situation]) -> Array:
        """`Kernel.between` the situations and the measured ones, of which all that stays the same was made once."""
        import numpy as np

        kernel = self.kernel
        rows = ([c.get(kind, -1) for c, kind in zip(self._codes, s.kinds, strict=True)] for s in situations)
        kinds = np.array(list(rows))
        # One column at a time: [situations, measured, columns] at once would be large, and slower.
        same = np.ones((len(situations), len(self.situations)))
        for column, kept in enumerate(kernel.differs):
            same *= np.where(kinds[:, column, None] == self._kinds[None, :, column], 1.0, kept)
        scaled = np.array([s.place for s in situations]) / np.array(kernel.lengths)
        squares = np.zeros_like(same)
        for column in range(scaled.shape[1] - 1):
            squares += (scaled[:, column, None] - self._scaled[None, :, column]) ** 2
        when = (scaled[:, -1, None] - self._scaled[None, :, -1]) ** 2
        found: Array = same * np.exp(when / -2) * (kernel.wide**2 + kernel.local**2 * np.exp(squares / -2))
        return found

    @cached_property
    def _codes(self) -> list[dict[Any, int]]:
        """Of each kind the values that were measured, numbered."""
        columns = zip(*(s.kinds for s in self.situations), strict=True)
        return [{kind: code for code, kind in enumerate(dict.fromkeys(column))} for column in columns]

    @cached_property
    def _kinds(self) -> Array:
        import numpy as np

        rows = ([c[k] for c, k in zip(self._codes, s.kinds, strict=True)] for s in self.situations)
        return np.array(list(rows))

    @cached_property
    def _scaled(self) -> Array:
        import numpy as np

        return np.array([s.place for s in self.situations]) / np.array(self.kernel.lengths)

    @cached_property
    def _solved(self) -> tuple[Array, Array]:
        """(K^-1, K^-1 y)"""
        import numpy as np

        covariance = self.kernel.between(self.situations, self.situations)
        inverse = np.linalg.inv(covariance + np.diag(np.array(self.noises) ** 2))
        return inverse, inverse @ np.array(self.residuals)


def robust_noises(kernel: Kernel, situations: Sequence[Situation], residuals: Sequence[float]) -> tuple[float, ...]:
    """The noise of each run as a deviation: the kernel's, and more where its residual lies far from what others say."""
    import numpy as np

    covariance, y = kernel.between(situations, situations), np.array(residuals)
    noise = np.full(len(y), kernel.noise**2)
    for _ in range(3):
        inverse = np.linalg.inv(covariance + np.diag(noise))
        strange = (inverse @ y) / np.sqrt(np.diag(inverse)) / 2
        noise = kernel.noise**2 * np.maximum(1.0, strange**2)
    return tuple(float(value) for value in np.sqrt(noise))


SITUATION_FIELDS = tuple(f.name for f in fields(Situation))
