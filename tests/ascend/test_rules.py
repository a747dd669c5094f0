"""Which operators a chip takes, which formats it holds, and what a user is told: needs no card."""

from __future__ import annotations

import pytest
import torch

from tests.ascend.models import CONFIGS
from tests.tiny import tiny_spec
from tiefsee.errors import ConfigError, DeviceError
from tiefsee.ops.ascend import rules
from tiefsee.ops.ascend.chip import A2_A3, A5, chip_of
from tiefsee.ops.ascend.remarks import composed_parts, remarks_on
from tiefsee.ops.ascend.table import AscendOperators
from tiefsee.ops.weight import Packing
from tiefsee.spec import model_spec, preset

B3, C910, A950 = chip_of("Ascend910B3"), chip_of("Ascend910_9391"), chip_of("Ascend950")
BF16, FP32 = torch.bfloat16, torch.float32
INT8, FP8, FP4 = Packing("int8"), Packing("fp8"), Packing("fp4")


def test_chips_are_known_by_the_name_that_cann_gives():
    assert [chip_of(s).has_fp8 for s in ("Ascend910B1", "Ascend910B4", "Ascend910_9392", "Ascend950PR_9589")] == [
        False, False, False, True,
    ]  # fmt: skip
    assert chip_of("Ascend950DT_9573").generation is A5
    with pytest.raises(DeviceError, match=r"'Ascend310P3'.*a line in tiefsee/ops/ascend/chip.py"):
        chip_of("Ascend310P3")


@pytest.mark.parametrize("name", ["v3", "v2-lite", "v3.2"])
def test_published_latent_models_run_fused_in_bf16(name):
    assert [composed_parts(chip, preset(name), BF16) for chip in (B3, C910, A950)] == [{}, {}, {}]


def test_v4_says_what_is_composed():
    parts = composed_parts(B3, preset("v4-flash"), BF16)
    assert set(parts) == {"attention", "gating", "mHC"}
    assert "no fused operator" in parts["attention"]
    assert set(composed_parts(A950, preset("v4-flash"), BF16)) == {"attention"}


def test_float32_is_composed_and_said():
    (sentence,) = remarks_on(B3, preset("v3"), FP32)
    assert sentence == (
        "Ascend910B3: attention is composed of plain operators, since it takes FP16 and BF16, not float32"
    )


def test_odd_widths_are_composed_and_said():
    why = composed_parts(B3, tiny_spec("v3.2"), BF16)
    assert why["attention"] == "it takes latents of 512 and 64, not of 28 and 8"
    assert why["the indexer"] == "it takes up to 64 heads of 128, not 16 of 20"
    assert "groups of more than 2 experts" in why["gating"]


@pytest.mark.parametrize("family", ["v2", "v3", "v3.2"])
def test_small_models_of_the_tests_are_taken(family):
    assert composed_parts(B3, model_spec(CONFIGS[family]), BF16) == {}


@pytest.mark.parametrize(
    ("why", "word"),
    [
        (rules.attention(BF16, 6, 512, 64), "1, 2, 4, 8, 16, 32, 64, 128 heads, not 6"),
        (rules.expanded_attention(192, 128), "heads of 128 and 128"),
        (rules.indexer(BF16, 64, 128, 4096), "picks 1 to 2048"),
        (rules.grouped_matmul(BF16, 1), "2 to 1,024 experts"),
        (rules.packed_experts(A2_A3, FP32, INT8, (8, 32, 64)), "it takes FP16 and BF16, not float32"),
        (rules.packed_matmul(A2_A3, BF16, INT8, (7168, 70000)), "up to 65,535 columns, not 70,000"),
        (rules.packed_matmul(A2_A3, BF16, FP8, (128, 128)), "this chip multiplies no FP8"),
        (rules.packed_matmul(A5, BF16, Packing("fp8", (64, 64)), (128, 128)), "blocks of 128 or 32, not 64 x 64"),
        (rules.packed_matmul(A5, BF16, FP4, (128, 128)), "products of experts only"),
        (rules.packed_experts(A2_A3, BF16, FP4, (8, 128, 128)), "this chip multiplies no FP4"),
        (rules.packed_experts(A5, BF16, FP4, (8, 128, 96)), "in 64s, not 128 x 96"),
        (rules.gated_quant(A2_A3, 48), "in 64s, not 96"),
        (rules.gated_quant(A2_A3, 4096), "up to 7,232 in 64s, not 8192"),
        (rules.hyper(A2_A3, BF16, 4, 4096), "this chip has none"),
        (rules.hyper(A5, BF16, 3, 4096), "4, 6 or 8 streams"),
    ],
)
def test_a_refusal_names_its_reason(why, word):
    assert why is not None
    assert word in why


def test_formats_by_chip():
    v3, v2 = preset("v3"), preset("v2-lite")
    old, new = AscendOperators(B3), AscendOperators(A950)
    format, sentence = old.resolve_format("auto", v3)
    assert format == "int8"
    assert sentence is not None
    assert "converted to INT8, one scale per row" in sentence
    assert old.resolve_format("bf16", v3) == ("bf16", None)
    assert old.resolve_format("auto", v2) == ("keep", None)  # published in BF16
    for format in ("keep", "fp8", "fp4"):
        with pytest.raises(DeviceError, match="Ascend910B3 has no FP8; needed int8 or bf16"):
            old.resolve_format(format, v3)
    with pytest.raises(ConfigError, match=r"format is 'fp8'; needed auto, keep \(as published, bfloat16\), bf16"):
        old.resolve_format("fp8", v2)
    format, sentence = new.resolve_format("auto", v3)
    assert format == "keep"
    assert sentence is not None
    assert "as published (FP8)" in sentence
    assert "one scale per token and 128 columns;" in sentence
    assert "32 beside FP4" in (new.resolve_format("auto", preset("v4-flash"))[1] or "")
    assert new.resolve_format("keep", preset("v4-flash")) == ("keep", None)
