"""What it costs: prices of a chip-hour as ranges, cost per million tokens, the price at which two fleets break even.

Ranges are combined as products of independent log-normal factors: on each side of the value the logarithms of
high / value (and value / low) add in squares, so 1.5 times and 1.2 times make 1.56 times, not 1.8. Prices of unlike
chips in one fleet do not average out like that, since one market moves them together: there the ends add.

The grade of a result is that of the performance it rests on; where a price comes from is in `Price.source`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tiefsee.errors import ConfigError
from tiefsee.hardware import Chip, Figure, find_chip
from tiefsee.plan.figures.estimate import Estimate, weakest

_HOUR_S = 3600.0
_YEAR_H = 8766.0
_MOST_USD_PER_HOUR = 10_000.0
_PRICE = re.compile(r"(?P<chip>.+?)=(?P<low>[0-9][0-9.eE+-]*?)(\.\.(?P<high>[0-9][0-9.eE+-]*))?")


@dataclass(frozen=True)
class Price:
    """USD per chip-hour, 80 % between `low` and `high`; `source` says whose it is."""

    value: float
    low: float
    high: float
    source: str

    @classmethod
    def of(cls, figure: Figure) -> Price:
        return cls(figure.value, figure.low, figure.high, figure.source)

    def scaled(self, factor: float) -> Price:
        return replace(self, value=self.value * factor, low=self.low * factor, high=self.high * factor)


def parse_price(text: str) -> tuple[str, Price]:
    """`h200=2.5` or `ascend-910c=1.2..1.8` -> (the chip's name in the catalogue, its price).

    Of a range the value is the geometric mean. Raises ConfigError.
    """
    match = _PRICE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"cannot read {text!r} as a price; needed is CHIP=USD or CHIP=LOW..HIGH in USD per chip-hour, "
            "for example h200=2.5 or ascend-910c=1.2..1.8"
        )
    low = _usd(match["low"], text)
    high = low if match["high"] is None else _usd(match["high"], text)
    if low > high:
        raise ConfigError(f"the price {text!r} goes down; needed is LOW..HIGH, for example h200={high:g}..{low:g}")
    return find_chip(match["chip"]).name, Price(math.sqrt(low * high), low, high, "given")


def parse_prices(texts: Iterable[str]) -> dict[str, Price]:
    """Several, each chip once. Raises ConfigError."""
    prices: dict[str, Price] = {}
    for text in texts:
        name, price = parse_price(text)
        if name in prices:
            raise ConfigError(f"the price of {name} is given twice, the second time as {text!r}")
        prices[name] = price
    return prices


def price_of(chip: Chip, prices: Mapping[str, Price] | None = None) -> Price | None:
    """The user's price where one is given, else the catalogue's; None where no price is public.

    Of a package that has its dies as an entry of its own (ascend-910c, ascend-910c-die) a price of either will do: a
    die costs its part of the package.
    """
    prices = prices or {}
    if chip.name in prices:
        return prices[chip.name]
    if chip.per == "die" and (whole := chip.name.removesuffix("-die")) in prices:
        return prices[whole].scaled(1 / find_chip(whole).dies)
    if (die := f"{chip.name}-die") in prices:
        return prices[die].scaled(chip.dies)
    return None if chip.usd_per_hour is None else Price.of(chip.usd_per_hour)


def owned(
    chip: Chip, *, years: float = 4.0, usd_per_kwh: float = 0.08, overhead: float = 1.3, hosts: float = 1.5
) -> Price:
    """USD per hour of a chip that is bought: purchase over `years`, and power at its TDP times `overhead` (PUE).

    `hosts` is what servers, network and building add to the chip's price. Raises ConfigError where the catalogue has
    no purchase price or no TDP.
    """
    for name, value, most in (("years", years, 30), ("usd_per_kwh", usd_per_kwh, 10), ("overhead", overhead, 10),
                              ("hosts", hosts, 10)):  # fmt: skip
        if not 0 < value <= most:
            raise ConfigError(f"{name} is {value}; needed is above 0 and at most {most}")
    if chip.purchase_usd is None or chip.tdp_w is None:
        lacking = "purchase price" if chip.purchase_usd is None else "TDP"
        raise ConfigError(
            f"the catalogue has no {lacking} of {chip.name}; give a price per hour: --price {chip.name}=USD"
        )
    share, energy = hosts / (years * _YEAR_H), overhead * usd_per_kwh / 1e3
    value, low, high = (
        share * purchase + energy * power
        for purchase, power in zip(_ends(chip.purchase_usd), _ends(chip.tdp_w), strict=True)
    )
    return Price(value, low, high, f"bought: {chip.purchase_usd.source}; {years:g} years, {usd_per_kwh:g} USD/kWh")


def fleet_usd_per_hour(pools: Iterable[tuple[Price, int]]) -> Price:
    """Of several pools together, each a price and a number of chips."""
    listed = list(pools)
    value, low, high = (sum(getattr(p, end) * n for p, n in listed) for end in ("value", "low", "high"))
    return Price(value, low, high, "; ".join(dict.fromkeys(p.source for p, _ in listed)))


def usd_per_million_tokens(tokens_per_s: Estimate, usd_per_hour: Price) -> Estimate:
    """Both of the same chips: a whole fleet's, or one chip's. 2,000 tokens/s at 1.57 USD/h: 0.22 USD."""
    price = Estimate(usd_per_hour.value, usd_per_hour.low, usd_per_hour.high, "usd_per_hour", tokens_per_s.grade)
    return _product(price, tokens_per_s.inverse(1e6 / _HOUR_S, ""), "usd_per_million_tokens")


def total_usd(gpu_hours: Estimate, usd_per_hour: Price) -> Estimate:
    """Of a training run: chip-hours times the price of one."""
    price = Estimate(usd_per_hour.value, usd_per_hour.low, usd_per_hour.high, "usd_per_hour", gpu_hours.grade)
    return _product(price, gpu_hours, "usd")


def break_even_price(tokens_per_s: Estimate, num_chips: int, cost: Estimate, other: Price | None = None) -> Estimate:
    """USD per hour of one of `num_chips` chips at which the fleet's tokens cost as much as the alternative's.

    `tokens_per_s` is the whole fleet's, `cost` the alternative's USD per million tokens, `other` what the chips of
    known price in the fleet cost an hour. Zero or less: it would not be worth having them for nothing. The two
    performances count as independent, which makes the range rather too wide: one model predicted both.
    """
    if num_chips < 1:
        raise ConfigError(f"{num_chips} chips have no price; needed is at least 1")
    earned = _product(tokens_per_s.scaled(_HOUR_S / 1e6, ""), cost, "usd_per_hour")
    return _share(earned, num_chips, other)


def break_even_price_of_training(gpu_hours: Estimate, cost: Estimate) -> Estimate:
    """USD per chip-hour at which a run of `gpu_hours` costs as much as the alternative's `cost` in USD."""
    return _product(gpu_hours.inverse(1.0, ""), cost, "usd_per_hour")


def _share(earned: Estimate, num_chips: int, other: Price | None) -> Estimate:
    if other is None:
        return earned.scaled(1 / num_chips, "usd_per_hour")
    # A difference: the sides add in squares, the other's low end on the high side.
    value = earned.value - other.value
    down = math.hypot(earned.value - earned.low, other.high - other.value)
    up = math.hypot(earned.high - earned.value, other.value - other.low)
    left = replace(earned, value=value, low=value - down, high=value + up)
    return left.scaled(1 / num_chips, "usd_per_hour")


def _product(a: Estimate, b: Estimate, unit: str) -> Estimate:
    """a times b, independent and log-normal; the grade is the worse one."""
    value = a.value * b.value
    up = math.hypot(math.log(a.high / a.value), math.log(b.high / b.value))
    down = math.hypot(math.log(a.value / a.low), math.log(b.value / b.low))
    return Estimate(value, value * math.exp(-down), value * math.exp(up), unit, weakest((a.grade, b.grade)))


def _ends(figure: Figure) -> tuple[float, float, float]:
    return figure.value, figure.low, figure.high


def _usd(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"cannot read {text!r} in the price {where!r}; write for example h200=2.5") from None
    if not 0 < value <= _MOST_USD_PER_HOUR:
        raise ConfigError(
            f"the price {where!r} is {value:g} USD per chip-hour; "
            f"needed is above 0 and at most {_MOST_USD_PER_HOUR:,.0f}"
        )
    return value
