"""The emulated CANN itself: what it says, what it writes down, and that it hides nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.fakecann import environment, missing
from tests.fakecann.__main__ import split_arguments


def test_fresh_memory_is_no_number(emulated):
    torch.npu.empty_cache()  # what torch_npu keeps for itself holds old numbers
    assert torch.empty(5_000_000, device=emulated)[-1000:].cpu().isnan().all()


def test_an_operator_that_is_not_emulated_names_itself_and_its_tensors(emulated):
    with pytest.raises(RuntimeError, match=r"fakecann: aclnnErfinv is not emulated; it was called with float32\[3\]"):
        torch.zeros(3, device=emulated).erfinv()


def test_calls_are_written_down_with_all_arguments(emulated):
    from tests.fakecann.emulator import record

    x, weight = (torch.ones(shape, dtype=torch.bfloat16).to(emulated) for shape in ((4, 64), (64,)))
    with record() as lines:
        torch.ops.npu.npu_rms_norm(x, weight, 1e-6)
        x.t().float()
    assert lines[0] == "RmsNorm(bfloat16[4,64], bfloat16[64], eps=1e-06, bfloat16[4,64], float32[4,1])"
    assert lines[1].endswith("bfloat16[64,4]~)")  # the tilde: not contiguous
    assert torch.equal(torch.arange(6.0).view(2, 3).to(emulated).t().contiguous().cpu(), torch.arange(6.0).view(2, 3).T)


def test_more_than_a_device_has_is_an_error(emulated):
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(10**12, dtype=torch.uint8, device=emulated)


def test_outputs_of_unknown_size(emulated):
    x = torch.tensor([[0, 3, 0], [4, 0, 5]]).to(emulated)
    assert torch.nonzero(x).tolist() == [[0, 1], [1, 0], [1, 2]]
    assert x[x > 3].tolist() == [4, 5]


def test_two_dtypes_of_scalars_and_arrays(emulated):
    x = torch.arange(12, dtype=torch.bfloat16).view(3, 4).to(emulated)
    assert (x * 1.5 + 2).sum(dim=[0, 1]).item() == 123
    assert x.amax((0,)).tolist() == [8, 9, 10, 11]


def test_an_order_of_its_own(emulated):
    """FRACTAL_NZ: tiles of 16 rows and 32 bytes; a column of tiles lies together. The matrix stays what it was."""
    from tests.fakecann.fractal import fold, unfold

    x = torch.arange(40 * 70).view(40, 70).to(torch.int8)
    tiles = fold(x, torch.empty(3, 3, 16, 32))
    assert tiles[1, 2, 3, 4] == x[2 * 16 + 3, 32 + 4]
    assert torch.equal(unfold(tiles)[:40, :70], x)
    torch.npu.config.allow_internal_format = True  # without it, 910 keeps rows and columns
    ordered = torch.ops.npu.npu_format_cast(x.to(emulated), 29)
    torch.npu.config.allow_internal_format = False
    assert torch.ops.npu.get_npu_format(ordered) == 29
    assert ordered.shape == x.shape
    assert torch.equal(torch.ops.npu.npu_format_cast(ordered, 2).cpu(), x)
    with pytest.raises(RuntimeError, match=r"aclop, which is not emulated|do not support internal format"):
        ordered.zero_()


@pytest.mark.skipif(missing() is not None, reason=f"cannot emulate CANN here: {missing()}")
def test_the_older_way_to_run_operators_says_that_it_is_not_there():
    """Before CANN 9.1 a cast goes through aclop: what is not computed must not look as if it were."""
    code = """
import torch, torch_npu
torch.npu.config.allow_internal_format = True
torch_npu.npu_format_cast(torch.ones(32, 64, dtype=torch.int8).to("npu"), 29).cpu()
"""
    variables = {**environment("Ascend910B3"), "FAKECANN_VERSION": "9.0.0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode != 0
    assert "was asked for as aclop, which is not emulated" in done.stderr


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, None),
        ({"scale": (2, 1)}, "both transposed, or both not|transpose are not same"),
        ({"rows": (4, 2)}, r"\[M, K / 128\]"),
        ({"groups": [1, 1, 32]}, "E8M0"),
        ({"groups": [128, 128, 128]}, "group_sizes are"),
    ],
)
def test_products_of_blocks_refuse_what_does_not_fit(soc, change, word):
    """Mode G-B of 950: [1, 128, 128], scales [M, K / 128] and [K / 128, N / 128], transposed like the weight."""
    x, weight = torch.ones(3, 256).to(torch.float8_e4m3fn), torch.ones(384, 256).to(torch.float8_e4m3fn)
    rows, scale = torch.ones(change.get("rows", (3, 2))), torch.ones(3, 2).t()
    if "scale" in change:
        scale = torch.ones(2, 3)
    arguments = [t.to("npu") for t in (x, weight)]
    call = partial(
        torch.ops.npu.npu_quant_matmul, arguments[0], arguments[1].t(), scale.t().to("npu").t(),
        pertoken_scale=rows.to("npu"), output_dtype=torch.bfloat16, group_sizes=change.get("groups", [1, 128, 128]),
    )  # fmt: skip
    if not soc.startswith("Ascend950"):
        word = "INT8 on this chip" if "scale" not in change else word
    if word is None:
        assert call().shape == (3, 384)
        assert float(call()[0, 0]) == 256
        return
    if "scale" in change:
        call = partial(call.func, call.args[0], call.args[1], scale.to("npu"), **call.keywords)
    with pytest.raises(RuntimeError, match=word):
        call()


def test_commands_are_not_looked_into():
    own, command = split_arguments(["--soc", "X", "-m", "tiefsee", "run", "--device", "npu"])
    assert own == ["--soc", "X"]
    assert command[1:] == ["-m", "tiefsee", "run", "--device", "npu"]
    assert split_arguments(["--trace", "t", "--", "ls", "-m"]) == (["--trace", "t"], ["ls", "-m"])


@pytest.mark.skipif(missing() is not None, reason=f"cannot emulate CANN here: {missing()}")
def test_the_libraries_are_those_that_the_wheel_names():
    folder = Path(environment()["LD_LIBRARY_PATH"].split(":")[0])
    assert {f.name for f in folder.glob("lib*.so")} >= {"libascendcl.so", "libhccl.so", "libopapi.so"}
    assert len((folder / "names.c").read_text().splitlines()) > 800


def test_the_emulator_knows_nothing_of_tiefsee():
    """What it computes is no second look at the same code."""
    for file in Path(__file__).parents[1].joinpath("fakecann").glob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        modules = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        modules += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 0]
        assert not [m for m in modules if m.split(".")[0] in ("tiefsee", "tests")], file


@pytest.mark.parametrize(
    ("lacking", "answer", "word"),
    [
        ("platform.machine", "aarch64", "x86-64, this is Linux on aarch64"),
        ("shutil.which", None, "not installed: gcc, nm, readelf, strings"),
        ("importlib.util.find_spec", None, "torch_npu is not installed"),
    ],
)
def test_where_nothing_can_be_emulated_it_says_why(monkeypatch, lacking, answer, word):
    for name, there in (("platform.machine", "x86_64"), ("shutil.which", "gcc"), ("importlib.util.find_spec", "here")):
        monkeypatch.setattr(name, lambda *_, found=answer if name == lacking else there: found)
    assert word in (missing() or "")


def test_no_source_of_cann_is_used():
    """Our C files include the C library alone."""
    for file in Path(__file__).parents[1].joinpath("fakecann").glob("*.c"):
        assert not re.search(r'#include "|#include <(acl|hccl|aclnn)', file.read_text()), file
