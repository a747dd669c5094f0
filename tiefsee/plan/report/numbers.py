"""Figures as people read them: as many digits as the range carries, one scale for value and range, always a unit.

    1903 tokens/s within 1586 .. 2284      1,900 tokens/s (1,600 .. 2,300)
    0.00941 s within 0.0078 .. 0.0113      9.4 ms (7.8 .. 11)

Digits: a range of +-20 % leaves two, +-2 % three, a factor of two one (`digits_of`). Nothing is shown with more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tiefsee.errors import ConfigError
from tiefsee.plan.figures.estimate import Estimate
from tiefsee.units import Unit, scale_of_quantity

CERTAIN_DIGITS = 3  # of a figure without a range: what data sheets carry
UNKNOWN = "unknown"

# (from this value on, factor, label), the last that applies is taken.
_TIME = (
    (0.0, 1e6, "µs"),
    (1e-3, 1e3, "ms"),
    (1.0, 1.0, "s"),
    (120.0, 1 / 60, "min"),
    (7200.0, 1 / 3600, "h"),
    (172800.0, 1 / 86400, "days"),
)
_NAMES = {
    "tokens_per_s": "tokens/s", "tokens_per_s_per_chip": "tokens/s per chip",
    "tokens_per_s_per_user": "tokens/s per user", "requests_per_s": "requests/s",
    "gpu_hours": "card-hours", "usd": "USD", "usd_per_hour": "USD/h",
    "usd_per_chip_hour": "USD per card-hour", "usd_per_million_tokens": "USD per million tokens",
    "tokens_per_usd": "tokens per USD", "flops_per_byte": "FLOP/B", "tokens": "tokens", "chips": "cards",
    "requests": "requests", "days": "days", "samples_per_hour": "samples/h", "factor": "x",
}  # fmt: skip
_SHARES = ("mfu", "mbu", "share", "probability", "training_goodput")
# Units with prefixes, and what tiefsee.units calls them. Of time only the long names say what is counted.
_QUANTITIES: dict[str, Unit] = {"bytes": "bytes", "bytes_per_s": "bytes/s", "flops": "flops", "flops_per_s": "flops/s"}


@dataclass(frozen=True)
class Scale:
    """`shown = value * factor`, followed by `label`."""

    factor: float
    label: str

    def text(self, value: float, digits: int) -> str:
        """The number alone."""
        return format_number(value * self.factor, digits)

    def with_label(self, number: str) -> str:
        return number + ("" if self.label in ("", "%") else " ") + self.label


def scale_of(unit: str, value: float) -> Scale:
    """How values of the size of `value` are shown. Raises ConfigError for a unit that has no reading."""
    size = abs(value) if math.isfinite(value) else 0.0
    if unit in _SHARES:
        return Scale(100.0, "%")
    if unit == "s" or (unit.endswith("_s") and "_per_s" not in unit):
        return next(Scale(factor, label) for least, factor, label in reversed(_TIME) if size >= least)
    if unit in _QUANTITIES:
        base, label = scale_of_quantity(size, _QUANTITIES[unit])
        return Scale(1 / base, label)
    if unit not in _NAMES and unit:
        raise ConfigError(
            f"unit is {unit!r}; a report knows {', '.join(sorted({*_NAMES, *_SHARES, *_QUANTITIES}))} and *_s"
        )
    label = _NAMES.get(unit, "")
    if size >= 1e9:
        return Scale(1e-9, f"billion {label}".strip())
    if size >= 1e6:
        return Scale(1e-6, f"million {label}".strip())
    return Scale(1.0, label)


def common_scale(unit: str, values: Iterable[float]) -> Scale:
    """One scale for a column or an axis: that of the middle between median and largest, on a logarithmic rule."""
    finite = sorted(abs(v) for v in values if math.isfinite(v) and v)
    return scale_of(unit, math.sqrt(finite[len(finite) // 2] * finite[-1]) if finite else 1.0)


def digits_of(estimate: Estimate) -> int:
    """Significant digits that the 80 % range leaves: down to the place of the first digit of half its width.

    54.3 +- 5.2 leaves 54, 1903 +- 350 leaves 1,900. From half the value on it is one digit, below at least two:
    9.4 +- 1.8 stays 9.4. Four at most, three where there is no range.
    """
    if not all(map(math.isfinite, (estimate.value, estimate.low, estimate.high))) or not estimate.value:
        return 1
    half, size = abs(estimate.high - estimate.low) / 2, abs(estimate.value)
    if not half:
        return CERTAIN_DIGITS if estimate.unit != "probability" else 2 if size >= 0.1 else 1  # whole per cent
    if half >= size / 2:
        return 1
    return min(4, max(2, math.floor(math.log10(size)) - math.floor(math.log10(half)) + 1))


def format_number(value: float, digits: int) -> str:
    """`digits` significant ones, thousands apart: (1903, 2) -> "1,900", (0.0214, 2) -> "0.021"."""
    if not math.isfinite(value):
        return UNKNOWN
    if not value:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    if abs(rounded) < 1e-4 or abs(rounded) >= 1e9:
        return f"{rounded:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{places}f}"


def show(estimate: Estimate) -> str:
    """Value, unit and range: "9.4 ms (7.8 .. 11)"; without a range where there is none."""
    number = show_value(estimate)
    return number if is_certain(estimate) or number == UNKNOWN else f"{number} ({show_range(estimate)})"


def show_value(estimate: Estimate) -> str:
    """Value and unit: "9.4 ms"."""
    return show_plain(estimate.value, estimate.unit, digits_of(estimate))


def show_range(estimate: Estimate, scale: Scale | None = None) -> str:
    """The range in the value's scale, without its unit: "7.8 .. 11"."""
    scale = scale or scale_of(estimate.unit, estimate.value)
    digits = digits_of(estimate)
    return f"{scale.text(estimate.low, digits)} .. {scale.text(estimate.high, digits)}"


def in_scale(estimate: Estimate, scale: Scale) -> str:
    """As in a column whose head names the unit: "9.4 (7.8 .. 11)"."""
    number = scale.text(estimate.value, digits_of(estimate))
    return number if is_certain(estimate) or number == UNKNOWN else f"{number} ({show_range(estimate, scale)})"


def show_plain(value: float, unit: str, digits: int = CERTAIN_DIGITS) -> str:
    """A number without a range, with its unit."""
    scale = scale_of(unit, value)
    return scale.with_label(scale.text(value, digits)) if math.isfinite(value) else UNKNOWN


def exact(value: float, scale: Scale) -> str:
    """What somebody gave us: whole numbers as they are, others to three digits: 8,192 and 0.8."""
    shown = value * scale.factor
    digits = 12 if abs(shown - round(shown)) < 1e-9 * abs(shown) and abs(shown) < 1e9 else 3
    return f"{float(f'{shown:.{digits}g}'):,.10g}"


def is_certain(estimate: Estimate) -> bool:
    return estimate.low == estimate.high
