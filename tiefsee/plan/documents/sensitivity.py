"""Which input matters most: each is moved to the ends of its range, alone, and the answer's swing is ranked.

base, swings = vary(question, inputs)       # question: {name: value} -> float; any question of the planner
tornado(title, axis, estimate, swings)      # the chart

One at a time leaves out what inputs do together; it answers which figure is worth a measurement or a negotiation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tiefsee.errors import ConfigError, TiefseeError
from tiefsee.plan.figures.estimate import Estimate
from tiefsee.plan.report import charts
from tiefsee.plan.report.numbers import common_scale, exact

Function = Callable[[Mapping[str, float]], float]


@dataclass(frozen=True)
class Input:
    """`unit` as in `Estimate.unit`, "" for a bare number; `label` is what a reader is shown."""

    name: str
    low: float
    value: float
    high: float
    unit: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.value <= self.high):
            raise ConfigError(f"input {self.name}: {self.value:g} is not between {self.low:g} and {self.high:g}")

    @property
    def range(self) -> str:
        """ "2,048 .. 8,192 tokens"."""
        scale = common_scale(self.unit, [self.low, self.high])
        return f"{exact(self.low, scale)} .. {scale.with_label(exact(self.high, scale))}"

    def text(self, value: float) -> str:
        scale = common_scale(self.unit, [self.low, self.high])
        return scale.with_label(exact(value, scale))


@dataclass(frozen=True)
class Swing:
    """The answers at an input's ends. None where there is none, and `remark` says why."""

    input: Input
    at_low: float | None
    at_high: float | None
    size: float
    remark: str = ""


def vary(question: Function, inputs: Sequence[Input]) -> tuple[float, tuple[Swing, ...]]:
    """The answer as it is, and the swings from the largest on. Inputs without a range are not asked about.

    An end at which the question raises a TiefseeError (the load does not fit, an SLO breaks) counts as an infinite
    swing: nothing matters more. Raises what the question raises as it is.
    """
    if len({i.name for i in inputs}) < len(inputs):
        raise ConfigError("two inputs have one name; give each its own")
    values = {i.name: i.value for i in inputs}
    base = question(values)
    swings = []
    for i in inputs:
        if i.low == i.high:
            continue
        (at_low, why_low), (at_high, why_high) = (_ask(question, {**values, i.name: end}) for end in (i.low, i.high))
        whys = [f"none at {i.text(end)}: {why}" for end, why in ((i.low, why_low), (i.high, why_high)) if why]
        ends = [base, *(v for v in (at_low, at_high) if v is not None)]
        swings.append(Swing(i, at_low, at_high, math.inf if whys else max(ends) - min(ends), "; ".join(whys)))
    return base, tuple(sorted(swings, key=lambda s: -s.size))


def _ask(question: Function, values: Mapping[str, float]) -> tuple[float | None, str]:
    try:
        found = question(values)
    except TiefseeError as error:
        return None, str(error)
    return (found, "") if math.isfinite(found) else (None, "the answer is not finite")


def tornado(title: str, axis: str, base: Estimate, swings: Sequence[Swing], *, most: int = 10) -> charts.Tornado:
    """The chart of the `most` largest; how many are not shown is said."""
    shown = [s for s in swings if s.size > 0][:most]
    rest = len(swings) - len(shown)
    note = f"{rest} more move{'s' if rest == 1 else ''} it less or not at all." if rest else ""
    rows = tuple(
        charts.Swing(s.input.label or s.input.name, s.input.range, s.at_low, s.at_high, s.remark) for s in shown
    )
    return charts.Tornado(title, axis, base, rows, note)
