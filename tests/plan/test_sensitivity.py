"""What matters most comes first; what cannot be answered comes before it; nothing is varied without a range."""

from __future__ import annotations

import math

import pytest

from tiefsee.errors import ConfigError
from tiefsee.hardware import find_chip
from tiefsee.plan.documents.roofline import roofline
from tiefsee.plan.documents.sensitivity import Input, tornado, vary
from tiefsee.plan.figures.estimate import around
from tiefsee.plan.fitted.efficiency import Efficiency
from tiefsee.plan.names.formats import formats_of
from tiefsee.plan.report.draw import draw
from tiefsee.plan.serving.step import decode_s, prefill_s
from tiefsee.plan.serving.worker import Worker
from tiefsee.spec import preset


def test_swings_are_sorted_and_one_at_a_time():
    asked = []

    def question(values):
        asked.append(dict(values))
        return 3 * values["a"] + values["b"] ** 2 + values["c"]

    inputs = [Input("a", 0, 1, 2), Input("b", -3, 0, 1), Input("c", 5, 5, 5)]
    base, swings = vary(question, inputs)
    assert base == 8
    assert [s.input.name for s in swings] == ["b", "a"]
    assert (swings[0].at_low, swings[0].at_high, swings[0].size) == (17, 9, 9)
    assert (swings[1].at_low, swings[1].at_high, swings[1].size) == (5, 11, 6)
    assert all(sum(v[n] != asked[0][n] for n in "abc") == 1 for v in asked[1:])


def test_an_end_without_an_answer_comes_first_and_says_why():
    def question(values):
        if values["batch"] > 10:
            raise ConfigError("it does not fit by 3 GB")
        return values["batch"] + 100 * values["x"]

    _, swings = vary(question, [Input("x", 0, 1, 2), Input("batch", 1, 5, 20, "requests")])
    assert swings[0].input.name == "batch"
    assert swings[0].at_high is None
    assert swings[0].remark == "none at 20 requests: it does not fit by 3 GB"
    chart = tornado("t", "requests", around(105.0, 1.2, "requests", "fitted"), swings)
    assert chart.swings[0].range == "1 .. 20 requests"
    assert draw(chart, 720).height > 0


def test_an_answer_that_is_not_finite_is_none():
    _, swings = vary(lambda v: 1 / v["x"] if v["x"] else math.inf, [Input("x", 0, 1, 2)])
    assert swings[0].at_low is None
    assert "not finite" in swings[0].remark


def test_inputs_must_make_sense():
    with pytest.raises(ConfigError, match="5 is not between 0 and 1"):
        Input("x", 0, 5, 1)
    with pytest.raises(ConfigError, match="one name"):
        vary(lambda v: 1.0, [Input("x", 0, 1, 2), Input("x", 0, 1, 2)])


# -- On the model of time ----------------------------------------------------------------------------------------------

WORKER = Worker(preset("v3"), find_chip("h20"), formats_of("fp8"), 1, 16, 16)
E = Efficiency()


def test_roofline_points_lie_under_their_roofs_and_sum_to_the_step():
    chart = roofline(WORKER, E, batch=256, context=4096)
    peaks, bandwidth = {r.name: r.value for r in chart.compute}, chart.memory[0].value
    for p in chart.points:
        assert p.flops_per_s <= min(max(peaks.values()), p.flops_per_byte * bandwidth) * 1.0001
    for phase in ("prefill", "decode"):
        assert sum(p.share for p in chart.points if p.phase == phase) == pytest.approx(1.0)
    decode = sum(p.seconds for p in chart.points if p.phase == "decode")
    assert decode < decode_s(WORKER, 256, 4096, 0, E)
    assert sum(p.seconds for p in chart.points if p.phase == "prefill") < prefill_s(WORKER, 4096, 0, E)
    experts = {p.phase: p for p in chart.points if p.name == "experts.routed"}
    assert experts["decode"].flops_per_byte < experts["prefill"].flops_per_byte
