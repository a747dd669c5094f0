"""Points: every published figure is there, whole or with a reason; nonsense is refused in one sentence."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tiefsee.errors import ConfigError
from tiefsee.plan.evidence.points import PREDICTED_KINDS, QUANTITIES, preset_of
from tiefsee.plan.evidence.points_file import parse_points, read_points, shipped_points, write_points
from tiefsee.plan.names.stacks import STACKS
from tiefsee.spec import cache_streams, preset
from tiefsee.spec.cost import training_flops_per_token

DOCS = Path(__file__).parents[3] / "docs" / "points.md"
GOOD = """
[[point]]
id = "p"
kind = "decode"
model = "r1"
chip = "h800"
num_chips = 16
layout = { dp = 16, ep = 16 }
precision = "fp8"
batch = 512
context = 4096
stack = "sglang"
quantity = "tpot"
unit = "tpot_s"
value = 0.05
source = "a bench"
"""


def test_all_published_figures_are_there():
    points = shipped_points()
    assert len(points) == 341  # 298 published, 43 from the project's reading of other sources
    assert sum(point.id.startswith("sil-") for point in points) == 89
    assert all(point.source for point in points)
    assert all(point.published_value is not None and point.published_unit for point in points)
    kinds = Counter(point.kind for point in points if point.is_expressible)
    assert kinds["kernel"] >= 30
    assert kinds["comm"] >= 30
    assert sum(point.is_scored for point in points) >= 90


def test_every_point_is_expressible_or_says_why_not():
    for point in shipped_points():
        if point.is_expressible:
            assert point.unit == QUANTITIES[point.quantity][0]
            assert point.value > 0
        else:
            assert len(point.inexpressible) > 15, point.id


def test_points_that_are_counted_elsewhere_are_not_scored():
    points = {point.id: point for point in shipped_points()}
    for point in points.values():
        if point.same_as:
            assert points[point.same_as].is_scored
        if point.same_as or point.in_csv or point.kind not in PREDICTED_KINDS:
            assert not point.is_scored


def test_figures_of_packages_are_given_per_die():
    points = {point.id: point for point in shipped_points()}
    decode = points["cm-decode-50"]
    assert (decode.chip, decode.num_chips, decode.published_value) == ("ascend-910c-die", 320, 1943.0)
    assert decode.value == pytest.approx(1943 / 2)
    # The paper's own TPOT: 49.4 ms with 96 requests on each package.
    assert decode.batch / decode.num_chips / decode.value == pytest.approx(0.0494, rel=0.002)
    recipe = points["cr-r1-dec"]  # 2,138 tokens/s per package, as they print
    assert recipe.batch / recipe.value / recipe.num_chips * 2 == pytest.approx(2138, rel=0.001)


def test_a_training_step_and_its_tokens_agree():
    points = {point.id: point for point in shipped_points()}
    step, rate = points["isca-time-step"], points["isca-tokens-day"]
    assert step.global_batch_tokens / step.num_chips / step.value == pytest.approx(rate.value, rel=0.001)


def test_sizes_are_those_of_the_spec():
    for point in shipped_points():
        if point.kind != "size" or not point.is_expressible:
            continue
        spec = preset(point.model)
        if point.quantity == "training_flops":
            assert training_flops_per_token(spec, point.sequence) == pytest.approx(point.value, rel=0.05), point.id
        elif point.id == "isca-kv-DeepSeek-V3":
            streams = cache_streams(spec, speculate=False)
            assert sum(s.bytes_per_token("bfloat16") for s in streams) == point.value


def test_written_points_read_back_equal():
    points = list(shipped_points())
    assert parse_points(write_points(points), "again") == points


def test_names_of_variants():
    assert preset_of("Eco-Tech/DeepSeek-V4-Pro-w4a8-mtp") == "v4-pro"
    assert preset_of("nvidia/DeepSeek-R1-NVFP4") == "r1"
    assert preset_of("deepseek-ai/DeepSeek-V3.2-Exp") == "v3.2"
    assert preset_of("qwen3") == "qwen3"


def test_the_question_that_a_point_asks():
    (point,) = parse_points(GOOD, "x")
    asked = point.predict_arguments()
    assert (asked["kind"], asked["batch"], asked["isl"], asked["layout"]) == ("decode", 512, 4096, {"dp": 16, "ep": 16})
    training = next(p for p in shipped_points() if p.id == "isca-time-step").predict_arguments()
    assert (training["isl"], training["batch"]) == (4096, 15360)


def test_the_documentation_is_the_format():
    text = DOCS.read_text()
    example = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0]
    assert [point.is_scored for point in parse_points(example, "docs")] == [True, True, False]
    assert all(f"`{name}`" in text for name in (*STACKS, *QUANTITIES))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('unit = "tpot_s"', "", "no unit; tpot is in tpot_s"),
        ('source = "a bench"', "", "no source"),
        ('source = "a bench"', 'source = "  "', "no source"),
        ('unit = "tpot_s"', 'unit = "ttft_s"', "unit is 'ttft_s'; tpot is in tpot_s"),
        ('quantity = "tpot"', 'quantity = "mfu"', "mfu is in mfu"),
        ('quantity = "tpot"\nunit = "tpot_s"', 'quantity = "mfu"\nunit = "mfu"', "no quantity of kind decode"),
        ("value = 0.05", "value = -0.05", "needed is a number above 0"),
        ("value = 0.05", "value = inf", "needed is a number above 0"),
        ("value = 0.05", 'value = "50 ms"', "needed is a number"),
        ("value = 0.05", "", "value is 0"),
        ("batch = 512", "batch = -1", "cannot be below 0"),
        ("batch = 512", "", "batch missing"),
        ("context = 4096", "", "context missing"),
        ("context = 4096", "contxt = 4096", "is context meant?"),
        ('chip = "h800"', 'chip = "h900"', "no chip is named 'h900'"),
        ('model = "r1"', 'model = "qwen3"', "no preset named 'qwen3'"),
        ('precision = "fp8"', 'precision = "fp7"', "precision is 'fp7'"),
        ('stack = "sglang"', 'stack = "sglan"', "is sglang meant?"),
        ('precision = "fp8"', 'precision = "fp8"\nkv_precision = "fp2"', "the cache's format is 'fp2'"),
        ("num_chips = 16", "num_chips = 24", "num_chips is 24"),
        ("num_chips = 16", "num_chips = true", "needed is a whole number"),
        ("ep = 16", "ep = 32", "does not divide"),
        ("dp = 16", "dpp = 16", "layout has 'dpp'"),
        ("dp = 16", "dp = -16", "needed is a whole number above 0"),
        ('kind = "decode"', 'kind = "decod"', "needed is one of"),
        ("context = 4096", "context = 4096\ncached = 1.5", "a share below 1"),
        ("context = 4096", 'context = 4096\nprefill = { chip = "h20" }', "num_chips is missing"),
        ("context = 4096", "context = 4096\nprefill = 3", "needed is a table"),
        ("layout = ", 'prefill = { chip = "h20", num_chips = 8, layout = { tp = 8 } }\ndecode = { chip = "h20", '
         "num_chips = 8, layout = { tp = 8 }, slots = -1 }\nlayout = ", "decode: slots are -1"),
        ("[[point]]", "[point]", "needed are [[point]] tables"),
        ('id = "p"', "", "a point has no id"),
        ('id = "p"', 'id = "p', "is no TOML"),
    ],
)  # fmt: skip
def test_one_clear_error(old, new, said):
    assert old in GOOD
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        parse_points(GOOD.replace(old, new, 1), "mine.toml")
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_package_whose_ranks_are_dies_is_explained():
    text = GOOD.replace("h800", "ascend-910c").replace("num_chips = 16", "num_chips = 8").replace("fp8", "int8")
    with pytest.raises(ConfigError, match="name the die: ascend-910c-die"):
        parse_points(text, "mine.toml")


def test_ids_are_unique():
    with pytest.raises(ConfigError, match="stands twice"):
        parse_points(GOOD + GOOD, "mine.toml")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_points(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no text"):
        read_points(tmp_path / "binary.toml")


def test_a_point_with_a_reason_needs_nothing_else():
    (point,) = parse_points('[[point]]\nid = "x"\nsource = "a talk"\ninexpressible = "no lengths"\n', "mine.toml")
    assert not point.is_expressible
    assert not point.is_scored
    assert not replace(point, inexpressible="").is_scored
