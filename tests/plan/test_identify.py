"""Who is behind the endpoint: found where it can be, with honest probabilities, and said where it can't be."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from tiefsee.cli import plan_identify
from tiefsee.errors import ConfigError
from tiefsee.plan import predict
from tiefsee.plan.fitted.calibrated import shipped
from tiefsee.plan.identify import Field, Guess, Hypothesis, Row, identify, read_rows
from tiefsee.plan.identify.deployments import hypotheses_of, predictor_of, usual_chips, weight_bytes
from tiefsee.plan.identify.field import SIGMAS_OF_80, covariance
from tiefsee.plan.identify.fitted import FittedPredictor
from tiefsee.plan.identify.verdict import chance_of
from tiefsee.plan.names.formats import formats_of
from tiefsee.spec import preset
from tiefsee.spec.size import count_parameters

LOADS = [
    (1024, 256, 1),
    (1024, 256, 16),
    (1024, 256, 64),
    (8192, 256, 1),
    (8192, 256, 16),
    (32768, 64, 1),
    (32768, 64, 4),
]
# A world of four chips: seconds per step and request, per cached token, and per prompt token.
CHIPS = {
    "a": (8e-3, 1e-4, 1e-7, 1e-4),
    "b": (8e-3, 4e-4, 1e-7, 3e-5),
    "c": (5e-3, 1e-4, 6e-7, 1e-4),
    "d": (3e-2, 1e-4, 1e-7, 4e-4),
}


def rows_of(loads, ttft_s=1.0, tpot_s=1.0):
    return [Row(isl, osl, c, ttft_s, tpot_s) for isl, osl, c in loads]


def toy(h: Hypothesis, row: Row) -> Guess:
    step, request, token, prompt = CHIPS[h.chip]
    batch = max(1.0, row.concurrency / h.replicas)
    tpot = (step + request * batch + token * row.isl) / h.tp / (1 + h.accepted)
    return Guess(0.1 + prompt * row.isl / h.tp * (1 + 0.1 * (batch - 1)), tpot, 1.4, 1.2)


TOY = [
    Hypothesis(chip, "fp8", tp, 1, 1, int(a > 0), a, r)
    for chip in CHIPS
    for tp in (1, 2)
    for a in (0.0, 0.8)
    for r in (1, 2)
]


def drawn(field: Field, truth: int, rng: np.random.Generator) -> np.ndarray:
    """Logarithms of measurements of a hypothesis, with errors as large as its spreads say."""
    factor = np.linalg.cholesky(covariance(field.observed, field.sigmas[truth]))
    return field.log_predicted[truth] + factor @ rng.standard_normal(len(field.observed))


def of_chips(field: Field, posterior: np.ndarray) -> dict[str, float]:
    found: dict[str, float] = {}
    for h, p in zip(field.hypotheses, posterior, strict=True):
        found[h.chip] = found.get(h.chip, 0.0) + float(p)
    return found


def measured_as(field: Field, logs: np.ndarray) -> list[Row]:
    """Rows that hold drawn measurements."""
    values = {(o.row, o.quantity): float(np.exp(v)) for o, v in zip(field.observed, logs, strict=True)}
    rows = dict.fromkeys(o.row for o in field.observed)
    return [Row(r.isl, r.osl, r.concurrency, values[r, "ttft_s"], values[r, "tpot_s"]) for r in rows]


def test_probabilities_are_calibrated():
    """Over many draws the true chip is found as often as is claimed, no less and not much more."""
    rng, field = np.random.default_rng(0), Field(TOY, rows_of(LOADS), toy)
    claimed, right, of_truth, squares = [], [], [], []
    for _ in range(400):
        truth = int(rng.integers(len(TOY)))
        chips = of_chips(field, field.posterior(drawn(field, truth, rng)))
        best = max(chips, key=lambda chip: chips[chip])
        claimed.append(chips[best])
        right.append(best == TOY[truth].chip)
        of_truth.append(chips[TOY[truth].chip])
        squares.append(sum(p * p for p in chips.values()))
    assert np.mean(right) == pytest.approx(np.mean(claimed), abs=0.06)
    # The truth's own probability is in the mean what the claims make of it (E p_truth = E sum p^2).
    assert np.mean(of_truth) >= np.mean(squares) - 0.05
    assert np.mean(right) > 0.6  # and it is worth asking
    sure = [r for c, r in zip(claimed, right, strict=True) if c > 0.9]
    assert len(sure) > 30
    assert np.mean(sure) > 0.85


def test_error_has_the_stated_spread():
    """One row alone errs as its 80 % range says, whatever the parts are."""
    field = Field(TOY[:1], rows_of(LOADS[:1]), toy)
    deviations = np.sqrt(np.diag(covariance(field.observed, field.sigmas[0])))
    assert np.exp(SIGMAS_OF_80 * deviations) == pytest.approx([1.4, 1.2])


def test_a_constant_factor_is_cheaper_than_a_wrong_shape():
    field = Field(TOY[:1], rows_of(LOADS), toy)
    even = np.full(len(field.observed), np.log(1.15))
    uneven = even * [1 if i % 4 < 2 else -1 for i in range(len(even))]
    cheap, dear = (field.errors(field.log_predicted[0] + error)[0][0] for error in (even, uneven))
    assert cheap > dear + 5


def test_many_layouts_make_a_chip_no_likelier():
    rows = rows_of(LOADS)
    few = Field(TOY, rows, toy)
    many = Field([*TOY, *[h for h in TOY if h.chip == "a"] * 5], rows, toy)
    logs = drawn(few, 9, np.random.default_rng(3))
    assert of_chips(many, many.posterior(logs)) == pytest.approx(of_chips(few, few.posterior(logs)))


def test_twins_cannot_be_told():
    def twin(h, row):
        return toy(Hypothesis("a", "fp8", h.tp, 1, 1), row)

    both = [Hypothesis(chip, "fp8", tp, 1, 1) for chip in ("x", "y") for tp in (1, 2)]
    field = Field(both, rows_of(LOADS), twin)
    rows = measured_as(field, drawn(field, 0, np.random.default_rng(1)))
    verdict = identify(Field(both, rows, twin), rows_of([(131072, 64, 1)]))
    assert not verdict.is_told
    assert dict(verdict.chips) == pytest.approx({"x": 0.5, "y": 0.5})
    assert set(verdict.candidates) == {"x", "y"}
    assert "several chips explain it" in verdict.doubts[0]
    assert verdict.next == ()  # nothing would tell them apart


def test_what_to_measure_next():
    """Two chips that differ in long contexts only: short rows do not tell, and the long one is asked for."""

    def guess(h, row):
        token = {"x": 2e-7, "y": 8e-7}[h.chip]
        return Guess(0.1 + 1e-4 * row.isl, 0.01 + token * row.isl, 1.3, 1.1)

    hypotheses = [Hypothesis(chip, "fp8", 8, 1, 1) for chip in ("x", "y")]
    short = [Row(i, 64, c, 0.1 + 1e-4 * i, 0.01 + 5e-7 * i) for i in (128, 256, 512) for c in (1, 8)]
    verdict = identify(Field(hypotheses, short, guess), rows_of([(256, 64, 1), (131072, 64, 1), (1024, 64, 64)]))
    assert not verdict.is_told
    assert (verdict.next[0].row.isl, verdict.next[0].quantity) == (131072, "tpot_s")
    apart = {verdict.next[0].first.chip: verdict.next[0].first_s, verdict.next[0].second.chip: verdict.next[0].second_s}
    assert apart["y"] > 2.5 * apart["x"]


@pytest.mark.parametrize(
    ("rows", "doubt"),
    [
        (rows_of(LOADS[:1], 0.2, 0.008), "1 row is too few"),
        ([Row(1024, 256, 1, 0.2, t) for t in (0.008, 0.0081, 0.0082)], "one length and one load"),
        ([Row(i, o, c, 500.0 * (1 + c), 1e-5) for i, o, c in LOADS], "nothing fits"),
    ],
)
def test_says_when_rows_do_not_tell(rows, doubt):
    verdict = identify(Field(TOY, rows, toy))
    assert any(doubt in d for d in verdict.doubts), verdict.doubts
    assert not verdict.is_told


def test_chance_of_a_large_error():
    """Against tables of the chi-square distribution."""
    for distance, num, chance in ((3.84, 1, 0.05), (18.31, 10, 0.05), (23.21, 10, 0.01), (9.34, 10, 0.5)):
        assert chance_of(distance, num) == pytest.approx(chance, abs=0.006)


# -- On the model of time ----------------------------------------------------------------------------------------------

SPEC = preset("v3")
NAMES = ("h200", "h20", "ascend-910c-die", "b300")


def test_right_chip_is_among_the_first_two():
    rows = rows_of(LOADS[::2])
    hypotheses = hypotheses_of(SPEC, NAMES, rows)
    field = Field(hypotheses, rows, predictor_of(SPEC, {"ttft_s": 1.25, "tpot_s": 1.1}))
    rng, ranks = np.random.default_rng(5), []
    for truth in range(0, len(hypotheses), max(1, len(hypotheses) // 60)):
        chips = of_chips(field, field.posterior(drawn(field, truth, rng)))
        ranks.append(sorted(chips, key=lambda chip: -chips[chip]).index(hypotheses[truth].chip))
    assert np.mean([rank <= 1 for rank in ranks]) >= 0.9
    assert np.mean([rank == 0 for rank in ranks]) >= 0.7


def test_hypotheses_hold_the_weights_and_take_hints():
    free = hypotheses_of(SPEC, ("h200",), rows_of(LOADS))
    assert min(h.num_chips for h in free) == 8  # 682 GB in FP8 do not fit on 4
    assert {h.drafts for h in free} == {0, 1}
    assert {h.replicas for h in free} == {1, 2, 4}
    plain = hypotheses_of(SPEC, ("h200",), [Row(1024, 256, 1, 1, 1, accepted=0.0)])
    assert {(h.drafts, h.replicas) for h in plain} == {(0, 1)}
    hinted = hypotheses_of(SPEC, ("h200",), [Row(1024, 256, 1, 1, 1, accepted=1.6)])
    assert {(h.drafts, h.accepted) for h in hinted} == {(2, 1.6)}
    assert weight_bytes(SPEC, formats_of("fp8")) == pytest.approx(count_parameters(SPEC).total, rel=0.02)


def test_only_chips_that_can_be_had_are_asked_about():
    assert "ascend-910c-die" in usual_chips()
    assert "ascend-910c" not in usual_chips()  # its dies are the ranks
    assert "ascend-970" not in usual_chips()
    with pytest.raises(ConfigError, match="no hypothesis"):
        Field([], rows_of(LOADS), toy)


def test_all_hypotheses_at_once_are_what_predict_says_of_each():
    rows = rows_of(LOADS[:2])
    hypotheses = hypotheses_of(SPEC, ("h200", "ascend-910b3"), rows)[::17]
    guess, calibrated = FittedPredictor(SPEC, shipped(), hypotheses, rows), shipped()
    for h in hypotheses:
        row = rows[0]
        found = predict(
            kind="e2e", model=SPEC, chip=h.chip, num_chips=h.num_chips * h.replicas, precision=h.precision,
            layout={"tp": h.tp, "dp": h.dp, "ep": h.ep}, concurrency=row.concurrency, isl=row.isl, osl=row.osl,
            mtp_acceptance=h.accepted, mtp_drafts=h.drafts, calibrated=calibrated,
        )  # fmt: skip
        ttft, tpot = found.estimate("ttft_s"), found.estimate("tpot_s")
        found, spreads = guess(h, row)[:2], guess(h, row)[2:]
        assert found == pytest.approx((ttft.value, tpot.value), rel=1e-6)
        # What the chip's own figures leave open is taken from one load of each layout.
        assert spreads == pytest.approx((ttft.high / ttft.value, tpot.high / tpot.value), rel=0.05)


# -- Files and the command ---------------------------------------------------------------------------------------------

CSV = "isl,osl,concurrency,ttft_ms,tpot_ms,accepted,cached\n1024,256,1,310,14.2,,\n32768,64,1,,15,0.8,512\n"
TOML = """accepted = 0.8
[[row]]
isl = 1024
osl = 256
concurrency = 1
ttft_ms = 310
tpot_ms = 14.2
"""


def test_files(tmp_path):
    (tmp_path / "m.csv").write_text("\ufeff" + CSV)
    first, second = read_rows(tmp_path / "m.csv")
    assert first == Row(1024, 256, 1, pytest.approx(0.31), pytest.approx(0.0142))
    assert (second.ttft_s, second.accepted, second.cached) == (None, 0.8, 512)
    (tmp_path / "m.toml").write_text(TOML)
    assert read_rows(tmp_path / "m.toml") == (Row(1024, 256, 1, pytest.approx(0.31), pytest.approx(0.0142), 0.8),)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.csv", "isl,osl\n1,2\n", "lacks concurrency"),
        ("m.csv", "isl,osl,concurrency,itl\n1,2,3,4\n", "itl, which means nothing"),
        ("m.csv", "isl,osl,concurrency,ttft_ms\n", "has no rows"),
        ("m.csv", "isl,osl,concurrency,ttft_ms\n8,8,1,fast\n", "line 2: ttft_ms is 'fast'"),
        ("m.csv", "isl,osl,concurrency,ttft_ms\n8,8,1,-3\n", "line 2: ttft_ms is '-3'; needed is a number above 0"),
        ("m.csv", "isl,osl,concurrency,ttft_ms\n8,8,1,\n", "neither ttft_ms nor tpot_ms"),
        ("m.csv", "isl,osl,concurrency,ttft_ms,cached\n8,8,1,3,9\n", "cached is 9"),
        ("m.csv", "isl,osl,concurrency,ttft_ms,accepted\n8,8,1,3,99\n", "accepted is 99"),
        ("m.csv", "isl,osl,concurrency,ttft_ms\n8,8,1,nan\n", "'nan'; needed is a number"),
        ("m.toml", "[[row]]\nisl = 3\n", "lacks osl, concurrency"),
        ("m.toml", "model = 'x'\n", "'model' at the top means nothing"),
        ("m.toml", "[row]\nisl = 3\n", "no list of tables"),
        ("m.toml", "isl = = 3", "no TOML"),
        ("m.txt", "", "ends in .csv or .toml"),
    ],
)
def test_bad_files(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_rows(tmp_path / name)
    assert said in str(caught.value)


def run(tmp_path, capsys, *more: str, measured: str = "m.csv") -> str:
    parser = argparse.ArgumentParser()
    plan_identify.add_options(parser)
    path = str(tmp_path / measured)
    assert (
        plan_identify.run(parser.parse_args(["--model", "v3", "--measured", path, "--chips", "h200,h20", *more])) == 0
    )
    return capsys.readouterr().out


def test_command(tmp_path, capsys):
    (tmp_path / "m.csv").write_text(CSV + "1024,256,16,500,22,,\n")
    found = json.loads(run(tmp_path, capsys, "--json"))
    assert found["schema"] == "tiefsee.plan/1"
    assert sum(c["probability"] for c in found["data"]["chips"]) == pytest.approx(1.0)
    assert {c["chip"] for c in found["data"]["chips"]} == {"h200", "h20"}
    assert found["data"]["told"] == (not found["data"]["doubts"])
    text = run(tmp_path, capsys, "--html", str(tmp_path / "a.html"))
    assert "Probability by chip" in text
    assert "32,768" in text
    assert "Probability by chip" in (tmp_path / "a.html").read_text()


def test_command_reads_what_bench_serve_wrote(tmp_path, capsys):
    def spread(value):
        return {"mean": value, "p50": value}

    def load(concurrency):
        lengths = {"prompt_tokens": spread(1000.0), "output_tokens": spread(100.0), "cached_tokens": 40}
        times = {"ttft_s": spread(0.4), "tpot_s": spread(0.01), "draft_acceptance": None}
        return {"load": {"concurrency": concurrency}, "requests": {"ok": 4}, **lengths, **times}

    content = {"schema": "tiefsee.bench.serve/1", "runs": [load(1), load(8)]}
    (tmp_path / "m.json").write_text(json.dumps(content))
    rows = plan_identify.rows_of(tmp_path / "m.json")
    assert rows == (Row(1000, 100, 1, 0.4, 0.01, None, 10), Row(1000, 100, 8, 0.4, 0.01, None, 10))
    content["runs"][0]["load"]["concurrency"] = None
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="run 1 was no closed loop"):
        plan_identify.rows_of(tmp_path / "m.json")


def test_options_are_checked_before_anything_is_computed(tmp_path, capsys):
    for option, value in (
        ("--html", tmp_path / "none" / "a.html"),
        ("--html", tmp_path / "a.txt"),
        ("--png", tmp_path / "a.jpg"),
    ):
        with pytest.raises(ConfigError, match=option):
            run(tmp_path, capsys, option, str(value))
