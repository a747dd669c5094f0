"""Never a digit more than the range carries, never a number without its unit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiefsee.errors import ConfigError
from tiefsee.plan.figures.estimate import Estimate, around
from tiefsee.plan.report import digits_of, show
from tiefsee.plan.report.numbers import common_scale, exact, format_number, scale_of, show_plain


@pytest.mark.parametrize(
    ("value", "factor", "unit", "text"),
    [
        (1903, 1.2, "tokens_per_s_per_chip", "1,900 tokens/s per chip (1,600 .. 2,300)"),
        (0.00941, 1.2, "tpot_s", "9.4 ms (7.8 .. 11)"),
        (54.3, 1.1, "days", "54 days (49 .. 60)"),
        (0.52, 1.05, "mfu", "52% (50 .. 55)"),
        (2.788e6, 1.1, "gpu_hours", "2.8 million card-hours (2.5 .. 3.1)"),
        (1.03, 2.0, "usd_per_million_tokens", "1 USD per million tokens (0.5 .. 2)"),
        (1.0, 1.02, "ttft_s", "1.00 s (0.980 .. 1.02)"),
        (141e9, 1.0, "bytes", "141 GB"),
        (3.3e-6, 1.2, "latency_s", "3.3 µs (2.8 .. 4.0)"),
        (19.9 * 3600, 1.2, "train_s", "20 h (17 .. 24)"),
        (math.nan, 1.2, "tpot_s", "unknown"),
        (0.0, 1.2, "usd", "0 USD"),
    ],
)
def test_shown(value, factor, unit, text):
    assert show(around(value, factor, unit, "fitted")) == text


def test_wider_ranges_leave_fewer_digits():
    digits = [digits_of(around(543.0, factor, "usd", "fitted")) for factor in (1.0005, 1.01, 1.1, 1.2, 3.0)]
    assert digits == sorted(digits, reverse=True)
    assert digits[-1] == 1


@given(st.floats(1e-6, 1e12), st.floats(1.001, 10))
def test_rounding_stays_within_the_range(value, factor):
    """What is shown is never outside of what is claimed, and the last digit is worth no less than a tenth of it."""
    e = around(value, factor, "", "fitted")
    digits = digits_of(e)
    shown = float(f"{value:.{digits - 1}e}")
    assert e.low <= shown <= e.high
    half = (e.high - e.low) / 2
    last = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    assert digits <= 2 or last >= half / 10.0001
    assert digits <= 4


@given(st.floats(1e-3, 1e8), st.integers(1, 4))
def test_number_text_reads_back(value, digits):
    assert float(format_number(value, digits).replace(",", "")) == pytest.approx(value, rel=0.5 * 10 ** (1 - digits))


def test_infinite_and_nan_are_unknown():
    assert format_number(math.inf, 2) == "unknown"
    assert show_plain(math.nan, "tpot_s") == "unknown"
    assert digits_of(Estimate(1.0, 0.5, math.inf, "usd", "rumour")) == 1


def test_unknown_unit_is_refused_and_known_ones_are_named():
    with pytest.raises(ConfigError, match=r"unit is 'furlongs'.*tokens_per_s"):
        scale_of("furlongs", 1.0)
    for unit in ("tokens_per_s", "tokens_per_s_per_chip", "requests_per_s", "tpot_s", "ttft_s", "step_s", "mfu",
                 "gpu_hours", "usd", "usd_per_hour", "usd_per_million_tokens", "bytes", "days"):  # fmt: skip
        assert scale_of(unit, 3.0).label  # every unit that an Estimate may have


def test_a_column_has_one_scale():
    assert common_scale("step_s", [0.002, 0.04, 1.5]).label == "ms"
    assert common_scale("bytes", [1e9, 8e10, math.nan, 0.0]).label == "GB"


def test_inputs_are_shown_as_given():
    assert exact(8192, scale_of("tokens", 8192)) == "8,192"
    assert exact(0.8, scale_of("", 0.8)) == "0.8"
    assert exact(4.8e12, scale_of("bytes_per_s", 4.8e12)) == "4.8"
