"""`tiefsee plan serve`: the interfaces that the issue names, without torch and within seconds."""

from __future__ import annotations

import argparse
import json
import math
import time

import pytest

from tests.plan.pools import BASE
from tiefsee.cli import plan_serve
from tiefsee.errors import ConfigError, OutOfMemory
from tiefsee.plan.documents import swings
from tiefsee.plan.fitted.calibrated import Calibrated
from tiefsee.plan.fitted.neighbours import Kernel, Neighbours, Situation
from tiefsee.plan.search.corrected import Corrector, steady
from tiefsee.plan.search.predicted import predicted

KERNEL = Kernel(0.15, 0.1, 0.05, (0.8,) * 7, (2.0,) * 7)
NOTHING = Neighbours(KERNEL, (), (), ())
CALIBRATED = Calibrated(BASE, NOTHING, NOTHING, NOTHING)
V3 = ["--model", "deepseek-ai/DeepSeek-V3", "--isl", "4096", "--osl", "1024", "--tpot-ms", "50", "--ttft-ms", "2000"]


def options_of(*words):
    parser = argparse.ArgumentParser()
    plan_serve.add_options(parser)
    return parser.parse_args([*V3, *words])


def answer(*words, calibrated=CALIBRATED):
    return plan_serve.answer(options_of(*words), calibrated)


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setattr("tiefsee.plan.fitted.calibrated.shipped", lambda: CALIBRATED)

    def command(*words):
        assert plan_serve.run(options_of(*words)) == 0
        return capsys.readouterr().out

    return command


def test_one_pool_in_json(run):
    began = time.process_time()
    found = json.loads(run("--chips", "h200:32", "--json"))
    seconds = time.process_time() - began
    print(f"\nplan serve of V3 on 32 H200, simulated: {seconds:.2f} CPU-seconds")
    assert seconds < 8
    best = found["data"]["plans"][0]
    assert best["num_chips"] <= 32
    assert best["tpot_s"] <= 0.05 * 1.001
    assert best["ttft_s"] <= 2.0 * 1.001
    figures = {f["key"]: f for f in found["figures"]} if isinstance(found["figures"], list) else found["figures"]
    assert {"tokens_per_s", "tokens_per_s_per_chip", "tpot_s", "ttft_s", "usd_per_million_tokens"} <= set(figures)
    assert len(found["data"]["plans"]) == 5
    assert found["data"]["simulated"][0]["num_requests"] >= 500
    assert found["data"]["frontier"]


def test_two_pools_with_a_format_each_against_either_alone():
    found = answer("--prefill", "ascend-910c:64", "--decode", "h20:32", "--no-simulate")
    document = found.document(command="", date="2026-11-28")
    roles = document.data["plans"][0]["roles"]
    assert (roles["prefill"]["chip"], roles["prefill"]["precision"]) == ("ascend-910c", "int8")
    assert (roles["decode"]["chip"], roles["decode"]["precision"]) == ("h20", "fp8")
    assert [other.name for other in found.others] == ["ascend-910c:64", "h20:32"]
    assert any("on its way" in note for note in document.notes)
    assert any("--price ascend-910c=USD" in note for note in document.notes)


def test_several_pools_are_mixed(run):
    found = json.loads(run("--chips", "h200:8", "--chips", "h20:16", "--json"))["data"]
    assert set(found["used_chips"]) == {"h200:8", "h20:16"}
    assert 0 < found["requests_per_s"] <= 1.2 * found["bound_requests_per_s"]
    assert sum(plan["requests_per_s"] for plan in found["plans"]) == pytest.approx(found["requests_per_s"])
    with pytest.raises(ConfigError, match="leave --concurrency out"):
        run("--chips", "h200:8", "--chips", "h20:16", "--concurrency", "8")


