"""Measuring a chip: what is timed is what is said, ranges hold the trials, and scale with the clock."""

from __future__ import annotations

import pytest

from tiefsee.errors import ConfigError, DeviceError
from tiefsee.hardware import chip_toml, read_chips
from tiefsee.plan.evidence import measure_chip
from tiefsee.plan.evidence.measure_chip import Trials, measure_cpu, repeat

SMALL = {"size": 96, "array_bytes": 1_000_000}


def test_a_small_measurement_is_read_back():
    chip = measure_cpu(0.2, **SMALL)
    (again,) = read_chips(chip_toml(chip), "here")
    assert again.name == "cpu"
    assert again.per == "package"
    for found in (again.flops_per_s["fp32"], again.memory_bytes_per_s, again.launch_s):
        assert found.kind == "measured"
        assert found.low <= found.value <= found.high
        assert "numpy" in found.source
        assert "trials" in found.note
    assert again.memory_bytes.value == pytest.approx(measure_chip.total_memory_bytes(), rel=1e-5)
    assert set(again.flops_per_s) == {"fp32"}
    assert 1e-8 < again.launch_s.value < 1e-3


def test_bf16_by_whoever_has_it():
    sizes = []
    chip = measure_cpu(0.2, **SMALL, bf16_product=lambda size: lambda: sizes.append(size))
    assert set(sizes) == {96}
    assert set(chip.flops_per_s) == {"fp32", "bf16"}


def test_median_and_eighty_percent():
    trials = Trials(tuple(1.0 + i / 10 for i in range(11)), 1.0)  # 1.0, 1.1 .. 2.0 s
    rate = trials.figure(3e12, "flops/s", "x", "y")
    assert (rate.value, rate.low, rate.high) == pytest.approx((2e12, 3e12 / 1.9, 3e12 / 1.1), rel=5e-3)
    each = trials.figure(1000, "s", "x", "y")
    assert (each.value, each.low, each.high) == pytest.approx((1.5e-3, 1.1e-3, 1.9e-3))


@pytest.mark.parametrize("factor", [2.0, 10.0])
def test_slower_clocks_give_slower_chips(factor):
    seconds = (1.0, 1.25, 2.0)
    once, later = (Trials(tuple(s * k for s in seconds), 1.0).figure(1e9, "bytes/s", "x", "y") for k in (1, factor))
    assert later.value * factor == pytest.approx(once.value, rel=1e-2)


def test_repeat_warms_up_and_counts():
    calls = []
    trials = repeat(lambda: calls.append(1), 0.0)
    assert (len(calls), len(trials.seconds)) == (6, 5)


def test_what_cannot_be_measured():
    with pytest.raises(ConfigError, match=r"needed is 0\.05 to 3600"):
        measure_cpu(float("nan"))
    with pytest.raises(DeviceError, match="the measurement needs"):
        measure_cpu(1.0, array_bytes=10**15)


def test_other_work_is_noted():
    assert "other work" in measure_chip._contention("fp32", 0.1)
    assert "other work" not in measure_chip._contention("fp32", float(measure_chip.num_cores()))
