"""The emulated CANN itself: what it says, what it writes down, and that it hides nothing."""

from __future__ import annotations

import re
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


def test_no_source_of_cann_is_used():
    """Our C files include the C library alone."""
    for file in Path(__file__).parents[1].joinpath("fakecann").glob("*.c"):
        assert not re.search(r'#include "|#include <(acl|hccl|aclnn)', file.read_text()), file
