"""Scoring: counts by hand, the coverage of a known distribution, and nothing to be gained by refusing."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plan.evidence.test_measured import EXPORT, table
from tests.plan.evidence.test_points import GOOD
from tiefsee.errors import ConfigError
from tiefsee.plan.accuracy.cases import Case, cases_of_points, cases_of_runs, mark_seen
from tiefsee.plan.accuracy.naive import Naive, fit_naive
from tiefsee.plan.accuracy.report import Part, as_json, as_markdown, make_report, percent
from tiefsee.plan.accuracy.score import Scored, both_answered, by, quantile, score, summarise, worst
from tiefsee.plan.accuracy.validate import by_chip, by_family
from tiefsee.plan.evidence.measured import parse_measured, shipped_runs
from tiefsee.plan.evidence.points_file import parse_points, shipped_points
from tiefsee.plan.figures.estimate import Estimate, around

ROOT = Path(__file__).parents[2]


class Fixed:
    """Answers any question with one estimate."""

    def __init__(self, value: float, factor: float = 1.5, parts: dict[str, float] | None = None) -> None:
        self.value, self.factor, self.parts = value, factor, parts or {}

    def __call__(self, **question):
        return self

    def estimate(self, unit=None) -> Estimate:
        return around(self.value, self.factor, unit, "fitted")


def refuse(**question):
    raise ConfigError("no")


def case(value: float = 1.0, name: str = "a", family: str = "f", chip: str = "h800", **more) -> Case:
    question = {"kind": "decode", "model": "v3", "chip": chip, "num_chips": 8, "layout": {"tp": 8}}
    question |= {"precision": "fp8", "batch": 8.0, "isl": 4096.0}
    more.setdefault("questions", (question,))
    return Case(name, family, "decode TPOT", chip, (chip, "sglang", "fp8"), "tpot_s", value, **more)


def test_a_small_table_by_hand():
    cases = [case(1.0), case(2.0, "b"), case(0.5, "c"), case(4.0, "d")]
    found = summarise(score(cases, Fixed(1.0, 2.0)))  # errors 0, 1/2, 1, 3/4; the interval is 0.5 to 2
    assert found.median_error == pytest.approx((0.5 + 0.75) / 2)
    assert found.p90_error == pytest.approx(1.0)
    assert found.bias == pytest.approx((0.0 - 0.5) / 2)
    assert found.coverage == pytest.approx(3 / 4)
    assert found.sharpness == pytest.approx(4.0)
    wide = math.log(4)
    assert found.interval_score == pytest.approx((4 * wide + 2 / 0.2 * math.log(2)) / 4)
    assert (found.num_cases, found.num_refused) == (4, 0)


def test_cells_weigh_the_same_whatever_their_size():
    many = [case(1.0, str(n)) for n in range(9)]
    one = case(2.0, "x", chip="h20")
    found = summarise(score([*many, one], Fixed(1.0)))
    assert found.median_error == 0.0
    assert found.macro_error == pytest.approx(0.25)


def test_coverage_of_a_known_distribution():
    draw = random.Random(0)
    deviation = 0.3
    cases = [case(math.exp(draw.gauss(0, deviation)), str(n)) for n in range(4000)]
    found = summarise(score(cases, Fixed(1.0, math.exp(1.2816 * deviation))))
    assert found.coverage == pytest.approx(0.8, abs=0.02)
    # The score is least for the true interval.
    narrow = summarise(score(cases, Fixed(1.0, math.exp(0.6 * deviation)))).interval_score
    wide = summarise(score(cases, Fixed(1.0, math.exp(2.6 * deviation)))).interval_score
    assert found.interval_score < min(narrow, wide)


def test_refusing_improves_nothing():
    cases = [case(1.0, str(n)) for n in range(10)]
    bad = Fixed(2.0, 1.1)

    def choosy(**question):
        choosy.calls += 1
        return refuse() if choosy.calls % 2 else Fixed(1.0)

    choosy.calls = 0
    plain, some, none = (summarise(score(cases, p)) for p in (bad, choosy, refuse))
    assert some.median_error == math.inf  # half of them
    assert none.median_error == none.p90_error == none.macro_error == math.inf
    assert (some.refused, none.refused, plain.refused) == (0.5, 1.0, 0.0)
    assert none.coverage == 0.0
    assert some.coverage == 0.5


def test_a_refusal_is_told_and_a_fault_is_not_hidden():
    (only,) = score([case()], refuse)
    assert (only.predicted, only.refusal) == (None, "no")

    def broken(**question):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        score([case()], broken)
    (nothing,) = score([case()], Fixed(math.nan))
    assert nothing.refusal.startswith("no usable figure")


def test_a_lower_bound_has_no_error():
    held, broken = (summarise(score([case(1.0, lower_bound=True)], Fixed(v, 1.2))) for v in (3.0, 0.5))
    assert math.isnan(held.median_error)
    assert (held.num_bounds, held.num_bounds_held) == (1, 1)
    assert (broken.num_bounds, broken.num_bounds_held) == (1, 0)


def test_the_nearer_of_two_answers():
    two = ({"mtp_drafts": 0}, {"mtp_drafts": 3})
    asked = case(1.0, questions=two)
    (found,) = score([asked], lambda mtp_drafts: Fixed(3.0 / (1 + mtp_drafts)))
    assert found.predicted.value == 0.75
    assert asked.is_open


def test_parts_of_a_step():
    asked = case(2.0, part="bubble")
    (found,) = score([asked], Fixed(20.0, 1.1, {"bubble": 2.2}))
    assert found.predicted.value == 2.2
    assert found.predicted.high == pytest.approx(2.2 * 1.1)
    (refused,) = score([asked], Fixed(20.0))
    assert "no part is named 'bubble'" in refused.refusal


def test_scores_compare_on_rows_that_both_answered():
    cases = [case(1.0, "a"), case(1.0, "b")]
    ours = score(cases, Fixed(1.0))
    theirs = [score(cases[:1], Fixed(1.0))[0], Scored(cases[1], None, "no")]
    assert [[s.case.id for s in side] for side in both_answered(ours, theirs)] == [["a"], ["a"]]


def test_the_worst_come_first():
    cases = [case(1.0, "small"), case(10.0, "large")]
    scored = [*score(cases, Fixed(1.0)), Scored(case(1.0, "refused"), None, "no")]
    assert [s.case.id for s in worst(scored, 2)] == ["refused", "large"]


def test_quantiles_count_infinities():
    assert quantile([1.0, 2.0, 3.0, math.inf], 0.75) == 3.0
    assert quantile([1.0, math.inf], 0.9) == math.inf
    assert math.isnan(quantile([], 0.5))


def test_what_a_run_asks():
    slow, fast = parse_measured(table(EXPORT, {**EXPORT, "id": "y", "silicon_tpot_ms": "5.4"}), "mine.csv")
    cases = cases_of_runs([slow, slow, fast])
    assert [c.unit for c in cases] == ["tpot_s", "ttft_s", "tokens_per_s_per_chip"] * 2
    question = cases[0].questions[0]
    assert question["num_chips"] == 2 + 5 * 8
    assert question["disagg"]["decode"]["num_chips"] == 40
    assert (question["mtp_drafts"], question["mtp_acceptance"]) == (0, 0.0)
    assert (cases[3].questions[0]["mtp_drafts"], cases[3].questions[0]["mtp_acceptance"]) == (3, None)
    whole_s = slow.ttft_s + 0.9 * 1024 * slow.tpot_s
    assert cases[2].value == pytest.approx(60 * 0.9 * 1024 / whole_s / 42)


def test_figures_of_a_run_are_asked_for_once():
    calls = []

    def predict(**question):
        calls.append(question)
        return Fixed(1.0)

    run = parse_measured(table(EXPORT), "mine.csv")
    assert len(score(cases_of_runs(run), predict)) == 3
    assert len(calls) == 1


def test_an_unknown_chip_of_a_run_is_a_refusal_not_the_end():
    runs = parse_measured(
        table({**EXPORT, "system": "mi355x", "silicon_data_source": "silicon_concurrency=8"}), "m.csv"
    )
    scored = score(cases_of_runs(runs), Naive())
    assert all("no chip is named 'mi355x'" in s.refusal for s in scored)


def test_seen_rows_are_known_by_id_or_by_figure():
    own = [case(1.0, "a"), case(2.0, "b")]
    asked = [case(5.0, "a"), case(2.0, "renamed"), case(3.0, "c")]
    assert [c.seen for c in mark_seen(asked, own)] == [True, True, False]


def test_the_baseline_is_right_in_the_middle():
    points = [p for p in shipped_points() if p.kind in ("prefill", "decode")]
    cases = cases_of_points(points)
    naive = fit_naive(cases)
    assert 0.1 < naive.efficiency < 1.0
    found = summarise(score(cases, naive))
    assert found.num_refused == 0
    assert abs(found.bias) < 0.5
    assert found.coverage >= 0.7


def test_the_baseline_scales_with_the_chip():
    """Twice the tokens on twice the chips take as long; half the efficiency takes twice as long."""
    question = {**case().questions[0], "batch": 64.0}
    slow, fast = (Naive(e)(**question).estimate("tpot_s").value for e in (0.25, 0.5))
    assert slow == pytest.approx(2 * fast)
    double = {**question, "num_chips": 16, "batch": 128.0}
    assert Naive(0.5)(**double).estimate("tpot_s").value == pytest.approx(fast)


def test_cross_validation_fits_without_what_it_judges():
    cases = [case(1.0, "a", "one"), case(1.0, "b", "two"), case(1.0, "c", "three", chip="h20")]
    asked: list[frozenset[str]] = []

    def fit(without):
        asked.append(without)
        return Fixed(1.0)

    folds = by_family(cases, fit)
    assert asked == [{"one"}, {"three"}, {"two"}]
    assert [(f.left_out, f.chip_seen) for f in folds] == [("one", True), ("three", False), ("two", True)]
    asked.clear()
    by_chip(cases, fit)
    assert asked == [{"three"}, {"one", "two"}]
    with pytest.raises(ConfigError, match="all cases are of one family"):
        by_family(cases[:1], fit)


def test_the_report_is_json_even_where_all_is_refused():
    cases = [case(1.0), case(1.0, "open", questions=case().questions * 2)]
    refused, naive = score(cases, refuse), score(cases, Fixed(1.0))
    report = make_report("t", [Part("seen", refused, naive)], refused, inexpressible=[("x", "y")], with_goals=True)
    data = json.loads(json.dumps(as_json(report), allow_nan=False))
    assert data["groups"][0]["planner"]["median_error"] is None
    assert data["groups"][0]["planner"]["num_refused"] == 1
    assert data["groups"][0]["baseline"]["median_error"] == 0.0
    assert len(data["drafts_unknown"]) == 1
    assert len(data["rows"]) == len(data["refused"]) == 2
    page = as_markdown(report, "intro")
    assert "| decode TPOT | seen | tiefsee | 1 | 100% | ∞ |" in page
    assert "* decode TPOT, seen chips: refused 100 %, aim 5.0 %" in page
    assert not any(goal["reached"] for goal in data["goals"])
    assert "* x: y" in page


def test_goals_are_reached_or_named():
    cases = [case(value) for value in (1.0, 1.05, 0.9, 1.0)]
    parts = [Part("seen", score(cases, Fixed(1.0, 1.2)), score(cases, Fixed(2.0, 1.5)))]
    assert all(goal.is_reached for goal in make_report("t", parts, [], with_goals=True).goals)
    wide = [Part("unseen", score(cases, Fixed(1.3, 2.0)), score(cases, Fixed(1.0, 1.1)))]
    missed = [g.what for g in make_report("t", wide, [], with_goals=True).goals if not g.is_reached]
    assert missed == ["median error", "high/low", "score"]
    assert not make_report("t", wide, []).goals


def test_figures_are_printed_with_no_digit_too_many():
    assert [percent(x) for x in (0.073, 0.2449, 3.4, math.inf, math.nan)] == ["7.3 %", "24 %", "340 %", "∞", "-"]
    assert percent(-0.05, sign=True) == "-5.0 %"


def test_groups_tell_ascend_apart():
    groups = {c.id: c.group for c in cases_of_points(shipped_points())}
    assert groups["cm-decode-50"] == groups["cr-r1-pre"] == "Ascend serving"
    assert groups["prof-prefill"] == "prefill and TTFT"
    assert groups["prof-decode"] == "throughput"
    assert groups["isca-time-step"] == groups["ttn-v3-4k"] == "training"
    assert groups["isca-time-bubble"] == "parts of a step"


def test_total_throughput_counts_prompts():
    text = GOOD.replace('kind = "decode"', 'kind = "e2e"\nisl = 3000\nosl = 1000\nconcurrency = 16')
    text = text.replace("tpot_s", "tokens_per_s_per_chip").replace("tpot", "total_throughput", 1)
    (asked,) = cases_of_points(parse_points(text, "x"))
    (found,) = score([asked], Fixed(10.0))
    assert found.predicted.value == pytest.approx(40.0)


def test_by_keeps_everything():
    cases = [case(1.0, "a", "two"), case(1.0, "b", "one"), case(1.0, "c", "two")]
    parts = by(score(cases, Fixed(1.0)), lambda c: c.family)
    assert {name: len(part) for name, part in parts.items()} == {"one": 1, "two": 2}
    assert replace(cases[0], seen=True).seen


def test_files_of_both_formats_are_scored(tmp_path, monkeypatch):
    from tiefsee.plan.accuracy import check

    monkeypatch.setattr(check, "shipped", lambda: None)
    monkeypatch.setattr(check, "Planner", lambda calibrated: Fixed(0.05, 2.0))
    unknown = GOOD.replace('"p"', '"q"').replace('source = "a bench"', 'source = "a talk"\ninexpressible = "a rumour"')
    (tmp_path / "mine.toml").write_text(GOOD + unknown)
    known = next(run for run in shipped_runs() if run.source == "dump")
    row = {**EXPORT, "silicon_data_source": "ours; silicon_concurrency=7", "decode_num_workers": "1", "mode": "agg"}
    (tmp_path / "runs.csv").write_bytes(table({**row, "id": known.id}, {**row, "id": "new", "silicon_ttft_ms": "9"}))
    report = as_json(check.check_files([tmp_path / "mine.toml"], [tmp_path / "runs.csv"]))
    assert {r["id"]: r["seen"] for r in report["rows"]} == {"p": False, known.id: True, "new": False}
    assert len(report["rows"]) == 7
    assert report["inexpressible"] == [{"id": "q", "why": "a rumour"}]
    assert {"all", "new, known", "fitted on"} == {group["chips"] for group in report["groups"]}
    assert all(g["baseline"]["num_refused"] == 0 for g in report["groups"])
    assert "3 of 7 figures are among those that the package was fitted on" in report["notes"]


def test_the_command_refuses_in_one_line(tmp_path):
    (tmp_path / "bad.toml").write_text(GOOD.replace('unit = "tpot_s"', ""))
    done = subprocess.run(
        [sys.executable, "-m", "tiefsee", "check", "plan", "--points", str(tmp_path / "bad.toml")],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no unit; tpot is in tpot_s" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
