"""What a prediction is: figures with ranges, where the time goes, what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from tiefsee.errors import ConfigError
from tiefsee.plan.figures.estimate import Estimate, Grade


class Bound(float):
    """One end of the range: a number in the prediction's main unit; called with a unit, in that one."""

    _ends: dict[str, float]

    def __new__(cls, ends: dict[str, float], main: str) -> Bound:
        bound = super().__new__(cls, ends[main])
        bound._ends = ends
        return bound

    def __call__(self, unit: str | None = None) -> float:
        if unit is None:
            return float(self)
        return _find(self._ends, unit)


@dataclass(frozen=True)
class Prediction:
    """`figures` by unit; `main` is the unit that was asked for first: tpot_s of decode, ttft_s of prefill,
    tokens_per_s_per_chip of a whole service, step_s of training. `parts` are seconds by operator."""

    kind: str
    main: str
    figures: Mapping[str, Estimate]
    parts: Mapping[str, float]
    bottleneck: str
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def value(self, unit: str | None = None) -> float:
        """Raises ConfigError for a unit that this kind of prediction does not have."""
        return self.estimate(unit).value

    def estimate(self, unit: str | None = None) -> Estimate:
        return _find(self.figures, unit or self.main)

    @property
    def low(self) -> Bound:
        """Below this lies the truth one time in ten; `.low("tpot_s")` in another unit than the main one."""
        return Bound({unit: figure.low for unit, figure in self.figures.items()}, self.main)

    @property
    def high(self) -> Bound:
        """Above this lies the truth one time in ten; `.high("tpot_s")` in another unit than the main one."""
        return Bound({unit: figure.high for unit, figure in self.figures.items()}, self.main)

    @property
    def grade(self) -> Grade:
        return self.estimate().grade


T = TypeVar("T")


def _find(figures: Mapping[str, T], unit: str) -> T:
    if unit not in figures:
        raise ConfigError(f"this prediction has no {unit}; it has {', '.join(figures)}")
    return figures[unit]
