"""Asking for an Ascend card: from the command line to text, and one clear error for each thing that can be missing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.ascend.conftest import EMULATED
from tests.ascend.models import save_checkpoint
from tests.fakecann import environment, missing
from tiefsee.files import bundled_models

HAS_TORCH_NPU = importlib.util.find_spec("torch_npu") is not None
ON_HARDWARE = not EMULATED and "ASCEND_HOME_PATH" in os.environ
has_torch_npu = pytest.mark.skipif(not HAS_TORCH_NPU, reason="torch_npu is not installed: run `make ascend-emulated`")
needs_emulator = pytest.mark.skipif(ON_HARDWARE, reason="on a card nothing is emulated")
emulates = pytest.mark.skipif(
    ON_HARDWARE or missing() is not None, reason=f"cannot emulate CANN here: {missing() or 'CANN is installed'}"
)
BUNDLED = "tiefsee-demo"
needs_bundled = pytest.mark.skipif(BUNDLED not in bundled_models(), reason="the bundled model is not in this checkout")
PROMPT = ("Once upon a time", "--max-tokens", "8", "--temperature", "0")


def tiefsee(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tiefsee", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=variables)


def without_cann() -> dict[str, str]:
    """This process's environment without the emulated CANN, real or not found."""
    left_out = ("LD_LIBRARY_PATH", "TORCH_DEVICE_BACKEND_AUTOLOAD", "ASCEND_HOME_PATH")
    return {k: v for k, v in os.environ.items() if k not in left_out and not k.startswith("FAKECANN_")}


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error; torch_npu's own warnings stand before it."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("tiefsee: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.skipif(HAS_TORCH_NPU, reason="torch_npu is installed")
def test_without_torch_npu():
    line = error_of(tiefsee("run", *PROMPT, "--device", "npu", **os.environ))
    assert "needs torch_npu, which is not installed; pip install 'tiefsee[ascend]'" in line
    assert "CANN" in line


@has_torch_npu
@needs_bundled
@needs_emulator
def test_with_torch_npu_and_without_cann():
    """`import torch` alone fails on such a machine; the CPU works all the same."""
    import_torch = subprocess.run(
        [sys.executable, "-c", "import torch"], capture_output=True, text=True, check=False, env=without_cann()
    )
    assert import_torch.returncode != 0
    line = error_of(tiefsee("run", *PROMPT, "--device", "npu", **without_cann()))
    assert "torch_npu is installed but does not load: libhccl.so" in line
    assert "It needs CANN" in line
    assert "set_env.sh (ASCEND_HOME_PATH is not set)" in line
    assert tiefsee("run", *PROMPT, **without_cann()).returncode == 0
    llm = "from tiefsee import LLM; LLM('tiefsee-demo', device='npu')"
    done = subprocess.run([sys.executable, "-c", llm], capture_output=True, text=True, check=False, env=without_cann())
    assert "DeviceError: torch_npu is installed but does not load" in done.stderr.splitlines()[-1]


@has_torch_npu
@emulates
@needs_bundled
@pytest.mark.parametrize("soc", ["Ascend910B3", "Ascend910_9391"])
def test_run_end_to_end(soc):
    """The bundled model on the emulated card says what it says on the CPU, and what of it is not fused."""
    on_npu = tiefsee("run", *PROMPT, "--device", "npu", **environment(soc, device_bytes=4_000_000_000))
    on_cpu = tiefsee("run", *PROMPT, **environment(soc))
    assert on_npu.returncode == 0, on_npu.stderr
    assert on_npu.stdout == on_cpu.stdout
    assert f"tiefsee: {soc}: attention is composed of plain operators, since" in on_npu.stderr
    assert "ended by length" in on_npu.stderr


@has_torch_npu
@emulates
@needs_bundled
@pytest.mark.parametrize(
    ("soc", "options", "word"),
    [
        ("Ascend910B3", ["--device", "npu:7"], "device 'npu:7' was asked for, and CANN sees 1: the last one is npu:0"),
        ("Ascend910B3", ["--device", "npux"], "'npux' is not supported; there are 'cpu', 'cuda', 'npu'"),
        ("Ascend910B3", ["--device", "ascend"], "'ascend' is not supported; there are 'cpu', 'cuda', 'npu'"),
        ("Ascend910B3", ["--device", "npu:x"], "not a device name"),
        ("Ascend310P3", ["--device", "npu"], "the card is a 'Ascend310P3'; tiefsee knows"),
    ],
)
def test_a_device_that_is_absent(soc, options, word):
    line = error_of(tiefsee("run", *PROMPT, *options, **environment(soc, device_bytes=4_000_000_000)))
    assert word in line


@has_torch_npu
@emulates
def test_no_card_and_too_small_a_card(tmp_path):
    folder = save_checkpoint("v3", "bfloat16", tmp_path / "m")
    arguments = ("run", str(folder), "x", "--device", "npu")
    assert "CANN sees no Ascend card; does `npu-smi info`" in error_of(tiefsee(*arguments, **environment(devices=0)))
    line = error_of(tiefsee(*arguments, **environment(device_bytes=1_000_000)))
    assert "the weights need" in line
    assert "npu:0 has 1 MB free" in line


@has_torch_npu
@emulates
@pytest.mark.parametrize(
    ("soc", "format", "word"),
    [
        ("Ascend910B3", "fp8", "Ascend910B3 has no FP8; needed int8 or bf16 (or auto: int8)"),
        ("Ascend910_9391", "fp4", "Ascend910_9391 has no FP8; needed int8 or bf16 (or auto: int8)"),
        ("Ascend950", "fp8", "format is 'fp8'; needed auto, keep (as published, FP8), bf16, fp16, fp32 or int8"),
        ("Ascend910B3", "int7", "format is 'int7'; needed auto, keep (as published, FP8), bf16, fp16, fp32 or int8"),
    ],
)
def test_a_format_that_is_absent(soc, format, word, tmp_path):
    from tests.ascend.test_engine import packed_checkpoint

    arguments = ("run", str(packed_checkpoint(tmp_path)), "x", "--device", "npu", "--format", format)
    assert word in error_of(tiefsee(*arguments, **environment(soc, device_bytes=4_000_000_000)))


@has_torch_npu
@emulates
def test_scales_that_are_missing(tmp_path):
    from tests.ascend.test_engine import packed_checkpoint

    def drop(tensors):
        del tensors["model.layers.0.self_attn.o_proj.weight_scale_inv"]

    folder = packed_checkpoint(tmp_path, drop)
    line = error_of(tiefsee("run", str(folder), "x", "--device", "npu", **environment(device_bytes=4_000_000_000)))
    assert "model.layers.0.self_attn.o_proj.weight is FP8 and has no scale beside it" in line