def test_the_table_is_readable(run):
    text = run("--chips", "h200:8", "--top", "2")
    for words in (
        "Serving",
        "TPOT within 50",
        "tokens/s",
        "Simulated with the engine's scheduler",
        "weights",
        "bottleneck",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_demand_asks_for_the_fewest_chips():
    found = answer("--chips", "h200:64", "--rate", "2", "--no-simulate")
    assert found.question.goal == "chips"
    assert found.best.served.requests_per_s >= 2
    assert found.best.num_chips <= 32


def test_a_price_of_one_s_own_is_taken():
    cheap = answer("--chips", "ascend-910c:32", "--price", "ascend-910c=1..2", "--goal", "cost", "--no-simulate")
    figures = {f.key: f.estimate for f in cheap.document(command="", date="2026-11-28").figures}
    assert figures["usd_per_million_tokens"].low < figures["usd_per_million_tokens"].high


@pytest.mark.parametrize("words", [("--chips", "h200:32"), ("--prefill", "h200:16", "--decode", "h20:32")])
def test_search_and_predict_say_the_same(words):
    """Both are asked about one deployment: TPOT, TTFT and rate within the search's interpolation."""
    found = answer(*words, "--no-simulate")
    for plan, prediction in zip(found.found.plans, found.predictions, strict=False):
        assert prediction.value("tpot_s") == pytest.approx(plan.served.tpot_s, rel=0.01)
        assert prediction.value("ttft_s") == pytest.approx(plan.served.ttft_s, rel=0.03)
        assert prediction.value("tokens_per_s_per_chip") == pytest.approx(plan.tokens_per_s_per_chip, rel=0.01)


def test_what_was_measured_nearby_moves_the_search():
    """A run like the one that is asked for took twice as long: levels are held against that."""

    def run_of(chips, mode, batch):
        return Situation(
            "nvidia", chips, "", "fp8", mode, 0, 0.0, batch * 32.0, batch, 4096.0, 1024.0, 1, 32, 32
        )  # fmt: skip

    situations = tuple(run_of("h200", mode, 2.0**n) for mode in ("agg", "disagg") for n in range(8))
    slow = Neighbours(KERNEL, situations, (0.3,) * len(situations), (0.05,) * len(situations))
    moved = Calibrated(BASE, slow, NOTHING, NOTHING)
    fast, slower = (answer("--chips", "h200:16", "--no-simulate", calibrated=c) for c in (CALIBRATED, moved))
    assert slower.best.served.tpot_s <= 0.05 * 1.001
    assert slower.best.tokens_per_s < fast.best.tokens_per_s
    corrector = Corrector(steady(moved), None, None)
    for plan in slower.found.plans[:3]:
        placement = plan.placement
        load = placement.workload.load(plan.concurrency)
        exact, _ = moved.tpot.correction(placement.workers.situation(load, "", 0.0))
        assert math.log(corrector.factors(placement, plan.concurrency)[0]) == pytest.approx(exact, abs=0.01)
    again = predicted(slower.best, steady(moved), stack=None, date=None)
    assert again.value("tpot_s") == pytest.approx(slower.best.served.tpot_s, rel=0.01)


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ((), ConfigError, "needed are either --chips"),
        (("--chips", "h200:8", "--prefill", "h200:8"), ConfigError, "needed are either --chips"),
        (("--prefill", "h200:8"), ConfigError, "needed are either --chips"),
        (("--chips", "h200"), ConfigError, "CHIP:COUNT"),
        (("--chips", "920c:8"), ConfigError, "never appeared"),
        (("--chips", "h100:8"), OutOfMemory, "GB short"),
        (("--chips", "h200:8", "--precision", "fp3"), ConfigError, "precision is 'fp3'"),
        (("--chips", "h200:8", "--stack", "nobody"), ConfigError, "stack is 'nobody'"),
        (("--chips", "h200:8", "--tpot-ms", "-1"), ConfigError, "--tpot-ms is -1"),
        (("--chips", "h200:8", "--tpot-ms", "0.5"), ConfigError, "over the 500 µs"),
        (("--chips", "h200:8", "--price", "h200=free"), ConfigError, "as a price"),
        (("--chips", "h200:8", "--cache-hit", "1.5"), ConfigError, "cache_hit is 1.5"),
        (("--chips", "h200:8", "--mtp-acceptance", "2", "--mtp-drafts", "1"), ConfigError, "of 1 drafts"),
    ],
)
def test_bad_input_is_one_clear_error(words, error, says):
    with pytest.raises(error, match=says):
        answer(*words)


def test_a_page_has_every_chart_that_the_plan_knows(run, tmp_path):
    """What is dear to work out is there for a page, or where it is asked for, and not for a bare --json."""
    bare = json.loads(run("--chips", "h200:16", "--no-simulate", "--json"))
    assert [chart["kind"] for chart in bare["charts"]] == ["frontier", "timebars", "roofline"]
    page = tmp_path / "plan.html"
    more = ("--against", "ascend-910c:16", "--scaling", "--html", str(page), "--json")
    found = json.loads(run("--chips", "h200:16", "--no-simulate", *more))
    kinds = ["frontier", "timebars", "roofline", "rangebars", "scaling", "tornado"]
    assert [chart["kind"] for chart in found["charts"]] == kinds
    assert page.read_text().count("<figure") == len(kinds)
    frontier, step, _, cost, _, tornado = found["charts"]
    assert [line["name"] for line in frontier["lines"]] == ["h200:16", "ascend-910c:16"]
    assert sum(seconds for _, seconds in step["bars"][0]["parts"]) == pytest.approx(step["bars"][0]["total"]["value"])
    assert cost["bars"][1]["value"] is None
    assert "breaks even with h200:16 at" in cost["bars"][1]["remark"]
    assert len(found["data"]["scaling"]) == 4
    assert {"prompt", "answer", "price of h200"} <= {swing["name"] for swing in tornado["swings"]}
    assert tornado["base"]["value"] == pytest.approx(found["figures"]["usd_per_million_tokens"]["value"], rel=0.01)


def test_the_tornado_fills_the_deployment_anew():
    found = answer("--chips", "ascend-950dt:16", "--no-simulate", "--price", "ascend-950dt=1..2")
    ask, inputs = swings.question_of(found.best, found.question), swings.inputs_of(found.best)
    names = {i.name: i for i in inputs}
    values = {i.name: i.value for i in inputs}
    base = ask(values)
    assert base == pytest.approx(found.best.usd_per_million_tokens[1], rel=0.01)
    for name, end in (("isl", "high"), ("price.ascend-950dt", "high"), ("memory.ascend-950dt", "low")):
        assert ask({**values, name: getattr(names[name], end)}) > base
    assert ask({**values, "price.ascend-950dt": 2.0}) == pytest.approx(base * 2 / math.sqrt(2), rel=1e-6)
    with pytest.raises(ConfigError, match="within the levels"):
        ask({**values, "isl": 150000.0})


def test_a_fleet_without_a_price_says_at_which_it_breaks_even(run):
    found = json.loads(run("--chips", "ascend-910c:32", "--no-simulate", "--against", "h200:32", "--json"))
    even = found["figures"]["break_even_usd_per_chip_hour"]
    own, other = found["data"]["fleets"]
    each = own["tokens_per_s"]["value"] / own["plan"]["num_chips"]
    assert even["value"] == pytest.approx(each * 3600 / 1e6 * other["usd_per_million_tokens"]["value"])
    assert even["low"] < even["value"] < even["high"]
    default = answer("--chips", "ascend-910c:32", "--no-simulate")
    assert [fleet.name for fleet in default.others] == [plan_serve.AGAINST]
