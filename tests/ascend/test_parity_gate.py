"""The parity gate between the definition on the CPU and the card: it passes, and it names a fault of an adapter."""

from __future__ import annotations

import json

import pytest
import torch

from tests.ascend.models import FAMILIES, save_checkpoint
from tests.ascend.test_engine import packed_checkpoint
from tiefsee.cli import main
from tiefsee.ops import operators_for
from tiefsee.ops.ascend import attention, norms


def gate(folder, capsys, *options, sides=("reference", "npu")) -> tuple[int, dict]:
    """Exit status and report of `tiefsee check parity`."""
    arguments = ["--model", str(folder), "--device", sides[0], "--device", sides[1], "--long", "150"]
    status = main(["check", "parity", *arguments, "--max-context", "512", "--json", *options])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("npu")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_passes(family, dtype, tmp_path, capsys):
    status, report = gate(save_checkpoint(family, dtype, tmp_path / "m"), capsys)
    assert status == 0, report


def test_codes_are_judged_as_such(npu, tmp_path, capsys):
    """Activations that meet INT8 or FP8 weights as codes are further from the definition than BF16 is."""
    ops = operators_for(npu)
    if ops.chip.has_fp8:
        folder, options, number = packed_checkpoint(tmp_path), (), "fp8"
    else:
        folder, options, number = save_checkpoint("v3", "bfloat16", tmp_path / "m"), ("--format", "int8"), "int8"
    assert ops.activation_format(number, torch.bfloat16) == number
    assert ops.activation_format(number, torch.float32) == "float32"
    for sides in (("reference", "npu"), ("npu", "reference")):
        status, report = gate(folder, capsys, *options, sides=sides)
        assert status == 0, report
        assert report["format"] == number
        assert {o["format"] for o in report["operators"] if o["operator"] == "run_experts"} == {number}


@pytest.mark.usefixtures("npu")
@pytest.mark.parametrize("fault", ["rotate_pairs", "latent_attention"])
def test_a_fault_of_an_adapter_is_named(fault, tmp_path, capsys, monkeypatch):
    if fault == "rotate_pairs":
        rotate = norms.rotate
        monkeypatch.setattr(norms, "rotate", lambda x, cos, sin, mode: rotate(x, cos, sin, "half"))
    else:
        table_of = attention.table_of
        monkeypatch.setattr(attention, "table_of", lambda *arguments: torch.zeros_like(table_of(*arguments)))
    status, report = gate(save_checkpoint("v3", "bfloat16", tmp_path / "m"), capsys)
    assert status == 1
    assert report["blamed"] == [fault]
