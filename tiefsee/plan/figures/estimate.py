"""A figure that says how sure it is: value, 80 % range, grade of evidence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# measured    this chip, this stack and this kind of run are among what the model was fitted on
# fitted      the chip or the stack is not, its relatives are
# datasheet   nothing of this chip was ever measured: its data sheet, and the efficiencies of others
# rumour      the chip is announced, or a figure of it is a guess
Grade = Literal["measured", "fitted", "datasheet", "rumour"]
GRADES: tuple[Grade, ...] = ("measured", "fitted", "datasheet", "rumour")


@dataclass(frozen=True)
class Estimate:
    """`low` and `high` bound 80 %: one time in ten the truth lies below, one time in ten above.

    `unit` is one of tokens_per_s, tokens_per_s_per_chip, requests_per_s, tpot_s, ttft_s, step_s, mfu, gpu_hours,
    usd, usd_per_hour, usd_per_million_tokens, bytes, days.
    """

    value: float
    low: float
    high: float
    unit: str
    grade: Grade

    def scaled(self, factor: float, unit: str) -> Estimate:
        """The same in another unit, `factor` above 0."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, unit, self.grade)

    def inverse(self, numerator: float, unit: str) -> Estimate:
        """numerator / this: the ends change places."""
        return Estimate(numerator / self.value, numerator / self.high, numerator / self.low, unit, self.grade)


def around(value: float, factor: float, unit: str, grade: Grade) -> Estimate:
    """`value` within value / factor .. value * factor."""
    return Estimate(value, value / factor, value * factor, unit, grade)


def weakest(grades: Iterable[Grade]) -> Grade:
    """A conclusion is as good as the worst that it rests on."""
    return max(grades, key=GRADES.index)
