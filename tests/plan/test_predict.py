"""`predict`: what it promises about units, ranges, bad questions and published figures."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tiefsee.errors import ConfigError, TiefseeError
from tiefsee.hardware import Chip, Figure, find_chip
from tiefsee.plan import predict
from tiefsee.plan.fitted.calibrated import shipped
from tiefsee.plan.fitted.efficiency import FIELDS, Efficiency
from tiefsee.plan.names.formats import formats_of
from tiefsee.plan.serving.loop import Load, closed_loop_wait_s, serve_aggregated, serve_disaggregated
from tiefsee.plan.serving.step import decode_between_s, decode_s, prefill_s
from tiefsee.plan.serving.worker import Worker
from tiefsee.spec import preset

DECODE = {
    "kind": "decode", "model": "deepseek-ai/DeepSeek-V3", "chip": "h800", "num_chips": 128,
    "layout": {"tp": 1, "dp": 128, "ep": 128}, "precision": "fp8", "batch": 16384, "isl": 4096,
}  # fmt: skip
SERVICE = {
    "kind": "e2e", "model": "v3", "chip": "h200", "num_chips": 8, "layout": {"tp": 8}, "precision": "fp8",
    "concurrency": 32, "isl": 1024, "osl": 1024,
}  # fmt: skip
TIMES = tuple(name for name in FIELDS if name.endswith("_s"))


def slower(chip: Chip, k: float) -> Chip:
    """The chip with every clock k times slower."""

    def rate(figure: Figure) -> Figure:
        return replace(figure, value=figure.value / k, low=figure.low / k, high=figure.high / k)

    def latency(figure: Figure) -> Figure:
        return replace(figure, value=figure.value * k, low=figure.low * k, high=figure.high * k)

    links = tuple(
        replace(link, bytes_per_s=rate(link.bytes_per_s), latency_s=latency(link.latency_s)) for link in chip.links
    )
    peaks = {name: rate(peak) for name, peak in chip.flops_per_s.items()}
    return replace(chip, flops_per_s=peaks, memory_bytes_per_s=rate(chip.memory_bytes_per_s), links=links)


@pytest.mark.parametrize("k", [2.0, 3.7])
@pytest.mark.parametrize("model", ["v3", "v3.2", "v4-flash"])
def test_every_clock_k_times_slower_makes_every_time_k_times_longer(model, k):
    e = Efficiency()
    slow_e = e.changed(dict.fromkeys(TIMES, k))
    spec, fast = preset(model), find_chip("h200")
    slow = slower(fast, k)
    layouts = ((8, 1, 8, 1), (1, 16, 16, 1))
    for tp, dp, ep, moe_tp in layouts:
        a, b = (Worker(spec, chip, formats_of("fp8"), tp, dp, ep, moe_tp) for chip in (fast, slow))
        for find in (lambda w, x: decode_s(w, 32, 5000, 1, x), lambda w, x: prefill_s(w, 20000, 512, x)):
            assert find(b, slow_e) == pytest.approx(k * find(a, e), rel=1e-9)
        load = Load(64, 2000, 500)
        one, other = serve_aggregated(a, 1, load, e), serve_aggregated(b, 1, load, slow_e)
        assert other.ttft_s == pytest.approx(k * one.ttft_s)
        assert other.tpot_s == pytest.approx(k * one.tpot_s)
        one, other = (serve_disaggregated(w, 2, w, 3, load, x, x) for w, x in ((a, e), (b, slow_e)))
        assert other.requests_per_s == pytest.approx(one.requests_per_s / k, rel=1e-6)


def test_requests_wait_for_a_slot():
    """Beyond the slots the decode batch and TPOT stay, and each request more waits its share of an answer; slots that
    are not reached change nothing."""
    e, worker = Efficiency(), Worker(preset("v3"), find_chip("h200"), formats_of("fp8"), 8, 1, 8, 1)
    load = Load(96, 1000, 1000)

    def served(slots: float):
        return serve_disaggregated(worker, 2, worker, 4, load, e, e, slots=slots)

    assert served(96) == served(math.inf)
    full = served(48)
    assert full.batch == pytest.approx(12, rel=0.01)
    assert full.ttft_s - served(math.inf).ttft_s > 0.8 * 1000 * full.tpot_s
    assert full.ttft_s == pytest.approx((96 / 48 - 1) * 1000 * full.tpot_s, rel=0.1)
    assert full.requests_per_s * (full.ttft_s + 1000 * full.tpot_s) == pytest.approx(96, rel=1e-6)
    two = {"chip": "h200", "num_chips": 8, "layout": {"tp": 8}}
    with pytest.raises(ConfigError, match="slots are 0; needed"):
        predict(**{**SERVICE, "disagg": {"prefill": two, "decode": {**two, "slots": 0}}})


def test_ranges_surround_values_in_every_unit():
    for question in (DECODE, SERVICE, {**SERVICE, "kind": "prefill", "concurrency": None}):
        found = predict(**question)
        assert found.low < found.value() < found.high
        for unit, figure in found.figures.items():
            assert found.low(unit) == figure.low < found.value(unit) < figure.high == found.high(unit)
        assert found.grade == "measured" or question["kind"] == "prefill"
        assert found.bottleneck == max(found.parts, key=found.parts.get)
        assert all(seconds >= 0 for seconds in found.parts.values())
        assert found.sources
    with pytest.raises(ConfigError, match="no mfu; it has"):
        predict(**DECODE).value("mfu")


def test_published_figures_of_deepseek_and_cloudmatrix_lie_within_the_range():
    profiled = predict(**DECODE, stack="deepseek", date="2025-02-15", imbalance="balanced")
    unit = "tokens_per_s_per_chip"
    assert profiled.low(unit) < 2324.75 < profiled.high(unit)
    matrix = predict(
        kind="decode", model="r1", chip="ascend-910c", num_chips=160, layout={"dp": 320, "ep": 320}, precision="int8",
        batch=15360, isl=4096, mtp_acceptance=0.7, stack="cloudmatrix",
    )  # fmt: skip
    assert matrix.low(unit) < 1943 < matrix.high(unit)


def test_a_package_is_its_dies():
    """160 packages of the 910C are 320 dies; per package twice as much as per die."""
    same = {"kind": "decode", "model": "r1", "layout": {"dp": 320, "ep": 320}, "precision": "int8", "batch": 15360,
            "isl": 4096}  # fmt: skip
    package = predict(chip="ascend-910c", num_chips=160, **same)
    die = predict(chip="ascend-910c-die", num_chips=320, **same)
    assert package.value() == die.value()
    assert package.value("tokens_per_s_per_chip") == pytest.approx(2 * die.value("tokens_per_s_per_chip"))


def test_evidence_has_grades():
    announced = predict(**{**DECODE, "chip": "ascend-950dt"})
    unmeasured = predict(**{**DECODE, "chip": "a100", "precision": "bf16"})
    assert (announced.grade, unmeasured.grade) == ("rumour", "datasheet")
    known = predict(**DECODE, stack="deepseek")
    assert announced.high / announced.low > unmeasured.high / unmeasured.low > known.high / known.low


def test_drafts_balance_and_cached_prompts_pay():
    assert predict(**DECODE, mtp_acceptance=0.7).value() < predict(**DECODE).value()
    wide = {**DECODE, "layout": {"dp": 16, "ep": 16}, "num_chips": 16, "batch": 2048}
    assert predict(**wide, imbalance="balanced").value() < predict(**wide).value()
    prompt = {**SERVICE, "kind": "prefill", "isl": 8192}
    unit = "tokens_per_s_per_chip"
    assert predict(**prompt, cache_hit=0.5).value(unit) > 1.3 * predict(**prompt).value(unit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "guess"}, "kind is 'guess'; needed is one of decode"),
        ({"chip": "h300"}, "no chip is named 'h300'; near are"),
        ({"chip": "920c"}, "never appeared under that name"),
        ({"model": "gpt-4"}, "gpt-4"),
        ({"num_chips": -8}, "num_chips is -8; needed is more than 0"),
        ({"num_chips": 100}, "has 128 chips, which does not divide 100"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": float("nan")}, "needed is a number"),
        ({"batch": 1e15}, "below 1e"),
        ({"batch": 128}, None),
        ({"batch": 64}, "for 64 on each group give 8192"),
        ({"batch": None}, "batch is missing"),
        ({"isl": None}, "isl is missing"),
        ({"layout": {"tp": 3, "dp": 1}}, "tp = 3 does not divide 128 heads"),
        ({"layout": {"tp": 1, "dp": 128, "ep": 96}}, "ep = 96 does not divide"),
        ({"layout": {"dp": 0}}, "layout's dp is 0"),
        ({"layout": {"gpus": 8}}, "layout has 'gpus'; known are tp"),
        ({"precision": "int3"}, "precision is 'int3'"),
        ({"kv_precision": "fp3"}, "cache's format is 'fp3'"),
        ({"cache_hit": 1.0}, "needed is a share below 1"),
        ({"imbalance": 0.5}, "1 or more, or 'balanced'"),
        ({"mtp_acceptance": 2, "mtp_drafts": 1}, "at most all of them are accepted"),
        ({"stack": "fastllm"}, "stack is 'fastllm'; known are"),
        ({"stack": "sglang", "date": "yesterday"}, "needed is YYYY-MM-DD"),
        ({"seed": 3}, "'seed' is no argument of a decode prediction"),
    ],
)  # fmt: skip
def test_bad_questions_are_one_clear_error(change, message):
    if message is None:
        predict(**{**DECODE, **change})
        return
    with pytest.raises(TiefseeError, match=message):
        predict(**{**DECODE, **change})


def test_the_closed_loop_is_what_exact_analysis_says():
    """Mean value analysis without the approximation, customer by customer, for exponential service."""
    for service, away in ((0.1, 10.0), (0.5, 3.0), (1.0, 0.5)):
        response = service
        for n in range(1, 61):
            throughput = n / (away + response) if n > 1 else 1 / (away + service)
            if n in (2, 10, 60):
                exact = response - service
                found = closed_loop_wait_s(n, service, away)
                assert found == pytest.approx(exact, rel=0.25, abs=0.1 * service)
            queue = throughput * response
            response = service * (1 + queue)


def test_steps_between_grid_points_are_within_a_third_of_a_percent():
    w = Worker(preset("v3"), find_chip("h200"), formats_of("fp8"), 1, 8, 8)
    e = shipped().base.base
    for batch in (1.0, 3.3, 17.0, 95.5, 700.0):
        assert decode_between_s(w, batch, 4000, 0, e) == pytest.approx(decode_s(w, batch, 4000, 0, e), rel=0.004)


def test_importing_and_asking_are_quick_and_need_no_torch():
    code = (
        "import sys, time; t = time.process_time(); import tiefsee.plan; from tiefsee.plan import predict; "
        "assert time.process_time() - t < 0.3, time.process_time() - t; "
        f"predict(**{SERVICE!r}); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_question_after_the_first_takes_milliseconds():
    predict(**SERVICE)
    start = time.process_time()
    for concurrency in range(33, 53):
        predict(**{**SERVICE, "concurrency": concurrency})
    assert (time.process_time() - start) / 20 < 0.05
