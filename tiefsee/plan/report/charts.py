"""What can be drawn, as data: nothing here knows of pixels, and each of them is a table too (tables.py).

Values are base units. A value that is not finite is left out of the picture, and the picture says how many were.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiefsee.plan.figures.estimate import Estimate


@dataclass(frozen=True)
class FrontierPoint:
    """`interactivity` is tokens/s of one user (1 / TPOT); `label` says which load or layout it is."""

    interactivity: Estimate
    throughput: Estimate
    label: str = ""
    chosen: bool = False


def interactivity(tpot: Estimate) -> Estimate:
    """Tokens/s of one user from a TPOT."""
    return tpot.inverse(1.0, "tokens_per_s_per_user")


@dataclass(frozen=True)
class Line:
    name: str
    points: tuple[FrontierPoint, ...]


@dataclass(frozen=True)
class Frontier:
    """Throughput against interactivity: the best layouts of each fleet. `limit_tpot_s` draws the SLO."""

    title: str
    lines: tuple[Line, ...]
    limit_tpot_s: float | None = None
    note: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScalingPoint:
    """`shares`: where the wall time of this many cards goes, (name, share), together 1; the useful part first.

    Training: compute, bubble, exposed communication, optimizer, failures and restarts. Serving may leave it empty.
    """

    num_chips: int
    throughput: Estimate
    mfu: Estimate | None = None
    shares: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Scaling:
    """Throughput and MFU against the number of cards, and what a large cluster loses."""

    title: str
    points: tuple[ScalingPoint, ...]
    note: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Roof:
    """A limit of the chip: `value` is FLOP/s of a number format, or bytes/s of a memory."""

    name: str
    value: float


@dataclass(frozen=True)
class RoofPoint:
    """An operator of a phase. `flops_per_s` is what the prediction reaches, `share` its part of the phase's time."""

    name: str
    phase: str
    format: str
    flops_per_byte: float
    flops_per_s: float
    seconds: float
    share: float


@dataclass(frozen=True)
class Roofline:
    """Arithmetic against intensity, both logarithmic: roofs of one chip and the operators under them."""

    title: str
    compute: tuple[Roof, ...]
    memory: tuple[Roof, ...]
    points: tuple[RoofPoint, ...]
    note: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class TimeBar:
    """`parts` are (name, seconds) that are not hidden behind one another; `total` may have a range."""

    label: str
    total: Estimate
    parts: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TimeBars:
    """Where a step's time goes."""

    title: str
    bars: tuple[TimeBar, ...]
    note: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class RangeBar:
    """`value` None where nothing is known, and `remark` says why or what instead.

    Cost by fleet without a public price: value None, remark "breaks even with 32 x h200 at 1.1 USD per card-hour
    (0.9 .. 1.3)".
    """

    label: str
    value: Estimate | None
    remark: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class RangeBars:
    """One figure of several things side by side: cost per million tokens by fleet, probability by chip.

    `axis` says what is shown, without its unit: "price of output".
    """

    title: str
    axis: str
    unit: str
    bars: tuple[RangeBar, ...]
    note: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Swing:
    """The answer with one input at its low and at its high end, all others as they are; None where there is none.

    `range` is the input's, as text: "2,048 .. 8,192 tokens".
    """

    name: str
    range: str
    at_low: float | None
    at_high: float | None
    remark: str = ""


@dataclass(frozen=True)
class Tornado:
    """The inputs that matter most, the largest swing first. `base` is the answer with every input as it is."""

    title: str
    axis: str
    base: Estimate
    swings: tuple[Swing, ...]
    note: str = ""
    sources: tuple[str, ...] = ()


Chart = Frontier | Scaling | Roofline | TimeBars | RangeBars | Tornado
