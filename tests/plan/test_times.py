"""A step's terms: products are computed in tiles and fed from memory, as kernels that were measured alone are."""

from __future__ import annotations

import math
import statistics

import pytest

from tiefsee.hardware import find_chip
from tiefsee.plan.evidence.points import Point
from tiefsee.plan.evidence.points_file import shipped_points
from tiefsee.plan.fitted.efficiency import Efficiency, calibration
from tiefsee.plan.times.terms import Step, terms_of, uneven
from tiefsee.spec.cost import BYTES, Cost, Op

GROUPED = [
    point for point in shipped_points() if point.id.startswith(("infersim-h20-grouped", "infersim-h800-grouped"))
]


def seconds(chip: str, rows: float, e: Efficiency, *, kind: str = "experts", spread: float = 0.0) -> float:
    """Of 16 products with weights of 4,096 x 3,072 in FP8."""
    cost = Cost(2 * rows * 4096 * 3072 * 16, 4096 * 3072 * 16 * BYTES["fp8"], 0.0, 0.0)
    return Step(terms_of([Op("product", kind, "fp8", 1, cost)], find_chip(chip)), (), spread).seconds(e)[0]


def predicted(point: Point) -> float:
    """Seconds of a published kernel by the shipped efficiencies."""
    op = point.operator
    weights, values = op.groups * op.n * op.k, op.groups * op.m * (op.k + op.n)
    cost = Cost(2.0 * op.m * weights, weights * BYTES[op.format], 0.0, values * BYTES[op.format])
    step = Step(terms_of([Op("product", "experts", op.format, 1, cost)], find_chip(point.chip)), ())
    return step.seconds(calibration().of("nvidia"))[0]


def test_the_efficiencies_of_services_are_those_of_kernels_measured_alone():
    """Fitted on whole services only; the kernels on H20 and H800 are 15 times apart in arithmetic per byte."""
    ratios = {}
    for point in GROUPED:
        op = point.operator
        ratios[point.id] = predicted(point) / (2.0 * op.m * op.n * op.k * op.groups / point.value)
    assert len(ratios) == 7
    assert all(0.8 < ratio < 1.45 for ratio in ratios.values()), ratios
    assert 0.9 < statistics.median(ratios.values()) < 1.3, ratios


def test_few_rows_take_as_long_as_a_tile():
    e = Efficiency()
    few, tile = seconds("h20", 4, e), seconds("h20", e.tile_rows / 2, e)
    assert few == pytest.approx(tile)
    assert seconds("h20", 4 * e.tile_rows, e) > 3 * few
    # Where bandwidth is scarce against arithmetic, memory hides the tile: only a little is left of it.
    bytes_s = 4096 * 3072 * 16 / find_chip("h200").memory_bytes_per_s.value / e.experts_memory
    assert seconds("h200", 4, e) < 1.3 * bytes_s + e.launch_s
    assert few > 1.5 * seconds("h200", 4, e)


def test_uneven_experts_fill_tiles_before_they_take_longer():
    e = Efficiency(knee=50.0)  # arithmetic alone
    assert seconds("h20", 12, e, spread=0.5) == pytest.approx(seconds("h20", 12, e))
    even, uneven = (seconds("h20", 1024, e, spread=spread) for spread in (0.0, 0.5))
    assert uneven == pytest.approx(even * (1 + e.skew * 0.5), rel=0.1)


def test_the_rank_with_most_of_few_experts_reads_longest():
    """One token's 8 of 256 experts on 32 ranks: the fullest holds 1.6 in the mean, the mean rank a quarter."""
    e = Efficiency()
    one = math.inf
    for rows in (1.015, 1.6, 4.0, 20.0):  # tokens' experts overlap more and more
        longer = seconds("h200", rows, e, spread=uneven(32, 256)) / seconds("h200", rows, e)
        assert 1.0 <= longer < one
        one = longer
    assert longer < 1.01
    assert seconds("h200", 1.015, e, spread=uneven(32, 256)) > 2.5 * seconds("h200", 1.015, e)


def test_a_chip_with_little_arithmetic_reaches_more_of_it():
    e = Efficiency()

    def share(chip: str) -> float:
        flops = 2 * 8192 * 4096 * 3072 * 16
        return flops / seconds(chip, 8192, e) / find_chip(chip).peak("fp8").value

    assert share("h20") > share("h200") > share("h800")
    assert share("h20") < e.experts
