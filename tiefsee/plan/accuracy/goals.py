"""What the planner's predictions aim for on families that were left out of the fit, and whether it is reached."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiefsee.plan.accuracy.report import Line

# The median error by group, on seen chips and on unseen ones; parts of a step have none of their own.
ERRORS = {
    "decode TPOT": (0.10, 0.20), "throughput": (0.10, 0.20), "prefill and TTFT": (0.25, 0.25),
    "Ascend serving": (0.20, 0.20), "training": (0.15, 0.15),
}  # fmt: skip
# Why goals of a group are missed, as far as it is known.
REASONS = {
    "prefill and TTFT": "means of few requests that stalled while kernels were compiled (TTFTs of 5 to 25 s at 3 to 9 "
    "requests), queues whose order differs by engine and version, layouts that had to be assumed. Within one "
    "configuration the logarithm of TTFT deviates by 0.3, so ranges that hold 80 % cannot be narrow",
    "Ascend serving": "half of the figures are nightly runs of vllm-ascend, of small batches and of contexts up to a "
    "million tokens with 90 and 99 % of them cached: the worst are two to four times off. With the whole chip left out "
    "nothing of Huawei's is known but the data sheet. Needed are runs with TTFT and TPOT on a 910C",
    "training": "14 figures; on the same GB200 before graphs and after are a factor of two apart, which no date tells",
}
COVERAGE = 0.75
SHARPNESS = {"seen": 1.6, "unseen": 2.5}
REFUSED = 0.05


@dataclass(frozen=True)
class Goal:
    """`found` against `aim`, which it has to stay below, or above."""

    group: str
    chips: str
    what: str
    found: float
    aim: float
    above: bool = False

    @property
    def is_reached(self) -> bool:
        return not math.isnan(self.found) and (self.found >= self.aim if self.above else self.found <= self.aim)


def goals_of(lines: Iterable[Line]) -> tuple[Goal, ...]:
    """All goals of the lines on seen and unseen chips."""
    found: list[Goal] = []
    for line in lines:
        if line.group not in ERRORS or line.chips not in SHARPNESS:
            continue
        ours, seen = line.planner, line.chips == "seen"

        def goal(what: str, value: float, aim: float, *, above: bool = False, line: Line = line) -> Goal:
            return Goal(line.group, line.chips, what, value, aim, above)

        found += [
            goal("median error", ours.median_error, ERRORS[line.group][0 if seen else 1]),
            goal("in 80 %", ours.coverage, COVERAGE, above=True),
            goal("high/low", ours.sharpness, SHARPNESS[line.chips]),
            goal("refused", ours.refused, REFUSED),
        ]
        if line.baseline is not None:
            found.append(goal("score", line.paired_score, line.paired_baseline_score))
    return tuple(found)
