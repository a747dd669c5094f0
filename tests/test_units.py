"""Quantities read and printed: round trips, the field's spellings, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiefsee.errors import ConfigError
from tiefsee.units import format_bytes, format_quantity, format_seconds, parse_bytes, parse_quantity

UNITS = ["bytes", "flops", "s", "tokens", "bytes/s", "flops/s", "tokens/s"]


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("3.2 TB/s", "bytes/s", 3.2e12),
        ("64 GiB", "bytes", 64 * 2**30),
        ("16GB", "bytes", 16e9),
        ("16G", "bytes", 16e9),
        ("512 KiB", "bytes", 2**19),
        ("1_000 bytes", "bytes", 1000),
        ("1,000 B", "bytes", 1000),
        (4096, "bytes", 4096),
        ("4096", "bytes", 4096),
        ("989 TFLOP/s", "flops/s", 989e12),
        ("1.5e3 GFLOP", "flops", 1.5e12),
        ("25 ms", "s", 0.025),
        ("3 us", "s", 3e-6),
        ("3 µs", "s", 3e-6),
        ("2 h", "s", 7200),
        ("5 min", "s", 300),
        ("128K", "tokens", 128e3),
        ("14.8 Ttokens", "tokens", 14.8e12),
        ("20 tok/s", "tokens/s", 20),
    ],
)
def test_spellings_of_the_field(text, unit, value):
    assert math.isclose(parse_quantity(text, unit), value, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("3.2 TB", "bytes/s"),
        ("3.2 TB/s", "bytes"),
        ("3 TFLOPS", "flops/s"),
        ("3 TFLOPs", "flops"),
        ("1 mB", "bytes"),
        ("3 Gb/s", "bytes/s"),
        ("5 parsecs", "s"),
        ("1 kmin", "s"),
        ("GiB", "bytes"),
        ("", "bytes"),
        ("nan B", "bytes"),
        (float("inf"), "s"),
        ("1e999", "s"),
        (True, "bytes"),
        (None, "bytes"),
    ],
)
def test_refused_with_found_needed_try(text, unit):
    with pytest.raises(ConfigError, match=rf"{unit}.*write for example"):
        parse_quantity(text, unit)


def test_negative_bytes_are_refused():
    with pytest.raises(ConfigError, match="negative"):
        parse_bytes("-1 GiB")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3.2e12, "bytes/s", "3.2 TB/s"),
        (16e9, "bytes", "16 GB"),
        (70272, "bytes", "70.3 kB"),
        (999_999, "bytes", "1 MB"),
        (0, "tokens", "0 tokens"),
        (512, "tokens", "512 tokens"),
        (0.0123, "s", "12.3 ms"),
        (0.9999, "s", "1000 ms"),
        (2e-9, "s", "2 ns"),
        (120, "s", "120 s"),
        (989e12, "flops/s", "989 TFLOP/s"),
    ],
)
def test_printed_for_people(value, unit, text):
    assert format_quantity(value, unit) == text


def test_binary_and_long_times():
    assert format_bytes(64 * 2**30, binary=True) == "64 GiB"
    assert format_bytes(1023 * 2**10, binary=True, digits=4) == "1023 KiB"
    assert format_seconds(5400) == "1 h 30 min"
    assert format_seconds(90061) == "1 d 1 h 1 min"
    with pytest.raises(ConfigError, match="binary"):
        format_quantity(1.0, "s", binary=True)


@given(
    value=st.floats(min_value=1e-9, max_value=1e21),
    unit=st.sampled_from(UNITS),
    digits=st.integers(2, 9),
    negative=st.booleans(),
)
def test_round_trip_within_the_printed_digits(value, unit, digits, negative):
    value = -value if negative else value
    if unit != "s" and abs(value) < 1:
        value *= 1e9  # only seconds have prefixes below one
    read = parse_quantity(format_quantity(value, unit, digits), unit)
    assert math.isclose(read, value, rel_tol=10.0 ** (1 - digits))


@given(st.integers(0, 2**60))
def test_binary_round_trip(value):
    assert math.isclose(parse_bytes(format_bytes(value, 12, binary=True)), value, rel_tol=1e-11)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_bare_numbers_are_base_units(value):
    assert parse_quantity(value, "s") == value
    assert parse_quantity(repr(value), "s") == value
