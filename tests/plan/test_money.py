"""Money: read as people write it, combined as the docstring says, and a break-even price that breaks even."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiefsee.errors import ConfigError
from tiefsee.hardware import find_chip
from tiefsee.plan.figures.estimate import GRADES, Estimate
from tiefsee.plan.figures.money import (
    Price,
    break_even_price,
    break_even_price_of_training,
    fleet_usd_per_hour,
    owned,
    parse_price,
    parse_prices,
    price_of,
    total_usd,
    usd_per_million_tokens,
)  # fmt: skip

positive = st.floats(1e-3, 1e6)
spread = st.floats(1.0, 5.0)
rates = st.builds(
    lambda value, down, up, grade: Estimate(value, value / down, value * up, "tokens_per_s", grade),
    positive, spread, spread, st.sampled_from(GRADES),
)  # fmt: skip
prices = st.builds(
    lambda value, down, up: Price(value, value / down, value * up, "x"), st.floats(0.01, 100), spread, spread
)
counts = st.integers(1, 100_000)


def test_a_worked_number():
    # 2,000 tokens/s for 1.57 USD an hour: 1.57 / (2,000 x 3,600) x 1e6
    cost = usd_per_million_tokens(Estimate(2000, 1600, 2500, "tokens_per_s", "fitted"), Price(1.57, 1.41, 1.74, "x"))
    assert cost.value == pytest.approx(0.218, abs=5e-4)
    # Factors 1.25 (fewer tokens) and 1.108 (dearer): hypot of the logarithms, not their sum.
    assert cost.high / cost.value == pytest.approx(math.exp(math.hypot(math.log(1.25), math.log(1.74 / 1.57))))
    assert (cost.unit, cost.grade) == ("usd_per_million_tokens", "fitted")


@settings(deadline=None)
@given(rates, prices, st.floats(1.001, 100))
def test_cost_grows_with_the_price_and_falls_with_the_rate(rate, price, factor):
    cost = usd_per_million_tokens(rate, price)
    assert cost.low <= cost.value <= cost.high
    dearer = Price(price.value * factor, price.low * factor, price.high * factor, "x")
    faster = rate.scaled(factor, rate.unit)
    for other, ratio in (
        (usd_per_million_tokens(rate, dearer), factor),
        (usd_per_million_tokens(faster, price), 1 / factor),
    ):
        assert other.value == pytest.approx(cost.value * ratio)
        assert (other.low, other.high) == pytest.approx((cost.low * ratio, cost.high * ratio))


@settings(deadline=None)
@given(rates, prices, rates, counts, counts)
def test_the_break_even_price_breaks_even(rate, price, other_rate, num_chips, num_others):
    alternative = usd_per_million_tokens(other_rate, fleet_usd_per_hour([(price, num_others)]))
    found = break_even_price(rate, num_chips, alternative)
    assert found.unit == "usd_per_hour"
    assert found.low <= found.value <= found.high
    own = usd_per_million_tokens(
        rate, fleet_usd_per_hour([(Price(found.value, found.value, found.value, "x"), num_chips)])
    )
    assert own.value == pytest.approx(alternative.value)
    assert found.grade == max((rate.grade, other_rate.grade), key=GRADES.index)


@settings(deadline=None)
@given(rates, prices, rates, counts, prices, counts)
def test_it_breaks_even_beside_chips_that_have_a_price(rate, price, other_rate, num_chips, known, num_known):
    alternative = usd_per_million_tokens(other_rate, price)
    beside = fleet_usd_per_hour([(known, num_known)])
    found = break_even_price(rate, num_chips, alternative, beside)
    assert found.low <= found.value <= found.high
    spent = found.value * num_chips + beside.value  # found may be below zero: not worth having for nothing
    assert spent / (rate.value * 3600) * 1e6 == pytest.approx(
        alternative.value, rel=1e-6, abs=1e-9 * beside.value / rate.value
    )


@settings(deadline=None)
@given(rates, rates, prices)
def test_training_breaks_even(hours, other_hours, price):
    alternative = total_usd(other_hours, price)
    found = break_even_price_of_training(hours, alternative)
    assert total_usd(hours, Price(found.value, found.low, found.high, "x")).value == pytest.approx(alternative.value)


@pytest.mark.parametrize(
    ("text", "name", "ends"),
    [
        ("h200=2.5", "h200", (2.5, 2.5, 2.5)),
        ("ascend-910c=1.2..1.8", "ascend-910c", (math.sqrt(1.2 * 1.8), 1.2, 1.8)),
        (" H200_SXM=1e0..2 ", "h200", (math.sqrt(2), 1, 2)),
        ("910c=2..2", "ascend-910c", (2, 2, 2)),
    ],
)
def test_prices_as_people_write_them(text, name, ends):
    found, price = parse_price(text)
    assert found == name
    assert (price.value, price.low, price.high) == pytest.approx(ends)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("h200", "needed is CHIP=USD"), ("=2", "needed is CHIP=USD"), ("h200=", "needed is CHIP=USD"),
        ("h200=x", "needed is CHIP=USD"), ("h200=-1", "needed is CHIP=USD"), ("h200=nan", "needed is CHIP=USD"),
        ("h200=1..", "cannot read"), ("h200=1.2.3", "cannot read '1.2.3'"), ("h200=1e999", "above 0"),
        ("h200=0", "above 0"), ("h200=99999", "at most 10,000"), ("h200=3..2", "goes down"), ("h2000=2", "near are"),
        ("920c=2", "never appeared"),
    ],
)  # fmt: skip
def test_prices_that_mean_nothing(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_price(text)


def test_whose_price_it_is():
    h200, ascend = find_chip("h200"), find_chip("ascend-910c")
    given_ = parse_prices(["h200=2.5"])
    assert price_of(h200, given_).source == "given"
    assert "InferenceX" in price_of(h200).source
    assert price_of(ascend) is None
    die = find_chip("ascend-910c-die")
    package_price = parse_prices(["910c=1.2..1.8"])
    assert price_of(die, package_price).high == 0.9  # half of the package
    assert price_of(ascend, parse_prices(["910c-die=0.7"])).value == pytest.approx(1.4)
    assert price_of(die) is None
    with pytest.raises(ConfigError, match="given twice"):
        parse_prices(["h200=2", "h200-sxm=3"])


def test_a_chip_that_is_bought():
    h200 = find_chip("h200")
    # 35,000 USD x 1.5 for hosts over 4 years of 8,766 h, and 700 W x 1.3 at 0.08 USD/kWh
    assert owned(h200).value == pytest.approx(35000 * 1.5 / (4 * 8766) + 0.7 * 1.3 * 0.08)
    assert owned(h200, years=2).value > owned(h200).value
    assert owned(h200).low < owned(h200).value < owned(h200).high
    with pytest.raises(ConfigError, match="no TDP of ascend-910c"):
        owned(find_chip("ascend-910c"))
    with pytest.raises(ConfigError, match="no purchase price of gb200"):
        owned(find_chip("gb200"))
    with pytest.raises(ConfigError, match="years is 0"):
        owned(h200, years=0)


def test_fleets_add_their_ends():
    total = fleet_usd_per_hour([(Price(1, 0.5, 2, "a"), 4), (Price(3, 2, 4, "b"), 2)])
    assert (total.value, total.low, total.high, total.source) == (10, 6, 16, "a; b")
    with pytest.raises(ConfigError, match="at least 1"):
        break_even_price(Estimate(1, 1, 1, "tokens_per_s", "fitted"), 0, Estimate(1, 1, 1, "x", "fitted"))
